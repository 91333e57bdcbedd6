"""How the keys of a decoding row are shared among programs ("splits"), and how their results become one again.

A split takes whole tiles, one behind the other; that takes time in proportion to their number, and merging takes time
in proportion to the splits, so with n tiles a split of about `balance * sqrt(n)` of them is best. That holds while
processors are free. With many rows they are not: then a split takes its fair share of what runs at once, but no more
than LONG_SPLIT tiles, so that one long row does not hold up a step of short ones. The launch offers a number of splits,
which is fixed for a captured graph; how many of them a row uses follows from its length, on the device.

Each split leaves its unnormalised result in a workspace. The one that finishes last, as a counter tells, merges them:
that saves a launch, and which program it is does not matter to the result. All loads of a merge are independent of each
other, and those of the next splits are in flight while the present ones are added up.

Used by the kernels of decode attention.

Source: Dao et al. 2023, "Flash-Decoding"; Milakov & Gimelshein 2018, arXiv:1805.02867 (online softmax).
"""

from __future__ import annotations

import triton
import triton.language as tl

MAX_SPLITS = 64
"""Splits of a row at most: their maxima are held at once."""
MERGED_ELEMENTS = 8192
"""Elements that a merging program adds up at once: 64 registers a thread of four warps, and as many in flight."""

LONG_SPLIT: tl.constexpr = tl.constexpr(16)
"""Tiles beyond which a row is split even though no processor is free."""
LOWEST: tl.constexpr = tl.constexpr(-1e30)
"""Score of a key that is not seen; finite, because the difference of two infinities is NaN."""
_MAX_SPLITS: tl.constexpr = tl.constexpr(MAX_SPLITS)


def merged_splits(num_heads: int, head_dim: int, num_warps: int) -> int:
    """Splits that a merging program adds up at once; both sizes padded to powers of two."""
    return max(1, min(MAX_SPLITS, MERGED_ELEMENTS * num_warps // 4 // (num_heads * head_dim)))


@triton.jit
def share_of_split(
    first,  # half-open: the row's keys are at [first, stop)
    stop,
    fair_splits,  # splits of a row when all rows are alike and all run at once
    balance,
    TILE: tl.constexpr,
):
    """Start (a multiple of TILE) and end of this program's share, and how many splits have one: at least one has."""
    split, num_splits = tl.program_id(1), tl.num_programs(1)
    first_tile = first // TILE
    num_tiles = tl.where(first < stop, tl.cdiv(stop, TILE) - first_tile, 0)
    balanced = (balance * tl.sqrt(num_tiles.to(tl.float32)) + 0.5).to(tl.int32)
    fair = tl.minimum(tl.cdiv(num_tiles, fair_splits), LONG_SPLIT)
    least = tl.maximum(tl.cdiv(num_tiles, num_splits), 1)
    tiles_per_split = tl.maximum(tl.maximum(balanced, fair), least)
    start = (first_tile + split * tiles_per_split) * TILE
    end = tl.minimum(start + tiles_per_split * TILE, stop)
    return start, end, tl.maximum(tl.cdiv(num_tiles, tiles_per_split), 1)


@triton.jit
def _load_parts(
    outputs_ptr,
    maxima_ptr,
    start,  # of MERGED splits
    active,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    MERGED: tl.constexpr,
):
    """Outputs [MERGED, HEADS, HEAD_BLOCK] and maxima [MERGED, HEADS], past the first-level cache."""
    head, element = tl.arange(0, HEADS), tl.arange(0, HEAD_BLOCK)
    split = start + tl.arange(0, MERGED)
    mask = (split < active)[:, None] & (head < GROUP)[None, :]
    part = split[:, None] * GROUP + head[None, :]
    both = mask[:, :, None] & (element < HEAD_DIM)[None, None, :]
    there = outputs_ptr + part[:, :, None] * HEAD_DIM + element[None, None, :]
    outputs = tl.load(there, mask=both, other=0.0, cache_modifier=".cg")
    maxima = tl.load(maxima_ptr + part, mask=mask, other=LOWEST, cache_modifier=".cg")
    return outputs, maxima


@triton.jit
def merge_splits(
    outputs_ptr,  # float32 [active, GROUP, HEAD_DIM] of one KV head of one row
    maxima_ptr,  # float32 [active, GROUP], as sums
    sums_ptr,
    out_ptr,  # [GROUP, HEAD_DIM], written
    active,  # splits that took part, at most MAX_SPLITS
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,  # power of two >= HEAD_DIM
    HEADS: tl.constexpr,  # power of two >= GROUP
    MERGED: tl.constexpr,  # splits at a time, a power of two
):
    """The splits' results in one, in the order of the splits."""
    outputs, maxima = _load_parts(
        outputs_ptr, maxima_ptr, 0, active, GROUP, HEAD_DIM, HEAD_BLOCK, HEADS, MERGED
    )  # fmt: skip
    head, element, split = tl.arange(0, HEADS), tl.arange(0, HEAD_BLOCK), tl.arange(0, _MAX_SPLITS)
    mask = (split < active)[:, None] & (head < GROUP)[None, :]
    part = split[:, None] * GROUP + head[None, :]  # [MAX_SPLITS, HEADS]
    all_maxima = tl.load(maxima_ptr + part, mask=mask, other=LOWEST, cache_modifier=".cg")
    all_sums = tl.load(sums_ptr + part, mask=mask, other=0.0, cache_modifier=".cg")
    highest = tl.max(all_maxima, axis=0)  # [HEADS]
    total = tl.sum(all_sums * tl.exp2(all_maxima - highest[None, :]), axis=0)
    merged = tl.zeros((HEADS, HEAD_BLOCK), tl.float32)
    for start in range(0, active, MERGED):
        present, present_maxima = outputs, maxima
        outputs, maxima = _load_parts(
            outputs_ptr, maxima_ptr, start + MERGED, active, GROUP, HEAD_DIM, HEAD_BLOCK, HEADS, MERGED
        )  # fmt: skip
        factors = tl.exp2(present_maxima - highest[None, :])  # [MERGED, HEADS]
        merged += tl.sum(present * factors[:, :, None], axis=0)
    merged = merged / tl.where(head < GROUP, total, 1.0)[:, None]
    mask = (head < GROUP)[:, None] & (element < HEAD_DIM)[None, :]
    here = out_ptr + head[:, None] * HEAD_DIM + element[None, :]
    tl.store(here, merged.to(out_ptr.dtype.element_ty), mask=mask)
