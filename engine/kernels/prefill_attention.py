"""Attention of many query tokens over a paged KV cache: prompts, their chunks, and rows that decode beside them.

    o[t] = softmax over keys j of (scale * q[t] . k[j], soft-capped) * v[j],     p - window < j <= p for t at position p

Each row brings its own query tokens and its own cached past; the step's keys and values are already in the cache. A
program takes BLOCK_M rows of scores of one KV head: its query heads for BLOCK_M // group tokens, so that a key is
loaded once for the whole group and a tile spans few positions. It walks the keys in tiles of BLOCK_N in up to three
loops over one body: the window's edge (masked), the keys that every query of the tile sees (no mask), the diagonal
(masked). Running softmax with base 2, statistics and accumulator in float32, weights rounded to the type of Q. A cache
of 8 bits has scales, which go to the scores and the weights (engine/kernels/kv_quantization.py).

Slots that no query of a tile may see are never loaded, and table entries that lead to them alone never followed: they
may hold another request's NaN, or nothing. Which row a program works for is read from `cu_seqlens` on the device; no
length is known to the host, so a launch for the same number of tokens and rows can be replayed in a CUDA graph.

Source: Dao 2023, arXiv:2307.08691 (loops over whole and masked tiles); Kwon et al. 2023, arXiv:2309.06180 (paging);
Milakov & Gimelshein 2018, arXiv:1805.02867 (running softmax).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from engine.kernels.kv_quantization import decoded, stored_bytes
from engine.kernels.kv_types import check_scales
from engine.kernels.launch import capability, dot_operand, launch_options, wait_for_predecessor
from engine.kernels.tiles import PrefillTile, prefill_tile

Tensor = torch.Tensor

ROWS_AT_ONCE = 128
"""Entries of `cu_seqlens` that the search for a program's row reads at once."""


