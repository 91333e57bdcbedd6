"""Attention of one query a sequence over its paged keys and values: what a decoding row needs.

A program takes one KV head of one sequence and one part ("split") of its keys. It packs the query heads that share the
KV head into the rows of one matrix product, so each key is loaded once; rows up to 16, the least that tensor cores
take, are padding. It walks the block table tile by tile with a running softmax in float32, loading a tile while it
computes the one before. A cache of 8 bits has scales, which go to the scores and the weights of the softmax
(engine/kernels/kv_quantization.py). How many splits there are and how they become one:
engine/kernels/attention_splits.py.

Slots that no key of the sequence is in, and table entries of no use, are never read. Called once a layer of a decode
step, for heads that engine/kernels/rope_decode_attention.py does not take; several query tokens a sequence go to the
prefill kernel.

Source: Kwon et al. 2023, arXiv:2309.06180 (paging); Dao et al. 2023, "Flash-Decoding" (splits); Milakov & Gimelshein
2018, arXiv:1805.02867 (online softmax); Ainslie et al. 2023, arXiv:2305.13245 (grouped queries).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine.kernels.attention_splits import LOWEST, MAX_SPLITS, merge_splits, merged_splits, share_of_split
from engine.kernels.gemv_epilogue import tanh
from engine.kernels.kv_quantization import decoded, load_scales, stored_bytes
from engine.kernels.kv_types import check_scales
from engine.kernels.launch import capability, dot_operand, launch_options, num_processors, wait_for_predecessor
from engine.kernels.tiles import AttentionTile, attention_tile, fair_splits, num_splits

Tensor = torch.Tensor

MIN_DOT_ROWS = 16
"""Rows that tensor cores take at least."""
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True)
class Workspace:
    """Memory for the splits of one call; one after the other, all layers may use the same."""

    outputs: Tensor
    """float32 [num_tokens * num_heads * num_splits * head_dim], or more."""
    maxima: Tensor
    """float32 [num_tokens * num_heads * num_splits], or more; as `sums`."""
    sums: Tensor
    counters: Tensor
    """int32 [num_tokens * num_kv_heads], or more: zero, and zero again after each call."""

    @classmethod
    def allocate(
        cls,
        num_tokens: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        num_splits: int,
        device: torch.device,
    ) -> Workspace:
        """For steps of up to that many of each."""
        return cls._allocate(num_tokens * num_splits, num_tokens, num_heads, num_kv_heads, head_dim, device)

    @classmethod
    def for_steps(
        cls, max_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, device: torch.device
    ) -> Workspace:
        """For steps of any number of tokens up to `max_tokens`, each with as many splits as it gets by default."""
        processors = num_processors(device)
        num_shares = max(
            n * num_splits(processors, n, num_kv_heads, MAX_SPLITS, has_long_row=True) for n in range(1, max_tokens + 1)
        )
        return cls._allocate(num_shares, max_tokens, num_heads, num_kv_heads, head_dim, device)

    @classmethod
    def _allocate(
        cls, num_shares: int, num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, device: torch.device
    ) -> Workspace:
        num_parts = num_shares * num_heads
        return cls(
            outputs=torch.empty(num_parts * head_dim, device=device),
            maxima=torch.empty(num_parts, device=device),
            sums=torch.empty(num_parts, device=device),
            counters=torch.zeros(num_tokens * num_kv_heads, dtype=torch.int32, device=device),
        )


@triton.jit
def _load_tile(
    k_cache_ptr,
    v_cache_ptr,
    table_ptr,  # the row's entries
    start,  # first position of the tile, a multiple of TILE
    first,  # half-open: positions to load are in [first, stop)
    stop,
    kv_head,
    num_kv_heads,
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """K and V [TILE, HEAD_BLOCK], zero where nothing is to be loaded."""
    position = start + tl.arange(0, TILE)
    mask = (position >= first) & (position < stop)
    if BLOCK_SIZE % TILE == 0:  # the tile lies in one block
        block = tl.load(table_ptr + start // BLOCK_SIZE, mask=start < stop, other=0).to(tl.int64)
    else:
        block = tl.load(table_ptr + position // BLOCK_SIZE, mask=mask, other=0).to(tl.int64)
    slot = (block * num_kv_heads + kv_head) * BLOCK_SIZE + position % BLOCK_SIZE  # [TILE]
    element = tl.arange(0, HEAD_BLOCK)
    here = slot[:, None] * HEAD_DIM + element[None, :]
    both = mask[:, None] & (element < HEAD_DIM)[None, :]
    return tl.load(k_cache_ptr + here, mask=both, other=0.0), tl.load(v_cache_ptr + here, mask=both, other=0.0)


@triton.jit
def _load_tile_scales(
    k_scales_ptr,
    v_scales_ptr,
    table_ptr,  # these four: as for _load_tile
    start,
    first,
    stop,
    kv_head,
    num_kv_heads,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Scales of the tile's keys and values, each [TILE]. Its entries of the table are near, as they were just read."""
    if BLOCK_SIZE % TILE == 0:
        blocks = tl.load(table_ptr + start // BLOCK_SIZE, mask=start < stop, other=0)
    else:
        position = start + tl.arange(0, TILE)
        blocks = tl.load(table_ptr + position // BLOCK_SIZE, mask=(position >= first) & (position < stop), other=0)
    k_scale = load_scales(k_scales_ptr, blocks, start, first, stop, kv_head, num_kv_heads, BLOCK_SIZE, TILE)
    v_scale = load_scales(v_scales_ptr, blocks, start, first, stop, kv_head, num_kv_heads, BLOCK_SIZE, TILE)
    return k_scale, v_scale


@triton.jit(do_not_specialize=["block_table_ptr", "rows_ptr", "positions_ptr", "table_stride", "window", "fair_splits"])
def _decode_attention_kernel(
    q_ptr,  # [num_tokens, num_heads, HEAD_DIM], heads of a group side by side
    k_cache_ptr,  # [num_blocks, num_kv_heads, BLOCK_SIZE, HEAD_DIM]
    v_cache_ptr,  # like k_cache
    k_scales_ptr,  # float32 [num_blocks, num_kv_heads, BLOCK_SIZE]; None, as v_scales: the cache has no scales
    v_scales_ptr,
    block_table_ptr,  # integers [max_rows, max_blocks]
    rows_ptr,  # integers [num_tokens], rows of the block table; below 0: padding
    positions_ptr,  # integers [num_tokens], of the newest key, which is in the cache
    outputs_ptr,  # these four: as in Workspace
    maxima_ptr,
    sums_ptr,
    counters_ptr,
    out_ptr,  # [num_tokens, num_heads, HEAD_DIM], written
    q_stride,  # elements from token to token
    table_stride,  # elements from row to row
    scale,  # factor on Q.K
    softcap,  # unread unless HAS_SOFTCAP
    window,  # positions that are seen, the newest included; unread unless HAS_WINDOW
    fair_splits,  # these two: as for share_of_split
    balance,
    GROUP: tl.constexpr,  # query heads of a KV head
    GROUP_BLOCK: tl.constexpr,  # power of two >= GROUP, at least 16
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,  # power of two >= HEAD_DIM
    BLOCK_SIZE: tl.constexpr,  # tokens of a KV block
    TILE: tl.constexpr,  # keys at a time; a power of two that divides BLOCK_SIZE, or that it divides
    HEADS: tl.constexpr,  # power of two >= GROUP
    MERGED: tl.constexpr,  # splits that are merged at a time
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PDL: tl.constexpr,
):
    IS_QUANTIZED: tl.constexpr = k_scales_ptr is not None
    kv_head, split, token = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_kv_heads = tl.num_programs(0)
    row = tl.load(rows_ptr + token).to(tl.int64)
    stop = tl.load(positions_ptr + token).to(tl.int32) + 1
    first = stop * 0
    if HAS_WINDOW:
        first = tl.maximum(stop - window, 0)
    start, end, active = share_of_split(first, stop, fair_splits, balance, TILE)

    wait_for_predecessor(PDL)
    group, element = tl.arange(0, GROUP_BLOCK), tl.arange(0, HEAD_BLOCK)
    mask = (group < GROUP)[:, None] & (element < HEAD_DIM)[None, :]
    here = (kv_head * GROUP + group)[:, None] * HEAD_DIM + element[None, :]  # [GROUP_BLOCK, HEAD_BLOCK]
    out_ptr += token.to(tl.int64) * num_kv_heads * GROUP * HEAD_DIM
    if (row < 0) | (split >= active):
        if split == 0:  # padding: the next product must find no NaN
            tl.store(out_ptr + here, tl.zeros((GROUP_BLOCK, HEAD_BLOCK), out_ptr.dtype.element_ty), mask=mask)
        return

    table_ptr = block_table_ptr + row * table_stride
    k, v = _load_tile(
        k_cache_ptr, v_cache_ptr, table_ptr, start, first, end, kv_head, num_kv_heads,
        HEAD_DIM, HEAD_BLOCK, BLOCK_SIZE, TILE,
    )  # fmt: skip
    if IS_QUANTIZED:
        k_scale, v_scale = _load_tile_scales(
            k_scales_ptr, v_scales_ptr, table_ptr, start, first, end, kv_head, num_kv_heads, BLOCK_SIZE, TILE
        )  # fmt: skip
    out_type = out_ptr.dtype.element_ty
    key_type = out_type if IS_QUANTIZED else k_cache_ptr.dtype.element_ty
    value_type = v_cache_ptr.dtype.element_ty
    if IS_QUANTIZED:
        value_type = tl.bfloat16 if out_type == tl.float16 else out_type
    q = tl.load(q_ptr + token.to(tl.int64) * q_stride + here, mask=mask, other=0.0)
    q = dot_operand(q.to(key_type))
    highest = tl.full((GROUP_BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((GROUP_BLOCK,), tl.float32)
    acc = tl.zeros((GROUP_BLOCK, HEAD_BLOCK), tl.float32)
    # Every tile has a key that is seen: tiles before `first` and from `stop` on belong to no split.
    for tile in range(start, end, TILE):
        keys, values = decoded(k, key_type), decoded(v, value_type)
        if IS_QUANTIZED:
            key_scale, value_scale = k_scale, v_scale
            k_scale, v_scale = _load_tile_scales(
                k_scales_ptr, v_scales_ptr, table_ptr, tile + TILE, first, end, kv_head, num_kv_heads, BLOCK_SIZE, TILE
            )  # fmt: skip
        k, v = _load_tile(
            k_cache_ptr, v_cache_ptr, table_ptr, tile + TILE, first, end, kv_head, num_kv_heads,
            HEAD_DIM, HEAD_BLOCK, BLOCK_SIZE, TILE,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale  # [GROUP_BLOCK, TILE]
        if IS_QUANTIZED:
            scores *= key_scale[None, :]
        if HAS_SOFTCAP:
            scores = softcap * tanh(scores / softcap)
        position = tile + tl.arange(0, TILE)
        seen = (position >= first) & (position < end)
        scores = tl.where(seen[None, :], scores * LOG2_E, LOWEST)
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))  # [GROUP_BLOCK]
        weights = tl.exp2(scores - new_highest[:, None])
        rescale = tl.exp2(highest - new_highest)
        total = total * rescale + tl.sum(weights, axis=1)
        if IS_QUANTIZED:
            weights *= value_scale[None, :]
        weights = dot_operand(weights.to(value_type))
        acc = tl.dot(weights, values, acc * rescale[:, None], input_precision="ieee")
        highest = new_highest

    if active == 1:
        tl.store(out_ptr + here, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=mask)
    else:
        pair = token.to(tl.int64) * num_kv_heads + kv_head
        parts = pair * tl.num_programs(1) * GROUP
        part = parts + split * GROUP + group  # [GROUP_BLOCK]
        tl.store(outputs_ptr + part[:, None] * HEAD_DIM + element[None, :], acc, mask=mask)
        tl.store(maxima_ptr + part, highest, mask=group < GROUP)
        tl.store(sums_ptr + part, total, mask=group < GROUP)
        tl.debug_barrier()  # all threads have stored before one of them counts
        if tl.atomic_add(counters_ptr + pair, 1, sem="acq_rel") == active - 1:
            tl.store(counters_ptr + pair, 0)
            merge_splits(
                outputs_ptr + parts * HEAD_DIM, maxima_ptr + parts, sums_ptr + parts,
                out_ptr + kv_head * GROUP * HEAD_DIM, active, GROUP, HEAD_DIM, HEAD_BLOCK, HEADS, MERGED,
            )  # fmt: skip


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    rows: Tensor,
    positions: Tensor,
    scale: float,
    *,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    workspace: Workspace | None = None,
    has_long_row: bool = False,
    splits: int | None = None,
    tile: AttentionTile | None = None,
    out: Tensor | None = None,
    pdl: bool = False,
) -> Tensor:
    """Softmax attention of one query a row over the keys up to its position, this step's already in the cache.

    Args:
        q: [num_tokens, num_heads, head_dim], rotated; num_heads is a multiple of the cache's heads.
        k_cache: [num_blocks, num_kv_heads, block_size, head_dim], contiguous; block_size a power of two.
        v_cache: like `k_cache`.
        block_table: int32 or int64 [max_rows, max_blocks].
        rows: int32 or int64 [num_tokens]: each token's row of the table; below 0 it is padding.
        positions: int32 or int64 [num_tokens].
        scale: factor on Q.K.
        k_scales: float32 [num_blocks, num_kv_heads, block_size] of a cache of 8 bits, else None; as `v_scales`.
        v_scales: like `k_scales`.
        window: positions that a query sees, its own included; None is all.
        softcap: scores x become softcap * tanh(x / softcap), before the mask.
        workspace: memory for the splits; allocated for this call where it is missing. A captured graph needs one that
            outlives it.
        has_long_row: as for `tiles.num_splits`; right with either, and faster with the right one.
        splits: programs that may share a KV head of a row; by default as many as fill the device.
        tile: instead of the table's choice; what measurements vary.
        out: [num_tokens, num_heads * head_dim] typed like `q`, contiguous, to write to; by default a new one.
        pdl: overlap with the kernel before, on devices that can. That kernel may have made `q` and the keys and values,
            not the table, the rows or the positions.

    Returns:
        [num_tokens, num_heads * head_dim], typed like `q`; zeros for padding.

    Raises:
        ValueError: shapes that do not fit, or a workspace that is too small.
    """
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, block_size, _ = k_cache.shape
    _check(q, k_cache)
    check_cache("decode_attention", k_cache, v_cache, rows, positions, num_tokens, window)
    check_scales("decode_attention", k_cache, k_scales, v_scales)
    plan = plan_splits(k_cache, num_tokens, num_heads, workspace, splits, tile, has_long_row)
    group = num_heads // num_kv_heads
    if out is None:
        out = torch.empty(num_tokens, num_heads * head_dim, dtype=q.dtype, device=q.device)
    elif out.shape != (num_tokens, num_heads * head_dim) or out.dtype != q.dtype or not out.is_contiguous():
        raise ValueError(
            f"decode_attention: out is {out.dtype} {tuple(out.shape)}; it must be contiguous {q.dtype} "
            f"({num_tokens}, {num_heads * head_dim})"
        )
    head_block, heads = triton.next_power_of_2(max(head_dim, 16)), triton.next_power_of_2(group)
    _decode_attention_kernel[(num_kv_heads, plan.splits, num_tokens)](
        q,
        stored_bytes(k_cache),
        stored_bytes(v_cache),
        k_scales,
        v_scales,
        block_table,
        rows,
        positions,
        plan.workspace.outputs,
        plan.workspace.maxima,
        plan.workspace.sums,
        plan.workspace.counters,
        out,
        q.stride(0),
        block_table.stride(0),
        float(scale),
        float(softcap or 0.0),
        window or 0,
        plan.fair_splits,
        float(plan.tile.balance),
        GROUP=group,
        GROUP_BLOCK=max(MIN_DOT_ROWS, heads),
        HEAD_DIM=head_dim,
        HEAD_BLOCK=head_block,
        BLOCK_SIZE=block_size,
        TILE=plan.tile.tokens,
        HEADS=heads,
        MERGED=merged_splits(heads, head_block, plan.tile.num_warps),
        HAS_SOFTCAP=softcap is not None,
        HAS_WINDOW=window is not None,
        **launch_options(plan.tile.num_warps, pdl, q.device),
    )
    return out


@dataclass(frozen=True)
class SplitPlan:
    """What a launch of decode attention offers."""

    tile: AttentionTile
    splits: int
    fair_splits: int
    workspace: Workspace


def plan_splits(
    k_cache: Tensor,
    num_tokens: int,
    num_heads: int,
    workspace: Workspace | None,
    splits: int | None,
    tile: AttentionTile | None,
    has_long_row: bool,
) -> SplitPlan:
    """The table's tile and splits where the caller has none; a number of splits that he does give counts as fair.

    Raises:
        ValueError: a workspace that is too small, or more splits than can be merged.
    """
    _, num_kv_heads, _, head_dim = k_cache.shape
    device, processors = k_cache.device, num_processors(k_cache.device)
    if tile is None:
        tile = attention_tile(capability(device), head_dim, k_cache.element_size(), num_tokens)
    fair = fair_splits(processors, num_tokens, num_kv_heads) if splits is None else splits
    splits = splits or num_splits(processors, num_tokens, num_kv_heads, tile.max_splits, has_long_row=has_long_row)
    if splits > MAX_SPLITS:
        raise ValueError(f"decode attention: {splits} splits; {MAX_SPLITS} can be merged")
    if workspace is None:
        workspace = Workspace.allocate(num_tokens, num_heads, num_kv_heads, head_dim, splits, device)
    elif (
        workspace.outputs.numel() < num_tokens * num_heads * splits * head_dim
        or workspace.maxima.numel() < num_tokens * num_heads * splits
        or workspace.counters.numel() < num_tokens * num_kv_heads
    ):
        raise ValueError(
            f"decode attention: the workspace has room for {workspace.outputs.numel()} elements and "
            f"{workspace.counters.numel()} counters; {num_tokens} tokens, {num_heads} heads of {head_dim} and {splits} "
            f"splits need {num_tokens * num_heads * splits * head_dim} and {num_tokens * num_kv_heads}"
        )
    return SplitPlan(tile, splits, fair, workspace)


def _check(q: Tensor, k_cache: Tensor) -> None:
    _, num_heads, head_dim = q.shape
    _, num_kv_heads, _, cache_dim = k_cache.shape
    if head_dim != cache_dim or num_heads % num_kv_heads or q.stride(2) != 1 or q.stride(1) != head_dim:
        raise ValueError(
            f"decode_attention: q is {tuple(q.shape)} with strides {q.stride()}; the cache has {num_kv_heads} heads of "
            f"{cache_dim}: q needs a multiple of as many, of that size, side by side"
        )


def check_cache(
    kernel: str, k_cache: Tensor, v_cache: Tensor, rows: Tensor, positions: Tensor, num_tokens: int, window: int | None
) -> None:
    """What both kernels ask of the cache and of the step.

    Raises:
        ValueError: something does not fit.
    """
    block_size = k_cache.shape[2]
    if v_cache.shape != k_cache.shape or not k_cache.is_contiguous() or not v_cache.is_contiguous():
        raise ValueError(
            f"{kernel}: the caches are {tuple(k_cache.shape)} and {tuple(v_cache.shape)}; they must be alike and "
            "contiguous"
        )
    if block_size & (block_size - 1):
        raise ValueError(f"{kernel}: blocks of {block_size} tokens; their size must be a power of two")
    if rows.shape != (num_tokens,) or positions.shape != (num_tokens,):
        raise ValueError(
            f"{kernel}: rows are {tuple(rows.shape)}, positions {tuple(positions.shape)}; one a token: {num_tokens}"
        )
    if window is not None and window < 1:
        raise ValueError(f"{kernel}: a window of {window} positions; at least 1, the query's own, is seen")
