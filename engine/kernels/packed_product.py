"""y = x @ W.T for weights that stay quantised, on tensor cores: up to some hundred tokens.

A program computes a tile of W's rows for a tile of tokens, and takes a unit of W's columns, or half of one, a step of
its loop: words and scales come through shared memory ahead of their use, are unpacked in registers in the order that
tensor cores take them, and never go back. Where tiles of rows leave processors without work, a row is cut into pieces
whose sums `gemv_dot.sum_splits` adds in a fixed order.

`tl.dot` adds to the same registers in all of a step, and a step ends by naming them. Without that the compiler leaves
the last product running over the loop's end, where it finds the registers written by something else, and then lets all
products wait for each other, which took twice as long.

Called by `quantization.packed` for steps of up to MAX_TOKENS tokens; beyond, expanding the matrix costs less.
Source: Frantar et al. 2024, arXiv:2408.11743, has the idea; the layout is ours (`quantization.packed_format`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType

import torch
import triton
import triton.language as tl

from engine.kernels.gemv_dot import sum_splits
from engine.kernels.launch import (
    INTERPRETED,
    capability,
    dot_operand,
    launch_options,
    num_processors,
    wait_for_predecessor,
)
from engine.kernels.packed_tile import ROW_SCALE, kernel_tensor, load_tile
from engine.quantization.packed_format import MAX_PRODUCT_TOKENS, Code, PackedFormat, PackedWeight

Tensor = torch.Tensor

MAX_TOKENS = MAX_PRODUCT_TOKENS
MIN_SPLIT_STEPS = 1
"""Steps of the loop that a piece of a row has at least."""
HOLDS: tl.constexpr = tl.constexpr(not INTERPRETED)


@dataclass(frozen=True)
class PackedTile:
    """Tile of the product."""

    rows: int
    words: int
    """Of a unit, in a step of the loop."""
    num_warps: int
    num_stages: int
    num_resident: int = 2
    """Programs that a processor runs at once."""


Tiles = tuple[tuple[int, PackedTile], ...]
"""(most tokens of a program, tile), rising."""
# Those of 90 were the fastest on an H200, 2026-11-26: for Q4_K and Q6_K, with the matrices of Qwen2.5-7B. Of the others
# only shared memory was looked at.
_90: Tiles = (
    (32, PackedTile(128, 64, 4, 3)),
    (64, PackedTile(128, 64, 4, 3, num_resident=1)),
    (128, PackedTile(64, 32, 4, 3)),
    (256, PackedTile(128, 32, 8, 3, num_resident=1)),
)
FEW_TOKENS = 16
_90_WIDE = PackedTile(64, 64, 2, 3)
"""For up to FEW_TOKENS tokens and codes of more than four bits, which need more registers."""
_SMALL: Tiles = (
    (16, PackedTile(64, 64, 4, 3)),
    (32, PackedTile(64, 64, 4, 2)),
    (64, PackedTile(64, 32, 4, 3)),
    (128, PackedTile(64, 32, 4, 2)),
)
PACKED_TILES: Mapping[int, Tiles] = MappingProxyType({80: _SMALL, 86: _SMALL, 89: _SMALL, 90: _90, 120: _SMALL})


@triton.jit(do_not_specialize=["num_tokens"])
def _packed_product_kernel(
    x_ptr,  # [num_tokens, WIDTH]
    words_ptr,  # this and the next three: planes, see quantization.packed_format
    extra_ptr,
    scales_ptr,
    supers_ptr,
    bias_ptr,  # [num_rows], or anything unless HAS_BIAS
    out_ptr,  # [num_tokens, num_rows]; SPLITS > 1: float32 [SPLITS, num_tokens, num_rows]
    x_stride,  # elements from token to token
    out_stride,
    num_tokens,
    num_rows,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    CODE: tl.constexpr,
    ZERO: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    SPLITS: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    PARTS: tl.constexpr = UNIT // WORDS
    STEPS: tl.constexpr = WIDTH // (4 * WORDS)
    STEPS_A_SPLIT: tl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    # The last program begins early enough to end with the last row, and computes some rows once more. To bound each
    # row instead would hide from the compiler that they follow each other, and scales would come by themselves.
    first_block = tl.minimum(tl.program_id(0) * (ROWS // 16), num_rows // 16 - ROWS // 16)
    row = first_block * 16 + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    is_token = (token < num_tokens)[None, :]
    first_step = tl.program_id(2) * STEPS_A_SPLIT
    end_step = tl.minimum(first_step + STEPS_A_SPLIT, STEPS) if SPLITS > 1 else STEPS
    x_ptrs = x_ptr + (token.to(tl.int64) * x_stride)[None, :] + tl.arange(0, WORDS)[:, None]  # [WORDS, TOKENS]
    wait_for_predecessor(PDL)

    y = tl.zeros((ROWS, TOKENS), tl.float32)
    for step in tl.range(first_step, end_step, num_stages=NUM_STAGES):
        unit, first = step // PARTS, step % PARTS * WORDS
        w0, w1, w2, w3 = load_tile(
            words_ptr, extra_ptr, scales_ptr, supers_ptr, row, unit, first,
            WIDTH, UNIT, ROWS, WORDS, CODE, ZERO, SCALE, GROUP, x_ptr.dtype.element_ty,
        )  # fmt: skip
        column = unit * (4 * UNIT) + first
        x0 = tl.load(x_ptrs + column, mask=is_token, other=0.0)
        x1 = tl.load(x_ptrs + column + UNIT, mask=is_token, other=0.0)
        x2 = tl.load(x_ptrs + column + 2 * UNIT, mask=is_token, other=0.0)
        x3 = tl.load(x_ptrs + column + 3 * UNIT, mask=is_token, other=0.0)
        y = tl.dot(dot_operand(w0), dot_operand(x0), y, input_precision="ieee")
        y = tl.dot(dot_operand(w1), dot_operand(x1), y, input_precision="ieee")
        y = tl.dot(dot_operand(w2), dot_operand(x2), y, input_precision="ieee")
        y = tl.dot(dot_operand(w3), dot_operand(x3), y, input_precision="ieee")
        if HOLDS:
            y = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [y], dtype=tl.float32, is_pure=True, pack=1)
    if SCALE == ROW_SCALE:
        y *= tl.load(scales_ptr + row)[:, None]
    if SPLITS > 1:
        out_ptr += tl.program_id(2).to(tl.int64) * num_tokens * num_rows
    if HAS_BIAS:
        y += tl.load(bias_ptr + row).to(tl.float32)[:, None]
    here = out_ptr + (token.to(tl.int64) * out_stride)[None, :] + row[:, None]
    tl.store(here, y.to(out_ptr.dtype.element_ty), mask=is_token)


def packed_product(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    tile: PackedTile | None = None,
    splits: int | None = None,
    pdl: bool = False,
) -> Tensor:
    """x @ weight.T + bias.

    Args:
        x: [num_tokens, num_columns]; bfloat16, float16 or float32, elements of a row together.
        weight: the matrix.
        bias: [num_rows], contiguous.
        out: [num_tokens, num_rows], typed like `x`, elements of a row together; made where it is not given.
        tile: instead of the table's choice; what measurements vary.
        splits: pieces of a row, likewise.
        pdl: overlap with the kernel before, on devices that can.

    Returns:
        `out`.

    Raises:
        ValueError: shapes that do not fit.
    """
    num_tokens = x.shape[0]
    _check(x, weight, bias, out)
    x = weight.ordered(x)
    if out is None:
        out = torch.empty(num_tokens, weight.num_rows, dtype=x.dtype, device=x.device)
    if num_tokens == 0:
        return out
    tokens, table_tile = packed_tile(capability(x.device), num_tokens, x.element_size(), weight.format)
    tile = tile or table_tile
    words, rows = min(tile.words, weight.unit), min(tile.rows, 1 << weight.num_rows.bit_length() - 1)
    row_tiles, token_tiles = triton.cdiv(weight.num_rows, rows), triton.cdiv(num_tokens, tokens)
    steps = weight.num_columns // (4 * words)
    splits = splits or num_splits(num_processors(x.device), row_tiles * token_tiles, steps, tile.num_resident)
    target = out
    if splits > 1:
        target = torch.empty(splits, num_tokens, weight.num_rows, device=x.device)
    _packed_product_kernel[(row_tiles, token_tiles, splits)](
        x,
        *map(kernel_tensor, weight.planes.tensors),
        x if bias is None else bias,
        target,
        x.stride(0),
        target.stride(-2),
        num_tokens,
        weight.num_rows,
        TOKENS=tokens,
        ROWS=rows,
        WORDS=words,
        SPLITS=splits,
        NUM_STAGES=tile.num_stages,
        HAS_BIAS=bias is not None and splits == 1,
        **weight.constants,
        **launch_options(tile.num_warps, pdl, x.device),
    )
    if splits > 1:
        sum_splits(target, bias, out, pdl=pdl)
    return out


@cache
def packed_tile(architecture: int, num_tokens: int, itemsize: int, format: PackedFormat) -> tuple[int, PackedTile]:
    """Tokens of a program, and its tile.

    Args:
        architecture: compute capability as one number; 0 for the interpreter.
        itemsize: bytes of an element of x.
    """
    known = [key for key in PACKED_TILES if key <= architecture]
    tiles = PACKED_TILES[max(known, default=min(PACKED_TILES))]
    if itemsize == 4:  # products of float32 are computed without tensor cores, and fill registers
        return 16, PackedTile(16, 16, 4, 2)
    tokens, tile = next((entry for entry in tiles if num_tokens <= entry[0]), tiles[-1])
    if num_tokens <= FEW_TOKENS:
        tokens = FEW_TOKENS
        if tiles is _90 and format.code != Code.NIBBLE:
            tile = _90_WIDE
    if tile is _90[-1][1] and format.code >= Code.BYTE and format.has_wide_scales:
        tile = replace(tile, num_stages=2)  # three stages would need 1 KB more of shared memory than there is
    return tokens, tile


@cache
def num_splits(num_processors: int, num_tiles: int, num_steps: int, num_resident: int) -> int:
    """Pieces of a row: a power of two, at most 8, with which all programs still run at once.

    Args:
        num_resident: PackedTile.num_resident.
    """
    programs = num_processors * num_resident
    splits = 1
    while 2 * splits * num_tiles <= programs and num_steps >= 2 * splits * MIN_SPLIT_STEPS and splits < 8:
        splits *= 2
    return splits


def _check(x: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor | None) -> None:
    """
    Raises:
        ValueError: as `packed_product`.
    """
    if x.ndim != 2 or x.shape[1] != weight.num_columns or x.stride(1) != 1:
        raise ValueError(
            f"packed_product: x is {tuple(x.shape)} with strides {x.stride()}; it must have {weight.num_columns} "
            "columns that lie together"
        )
    if bias is not None and (bias.shape != (weight.num_rows,) or not bias.is_contiguous()):
        raise ValueError(f"packed_product: bias is {tuple(bias.shape)}, it must be ({weight.num_rows},) and contiguous")
    if out is not None and (out.shape != (x.shape[0], weight.num_rows) or out.dtype != x.dtype or out.stride(1) != 1):
        raise ValueError(
            f"packed_product: out is {out.dtype} {tuple(out.shape)} with strides {out.stride()}; it must be {x.dtype} "
            f"({x.shape[0]}, {weight.num_rows}), elements of a row together"
        )
