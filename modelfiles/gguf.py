"""GGUF: the single-file format of llama.cpp and Ollama, read from a memory map.

`GGUFFile.open` checks everything that the file says about itself before any tensor is read (modelfiles.gguf_header);
whatever is wrong becomes one GGUFError with the file's name in it. Values come as plain Python values, arrays as lists;
whether the keys make a model is for engine.config to say. One model over several files
("model-00001-of-00003.gguf") is put together by `open_shards`.
Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from modelfiles.file_map import close_map, map_file
from modelfiles.gguf_header import HeaderReader
from modelfiles.gguf_types import (
    BLOCK_LAYOUT,
    GGMLType,
    GGUFError,
    GGUFTensor,
    GGUFType,
    GGUFValue,
    tensor_num_bytes,
)
from modelfiles.gguf_writer import NewTensor, write_gguf

__all__ = [
    "BLOCK_LAYOUT",
    "GGMLType",
    "GGUFError",
    "GGUFFile",
    "GGUFModel",
    "GGUFTensor",
    "GGUFType",
    "GGUFValue",
    "NewTensor",
    "open_shards",
    "tensor_num_bytes",
    "write_gguf",
]


class GGUFFile:
    """An open file. A context manager; views from `data` keep the map alive past its end."""

    def __init__(
        self,
        path: Path,
        mapped: mmap.mmap,
        metadata: dict[str, GGUFValue],
        types: dict[str, GGUFType],
        tensors: dict[str, GGUFTensor],
        version: int,
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.types = types
        """The type of each value, of the elements where the value is a list: what a copy must write again."""
        self.tensors = tensors
        self.version = version
        self._map = mapped

    @classmethod
    def open(cls, path: Path) -> GGUFFile:
        """Map a file and check all that it says about itself.

        Raises:
            GGUFError: it cannot be opened or anything in it is wrong.
        """
        mapped = _map(path)
        try:
            reader = HeaderReader(mapped, path.name)
            version, num_tensors, num_entries = reader.header()
            metadata, types = reader.metadata(num_entries)
            tensors = reader.tensors(num_tensors, reader.alignment(metadata, types))
        except BaseException:
            close_map(mapped)
            raise
        return cls(path, mapped, metadata, types, tensors, version)

    def data(self, name: str) -> memoryview:
        """The bytes of a tensor, as they lie in the file: a read-only view, no copy.

        Raises:
            KeyError: there is no such tensor.
        """
        tensor = self.tensors[name]
        return memoryview(self._map)[tensor.offset : tensor.offset + tensor.num_bytes]

    def close(self) -> None:
        close_map(self._map)

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class GGUFModel:
    """The files of one model as if they were one: metadata of the first, tensors of all."""

    def __init__(self, files: tuple[GGUFFile, ...]) -> None:
        self.files = files
        self.metadata = files[0].metadata
        self.types = files[0].types
        self.tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
        self._file_of = {name: file for file in files for name in file.tensors}

    def data(self, name: str) -> memoryview:
        """The bytes of a tensor; see GGUFFile.data."""
        return self._file_of[name].data(name)

    def close(self) -> None:
        for file in self.files:
            file.close()

    def __enter__(self) -> GGUFModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_shards(paths: Sequence[Path]) -> GGUFModel:
    """Open one model's files, in any order; a single file that was never split is the common case.

    Raises:
        GGUFError: a file is wrong, a shard is missing or comes twice, or a tensor is in two of them.
    """
    if not paths:
        raise GGUFError("no GGUF file was given")
    files: list[GGUFFile] = []
    try:
        for path in paths:
            files.append(GGUFFile.open(path))
        return GGUFModel(_in_order(files))
    except BaseException:
        for file in files:
            file.close()
        raise


def _in_order(files: list[GGUFFile]) -> tuple[GGUFFile, ...]:
    if len(files) == 1 and files[0].metadata.get("split.count", 1) in (0, 1):
        return tuple(files)
    by_number: dict[int, GGUFFile] = {}
    for file in files:
        count, number = file.metadata.get("split.count"), file.metadata.get("split.no")
        if not _is_count(count) or not _is_count(number):
            raise GGUFError(f"{file.path.name} is no shard: it has no split.count and split.no, and came with others")
        if count != len(files):
            raise GGUFError(f"{file.path.name} is one of {count} shards, but {len(files)} files were given")
        assert isinstance(number, int)
        if number in by_number or number >= len(files):
            raise GGUFError(f"{file.path.name} says it is shard {number}, but so many are not there or it comes twice")
        by_number[number] = file
    ordered = tuple(by_number[number] for number in range(len(files)))
    names: dict[str, str] = {}
    for file in ordered:
        for name in file.tensors:
            if name in names:
                raise GGUFError(f'the tensor "{name}" is both in {names[name]} and in {file.path.name}')
            names[name] = file.path.name
    expected = ordered[0].metadata.get("split.tensors.count", len(names))
    if expected != len(names):
        raise GGUFError(f"{ordered[0].path.name} promises {expected} tensors in all shards, which hold {len(names)}")
    return ordered


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _map(path: Path) -> mmap.mmap:
    try:
        return map_file(path)
    except OSError as error:
        raise GGUFError(f"{path.name} cannot be opened: {error.strerror}") from error
    except ValueError as error:
        raise GGUFError(f"{path.name} {error}, so it cannot be a GGUF file") from error