@triton.jit
def _find_row(
    cu_seqlens_ptr,  # int32 [num_rows + 1]
    num_rows,
    tile,  # number of this program among the tiles of all rows
    BLOCK_Q: tl.constexpr,  # tokens a tile
    ROWS_AT_ONCE: tl.constexpr,
):
    """The row whose tiles include `tile`. Row r has those from cu_seqlens[r] // BLOCK_Q + r on: never too few."""
    row = -1
    for first in range(0, num_rows, ROWS_AT_ONCE):
        candidate = first + tl.arange(0, ROWS_AT_ONCE)
        begin = tl.load(cu_seqlens_ptr + candidate, mask=candidate < num_rows, other=0)
        row += tl.sum(((begin // BLOCK_Q + candidate <= tile) & (candidate < num_rows)).to(tl.int32), axis=0)
    return row


@triton.jit
def _table_entries(
    table_ptr,  # at the row
    first,  # a tile's first key, a multiple of BLOCK_N
    last_entry,  # the row's last
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The block of each key of a tile: integers [BLOCK_N]. What would lie behind the row's last entry is that entry."""
    entry = first // BLOCK_SIZE + tl.arange(0, BLOCK_N) // BLOCK_SIZE
    return tl.load(table_ptr + tl.minimum(entry, last_entry))


@triton.jit
def _attend(
    acc,  # float32 [BLOCK_M, DIM]
    denominator,  # float32 [BLOCK_M]
    maximum,  # float32 [BLOCK_M], of the scores
    q,  # [BLOCK_M, DIM]
    position,  # int32 [BLOCK_M]
    k_ptr,  # at the KV head
    v_ptr,
    k_scales_ptr,  # at the KV head; None, as v_scales: the cache has no scales
    v_scales_ptr,
    table_ptr,  # at the row
    start,  # keys [start, stop) are walked, start a multiple of BLOCK_N
    stop,
    least,  # keys [least, num_keys) are seen by some query of the tile
    num_keys,
    window,
    block_stride,  # elements
    slot_stride,
    scales_stride,  # scales from block to block
    scale,  # scores to units of log 2; with a soft cap, to units of the cap
    cap,  # the soft cap in units of log 2
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    IS_WIDE: tl.constexpr,
    IS_MASKED: tl.constexpr,
):
    lane = tl.arange(0, BLOCK_N)
    dim = tl.arange(0, DIM)
    last_entry = (num_keys - 1) // BLOCK_SIZE
    IS_QUANTIZED: tl.constexpr = k_scales_ptr is not None
    value_type = tl.bfloat16 if IS_QUANTIZED and q.dtype == tl.float16 else q.dtype
    # Where a key lies within its block is the same in each tile, and each tile's blocks are looked up one tile ahead:
    # what is left in the loop is a product and a sum for each address, of 32 bits where they reach.
    inside = (lane % BLOCK_SIZE)[:, None] * slot_stride + dim[None, :]
    blocks = _table_entries(table_ptr, start, last_entry, BLOCK_SIZE, BLOCK_N)
    for first in range(start, stop, BLOCK_N):
        offset = (blocks.to(tl.int64 if IS_WIDE else tl.int32) * block_stride)[:, None] + inside
        if BLOCK_SIZE > BLOCK_N:
            offset += first % BLOCK_SIZE * slot_stride
        if IS_MASKED:
            key = first + lane
            mask = ((key >= least) & (key < num_keys))[:, None] & (dim < HEAD_DIM)[None, :]
            k = tl.load(k_ptr + offset, mask=mask, other=0.0)
            v = tl.load(v_ptr + offset, mask=mask, other=0.0)
        elif HEAD_DIM == DIM:
            k = tl.load(k_ptr + offset)
            v = tl.load(v_ptr + offset)
        else:
            mask = (dim < HEAD_DIM)[None, :]
            k = tl.load(k_ptr + offset, mask=mask, other=0.0)
            v = tl.load(v_ptr + offset, mask=mask, other=0.0)
        if IS_QUANTIZED:
            place = blocks.to(tl.int64 if IS_WIDE else tl.int32) * scales_stride + (first + lane) % BLOCK_SIZE
            if IS_MASKED:
                is_there = (key >= least) & (key < num_keys)
                k_scale = tl.load(k_scales_ptr + place, mask=is_there, other=0.0)
                v_scale = tl.load(v_scales_ptr + place, mask=is_there, other=0.0)
            else:
                k_scale = tl.load(k_scales_ptr + place)
                v_scale = tl.load(v_scales_ptr + place)
        blocks = _table_entries(table_ptr, first + BLOCK_N, last_entry, BLOCK_SIZE, BLOCK_N)
        k = decoded(k, q.dtype)
        scores = tl.dot(dot_operand(q), tl.trans(k), input_precision="ieee")  # [BLOCK_M, BLOCK_N]
        if IS_QUANTIZED:
            scores *= k_scale[None, :]
        factor = scale
        if HAS_CAP:
            # cap * tanh(x / cap); the exponential of a negative number cannot overflow.
            scores = scores * scale
            decay = tl.exp2(tl.abs(scores) * -2.8853900817779268)  # 2 / log(2)
            bounded = cap * (1.0 - decay) / (1.0 + decay)
            scores = tl.where(scores < 0, -bounded, bounded)
            factor = 1.0
        if IS_MASKED:
            sees = key[None, :] <= position[:, None]
            if HAS_WINDOW:
                sees &= key[None, :] > position[:, None] - window
            scores = tl.where(sees, scores, float("-inf"))
        # The scale is above 0, so it may wait until after the maximum; then it costs nothing, as part of the
        # subtraction.
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        # A query that has seen no key yet has -inf, and -inf - -inf would be NaN.
        shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum) if IS_MASKED else new_maximum
        shift = shift * factor
        weights = tl.exp2(scores * factor - shift[:, None])
        rescale = tl.exp2(maximum * factor - shift)
        denominator = denominator * rescale + tl.sum(weights, axis=1)
        acc = acc * rescale[:, None]
        if IS_QUANTIZED:
            weights *= v_scale[None, :]
        acc = tl.dot(dot_operand(weights.to(value_type)), decoded(v, value_type), acc, input_precision="ieee")
        maximum = new_maximum
    return acc, denominator, maximum


@triton.jit(do_not_specialize=["rows_ptr", "cu_seqlens_ptr", "starts_ptr", "num_rows"])
def _prefill_attention_kernel(
    q_ptr,  # [num_tokens, num_kv_heads * GROUP, HEAD_DIM]
    k_cache_ptr,  # [num_blocks, num_kv_heads, BLOCK_SIZE, HEAD_DIM]
    v_cache_ptr,  # like k_cache
    k_scales_ptr,  # float32 [num_blocks, num_kv_heads, BLOCK_SIZE]; None, as v_scales: the cache has no scales
    v_scales_ptr,
    block_table_ptr,  # integers [max_rows, max_blocks]
    rows_ptr,  # int32 [num_rows], rows of the block table; below 0: padding
    cu_seqlens_ptr,  # int32 [num_rows + 1], first token of each row, then their number
    starts_ptr,  # int32 [num_rows], position of each row's first token
    out_ptr,  # [num_tokens, num_kv_heads * GROUP, HEAD_DIM], contiguous
    num_rows,
    q_token_stride,  # elements
    q_head_stride,
    block_stride,  # elements, alike for K and V
    head_stride,
    slot_stride,
    table_stride,
    window,  # positions that a query sees, its own included; unread unless HAS_WINDOW
    scale,
    cap,
    GROUP: tl.constexpr,  # query heads a KV head
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,  # power of two >= HEAD_DIM
    BLOCK_SIZE: tl.constexpr,  # tokens a KV block
    BLOCK_M: tl.constexpr,  # (token, query head) pairs a program
    BLOCK_N: tl.constexpr,  # keys a tile
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    IS_WIDE: tl.constexpr,  # the caches reach further than 32 bits count
    IN_REGISTERS: tl.constexpr,  # Q is kept in registers rather than in shared memory
    ROWS_AT_ONCE: tl.constexpr,
    PDL: tl.constexpr,
):
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    # The last tiles of a prompt have the most keys: they go first, so that no long one is left over at the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    row = _find_row(cu_seqlens_ptr, num_rows, tile, BLOCK_Q, ROWS_AT_ONCE)
    row_begin = tl.load(cu_seqlens_ptr + row)
    num_tokens = tl.load(cu_seqlens_ptr + row + 1) - row_begin
    first_token = (tile - row_begin // BLOCK_Q - row) * BLOCK_Q  # within the row
    table_row = tl.load(rows_ptr + row).to(tl.int64)
    if (first_token >= num_tokens) | (table_row < 0):
        return

    lane = tl.arange(0, BLOCK_M)
    token = first_token + lane // GROUP
    is_used = (token < num_tokens) & (lane < BLOCK_Q * GROUP)
    head = kv_head * GROUP + lane % GROUP
    row_start = tl.load(starts_ptr + row)
    first_position = row_start + first_token
    last_position = row_start + tl.minimum(first_token + BLOCK_Q, num_tokens) - 1
    position = tl.minimum(row_start + token, last_position)

    dim = tl.arange(0, DIM)
    mask = is_used[:, None] & (dim < HEAD_DIM)[None, :]
    row_token = (row_begin + token).to(tl.int64)
    q_offset = row_token * q_token_stride + head * q_head_stride
    wait_for_predecessor(PDL)
    q = tl.load(q_ptr + q_offset[:, None] + dim[None, :], mask=mask, other=0.0)  # [BLOCK_M, DIM]
    if IN_REGISTERS:
        # The result of a product lies in registers as the left side of the next one wants it.
        unit = (dim[:, None] == dim[None, :]).to(tl.float32).to(q.dtype)
        q = tl.dot(dot_operand(q), dot_operand(unit), input_precision="ieee").to(q.dtype)

    k_ptr = k_cache_ptr + kv_head * head_stride
    v_ptr = v_cache_ptr + kv_head * head_stride
    scales_stride = tl.num_programs(1) * BLOCK_SIZE
    if k_scales_ptr is not None:
        k_scales_ptr += kv_head * BLOCK_SIZE
        v_scales_ptr += kv_head * BLOCK_SIZE
    table_ptr = block_table_ptr + table_row * table_stride
    acc = tl.zeros([BLOCK_M, DIM], dtype=tl.float32)
    denominator = tl.zeros([BLOCK_M], dtype=tl.float32)
    maximum = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    num_keys = last_position + 1
    # Keys before it are seen by every query, save for the window.
    whole_stop = (first_position + 1) // BLOCK_N * BLOCK_N
    whole_start = 0
    least = 0
    if HAS_WINDOW:
        least = tl.maximum(0, first_position + 1 - window)
        start = least // BLOCK_N * BLOCK_N
        whole_start = tl.maximum(0, last_position + 1 - window)
        whole_start = (whole_start + BLOCK_N - 1) // BLOCK_N * BLOCK_N
        whole_start = tl.maximum(start, tl.minimum(whole_start, whole_stop))
        acc, denominator, maximum = _attend(
            acc, denominator, maximum, q, position, k_ptr, v_ptr, k_scales_ptr, v_scales_ptr, table_ptr,
            start, whole_start, least, num_keys, window, block_stride, slot_stride, scales_stride, scale, cap,
            HEAD_DIM, DIM, BLOCK_SIZE, BLOCK_N, HAS_WINDOW, HAS_CAP, IS_WIDE, True,
        )  # fmt: skip
    acc, denominator, maximum = _attend(
        acc, denominator, maximum, q, position, k_ptr, v_ptr, k_scales_ptr, v_scales_ptr, table_ptr,
        whole_start, whole_stop, least, num_keys, window, block_stride, slot_stride, scales_stride, scale, cap,
        HEAD_DIM, DIM, BLOCK_SIZE, BLOCK_N, HAS_WINDOW, HAS_CAP, IS_WIDE, False,
    )  # fmt: skip
    acc, denominator, maximum = _attend(
        acc, denominator, maximum, q, position, k_ptr, v_ptr, k_scales_ptr, v_scales_ptr, table_ptr,
        whole_stop, num_keys, least, num_keys, window, block_stride, slot_stride, scales_stride, scale, cap,
        HEAD_DIM, DIM, BLOCK_SIZE, BLOCK_N, HAS_WINDOW, HAS_CAP, IS_WIDE, True,
    )  # fmt: skip

    out = (acc / denominator[:, None]).to(out_ptr.dtype.element_ty)
    out_offset = (row_token * tl.num_programs(1) * GROUP + head) * HEAD_DIM
    tl.store(out_ptr + out_offset[:, None] + dim[None, :], out, mask=mask)


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    rows: Tensor,
    cu_seqlens: Tensor,
    starts: Tensor,
    scale: float,
    *,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    out: Tensor | None = None,
    tile: PrefillTile | None = None,
    pdl: bool = False,
) -> Tensor:
    """Softmax attention of a step's queries over their rows' cached keys and values.

    Args:
        q: [num_tokens, num_heads, head_dim], rotated; a view into a fused product will do: only heads lie together.
        k_cache: [num_blocks, num_kv_heads, block_size, head_dim], this step's keys already in it. Any float type, or
            one of 8 bits with scales; it is converted to that of `q`.
        v_cache: like `k_cache`, with the same strides.
        block_table: int32 or int64 [max_rows, max_blocks]; entries that no query sees are not read.
        rows: int32 [num_rows]: each row's row of the table; below 0 it is padding, which has no tokens.
        cu_seqlens: int32 [num_rows + 1]: where each row's tokens begin, and num_tokens.
        starts: int32 [num_rows]: position of each row's first token, i.e. how many it has computed before.
        scale: factor on Q.K, above 0.
        k_scales: float32 [num_blocks, num_kv_heads, block_size] of a cache of 8 bits, else None; as `v_scales`.
        v_scales: like `k_scales`.
        window: positions that a query sees, its own included; None is all.
        softcap: scores x become softcap * tanh(x / softcap), before the mask.
        out: the result, where there is memory for it already; unchanged for tokens behind those of the last row.
        tile: what to use instead of the table's entry.
        pdl: overlap with the kernel before, on devices that can. Only `q` and the caches may be that kernel's work.

    Returns:
        [num_tokens, num_heads * head_dim], typed like `q`, contiguous.

    Raises:
        ValueError: shapes, types or strides disagree, the scale is not above 0, the block size is no power of two, or a
            KV head has more query heads than a tile has rows.
    """
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, block_size, _ = k_cache.shape
    num_rows = starts.shape[0]
    if out is None:
        out = torch.empty(num_tokens, num_heads * head_dim, dtype=q.dtype, device=q.device)
    _check(q, k_cache, v_cache, block_table, rows, cu_seqlens, starts, out)
    check_scales("prefill_attention", k_cache, k_scales, v_scales)
    group = num_heads // num_kv_heads
    if tile is None:
        is_quantized = k_scales is not None
        tile = prefill_tile(capability(q.device), head_dim, q.element_size(), is_quantized=is_quantized)
    if group > tile.block_m:
        raise ValueError(f"prefill_attention: {group} query heads a KV head; a tile has {tile.block_m} rows")
    if scale <= 0 or block_size != triton.next_power_of_2(block_size):
        raise ValueError(
            f"prefill_attention: the scale is {scale} and the block size {block_size}; the one must be above 0 and the "
            "other a power of two"
        )
    if num_tokens == 0:
        return out
    log2_scale = scale / math.log(2)
    _prefill_attention_kernel[(num_tokens // (tile.block_m // group) + num_rows, num_kv_heads)](
        q,
        stored_bytes(k_cache),
        stored_bytes(v_cache),
        k_scales,
        v_scales,
        block_table,
        rows,
        cu_seqlens,
        starts,
        out,
        num_rows,
        q.stride(0),
        q.stride(1),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        block_table.stride(0),
        0 if window is None else window,
        log2_scale if softcap is None else scale / softcap,
        0.0 if softcap is None else softcap / math.log(2),
        GROUP=group,
        HEAD_DIM=head_dim,
        DIM=triton.next_power_of_2(max(head_dim, 16)),  # the least that tensor cores take
        BLOCK_SIZE=block_size,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        HAS_WINDOW=window is not None,
        HAS_CAP=softcap is not None,
        IS_WIDE=sum((n - 1) * stride for n, stride in zip(k_cache.shape, k_cache.stride(), strict=True)) >= 1 << 31,
        IN_REGISTERS=tile.query_in_registers,
        ROWS_AT_ONCE=ROWS_AT_ONCE,
        num_stages=tile.num_stages,
        **launch_options(tile.num_warps, pdl, q.device),
    )
    return out


def _check(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    rows: Tensor,
    cu_seqlens: Tensor,
    starts: Tensor,
    out: Tensor,
) -> None:
    """
    Raises:
        ValueError: as `prefill_attention`.
    """
    num_rows = starts.shape[0]
    if k_cache.shape != v_cache.shape or k_cache.stride() != v_cache.stride() or k_cache.dtype != v_cache.dtype:
        raise ValueError(
            f"prefill_attention: the caches must be alike, but K is {tuple(k_cache.shape)} {k_cache.stride()}, "
            f"V {tuple(v_cache.shape)} {v_cache.stride()}"
        )
    if q.shape[2] != k_cache.shape[3] or q.shape[1] % k_cache.shape[1]:
        raise ValueError(
            f"prefill_attention: q is {tuple(q.shape)}, the cache {tuple(k_cache.shape)}; head_dim must be the same "
            "and the number of heads a multiple of the cache's"
        )
    if any(x.stride(-1) != 1 for x in (q, k_cache, block_table)):
        raise ValueError("prefill_attention: the last axes of q, the caches and block_table must be contiguous")
    for name, tensor, length in (("rows", rows, num_rows), ("cu_seqlens", cu_seqlens, num_rows + 1),
                                 ("starts", starts, num_rows)):  # fmt: skip
        if tensor.shape != (length,) or tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(
                f"prefill_attention: {name} is {tensor.dtype} {tuple(tensor.shape)}; {num_rows} rows start somewhere, "
                f"so it must be torch.int32 ({length},) and contiguous"
            )
    if out.shape != (q.shape[0], q.shape[1] * q.shape[2]) or out.dtype != q.dtype or not out.is_contiguous():
        raise ValueError(
            f"prefill_attention: out is {out.dtype} {tuple(out.shape)}; it must be {q.dtype} "
            f"{(q.shape[0], q.shape[1] * q.shape[2])} and contiguous"
        )
