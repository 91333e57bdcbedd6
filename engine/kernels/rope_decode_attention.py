"""From the QKV product to attention's output in one launch: norms of heads, rotation, KV write and decode attention.

It computes what `rope_store` followed by `decode_attention` computes, for heads that are rotated as a whole, in halves.
A program takes one KV head of one row and one split of its keys (engine/kernels/attention_splits.py): it rotates the
query heads that share the KV head, packs them into the rows of one matrix product, and walks the block table with a
running softmax in float32. The new key and value never come back from memory: the last split rotates them, writes them
to the cache, and starts its softmax with them, as if a first tile of one key had been computed. So all that is loaded
from the cache is older than this step, and loading begins before the QKV product is complete.

Everything lies in halves of the head, as the rotation needs it: Q.K is q1.k1 + q2.k2, and V's halves give the halves of
the result. The next tile's keys are loaded as soon as this one's are used up, and likewise its values; the numbers of
its blocks are there by then, as they are loaded a tile ahead. A cache of 8 bits comes with scales, and they with their
keys and values (engine/kernels/kv_quantization.py); the new key and value count as what they are stored as.

Called once a layer of a decode step.

Source: as decode_attention.py and rope_store.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.attention_splits import LOWEST, merge_splits, merged_splits, share_of_split
from engine.kernels.decode_attention import (
    LOG2_E,
    MIN_DOT_ROWS,
    Workspace,
    check_cache,
    plan_splits,
)
from engine.kernels.gemv_epilogue import tanh
from engine.kernels.kv_quantization import decoded, encoded, load_scales, magnitude, scale_of, stored_bytes
from engine.kernels.kv_types import check_scales
from engine.kernels.launch import dot_operand, launch_options, wait_for_predecessor
from engine.kernels.tiles import AttentionTile

Tensor = torch.Tensor

MIN_HEAD_DIM = 32
"""Halves of 16 elements, the least that a product of tensor cores takes."""


@triton.jit
def _load_blocks(
    table_ptr,  # the row's entries
    start,  # first position of the tile, a multiple of TILE
    first,  # half-open: positions to load are in [first, stop)
    stop,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Numbers of the blocks that a tile's keys are in: one where the tile lies in one block, else [TILE]."""
    if BLOCK_SIZE % TILE == 0:
        return tl.load(table_ptr + start // BLOCK_SIZE, mask=start < stop, other=0)
    else:
        position = start + tl.arange(0, TILE)
        return tl.load(table_ptr + position // BLOCK_SIZE, mask=(position >= first) & (position < stop), other=0)


@triton.jit
def _load_halves(
    cache_ptr,  # of K or of V
    blocks,  # of this tile
    start,  # these three: as for _load_blocks
    first,
    stop,
    kv_head,
    num_kv_heads,
    HALF: tl.constexpr,  # elements of half a head
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Both halves of a tile of keys or values, each [TILE, HALF], zero where nothing is to be loaded."""
    position = start + tl.arange(0, TILE)
    mask = ((position >= first) & (position < stop))[:, None]
    slot = (blocks.to(tl.int64) * num_kv_heads + kv_head) * BLOCK_SIZE + position % BLOCK_SIZE  # [TILE]
    here = cache_ptr + slot[:, None] * (2 * HALF) + tl.arange(0, HALF)[None, :]
    return tl.load(here, mask=mask, other=0.0), tl.load(here + HALF, mask=mask, other=0.0)


@triton.jit
def _store_quantized(
    cache_ptr,  # of K or of V
    scales_ptr,
    slot,  # int64, where the vector goes
    x1,  # float32 [HALF], its halves
    x2,
    HALF: tl.constexpr,
):
    """Writes a vector and its scale; its halves as they will be read back."""
    stored_type: tl.constexpr = cache_ptr.dtype.element_ty
    scale, inverse = scale_of(tl.maximum(tl.max(magnitude(x1)), tl.max(magnitude(x2))), stored_type)
    stored1, stored2 = encoded(x1 * inverse, stored_type), encoded(x2 * inverse, stored_type)
    there = cache_ptr + slot * (2 * HALF) + tl.arange(0, HALF)
    tl.store(there, stored1)
    tl.store(there + HALF, stored2)
    tl.store(scales_ptr + slot, scale)
    return decoded(stored1, tl.float32) * scale, decoded(stored2, tl.float32) * scale


@triton.jit
def _scaled(
    scores,
    scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
):
    """Scores as exponents of 2."""
    if HAS_SOFTCAP:
        return softcap * tanh(scores * scale / softcap) * LOG2_E
    else:
        return scores * (scale * LOG2_E)


@triton.jit(do_not_specialize=["block_table_ptr", "rows_ptr", "positions_ptr", "table_stride", "window", "fair_splits"])
def _rope_decode_attention_kernel(
    qkv_ptr,  # [num_tokens, (num_heads + 2 * num_kv_heads) * HEAD_DIM], heads of a group side by side
    cos_ptr,  # float32 [num_tokens, HEAD_DIM], the second half repeats the first
    sin_ptr,  # float32 [num_tokens, HEAD_DIM], the first half is the second negated
    k_cache_ptr,  # [num_blocks, num_kv_heads, BLOCK_SIZE, HEAD_DIM]
    v_cache_ptr,  # like k_cache
    k_scales_ptr,  # float32 [num_blocks, num_kv_heads, BLOCK_SIZE]; None, as v_scales: the cache has no scales
    v_scales_ptr,
    block_table_ptr,  # integers [max_rows, max_blocks]
    rows_ptr,  # integers [num_tokens], rows of the block table; below 0: padding
    positions_ptr,  # integers [num_tokens], of the new key
    q_norm_ptr,  # [HEAD_DIM], unread unless HAS_NORM, as k_norm
    k_norm_ptr,
    outputs_ptr,  # these four: as in Workspace
    maxima_ptr,
    sums_ptr,
    counters_ptr,
    out_ptr,  # [num_tokens, num_heads, HEAD_DIM], written
    qkv_stride,  # elements from token to token
    cos_stride,
    sin_stride,
    table_stride,  # elements from row to row
    scale,  # factor on Q.K
    softcap,  # unread unless HAS_SOFTCAP
    window,  # positions that are seen, the new one included; unread unless HAS_WINDOW
    eps,  # of the norms
    fair_splits,  # these two: as for share_of_split
    balance,
    GROUP: tl.constexpr,  # query heads of a KV head
    GROUP_BLOCK: tl.constexpr,  # power of two >= GROUP, at least 16
    HEADS: tl.constexpr,  # power of two >= GROUP
    HALF: tl.constexpr,  # HEAD_DIM / 2, a power of two, at least 16
    BLOCK_SIZE: tl.constexpr,  # tokens of a KV block
    TILE: tl.constexpr,  # keys at a time; a power of two that divides BLOCK_SIZE, or that it divides
    MERGED: tl.constexpr,  # splits that are merged at a time
    HAS_NORM: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PDL: tl.constexpr,
):
    HEAD_DIM: tl.constexpr = 2 * HALF
    IS_QUANTIZED: tl.constexpr = k_scales_ptr is not None
    kv_head, split, token = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_kv_heads = tl.num_programs(0)
    row = tl.load(rows_ptr + token).to(tl.int64)
    position = tl.load(positions_ptr + token).to(tl.int32)
    first = position * 0
    if HAS_WINDOW:
        first = tl.maximum(position + 1 - window, 0)
    start, end, active = share_of_split(first, position, fair_splits, balance, TILE)

    group, half = tl.arange(0, GROUP_BLOCK), tl.arange(0, HALF)
    mask = (group < GROUP)[:, None]
    here = group[:, None] * HEAD_DIM + half[None, :]  # [GROUP_BLOCK, HALF]
    out_ptr += (token * num_kv_heads + kv_head) * GROUP * HEAD_DIM
    if (row < 0) | (split >= active):
        if split == 0:  # padding: the next product must find no NaN
            wait_for_predecessor(PDL)
            zeros = tl.zeros((GROUP_BLOCK, HALF), out_ptr.dtype.element_ty)
            tl.store(out_ptr + here, zeros, mask=mask)
            tl.store(out_ptr + here + HALF, zeros, mask=mask)
        # The others need not wait: split 0 of each row does, so the next kernel starts after it all the same.
        return

    table_ptr = block_table_ptr + row * table_stride
    blocks = _load_blocks(table_ptr, start, first, end, BLOCK_SIZE, TILE)
    new_block = tl.load(table_ptr + position // BLOCK_SIZE).to(tl.int64)
    cos = tl.load(cos_ptr + token * cos_stride + half)
    sin = tl.load(sin_ptr + token * sin_stride + HALF + half)
    if HAS_NORM:
        gamma_q1 = tl.load(q_norm_ptr + half).to(tl.float32)
        gamma_q2 = tl.load(q_norm_ptr + HALF + half).to(tl.float32)
        gamma_k1 = tl.load(k_norm_ptr + half).to(tl.float32)
        gamma_k2 = tl.load(k_norm_ptr + HALF + half).to(tl.float32)
    k1, k2 = _load_halves(k_cache_ptr, blocks, start, first, end, kv_head, num_kv_heads, HALF, BLOCK_SIZE, TILE)
    v1, v2 = _load_halves(v_cache_ptr, blocks, start, first, end, kv_head, num_kv_heads, HALF, BLOCK_SIZE, TILE)
    if IS_QUANTIZED:
        k_scale = load_scales(k_scales_ptr, blocks, start, first, end, kv_head, num_kv_heads, BLOCK_SIZE, TILE)
        v_scale = load_scales(v_scales_ptr, blocks, start, first, end, kv_head, num_kv_heads, BLOCK_SIZE, TILE)
    blocks = _load_blocks(table_ptr, start + TILE, first, end, BLOCK_SIZE, TILE)

    wait_for_predecessor(PDL)
    out_type = out_ptr.dtype.element_ty
    # Of the products, and of a value before it is stored.
    kv_type = out_type if IS_QUANTIZED else k_cache_ptr.dtype.element_ty
    value_type = tl.float32 if IS_QUANTIZED else kv_type
    weight_type = tl.bfloat16 if IS_QUANTIZED and out_type == tl.float16 else kv_type
    is_last = split == active - 1
    qkv_ptr += token * qkv_stride + kv_head * GROUP * HEAD_DIM
    new_ptr = qkv_ptr + ((num_kv_heads - kv_head) * GROUP + kv_head) * HEAD_DIM + half
    a = tl.load(qkv_ptr + here, mask=mask, other=0.0).to(tl.float32)  # [GROUP_BLOCK, HALF]
    b = tl.load(qkv_ptr + here + HALF, mask=mask, other=0.0).to(tl.float32)
    new_mask = half < tl.where(is_last, HALF, 0)
    new_k1 = tl.load(new_ptr, mask=new_mask, other=0.0).to(tl.float32)  # [HALF]
    new_k2 = tl.load(new_ptr + HALF, mask=new_mask, other=0.0).to(tl.float32)
    new_v1 = tl.load(new_ptr + num_kv_heads * HEAD_DIM, mask=new_mask, other=0.0).to(value_type)
    new_v2 = tl.load(new_ptr + num_kv_heads * HEAD_DIM + HALF, mask=new_mask, other=0.0).to(value_type)
    if HAS_NORM:
        inverse_rms = tl.rsqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / HEAD_DIM + eps)[:, None]
        a *= inverse_rms * gamma_q1[None, :]
        b *= inverse_rms * gamma_q2[None, :]
    # Rounded as when it went through memory: to the type of the result, then to that of the products.
    q1 = (a * cos[None, :] - b * sin[None, :]).to(out_type).to(kv_type)
    q2 = (b * cos[None, :] + a * sin[None, :]).to(out_type).to(kv_type)

    highest = tl.full((GROUP_BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((GROUP_BLOCK,), tl.float32)
    acc1 = tl.zeros((GROUP_BLOCK, HALF), tl.float32)
    acc2 = tl.zeros((GROUP_BLOCK, HALF), tl.float32)
    if is_last:
        if HAS_NORM:
            new_inverse_rms = tl.rsqrt((tl.sum(new_k1 * new_k1) + tl.sum(new_k2 * new_k2)) / HEAD_DIM + eps)
            new_k1 *= new_inverse_rms * gamma_k1
            new_k2 *= new_inverse_rms * gamma_k2
        turned1 = (new_k1 * cos - new_k2 * sin).to(value_type)
        turned2 = (new_k2 * cos + new_k1 * sin).to(value_type)
        slot = (new_block * num_kv_heads + kv_head) * BLOCK_SIZE + position % BLOCK_SIZE
        if IS_QUANTIZED:
            turned1, turned2 = _store_quantized(k_cache_ptr, k_scales_ptr, slot, turned1, turned2, HALF)
            new_v1, new_v2 = _store_quantized(v_cache_ptr, v_scales_ptr, slot, new_v1, new_v2, HALF)
        else:
            there = slot * HEAD_DIM + half
            tl.store(k_cache_ptr + there, turned1)
            tl.store(k_cache_ptr + there + HALF, turned2)
            tl.store(v_cache_ptr + there, new_v1)
            tl.store(v_cache_ptr + there + HALF, new_v2)
        products = q1.to(tl.float32) * turned1.to(tl.float32)[None, :]
        products += q2.to(tl.float32) * turned2.to(tl.float32)[None, :]
        highest = _scaled(tl.sum(products, axis=1), scale, softcap, HAS_SOFTCAP)
        total += 1.0
        acc1 += new_v1.to(tl.float32)[None, :]
        acc2 += new_v2.to(tl.float32)[None, :]

    q1, q2 = dot_operand(q1), dot_operand(q2)
    # Every tile has a key that is seen: tiles before `first` and from `position` on belong to no split.
    for tile in range(start, end, TILE):
        scores = tl.dot(q1, tl.trans(decoded(k1, kv_type)), input_precision="ieee")  # [GROUP_BLOCK, TILE]
        scores = tl.dot(q2, tl.trans(decoded(k2, kv_type)), scores, input_precision="ieee")
        if IS_QUANTIZED:
            scores *= k_scale[None, :]
        # The registers of these keys are free now for those of the next tile; likewise the values', below.
        ahead = tile + TILE
        k1, k2 = _load_halves(k_cache_ptr, blocks, ahead, first, end, kv_head, num_kv_heads, HALF, BLOCK_SIZE, TILE)
        if IS_QUANTIZED:
            k_scale = load_scales(k_scales_ptr, blocks, ahead, first, end, kv_head, num_kv_heads, BLOCK_SIZE, TILE)
        key = tile + tl.arange(0, TILE)
        seen = (key >= first) & (key < end)
        scores = tl.where(seen[None, :], _scaled(scores, scale, softcap, HAS_SOFTCAP), LOWEST)
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))  # [GROUP_BLOCK]
        weights = tl.exp2(scores - new_highest[:, None])
        rescale = tl.exp2(highest - new_highest)
        total = total * rescale + tl.sum(weights, axis=1)
        if IS_QUANTIZED:
            weights *= v_scale[None, :]
        weights = dot_operand(weights.to(weight_type))
        acc1 = tl.dot(weights, decoded(v1, weight_type), acc1 * rescale[:, None], input_precision="ieee")
        acc2 = tl.dot(weights, decoded(v2, weight_type), acc2 * rescale[:, None], input_precision="ieee")
        v1, v2 = _load_halves(v_cache_ptr, blocks, ahead, first, end, kv_head, num_kv_heads, HALF, BLOCK_SIZE, TILE)
        if IS_QUANTIZED:
            v_scale = load_scales(v_scales_ptr, blocks, ahead, first, end, kv_head, num_kv_heads, BLOCK_SIZE, TILE)
        blocks = _load_blocks(table_ptr, ahead + TILE, first, end, BLOCK_SIZE, TILE)
        highest = new_highest

    if active == 1:
        tl.store(out_ptr + here, (acc1 / total[:, None]).to(out_type), mask=mask)
        tl.store(out_ptr + here + HALF, (acc2 / total[:, None]).to(out_type), mask=mask)
    else:
        pair = token * num_kv_heads + kv_head
        parts = pair * tl.num_programs(1) * GROUP
        part = parts + split * GROUP  # + group
        tl.store(outputs_ptr + part * HEAD_DIM + here, acc1, mask=mask)
        tl.store(outputs_ptr + part * HEAD_DIM + here + HALF, acc2, mask=mask)
        tl.store(maxima_ptr + part + group, highest, mask=group < GROUP)
        tl.store(sums_ptr + part + group, total, mask=group < GROUP)
        tl.debug_barrier()  # all threads have stored before one of them counts
        if tl.atomic_add(counters_ptr + pair, 1, sem="acq_rel") == active - 1:
            tl.store(counters_ptr + pair, 0)
            merge_splits(
                outputs_ptr + parts * HEAD_DIM, maxima_ptr + parts, sums_ptr + parts, out_ptr, active,
                GROUP, HEAD_DIM, HEAD_DIM, HEADS, MERGED,
            )  # fmt: skip


def is_fusable(head_dim: int, rotary_dim: int, is_interleaved: bool) -> bool:
    """Whether `rope_decode_attention` takes such heads; else it is `rope_store` and `decode_attention`."""
    is_power_of_two = head_dim & (head_dim - 1) == 0
    return head_dim >= MIN_HEAD_DIM and is_power_of_two and rotary_dim == head_dim and not is_interleaved


def rope_decode_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    rows: Tensor,
    positions: Tensor,
    num_heads: int,
    scale: float,
    *,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
    out_dtype: torch.dtype | None = None,
    workspace: Workspace | None = None,
    has_long_row: bool = False,
    splits: int | None = None,
    tile: AttentionTile | None = None,
    pdl: bool = False,
) -> Tensor:
    """Norms (optionally) and rotates Q and K, writes K and V into the cache, and attends: one token a row.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim].
        cos: float32 [num_tokens, 1, head_dim]; the second half repeats the first.
        sin: like `cos`, its first half negated.
        k_cache: [num_blocks, num_kv_heads, block_size, head_dim], contiguous; block_size a power of two. Keys of
            earlier positions are in it, and were before the kernel ahead of this one began.
        v_cache: like `k_cache`.
        block_table: int32 or int64 [max_rows, max_blocks].
        rows: int32 or int64 [num_tokens]: each token's row of the table, no row twice; below 0 it is padding.
        positions: int32 or int64 [num_tokens].
        num_heads: of Q.
        scale: factor on Q.K.
        k_scales: float32 [num_blocks, num_kv_heads, block_size] of a cache of 8 bits, else None; as `v_scales`.
        v_scales: like `k_scales`.
        q_norm: [head_dim], or None where the model has no norm over each head.
        k_norm: like `q_norm`.
        eps: of these norms.
        window: positions that a query sees, its own included; None is all.
        softcap: scores become softcap * tanh(scores / softcap); None is not.
        out_dtype: of the result, and of Q before it meets the keys; by default that of the cache, of a
            quantised one that of `qkv`.
        workspace: memory for the splits; None allocates it, and with it the zeros, in a launch more.
        has_long_row: as for `tiles.num_splits`; right with either, and faster with the right one.
        splits: programs offered to one KV head of a row; None asks the table, as for `tile`.
        pdl: overlap with the kernel before, on devices that can. Only `qkv` may be that kernel's work.

    Returns:
        [num_tokens, num_heads * head_dim]; zeros for padding.

    Raises:
        ValueError: shapes that do not fit, heads that are not fusable, or a workspace that is too small.
    """
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    num_tokens = qkv.shape[0]
    _check(qkv, cos, sin, num_heads, k_cache)
    check_cache("rope_decode_attention", k_cache, v_cache, rows, positions, num_tokens, window)
    check_scales("rope_decode_attention", k_cache, k_scales, v_scales)
    if (q_norm is None) != (k_norm is None):
        raise ValueError("rope_decode_attention: q_norm and k_norm come together or not at all")
    plan = plan_splits(k_cache, num_tokens, num_heads, workspace, splits, tile, has_long_row)
    out_dtype = out_dtype or (k_cache.dtype if k_scales is None else qkv.dtype)
    out = torch.empty(num_tokens, num_heads * head_dim, dtype=out_dtype, device=qkv.device)
    group = num_heads // num_kv_heads
    heads = triton.next_power_of_2(group)
    _rope_decode_attention_kernel[(num_kv_heads, plan.splits, num_tokens)](
        qkv,
        cos,
        sin,
        stored_bytes(k_cache),
        stored_bytes(v_cache),
        k_scales,
        v_scales,
        block_table,
        rows,
        positions,
        cos if q_norm is None else q_norm,
        cos if k_norm is None else k_norm,
        plan.workspace.outputs,
        plan.workspace.maxima,
        plan.workspace.sums,
        plan.workspace.counters,
        out,
        qkv.stride(0),
        cos.stride(0),
        sin.stride(0),
        block_table.stride(0),
        float(scale),
        float(softcap or 0.0),
        window or 0,
        float(eps),
        plan.fair_splits,
        float(plan.tile.balance),
        GROUP=group,
        GROUP_BLOCK=max(MIN_DOT_ROWS, heads),
        HEADS=heads,
        HALF=head_dim // 2,
        BLOCK_SIZE=block_size,
        TILE=plan.tile.tokens,
        MERGED=merged_splits(heads, head_dim, plan.tile.num_warps),
        HAS_NORM=q_norm is not None,
        HAS_SOFTCAP=softcap is not None,
        HAS_WINDOW=window is not None,
        **launch_options(plan.tile.num_warps, pdl, qkv.device),
        **({} if plan.tile.max_registers is None else {"maxnreg": plan.tile.max_registers}),
    )
    return out


def _check(qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int, k_cache: Tensor) -> None:
    _, num_kv_heads, _, head_dim = k_cache.shape
    num_tokens, width = qkv.shape[0], (num_heads + 2 * num_kv_heads) * head_dim
    if not is_fusable(head_dim, cos.shape[-1], is_interleaved=False):
        raise ValueError(
            f"rope_decode_attention: heads of {head_dim} of which {cos.shape[-1]} are rotated; it takes powers of two "
            f"from {MIN_HEAD_DIM} on, rotated as a whole: use rope_store and decode_attention"
        )
    if qkv.shape != (num_tokens, width) or qkv.stride(1) != 1 or num_heads % num_kv_heads:
        raise ValueError(
            f"rope_decode_attention: qkv is {tuple(qkv.shape)}; {num_heads} heads, a multiple of the cache's "
            f"{num_kv_heads}, and {num_kv_heads} of K and of V, of {head_dim}, need ({num_tokens}, {width})"
        )
    if cos.shape != (num_tokens, 1, head_dim) or sin.shape != cos.shape or cos.stride(2) != 1 or sin.stride(2) != 1:
        raise ValueError(
            f"rope_decode_attention: cos is {tuple(cos.shape)}, sin {tuple(sin.shape)}; both must be "
            f"({num_tokens}, 1, {head_dim})"
        )
