"""Packed: a matrix of a block format that stays quantised on a GPU; `packed_format` says how it lies there.

Rows are packed on the device, a bounded piece at a time, out of the file's own bytes. Products and rows are computed by
`kernels.packed_product` and `kernels.packed_rows`, which `models.device_decoder` calls with `weight`; `linear` and
`embed` are for passes outside of steps. Chosen by `selection` for what `is_packable`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch

from engine.quantization.base import QuantMethod
from engine.quantization.checkpoint import STAGED_ELEMENTS, CheckpointTensor, Destination, Stager
from engine.quantization.packed_format import (
    FORMATS,
    ROW_BLOCK,
    PackedWeight,
    Planes,
    empty_planes,
    pack,
    unit_words,
)
from modelfiles.gguf import GGMLType

Tensor = torch.Tensor


def is_packable(type: GGMLType, num_rows: int, num_columns: int) -> bool:
    """Whether a matrix can stay quantised: it has a format that `pack` knows, and sides that can be cut."""
    return type in FORMATS and num_rows % ROW_BLOCK == 0 and unit_words(num_columns) > 0


class Packed(QuantMethod):
    """A matrix of one format."""

    mixes_types: ClassVar[bool] = False

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        self.weight = weight
        self.dtype = dtype
        self.num_rows, self.num_columns = weight.num_rows, weight.num_columns

    @classmethod
    def from_checkpoint(cls, tensors: Sequence[CheckpointTensor], destination: Destination) -> Packed:
        type, num_columns = tensors[0].type, tensors[0].num_columns
        num_rows = sum(tensor.num_rows for tensor in tensors)
        format = FORMATS[type]
        planes = empty_planes(format, num_rows, num_columns, destination.device)
        kept = planes
        if destination.is_offloaded and destination.stager is not None:
            kept = _on_host(planes, destination.stager)
        start = 0
        for tensor in tensors:
            _pack_tensor(tensor, planes, start // ROW_BLOCK, destination, kept)
            start += tensor.num_rows
        weight = PackedWeight(kept, format, num_rows, num_columns)
        return cls(weight, destination.dtype)

    @classmethod
    def stored_bytes(cls, type: GGMLType, num_rows: int, num_columns: int, destination: Destination) -> int:
        return FORMATS[type].bytes(num_rows, num_columns)

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Packed:
        planes = Planes(*(change(plane) if plane.numel() else plane for plane in self.weight.planes.tensors))
        return Packed(replace(self.weight, planes=planes), self.dtype)

    @property
    def num_bytes(self) -> int:
        return sum(plane.nbytes for plane in self.weight.planes.tensors)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        from engine.kernels.products import packed_linear  # triton, which is not there without a GPU

        y = packed_linear(x.reshape(-1, self.num_columns), self.weight, bias)
        return y.view(*x.shape[:-1], self.num_rows)

    def embed(self, rows: Tensor) -> Tensor:
        from engine.kernels.packed_rows import packed_rows  # as above

        return packed_rows(self.weight, self.dtype, rows)


def _pack_tensor(
    tensor: CheckpointTensor, planes: Planes, first_block: int, destination: Destination, kept: Planes
) -> None:
    """Packs a tensor's rows into row blocks from `first_block` on; what fills the last one copies all to `kept`."""
    for start, stop, rows in tensor.raw_pieces(STAGED_ELEMENTS, ROW_BLOCK):
        block, last = first_block + start // ROW_BLOCK, first_block + stop // ROW_BLOCK
        part = Planes(*(plane[block:last] if plane.numel() else plane for plane in planes.tensors))
        target = kept if kept is not planes and last == len(planes.scales) else None
        take = partial(_take, tensor.type, tensor.num_columns, part, planes, target)
        if destination.stager is None:
            take(torch.from_numpy(rows.copy()).to(destination.device))
        else:
            destination.stager.expand(rows, take)


def _take(type: GGMLType, num_columns: int, part: Planes, planes: Planes, kept: Planes | None, raw: Tensor) -> None:
    pack(type, raw, num_columns, part)
    if kept is not None:
        for plane, host in zip(planes.tensors, kept.tensors, strict=True):
            host.copy_(plane, non_blocking=True)


def _on_host(planes: Planes, stager: Stager) -> Planes:
    """Places for the same in memory of the host that the device reads by itself."""
    return Planes(
        *(stager.host_empty(tuple(plane.shape), plane.dtype) if plane.numel() else plane for plane in planes.tensors)
    )
