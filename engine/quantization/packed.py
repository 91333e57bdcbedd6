"""Packed: a matrix that stays quantised on a GPU; `packed_format` says how it lies there.

Rows are packed on the device, a bounded piece at a time, out of the file's own codes: block formats of GGUF, quantised
safetensors (`packed_scheme`), and unquantised ones where the destination asks for 8 bits. Products and rows are
computed by `kernels.packed_product` and `kernels.packed_rows`, which `models.device_decoder` calls with `weight`;
`linear` and `embed` are for passes outside of steps. Chosen by `selection` for what has no `misfit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch

from engine.quantization import packed_scheme
from engine.quantization.affine import Affine
from engine.quantization.base import QuantMethod
from engine.quantization.checkpoint import PLAIN_DTYPES, STAGED_ELEMENTS, CheckpointTensor, Destination, Stager
from engine.quantization.gguf_blocks import dequantize
from engine.quantization.packed_format import (
    FORMATS,
    ROW_BLOCK,
    PackedFormat,
    PackedWeight,
    Planes,
    empty_planes,
    pack,
)
from engine.quantization.packed_scheme import ROW_FORMATS, pack_affine, scheme_format
from engine.quantization.quantized_tensor import CheckpointMatrix, QuantizedTensor, StoredType, quantized_rows
from engine.quantization.scheme import WeightScheme
from modelfiles.gguf import GGMLType

Tensor = torch.Tensor
Write = Callable[[Tensor, Planes], None]
"""(bytes of rows of a file, planes of as many) writes the latter."""


def packed_format(type: StoredType, num_columns: int, destination: Destination) -> PackedFormat | None:
    """How matrices of a type lie there; None: nothing that is quantised becomes of them."""
    if isinstance(type, WeightScheme):
        return scheme_format(type, num_columns)
    if type in PLAIN_DTYPES:
        return None if destination.weight_dtype is None else ROW_FORMATS[destination.weight_dtype]
    return FORMATS.get(type)


def misfit(type: StoredType, num_rows: int, num_columns: int, destination: Destination) -> str | None:
    """Why a matrix cannot stay quantised there, as the rest of a sentence about it; None where it can."""
    format = packed_format(type, num_columns, destination)
    if format is None:
        assert isinstance(type, GGMLType), "every scheme has a format"
        return f"{type.name} has no packed form"
    return packed_scheme.misfit(format, num_rows, num_columns)


class Packed(QuantMethod):
    """A matrix of one format."""

    mixes_types: ClassVar[bool] = False

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        self.weight = weight
        self.dtype = dtype
        self.num_rows, self.num_columns = weight.num_rows, weight.num_columns

    @classmethod
    def from_checkpoint(cls, tensors: Sequence[CheckpointMatrix], destination: Destination) -> Packed:
        first, num_rows = tensors[0], sum(tensor.num_rows for tensor in tensors)
        format = packed_format(first.type, first.num_columns, destination)
        assert format is not None, "selection asks first"
        planes = empty_planes(format, num_rows, first.num_columns, destination.device)
        kept = planes
        if destination.is_offloaded and destination.stager is not None:
            kept = _on_host(planes, destination.stager)
        order = None if isinstance(first, CheckpointTensor) else first.column_order()
        order = None if order is None else order.to(destination.device)
        start = 0
        for tensor in tensors:
            stop = start + tensor.num_rows
            part = planes.blocks(start // ROW_BLOCK, stop // ROW_BLOCK)
            done = partial(_copy, planes, kept) if kept is not planes and stop == num_rows else _nothing
            if isinstance(tensor, CheckpointTensor):
                _pack_tensor(tensor, _writer(tensor, format, destination), part, destination, done)
            else:
                _pack_quantized(tensor, format, order, part, destination, done)
            start = stop
        return cls(PackedWeight(kept, format, num_rows, first.num_columns, order), destination.dtype)

    @classmethod
    def stored_bytes(cls, type: StoredType, num_rows: int, num_columns: int, destination: Destination) -> int:
        format = packed_format(type, num_columns, destination)
        assert format is not None, "selection asks first"
        has_order = isinstance(type, WeightScheme) and type.has_group_index
        order_bytes = torch.int64.itemsize * num_columns if has_order else 0
        return format.bytes(num_rows, num_columns) + order_bytes

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Packed:
        """The order of columns stays on the device, as norms and biases do."""
        return Packed(replace(self.weight, planes=self.weight.planes.map(change)), self.dtype)

    @property
    def num_bytes(self) -> int:
        order = self.weight.column_order
        return sum(plane.nbytes for plane in self.weight.planes.tensors) + (0 if order is None else order.nbytes)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        from engine.kernels.products import packed_linear  # triton, which is not there without a GPU

        y = packed_linear(x.reshape(-1, self.num_columns), self.weight, bias)
        return y.view(*x.shape[:-1], self.num_rows)

    def embed(self, rows: Tensor) -> Tensor:
        from engine.kernels.packed_rows import packed_rows  # as above

        values = packed_rows(self.weight, self.dtype, rows)
        order = self.weight.column_order
        return values if order is None else torch.empty_like(values).index_copy_(1, order, values)


def _pack_tensor(
    tensor: CheckpointTensor, write: Write, planes: Planes, destination: Destination, done: Callable[[], None]
) -> None:
    """Packs all rows into planes of as many; queues `done` behind that."""

    def take(start: int, stop: int, raw: Tensor) -> None:
        write(raw, planes.blocks(start // ROW_BLOCK, stop // ROW_BLOCK))
        if stop == tensor.num_rows:
            done()

    for start, stop, rows in tensor.raw_pieces(STAGED_ELEMENTS, ROW_BLOCK):
        if destination.stager is None:
            take(start, stop, torch.from_numpy(rows.copy()).to(destination.device))
        else:
            destination.stager.expand(rows, partial(take, start, stop))


def _writer(tensor: CheckpointTensor, format: PackedFormat, destination: Destination) -> Write:
    type, num_columns = tensor.type, tensor.num_columns
    if type in FORMATS:
        return lambda raw, planes: pack(type, raw, num_columns, planes)
    dtype = destination.weight_dtype
    assert dtype is not None, "a plain type has a format only where one is asked for"

    def quantize(raw: Tensor, planes: Planes) -> None:
        values = dequantize(type, raw.view(-1, PLAIN_DTYPES[type].itemsize))
        pack_affine(format, quantized_rows(tensor, values, dtype), planes)

    return quantize


def _pack_quantized(
    tensor: QuantizedTensor,
    format: PackedFormat,
    order: Tensor | None,
    planes: Planes,
    destination: Destination,
    done: Callable[[], None],
) -> None:
    """As `_pack_tensor`. A device holds the matrix's codes, a byte each, until all of them are there."""
    step = max(1, STAGED_ELEMENTS // tensor.num_columns // ROW_BLOCK) * ROW_BLOCK

    def take(whole: Affine) -> None:
        for start in range(0, tensor.num_rows, step):
            stop = min(start + step, tensor.num_rows)
            pack_affine(format, whole.rows(start, stop, order), planes.blocks(start // ROW_BLOCK, stop // ROW_BLOCK))
        done()

    if destination.stager is None:
        take(tensor.affine_rows(0, tensor.num_rows))
    else:
        tensor.stage_affine(destination.stager, take)


def _nothing() -> None:
    pass


def _copy(planes: Planes, kept: Planes) -> None:
    for plane, host in zip(planes.tensors, kept.tensors, strict=True):
        if plane.numel():
            host.copy_(plane, non_blocking=True)


def _on_host(planes: Planes, stager: Stager) -> Planes:
    """Places for the same in memory of the host that the device reads by itself."""
    return planes.map(lambda plane: stager.host_empty(tuple(plane.shape), plane.dtype))
