"""Rounded: unquantised weights as 8 bits would make them, kept in floating point.

For a CPU that has no product with what was asked for: answers are those of a GPU that has it, memory and time those of
unquantised weights. Chosen by `selection`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from engine.quantization.base import Dense
from engine.quantization.checkpoint import CheckpointTensor, Destination
from engine.quantization.quantized_tensor import CheckpointMatrix, quantized_rows


class Rounded(Dense):
    """Floating-point weights on a CPU, each row of which has 8 bits and a scale."""

    mixes_types: ClassVar[bool] = True

    @classmethod
    def from_checkpoint(cls, tensors: Sequence[CheckpointMatrix], destination: Destination) -> Rounded:
        assert destination.weight_dtype is not None, "selection asks first"
        assert destination.stager is None, "a GPU keeps the codes"
        weight = cls.empty(sum(tensor.num_rows for tensor in tensors), tensors[0].num_columns, destination)
        first = 0
        for tensor in tensors:
            assert isinstance(tensor, CheckpointTensor), "what is quantised stays as it is"
            for start, stop, values in tensor.pieces():
                rows = quantized_rows(tensor, values, destination.weight_dtype)
                weight[first + start : first + stop].copy_(rows.values())
            first += tensor.num_rows
        return cls(weight)
