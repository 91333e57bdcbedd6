"""The header of a GGUF file: everything before the tensors, where every lie can be told.

Called by modelfiles.gguf alone. Nothing in the file is believed: each count, length, type, dimension and offset is
compared with the bytes that are really there, in Python's unbounded integers, before anything is allocated by it.
Versions 2 and 3 are the same to a reader; version 1 had 32-bit counts and big-endian files have other bytes, and both
are refused.

    header    "GGUF"  u32 version  u64 number of tensors  u64 number of metadata entries
    metadata  key, u32 type, value                     (a string is a u64 length and UTF-8)
    tensors   name, u32 dimensions, u64 each, u32 type, u64 offset
    data      from the next multiple of general.alignment; offsets count from here

Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import struct

from modelfiles.file_map import foreign_format
from modelfiles.gguf_types import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    SCALAR_FORMAT,
    GGMLType,
    GGUFError,
    GGUFTensor,
    GGUFType,
    GGUFValue,
    align,
    tensor_num_bytes,
)

MAGIC = b"GGUF"
VERSIONS = (2, 3)

# Limits far above any file that exists and far below what would hurt.
MAX_METADATA_ENTRIES = 1 << 16
MAX_TENSORS = 1 << 17
MAX_KEY_BYTES = 65_535  # the format's own limit
MAX_NAME_BYTES = 255  # ggml takes 63; names of other makers' tensors are longer
MAX_STRING_BYTES = 64 << 20  # some files carry a whole tokenizer.json in one value
MAX_ARRAY_STRING_BYTES = 1 << 16  # a token, a merge
MAX_ARRAY_ELEMENTS = 1 << 23
MAX_TOTAL_ELEMENTS = 1 << 24
MAX_DIMENSIONS = 4
ALIGNMENTS = tuple(1 << power for power in range(3, 17))
MIN_ENTRY_BYTES = 8 + 1 + 4 + 1
MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")
TYPES = {int(type): type for type in GGUFType}
TENSOR_TYPES = {int(type): type for type in GGMLType}


class HeaderReader:
    """A cursor over the file's bytes; each method leaves it behind what it has read."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data = data
        self.size = len(data)
        self.position = 0
        self.name = name
        self.elements_left = MAX_TOTAL_ELEMENTS

    def error(self, message: str) -> GGUFError:
        return GGUFError(f"{self.name}: {message}")

    def need(self, num_bytes: int, what: str) -> int:
        """Move past the next bytes and return where they start, or refuse when they are not there."""
        start = self.position
        if num_bytes > self.size - start:
            raise self.error(
                f"{what} needs {num_bytes} bytes at byte {start}, but the file ends after {self.size - start}"
            )
        self.position = start + num_bytes
        return start

    def u32(self, what: str) -> int:
        value: int = U32.unpack_from(self.data, self.need(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = U64.unpack_from(self.data, self.need(8, what))[0]
        return value

    def string(self, what: str, max_bytes: int) -> str:
        length = self.u64(f"the length of {what}")
        if length > max_bytes:
            raise self.error(f"{what} has {length} bytes; at most {max_bytes} are allowed")
        start = self.need(length, what)
        try:
            return str(self.data[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8 (byte {start + error.start} of the file)") from error

    def name_string(self, what: str, max_bytes: int) -> str:
        """A key or a tensor's name: not empty, and nothing that could confuse a terminal or a C program."""
        name = self.string(what, max_bytes)
        if not name or not name.isprintable():
            raise self.error(f"{what} is empty" if not name else f"{what} has unprintable characters: {name[:64]!r}")
        return name

    def header(self) -> tuple[int, int, int]:
        """Version, number of tensors, number of metadata entries."""
        magic = self.data[self.need(4, "the magic number") : 4]
        if magic != MAGIC:
            if what := foreign_format(self.data):
                raise self.error(f"not a GGUF file: it is {what}")
            raise self.error(f"not a GGUF file: it begins with {magic!r} instead of {MAGIC!r}")
        version = self.u32("the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in (1, *VERSIONS):
                raise self.error("the file is big-endian; convert it to little-endian first")
            raise self.error(f"GGUF version {version} is not supported; versions 2 and 3 are")
        counts = []
        for what, limit, least in (
            ("tensors", MAX_TENSORS, MIN_TENSOR_BYTES),
            ("metadata entries", MAX_METADATA_ENTRIES, MIN_ENTRY_BYTES),
        ):
            count = self.u64(f"the number of {what}")
            if count > min(limit, (self.size - self.position) // least):
                raise self.error(f"the header promises {count} {what}, more than the file or Hob can hold")
            counts.append(count)
        return version, counts[0], counts[1]

    def metadata(self, num_entries: int) -> tuple[dict[str, GGUFValue], dict[str, GGUFType]]:
        values: dict[str, GGUFValue] = {}
        types: dict[str, GGUFType] = {}
        for index in range(num_entries):
            key = self.name_string(f"the key of metadata entry {index}", MAX_KEY_BYTES)
            if key in values:
                raise self.error(f'the metadata key "{key[:64]}" comes twice')
            what = f'the value of "{key[:64]}"'
            type = self.value_type(what)
            if type is GGUFType.ARRAY:
                type = self.value_type(f"an element of {what}")
                values[key] = self.array(type, what)
            elif type is GGUFType.STRING:
                values[key] = self.string(what, MAX_STRING_BYTES)
            else:
                values[key] = self.scalar(type, what)
            types[key] = type
        return values, types

    def value_type(self, what: str) -> GGUFType:
        number = self.u32(f"the type of {what}")
        if number not in TYPES:
            raise self.error(f"{what} is of type {number}; GGUF has the types 0 to {max(TYPES)}")
        return TYPES[number]

    def scalar(self, type: GGUFType, what: str) -> bool | int | float:
        packer = struct.Struct("<" + SCALAR_FORMAT[type])
        value: int | float = packer.unpack_from(self.data, self.need(packer.size, what))[0]
        if type is GGUFType.BOOL:
            return bool(self.check_bools([int(value)], what)[0])
        return value

    def array(self, type: GGUFType, what: str) -> list[bool] | list[int] | list[float] | list[str]:
        count = self.u64(f"the length of {what}")
        if type is GGUFType.ARRAY:
            raise self.error(f"{what} is an array of arrays, which no model has")
        least = 8 if type is GGUFType.STRING else struct.calcsize("<" + SCALAR_FORMAT[type])
        if count > min(MAX_ARRAY_ELEMENTS, self.elements_left, (self.size - self.position) // least):
            raise self.error(f"{what} promises {count} elements, more than the rest of the file or Hob can hold")
        self.elements_left -= count
        if type is GGUFType.STRING:
            return self.strings(count, what)
        start = self.need(count * least, what)
        numbers = list(struct.unpack_from(f"<{count}{SCALAR_FORMAT[type]}", self.data, start))
        return self.check_bools(numbers, what) if type is GGUFType.BOOL else numbers

    def strings(self, count: int, what: str) -> list[str]:
        """An array of strings. Vocabularies have 150,000, hence the plain loop; where it stumbles, the careful
        reader goes over the array again and finds the words for what is wrong."""
        data, size, position = self.data, self.size, self.position
        unpack = U64.unpack_from
        strings: list[str] = []
        append = strings.append
        with contextlib.suppress(struct.error, UnicodeDecodeError):
            for _ in range(count):
                start = position + 8
                length = unpack(data, position)[0]
                position = start + length
                if length > MAX_ARRAY_STRING_BYTES or position > size:
                    break
                append(str(data[start:position], "utf-8"))
            else:
                self.position = position
                return strings
        return [self.string(f"element {index} of {what}", MAX_ARRAY_STRING_BYTES) for index in range(count)]

    def check_bools(self, numbers: list[int], what: str) -> list[bool]:
        if any(number > 1 for number in numbers):
            raise self.error(f"{what} is a boolean of {max(numbers)}; only 0 and 1 are allowed")
        return [number == 1 for number in numbers]

    def alignment(self, metadata: dict[str, GGUFValue], types: dict[str, GGUFType]) -> int:
        value = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
        if types.get(ALIGNMENT_KEY, GGUFType.UINT32) is not GGUFType.UINT32 or value not in ALIGNMENTS:
            raise self.error(
                f"{ALIGNMENT_KEY} is {str(value)[:64]!r}; it must be a uint32 and a power of two "
                f"from {ALIGNMENTS[0]} to {ALIGNMENTS[-1]}"
            )
        assert isinstance(value, int)
        return value

    def tensors(self, num_tensors: int, alignment: int) -> dict[str, GGUFTensor]:
        infos = [self.tensor_info(index, alignment) for index in range(num_tensors)]
        data_start = align(self.position, alignment)
        tensors: dict[str, GGUFTensor] = {}
        for tensor in infos:
            if tensor.name in tensors:
                raise self.error(f'the tensor "{tensor.name}" comes twice')
            offset = data_start + tensor.offset
            if offset + tensor.num_bytes > self.size:
                raise self.error(
                    f'the tensor "{tensor.name}" ends at byte {offset + tensor.num_bytes}, '
                    f"but the file ends at byte {self.size}; it may be cut short"
                )
            tensors[tensor.name] = GGUFTensor(tensor.name, tensor.shape, tensor.type, offset, tensor.num_bytes)
        end, before = 0, ""
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self.error(f'the tensors "{before}" and "{tensor.name}" overlap at byte {tensor.offset}')
            end, before = tensor.offset + tensor.num_bytes, tensor.name
        return tensors

    def tensor_info(self, index: int, alignment: int) -> GGUFTensor:
        """One description; its offset still counts from the start of the data."""
        name = self.name_string(f"the name of tensor {index}", MAX_NAME_BYTES)
        what = f'the tensor "{name}"'
        num_dimensions = self.u32(f"the number of dimensions of {what}")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise self.error(f"{what} has {num_dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed")
        shape = tuple(self.u64(f"a dimension of {what}") for _ in range(num_dimensions))[::-1]
        if 0 in shape or math.prod(shape) >= 1 << 63:
            raise self.error(f"{what} has the impossible shape {list(shape)}")
        number = self.u32(f"the type of {what}")
        if number not in TENSOR_TYPES:
            raise self.error(f"{what} is of type {number}, which is unknown or was removed from ggml")
        type = TENSOR_TYPES[number]
        try:
            num_bytes = tensor_num_bytes(shape, type)
        except ValueError as error:
            raise self.error(f"{what} {error}") from error
        offset = self.u64(f"the offset of {what}")
        if offset % alignment:
            raise self.error(f"{what} starts at offset {offset}, which is not a multiple of {alignment}")
        return GGUFTensor(name, shape, type, offset, num_bytes)
