"""Which QuantMethod keeps a matrix: by its type, its shape and where it goes. Asked by `execution.weights`.

The same answer serves loading and the memory plan, which knows matrices from a file's table only (`Matrix`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from engine.quantization import int4_op, packed
from engine.quantization.base import Dense, QuantMethod
from engine.quantization.checkpoint import PLAIN_DTYPES, Destination
from engine.quantization.int4_cpu import Int4Packed, Int8Packed, code_bits
from engine.quantization.packed import Packed
from engine.quantization.quantized_tensor import CheckpointMatrix, QuantizedTensor, StoredType
from engine.quantization.rounded import Rounded


class StoredMatrix(Protocol):
    """What the choice depends on; a CheckpointTensor and a QuantizedTensor have it."""

    @property
    def type(self) -> StoredType: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_columns(self) -> int: ...


@dataclass(frozen=True)
class Matrix:
    """A matrix as a file's table of tensors describes it."""

    type: StoredType
    num_rows: int
    num_columns: int


def method_of(matrix: StoredMatrix, destination: Destination) -> type[QuantMethod]:
    """The method that keeps a matrix of this type and shape there."""
    if destination.device.type == "cpu":
        return _cpu_method(matrix, destination)
    return Packed if packed.misfit(matrix.type, matrix.num_rows, matrix.num_columns, destination) is None else Dense


def segments_from_checkpoint(tensors: Sequence[CheckpointMatrix], destination: Destination) -> tuple[QuantMethod, ...]:
    """A Linear's matrices: one segment for each run of tensors that the same method keeps."""
    return tuple(
        method.from_checkpoint(tensors[start:stop], destination) for method, start, stop in _runs(tensors, destination)
    )


def segments_bytes(matrices: Sequence[StoredMatrix], destination: Destination) -> int:
    """What `segments_from_checkpoint` will hold."""
    return sum(
        method.stored_bytes(
            matrices[start].type,
            sum(matrix.num_rows for matrix in matrices[start:stop]),
            matrices[start].num_columns,
            destination,
        )
        for method, start, stop in _runs(matrices, destination)
    )


def _cpu_method(matrix: StoredMatrix, destination: Destination) -> type[QuantMethod]:
    type, weight_dtype = matrix.type, destination.weight_dtype
    is_rounded = type in PLAIN_DTYPES and weight_dtype is not None
    # In float32, the measure that other paths are compared with, nothing is rounded but what shall be.
    is_packable = destination.dtype == torch.bfloat16 and matrix.num_columns % int4_op.GROUP == 0
    if is_packable and int4_op.layout() is not None:
        bits = 8 if is_rounded and weight_dtype == torch.int8 else code_bits(type, matrix.num_columns)
        if bits is not None:
            return Int4Packed if bits == 4 else Int8Packed
    return Rounded if is_rounded else Dense


def _runs(matrices: Sequence[StoredMatrix], destination: Destination) -> Iterator[tuple[type[QuantMethod], int, int]]:
    """(method, start, stop) of consecutive matrices that lie in one segment."""
    methods = [method_of(matrix, destination) for matrix in matrices]
    start = 0
    for stop in range(1, len(matrices) + 1):
        method = methods[start]
        is_end = stop == len(matrices) or methods[stop] is not method
        if is_end or not (method.mixes_types or _can_join(matrices[start], matrices[stop])):
            yield method, start, stop
            start = stop


def _can_join(one: StoredMatrix, other: StoredMatrix) -> bool:
    """Whether one segment of a method that mixes no types can have both."""
    if one.type != other.type:
        return False
    if not isinstance(one, QuantizedTensor) or not isinstance(other, QuantizedTensor):
        return True
    mine, others = one.group_of_column(), other.group_of_column()
    if mine is None or others is None:
        return mine is others
    return torch.equal(mine, others)
