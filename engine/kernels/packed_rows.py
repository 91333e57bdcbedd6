"""Rows of a packed matrix, expanded: all of them for a long prompt's product, or those of a step's tokens.

One program for a few rows and a part of their columns. What it computes is what `packed_product` multiplies by, to the
bit; where a row has one scale, it is that rounded once, while the product multiplies its sum. Called by
`quantization.packed`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.launch import launch_options, wait_for_predecessor
from engine.kernels.packed_tile import ROW_SCALE, kernel_tensor, load_tile
from engine.quantization.packed_format import PackedWeight

Tensor = torch.Tensor

ALL, LISTED, OF_TOKENS = 0, 1, 2
_LISTED: tl.constexpr = tl.constexpr(LISTED)
_OF_TOKENS: tl.constexpr = tl.constexpr(OF_TOKENS)
ROWS, NUM_WARPS = 32, 4
"""Rows of a program that expands all."""
FEW_ROWS = 16
"""And of one that expands some, which seldom lie together."""


@triton.jit
def _packed_rows_kernel(
    words_ptr,  # this and the next three: planes, see quantization.packed_format
    extra_ptr,
    scales_ptr,
    supers_ptr,
    rows_ptr,  # LISTED: int [num_out], which rows; OF_TOKENS: rows of `tokens`, below 0: padding; ALL: anything
    positions_ptr,  # OF_TOKENS: int [num_out], columns of `tokens`; else anything
    tokens_ptr,  # OF_TOKENS: int32 [max_rows, max_tokens], the ids are rows of the matrix; else anything
    out_ptr,  # [num_out, WIDTH], written
    tokens_stride,  # elements from row to row
    num_out,
    MODE: tl.constexpr,  # ALL, LISTED, OF_TOKENS
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    CODE: tl.constexpr,
    ZERO: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    here = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = here < num_out
    wait_for_predecessor(PDL)
    row = tl.minimum(here, num_out - 1)
    if MODE == _LISTED:
        row = tl.load(rows_ptr + row).to(tl.int32)
    if MODE == _OF_TOKENS:
        state_row = tl.load(rows_ptr + row).to(tl.int64)
        position = tl.load(positions_ptr + row)
        row = tl.load(tokens_ptr + tl.where(state_row >= 0, state_row * tokens_stride + position, 0))
    unit = tl.program_id(1)
    w0, w1, w2, w3 = load_tile(
        words_ptr, extra_ptr, scales_ptr, supers_ptr, row, unit, 0,
        WIDTH, UNIT, ROWS, UNIT, CODE, ZERO, SCALE, GROUP, out_ptr.dtype.element_ty,
    )  # fmt: skip
    if SCALE == ROW_SCALE:
        scale = tl.load(scales_ptr + row)[:, None]
        w0 = (w0.to(tl.float32) * scale).to(w0.dtype)
        w1 = (w1.to(tl.float32) * scale).to(w1.dtype)
        w2 = (w2.to(tl.float32) * scale).to(w2.dtype)
        w3 = (w3.to(tl.float32) * scale).to(w3.dtype)
    column = unit * (4 * UNIT) + tl.arange(0, UNIT)
    out_ptrs = out_ptr + (here.to(tl.int64) * WIDTH)[:, None] + column[None, :]
    tl.store(out_ptrs, w0, mask=is_row[:, None])
    tl.store(out_ptrs + UNIT, w1, mask=is_row[:, None])
    tl.store(out_ptrs + 2 * UNIT, w2, mask=is_row[:, None])
    tl.store(out_ptrs + 3 * UNIT, w3, mask=is_row[:, None])


def packed_rows(weight: PackedWeight, dtype: torch.dtype, rows: Tensor | None = None, *, pdl: bool = False) -> Tensor:
    """The values of a matrix, or of some of its rows.

    Args:
        weight: the matrix.
        dtype: of the result.
        rows: integers [n]; None: all rows in order.
        pdl: overlap with the kernel before, on devices that can.

    Returns:
        [n, num_columns], columns in the planes' order.
    """
    num_out = weight.num_rows if rows is None else len(rows)
    out = torch.empty(num_out, weight.num_columns, dtype=dtype, device=weight.planes.words.device)
    mode, tile = (ALL, ROWS) if rows is None else (LISTED, FEW_ROWS)
    _launch(weight, out, mode, tile, out if rows is None else rows, out, out, 0, pdl)
    return out


def packed_token_rows(
    weight: PackedWeight, dtype: torch.dtype, rows: Tensor, positions: Tensor, tokens: Tensor, *, pdl: bool = False
) -> Tensor:
    """The rows that a step's token ids name: its embeddings.

    Args:
        weight: the matrix of all embeddings.
        dtype: of the result.
        rows: int32 or int64 [num_tokens], each token's row of `tokens`; below 0 it is padding, whose row means nothing.
        positions: int32 or int64 [num_tokens], its column.
        tokens: int32 [max_rows, max_tokens], rows contiguous.
        pdl: as for `packed_rows`.

    Returns:
        [num_tokens, num_columns]
    """
    out = torch.empty(len(rows), weight.num_columns, dtype=dtype, device=weight.planes.words.device)
    _launch(weight, out, OF_TOKENS, FEW_ROWS, rows, positions, tokens, tokens.stride(0), pdl)
    return out


def _launch(
    weight: PackedWeight,
    out: Tensor,
    mode: int,
    tile_rows: int,
    rows: Tensor,
    positions: Tensor,
    tokens: Tensor,
    tokens_stride: int,
    pdl: bool,
) -> None:
    if out.shape[0] == 0:
        return
    _packed_rows_kernel[(triton.cdiv(out.shape[0], tile_rows), weight.num_columns // (4 * weight.unit))](
        *map(kernel_tensor, weight.planes.tensors),
        rows,
        positions,
        tokens,
        out,
        tokens_stride,
        out.shape[0],
        MODE=mode,
        ROWS=tile_rows,
        **weight.constants,
        **launch_options(NUM_WARPS, pdl, out.device),
    )
