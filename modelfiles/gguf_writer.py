"""Writing a GGUF file: metadata, then tensors one after the other, so that at most a piece of one is in memory.

Used by quantising and converting at `create`, by the built-in model's build and by tests. Writes version 3. Making the
write atomic is the store's business.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from modelfiles.gguf_types import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    SCALAR_FORMAT,
    GGMLType,
    GGUFError,
    GGUFScalar,
    GGUFType,
    GGUFValue,
    align,
    tensor_num_bytes,
)

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written; `data` may be a function, which is called when its turn has come, and may give pieces."""

    name: str
    shape: tuple[int, ...]
    """Outermost first, as in torch."""
    type: GGMLType
    data: Bytes | Callable[[], Bytes | Iterable[Bytes]]


def write_gguf(
    path: Path,
    metadata: Mapping[str, GGUFValue],
    tensors: Sequence[NewTensor],
    *,
    types: Mapping[str, GGUFType] | None = None,
) -> None:
    """Write a file, over what is at `path`.

    Args:
        metadata: values in the order of the file; `general.alignment` says how tensors are aligned.
        types: types of values (of elements, for lists) that must not be guessed; GGUFFile.types of another file fits.
            Without one an int becomes the first of uint32, int32, uint64, int64 that holds it, a float float32.

    Raises:
        GGUFError: a value fits no type, or a tensor's bytes are not as many as its shape says.
    """
    alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise GGUFError(f"{ALIGNMENT_KEY} is {alignment!r}; it must be a power of two from 8")
    known = dict(types or {})
    header = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        header += _entry(key, value, known.get(key))
    offset, sizes = 0, []
    for tensor in tensors:
        size = _num_bytes(tensor)
        sizes.append(size)
        shape = tensor.shape[::-1]
        header += [
            _string(tensor.name),
            struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.type, offset),
        ]
        offset = align(offset + size, alignment)
    with path.open("wb") as file:
        head = b"".join(header)
        file.write(head + bytes(align(len(head), alignment) - len(head)))
        for tensor, size in zip(tensors, sizes, strict=True):
            _write_tensor(file, tensor, size)
            file.write(bytes(align(size, alignment) - size))


def _write_tensor(file: BinaryIO, tensor: NewTensor, size: int) -> None:
    data = tensor.data() if callable(tensor.data) else tensor.data
    num_written = 0
    for piece in [data] if isinstance(data, bytes | bytearray | memoryview) else data:
        view = memoryview(piece).cast("B")
        num_written += len(view)
        if num_written <= size:
            file.write(view)
    if num_written != size:
        raise GGUFError(f'the tensor "{tensor.name}" has {num_written} bytes, but its shape takes {size}')


def _num_bytes(tensor: NewTensor) -> int:
    if not tensor.shape or min(tensor.shape) < 1:
        raise GGUFError(f'the tensor "{tensor.name}" has the shape {list(tensor.shape)}, which GGUF cannot hold')
    try:
        return tensor_num_bytes(tensor.shape, tensor.type)
    except ValueError as error:
        raise GGUFError(f'the tensor "{tensor.name}" {error}') from error


def _entry(key: str, value: GGUFValue, type: GGUFType | None) -> list[bytes]:
    try:
        if isinstance(value, list):
            type = _guess_type(value) if type is None else type
            head = struct.pack("<IIQ", GGUFType.ARRAY, type, len(value))
            return [_string(key), head, _array(value, type)]
        type = _guess_type([value]) if type is None else type
        return [_string(key), struct.pack("<I", type), _array([value], type)]
    except (struct.error, OverflowError, TypeError, AttributeError) as error:
        name = "a type" if type is None else type.name.lower()
        raise GGUFError(f'the value of "{key}" cannot be written as {name}: {error}') from error


def _guess_type(values: Sequence[GGUFScalar]) -> GGUFType:
    if not values:
        return GGUFType.INT32  # an empty list says nothing about its elements
    if all(isinstance(value, bool) for value in values):
        return GGUFType.BOOL
    if all(isinstance(value, str) for value in values):
        return GGUFType.STRING
    if any(isinstance(value, bool | str) for value in values):
        raise TypeError("it mixes types")
    if any(isinstance(value, float) for value in values):
        return GGUFType.FLOAT32
    numbers = [int(value) for value in values]
    for type, low, high in (
        (GGUFType.UINT32, 0, 2**32),
        (GGUFType.INT32, -(2**31), 2**31),
        (GGUFType.UINT64, 0, 2**64),
        (GGUFType.INT64, -(2**63), 2**63),
    ):
        if low <= min(numbers) and max(numbers) < high:
            return type
    raise OverflowError("it does not fit 64 bits")


def _array(values: Sequence[GGUFScalar], type: GGUFType) -> bytes:
    if type is GGUFType.STRING:
        if not all(isinstance(value, str) for value in values):
            raise TypeError("it is no string")
        return b"".join(_string(str(value)) for value in values)
    return struct.pack(f"<{len(values)}{SCALAR_FORMAT[type]}", *values)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
