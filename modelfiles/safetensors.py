"""safetensors: weights as Hugging Face publishes them, in one file or in shards with an index.

A file is a u64 header length, a JSON object of `name -> {dtype, shape, data_offsets}`, and the bytes. As in GGUF,
nothing is believed: lengths and offsets are compared with the file before anything is read by them, tensors must follow
each other without gap or overlap, and the index may name only files that are there under plain names. Pickles (.bin,
.pt, .pth, .ckpt) are refused: loading one runs code of its maker's choice.
Source: huggingface/safetensors README (Format) and its validation in Rust; transformers' `*.safetensors.index.json`.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from modelfiles.file_map import close_map, foreign_format, map_file

DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}

# A header of 60,000 tensors is 8 MB; the counts keep a small header from growing a thousandfold as Python objects.
MAX_HEADER_BYTES = 32 << 20
MAX_TENSORS = 1 << 17
MAX_COMMAS = 1 << 21
MAX_DIMENSIONS = 16
MAX_NAME_LENGTH = 1024

WHOLE_FILE = "model.safetensors"
INDEX_ENDING = ".safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]*\.safetensors")


class SafetensorsError(ValueError):
    """Files that are not safetensors Hob can trust. The message names the file and what is wrong."""


@dataclass(frozen=True)
class SafeTensor:
    """A tensor as its file describes it."""

    name: str
    dtype: str
    """One of DTYPE_BYTES."""
    shape: tuple[int, ...]
    num_bytes: int
    offset: int
    """Bytes from the start of the file."""


class SafetensorsFile:
    """One open file. A context manager; views from `data` keep the map alive past its end."""

    def __init__(self, path: Path, mapped: mmap.mmap, tensors: dict[str, SafeTensor], metadata: dict[str, str]) -> None:
        self.path = path
        self.tensors = tensors
        self.metadata = metadata
        self._map = mapped

    @classmethod
    def open(cls, path: Path, name: str = "") -> SafetensorsFile:
        """Map a file and check its header.

        Args:
            name: what the file's maker calls it, for messages; the path's last part without it.

        Raises:
            SafetensorsError: it cannot be opened or anything in it is wrong.
        """
        name = name or path.name
        mapped = _map(path, name)
        try:
            tensors, metadata = _read_header(mapped, name)
        except BaseException:
            close_map(mapped)
            raise
        return cls(path, mapped, tensors, metadata)

    def data(self, name: str) -> memoryview:
        """The bytes of a tensor: a read-only view, no copy.

        Raises:
            KeyError: there is no such tensor.
        """
        tensor = self.tensors[name]
        return memoryview(self._map)[tensor.offset : tensor.offset + tensor.num_bytes]

    def close(self) -> None:
        close_map(self._map)


class SafetensorsModel:
    """The tensors of one model, whether they lie in one file or in many. A context manager."""

    def __init__(self, files: dict[str, SafetensorsFile]) -> None:
        self.files = files
        self.tensors = {name: tensor for file in files.values() for name, tensor in file.tensors.items()}
        self._file_of = {name: file for file in files.values() for name in file.tensors}

    @classmethod
    def open(cls, files: Mapping[str, Path]) -> SafetensorsModel:
        """Open a model's weights among its files: by the index, or `model.safetensors`, or the only one there is.

        Args:
            files: the maker's file name -> path, as in ModelSource.files.

        Raises:
            SafetensorsError: no weights, a shard is missing or wrong, or a tensor is not where the index says.
        """
        index = _find_index(files)
        weight_map = _read_index(index, files) if index else {}
        names = sorted(set(weight_map.values())) if index else [_only_file(files)]
        opened: dict[str, SafetensorsFile] = {}
        try:
            for name in names:
                opened[name] = SafetensorsFile.open(files[name], name)
            _check_shards(opened, weight_map)
            return cls(opened)
        except BaseException:
            for file in opened.values():
                file.close()
            raise

    def data(self, name: str) -> memoryview:
        """The bytes of a tensor; see SafetensorsFile.data."""
        return self._file_of[name].data(name)

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def __enter__(self) -> SafetensorsModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


# ---- one file


def _map(path: Path, name: str) -> mmap.mmap:
    if name.endswith(PICKLES):
        raise SafetensorsError(f"{name} is a pickle, which can run code when it is loaded; convert it to safetensors")
    try:
        return map_file(path)
    except OSError as error:
        raise SafetensorsError(f"{name} cannot be opened: {error.strerror}") from error
    except ValueError as error:
        raise SafetensorsError(f"{name} {error}, so it cannot be a safetensors file") from error


def _read_header(data: mmap.mmap, name: str) -> tuple[dict[str, SafeTensor], dict[str, str]]:
    if len(data) < 8:
        raise SafetensorsError(f"{name} is cut short: it has {len(data)} bytes, and the header length alone takes 8")
    length: int = struct.unpack_from("<Q", data)[0]
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        if what := foreign_format(data):  # asked only here: the length word may look like any magic number
            raise SafetensorsError(f"{name} is not a safetensors file: it is {what}")
        raise SafetensorsError(
            f"{name} promises a header of {length} bytes; it has {len(data) - 8}, and {MAX_HEADER_BYTES} are allowed"
        )
    text = data[8 : 8 + length]
    if text.count(b"{") > MAX_TENSORS or text.count(b"[") > 2 * MAX_TENSORS or text.count(b",") > MAX_COMMAS:
        raise SafetensorsError(f"the header of {name} has more parts than any model; {MAX_TENSORS} tensors are allowed")
    header = _load_json(text, f"the header of {name}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SafetensorsError(f"__metadata__ in {name} is not an object of strings")
    data_start = 8 + length
    tensors = [_tensor(key, value, name, data_start) for key, value in header.items()]
    _check_layout(sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)), data_start, len(data), name)
    return {tensor.name: tensor for tensor in tensors}, metadata


def _tensor(key: str, value: object, name: str, data_start: int) -> SafeTensor:
    what = f"the tensor {key[:64]!r} in {name}"
    if not key or len(key) > MAX_NAME_LENGTH or not key.isprintable():
        raise SafetensorsError(f"{what} has a name that is empty, unprintable or longer than {MAX_NAME_LENGTH}")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise SafetensorsError(f"{what} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise SafetensorsError(f"{what} has the dtype {str(dtype)[:32]!r}; known are {', '.join(DTYPE_BYTES)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise SafetensorsError(f"{what} has a shape that is no list of at most {MAX_DIMENSIONS} counts")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise SafetensorsError(f"{what} has data_offsets that are no [begin, end]")
    num_bytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if num_bytes != offsets[1] - offsets[0]:
        raise SafetensorsError(
            f"{what} has {offsets[1] - offsets[0]} bytes, but {dtype} of shape {shape} takes {num_bytes}"
        )
    return SafeTensor(key, dtype, tuple(shape), num_bytes, data_start + offsets[0])


def _are_counts(value: object) -> bool:
    """Whether it is a list of integers that are not negative and fit 64 bits; JSON's true is an int in Python."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_layout(tensors: list[SafeTensor], data_start: int, size: int, name: str) -> None:
    """Tensors in the order of their offsets must fill the rest of the file exactly."""
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            problem = "overlaps the one before it" if tensor.offset < end else "leaves a gap before it"
            raise SafetensorsError(f'the tensor "{tensor.name}" in {name} {problem} (byte {tensor.offset})')
        end += tensor.num_bytes
    if end != size:
        problem = "it is cut short" if end > size else "the rest belongs to no tensor"
        raise SafetensorsError(f"the tensors of {name} end at byte {end}, but the file at byte {size}: {problem}")


