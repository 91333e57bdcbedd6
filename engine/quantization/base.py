"""QuantMethod: how some rows of a weight matrix are kept, and how a product with them is computed.

A Linear is a list of row segments, each with its method, because one fused projection may come from tensors of several
types (Q4_K_M keeps V in Q6_K beside Q and K in Q4_K). Layers see neither types nor methods. Every matrix passes through
`from_checkpoint`; today there is one method, Dense, which expands all block formats while it loads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from engine.quantization.checkpoint import Destination
from engine.quantization.quantized_tensor import CheckpointMatrix

Tensor = torch.Tensor


class QuantMethod(ABC):
    """A matrix [num_rows, num_columns]: `num_rows` outputs."""

    num_rows: int
    num_columns: int

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, tensors: Sequence[CheckpointMatrix], destination: Destination) -> QuantMethod:
        """The tensors' rows below each other; all have the same number of columns.

        With a stager, the values are there when it has finished.
        """

    @abstractmethod
    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> QuantMethod:
        """The same with other tensors, each of the old one's type and shape: how a matrix goes to another place."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Memory it holds on its device."""

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., num_columns] -> [..., num_rows]."""

    @abstractmethod
    def embed(self, rows: Tensor) -> Tensor:
        """int64 [n] -> those rows, [n, num_columns]."""


class Dense(QuantMethod):
    """Plain floating-point weights.

    On a CPU, float32 lies column by column in memory: the product with one token then runs up to twice as fast, and
    with more tokens no slower. bfloat16 goes through other kernels, for which the opposite holds.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight  # [num_rows, num_columns]
        self.num_rows, self.num_columns = weight.shape

    @classmethod
    def from_checkpoint(cls, tensors: Sequence[CheckpointMatrix], destination: Destination) -> Dense:
        num_rows, num_columns = sum(tensor.num_rows for tensor in tensors), tensors[0].num_columns
        stager = destination.stager
        if stager is None and destination.dtype == torch.float32:
            weight = destination.empty(num_columns, num_rows).t()
        else:
            weight = destination.empty(num_rows, num_columns)
        start = 0
        for tensor in tensors:
            rows = weight[start : start + tensor.num_rows]
            if stager is None:
                tensor.expand_into(rows)
            else:
                tensor.stage_into(rows, stager)
            start += tensor.num_rows
        return cls(weight)

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Dense:
        return Dense(change(self.weight))

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight, bias)

    def embed(self, rows: Tensor) -> Tensor:
        return self.weight[rows]


def segments_from_checkpoint(tensors: Sequence[CheckpointMatrix], destination: Destination) -> tuple[QuantMethod, ...]:
    """One segment for each run of tensors that the same method keeps."""
    segments: list[QuantMethod] = []
    start = 0
    for stop in range(1, len(tensors) + 1):
        if stop == len(tensors) or method_of(tensors[stop]) is not method_of(tensors[start]):
            segments.append(method_of(tensors[start]).from_checkpoint(tensors[start:stop], destination))
            start = stop
    return tuple(segments)


def method_of(tensor: CheckpointMatrix) -> type[QuantMethod]:
    """The method that keeps a tensor of this type."""
    return Dense
