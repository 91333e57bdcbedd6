"""QuantMethod: how some rows of a weight matrix are kept, and how a product with them is computed.

A Linear is a list of row segments, each with its method, because one fused projection may come from tensors of several
types (Q4_K_M keeps V in Q6_K beside Q and K in Q4_K). Layers see neither types nor methods. Every matrix passes through
`from_checkpoint`; `selection` says which method's. Here is Dense, which takes any type and expands it while it loads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from engine.quantization.checkpoint import Destination
from engine.quantization.quantized_tensor import CheckpointMatrix, StoredType

Tensor = torch.Tensor


class QuantMethod(ABC):
    """A matrix [num_rows, num_columns]: `num_rows` outputs."""

    mixes_types: ClassVar[bool] = False
    """Whether tensors of several types may lie in one segment."""

    num_rows: int
    num_columns: int
    dtype: torch.dtype
    """What products with it are computed in."""

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, tensors: Sequence[Any], destination: Destination) -> QuantMethod:
        """The tensors' rows below each other; all have the same number of columns
        and, unless it mixes them, the same type. They are of the class and the types for which `selection` takes the
        method: CheckpointTensor or QuantizedTensor.

        With a stager, the values are there when it has finished.
        """

    @classmethod
    @abstractmethod
    def stored_bytes(cls, type: Any, num_rows: int, num_columns: int, destination: Destination) -> int:
        """`num_bytes` of what `from_checkpoint` will make, so that memory is planned before anything is read."""

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

    mixes_types = True

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight  # [num_rows, num_columns]
        self.num_rows, self.num_columns = weight.shape
        self.dtype = weight.dtype

    @classmethod
    def from_checkpoint(cls, tensors: Sequence[CheckpointMatrix], destination: Destination) -> Dense:
        num_rows, num_columns = sum(tensor.num_rows for tensor in tensors), tensors[0].num_columns
        stager = destination.stager
        weight = cls.empty(num_rows, num_columns, destination)
        start = 0
        for tensor in tensors:
            rows = weight[start : start + tensor.num_rows]
            if stager is None:
                tensor.expand_into(rows)
            else:
                tensor.stage_into(rows, stager)
            start += tensor.num_rows
        return cls(weight)

    @classmethod
    def empty(cls, num_rows: int, num_columns: int, destination: Destination) -> Tensor:
        """A matrix without values, laid out for where it goes."""
        if destination.stager is None and destination.dtype == torch.float32:
            return destination.empty(num_columns, num_rows).t()
        return destination.empty(num_rows, num_columns)

    @classmethod
    def stored_bytes(cls, type: StoredType, num_rows: int, num_columns: int, destination: Destination) -> int:
        return num_rows * num_columns * destination.dtype.itemsize

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Dense:
        return Dense(change(self.weight))

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight, bias)

    def embed(self, rows: Tensor) -> Tensor:
        return self.weight[rows]