# ---- the index


def _find_index(files: Mapping[str, Path]) -> str | None:
    indexes = sorted(name for name in files if name.endswith(INDEX_ENDING))
    if len(indexes) > 1 and WHOLE_FILE + ".index.json" in indexes:
        return WHOLE_FILE + ".index.json"
    if len(indexes) > 1:
        raise SafetensorsError(f"there are several indexes ({', '.join(indexes)}); a model has one")
    return indexes[0] if indexes and WHOLE_FILE not in files else None


def _only_file(files: Mapping[str, Path]) -> str:
    names = sorted(name for name in files if name.endswith(".safetensors"))
    if WHOLE_FILE in names:
        return WHOLE_FILE
    if len(names) == 1:
        return names[0]
    if names:
        raise SafetensorsError(f"there are {len(names)} safetensors files and no {WHOLE_FILE}.index.json to join them")
    pickles = sorted(name for name in files if name.endswith(PICKLES))
    if pickles:
        raise SafetensorsError(
            f"{pickles[0]} is a pickle, which can run code when it is loaded; convert it to safetensors"
        )
    raise SafetensorsError("there is no .safetensors file")


def _read_index(index: str, files: Mapping[str, Path]) -> dict[str, str]:
    """The index's tensor name -> file name."""
    mapped = _map(files[index], index)
    try:
        if len(mapped) > MAX_HEADER_BYTES:
            raise SafetensorsError(f"{index} has {len(mapped)} bytes; {MAX_HEADER_BYTES} are allowed")
        text = mapped[:]
    finally:
        close_map(mapped)
    if text.count(b"{") > MAX_TENSORS or text.count(b"[") > MAX_TENSORS or text.count(b",") > MAX_COMMAS:
        raise SafetensorsError(f"{index} has more parts than any model; {MAX_TENSORS} tensors are allowed")
    weight_map = _load_json(text, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SafetensorsError(f"{index} has no weight_map of tensor names to files")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name) or ".." in name:
            raise SafetensorsError(
                f"{index} puts the tensor {tensor[:64]!r} into {str(name)[:64]!r}, which is no plain file name"
            )
        if name not in files:
            raise SafetensorsError(f"{index} names the shard {name}, which is missing")
    return weight_map


def _check_shards(opened: Mapping[str, SafetensorsFile], weight_map: Mapping[str, str]) -> None:
    """Every tensor once, and where the index says. A tensor that the index forgets is used all the same."""
    found: dict[str, str] = {}
    for name, file in opened.items():
        for tensor in file.tensors:
            if tensor in found:
                raise SafetensorsError(f"the tensor {tensor[:64]!r} is both in {found[tensor]} and in {name}")
            found[tensor] = name
    for tensor, name in weight_map.items():
        if found.get(tensor) != name:
            where = f"it is in {found[tensor]}" if tensor in found else "no shard has it"
            raise SafetensorsError(f"the index puts the tensor {tensor[:64]!r} into {name}, but {where}")


# ---- JSON


def _load_json(text: bytes, what: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = counts.most_common(1)[0][0]
            raise SafetensorsError(f"{what} has the key {twice[:64]!r} twice")
        return result

    try:
        value = json.loads(text.decode(), object_pairs_hook=unique)
    except RecursionError as error:
        raise SafetensorsError(f"{what} is nested too deeply") from error
    except SafetensorsError:
        raise
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise SafetensorsError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SafetensorsError(f"{what} is not a JSON object")
    return value
