"""Rows of a matrix as integer codes, scales and offsets, whatever file they come from: what `int4_cpu` packs.

A row is what a block is in `gguf_blocks.Parts`: codes int8 [rows, columns], scales and offsets [rows, groups].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F

from engine.quantization.checkpoint import PLAIN_DTYPES, Destination
from engine.quantization.gguf_blocks import Parts, dequantize, parts
from engine.quantization.quantized_tensor import CheckpointMatrix, QuantizedTensor, quantized_rows
from modelfiles.gguf import BLOCK_LAYOUT

Tensor = torch.Tensor


def row_pieces(
    tensors: Sequence[CheckpointMatrix], num_rows: int, multiple: int, order: Tensor | None, destination: Destination
) -> Iterator[tuple[int, Parts]]:
    """(first row, parts of these rows) of matrices below each other; what fills up the last piece has scales of zero.

    Args:
        num_rows: of a piece, a multiple of `multiple`.
        multiple: what the number of rows in all is filled up to.
        order: of columns, as Affine.column_order.
    """
    firsts = list(accumulate((tensor.num_rows for tensor in tensors), initial=0))
    for start in range(0, firsts[-1], num_rows):
        stop = min(start + num_rows, firsts[-1])
        found = [
            _parts(tensor, max(start - first, 0), min(stop - first, tensor.num_rows), order, destination)
            for tensor, first in zip(tensors, firsts, strict=False)
            if first < stop and start < first + tensor.num_rows
        ]
        missing = -stop % multiple
        codes, scales, offsets = (
            None if one[0] is None else F.pad(torch.cat(one), (0, 0, 0, missing)) for one in zip(*found, strict=True)
        )
        assert codes is not None
        assert scales is not None
        yield start, Parts(codes, scales, offsets)


def _parts(tensor: CheckpointMatrix, start: int, stop: int, order: Tensor | None, destination: Destination) -> Parts:
    if isinstance(tensor, QuantizedTensor):
        return _quantized_parts(tensor, start, stop, order)
    raw = tensor.raw_rows(start, stop)
    blocks = raw.view(-1, BLOCK_LAYOUT[tensor.type][1])
    if tensor.type in PLAIN_DTYPES:
        assert destination.weight_dtype is not None, "what is not quantised becomes so only where that is asked for"
        rows = quantized_rows(tensor, dequantize(tensor.type, blocks), destination.weight_dtype)
        return Parts(rows.codes, rows.scales)
    codes, scales, offsets = (None if one is None else one.reshape(len(raw), -1) for one in parts(tensor.type, blocks))
    assert codes is not None
    assert scales is not None
    return Parts(codes, scales, offsets)


def _quantized_parts(tensor: QuantizedTensor, start: int, stop: int, order: Tensor | None) -> Parts:
    rows = tensor.affine_rows(start, stop).rows(0, stop - start, order)
    codes, zeros = rows.codes, rows.zeros
    if codes.dtype == torch.uint8 and tensor.scheme.bits == 8:
        codes, zeros = codes ^ 128, None if zeros is None else zeros - 128
    return Parts(codes.view(torch.int8), rows.scales, None if zeros is None else -(zeros * rows.scales))
