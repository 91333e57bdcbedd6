"""Between QKV and attention: an RMSNorm over each head where the model has one, rotary embedding, the KV write.

One program for a few heads of one token, of Q, K and V as they lie in the product: heads of Q and K are turned, those
of V only copied. The rotation turns pairs of a head's first `rotary_dim` elements, halves apart or side by side; what
lies behind is kept. Where keys and values go follows from the token's row, its position and the block table, all on
the device, so that a step needs nothing of the host. A row below 0 is padding: it has a Q, and nothing is written for
it. A cache of 8 bits gets each vector's scale with it (engine/kernels/kv_quantization.py). Arithmetic is in float32.

Source: Su et al. 2021, arXiv:2104.09864 (rotary embedding); Henry et al. 2020, arXiv:2010.04245 (norms of Q and K).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.kv_quantization import encoded, magnitude, scale_of, stored_bytes
from engine.kernels.kv_types import check_scales
from engine.kernels.launch import launch_options, wait_for_predecessor

Tensor = torch.Tensor


HEADS = 8
"""Heads a program; 64 pairs of each make loads of 16 bytes for two warps."""


@triton.jit
def _scaled(
    x,  # float32 [HEADS, WIDTH]
    element,  # [WIDTH], their places in a head
    mask,  # [WIDTH]
    is_query,  # [HEADS]
    inverse_rms,  # [HEADS]; 1 for heads of V
    is_value,  # [HEADS]
    q_norm_ptr,
    k_norm_ptr,
):
    """The second half of a norm over each head: times 1 / rms and the weight of its kind."""
    q_norm = tl.load(q_norm_ptr + element, mask=mask, other=0.0).to(tl.float32)[None, :]
    k_norm = tl.load(k_norm_ptr + element, mask=mask, other=0.0).to(tl.float32)[None, :]
    weight = tl.where(is_query[:, None], q_norm, tl.where(is_value[:, None], 1.0, k_norm))
    return x * (inverse_rms[:, None] * weight)


@triton.jit
def _store(
    x,  # [HEADS, WIDTH]
    element,  # [WIDTH], their places in a head
    mask,  # [WIDTH]
    head,  # [HEADS]
    slot,  # int64 [HEADS], where the heads of K and V go
    q_ptr,  # at the token
    k_cache_ptr,
    v_cache_ptr,
    is_query,  # [HEADS]
    is_key,  # [HEADS], but not of padding
    is_value,  # [HEADS], likewise
    inverse,  # [HEADS], what elements of a cache of 8 bits are multiplied by; None: it is of more
    HEAD_DIM: tl.constexpr,
):
    """Each head to its place."""
    mask = mask[None, :]
    there = slot[:, None] + element[None, :]
    tl.store(
        q_ptr + head[:, None] * HEAD_DIM + element[None, :], x.to(q_ptr.dtype.element_ty),
        mask=mask & is_query[:, None],
    )  # fmt: skip
    if inverse is not None:
        stored = encoded(x * inverse[:, None], k_cache_ptr.dtype.element_ty)
    else:
        stored = x.to(k_cache_ptr.dtype.element_ty)
    tl.store(k_cache_ptr + there, stored, mask=mask & is_key[:, None])
    tl.store(v_cache_ptr + there, stored, mask=mask & is_value[:, None])


@triton.jit(do_not_specialize=["rows_ptr", "positions_ptr"])
def _rope_store_kernel(
    qkv_ptr,  # [num_tokens, (num_heads + 2 * num_kv_heads) * HEAD_DIM]
    cos_ptr,  # float32 [num_tokens, ROTARY_DIM], the second half repeats the first
    sin_ptr,  # float32 [num_tokens, ROTARY_DIM], the first half is the second negated
    k_cache_ptr,  # [num_blocks, num_kv_heads, BLOCK_SIZE, HEAD_DIM]
    v_cache_ptr,  # like k_cache
    k_scales_ptr,  # float32 [num_blocks, num_kv_heads, BLOCK_SIZE]; None, as v_scales: the cache has no scales
    v_scales_ptr,
    block_table_ptr,  # integers [max_rows, max_blocks]
    rows_ptr,  # integers [num_tokens], rows of the block table; below 0: padding
    positions_ptr,  # integers [num_tokens]
    q_norm_ptr,  # [HEAD_DIM], unread unless HAS_NORM, as k_norm
    k_norm_ptr,  # [HEAD_DIM]
    q_ptr,  # [num_tokens, num_heads, HEAD_DIM], written
    qkv_stride,  # elements from token to token
    cos_stride,
    sin_stride,
    table_stride,  # elements from row to row
    num_heads,
    num_kv_heads,
    num_groups,  # programs a token
    eps,
    HEADS: tl.constexpr,  # heads a program
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    PAIRS_BLOCK: tl.constexpr,  # power of two >= ROTARY_DIM / 2
    REST_BLOCK: tl.constexpr,  # power of two >= HEAD_DIM - ROTARY_DIM; 0: nothing is left
    BLOCK_SIZE: tl.constexpr,  # tokens of a KV block
    INTERLEAVED: tl.constexpr,  # pairs are (2j, 2j + 1) instead of (j, j + ROTARY_DIM / 2)
    HAS_NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    token = (tl.program_id(0) // num_groups).to(tl.int64)
    head = tl.program_id(0) % num_groups * HEADS + tl.arange(0, HEADS)  # of Q, then of K, then of V
    is_query = head < num_heads
    is_value = head >= num_heads + num_kv_heads
    is_there = head < num_heads + 2 * num_kv_heads
    kv_head = tl.where(is_value, head - num_heads - num_kv_heads, head - num_heads)
    row = tl.load(rows_ptr + token).to(tl.int64)
    position = tl.load(positions_ptr + token)
    num_stored = tl.where(row >= 0, num_heads + 2 * num_kv_heads, 0)  # heads in front of it may be stored
    entry = tl.where(row >= 0, row * table_stride + position // BLOCK_SIZE, 0)
    block = tl.load(block_table_ptr + entry).to(tl.int64)
    vector = (block * num_kv_heads + kv_head) * BLOCK_SIZE + position % BLOCK_SIZE  # [HEADS]
    slot = vector * HEAD_DIM

    PAIRS: tl.constexpr = ROTARY_DIM // 2
    pair = tl.arange(0, PAIRS_BLOCK)
    pair_mask = pair < PAIRS
    if INTERLEAVED:
        first, second = 2 * pair, 2 * pair + 1
    else:
        first, second = pair, pair + PAIRS
    cos = tl.load(cos_ptr + token * cos_stride + pair, mask=pair_mask, other=0.0)[None, :]
    sin = tl.load(sin_ptr + token * sin_stride + PAIRS + pair, mask=pair_mask, other=0.0)[None, :]

    wait_for_predecessor(PDL)
    source = qkv_ptr + token * qkv_stride + head[:, None] * HEAD_DIM
    mask = is_there[:, None] & pair_mask[None, :]
    a = tl.load(source + first[None, :], mask=mask, other=0.0).to(tl.float32)  # [HEADS, PAIRS_BLOCK]
    b = tl.load(source + second[None, :], mask=mask, other=0.0).to(tl.float32)
    if REST_BLOCK > 0:
        rest = ROTARY_DIM + tl.arange(0, REST_BLOCK)
        rest_mask = rest < HEAD_DIM
        mask = is_there[:, None] & rest_mask[None, :]
        c = tl.load(source + rest[None, :], mask=mask, other=0.0).to(tl.float32)  # [HEADS, REST_BLOCK]
    if HAS_NORM:
        squares = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)
        if REST_BLOCK > 0:
            squares += tl.sum(c * c, axis=1)
        inverse_rms = tl.where(is_value, 1.0, tl.rsqrt(squares / HEAD_DIM + eps))
        a = _scaled(a, first, pair_mask, is_query, inverse_rms, is_value, q_norm_ptr, k_norm_ptr)
        b = _scaled(b, second, pair_mask, is_query, inverse_rms, is_value, q_norm_ptr, k_norm_ptr)
        if REST_BLOCK > 0:
            c = _scaled(c, rest, rest_mask, is_query, inverse_rms, is_value, q_norm_ptr, k_norm_ptr)
    turned_a = tl.where(is_value[:, None], a, a * cos - b * sin)
    turned_b = tl.where(is_value[:, None], b, b * cos + a * sin)

    places = head, slot, q_ptr + token * num_heads * HEAD_DIM, k_cache_ptr, v_cache_ptr
    is_key = (head >= num_heads) & (head < tl.minimum(num_heads + num_kv_heads, num_stored))
    is_stored_value = is_value & (head < num_stored)
    inverse = None
    if k_scales_ptr is not None:
        largest = tl.maximum(tl.max(magnitude(turned_a), axis=1), tl.max(magnitude(turned_b), axis=1))
        if REST_BLOCK > 0:
            largest = tl.maximum(largest, tl.max(magnitude(c), axis=1))
        scale, inverse = scale_of(largest, k_cache_ptr.dtype.element_ty)
        tl.store(k_scales_ptr + vector, scale, mask=is_key)
        tl.store(v_scales_ptr + vector, scale, mask=is_stored_value)
    kinds = is_query, is_key, is_stored_value
    _store(turned_a, first, pair_mask, *places, *kinds, inverse, HEAD_DIM)
    _store(turned_b, second, pair_mask, *places, *kinds, inverse, HEAD_DIM)
    if REST_BLOCK > 0:
        _store(c, rest, rest_mask, *places, *kinds, inverse, HEAD_DIM)


def rope_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    rows: Tensor,
    positions: Tensor,
    num_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    *,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    is_interleaved: bool = False,
    out_dtype: torch.dtype | None = None,
    pdl: bool = False,
) -> Tensor:
    """Norms (optionally) and rotates Q and K, and writes K and V into the cache.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]; any number of tokens, of any rows.
        cos: float32 [num_tokens, 1, rotary_dim]; the second half repeats the first.
        sin: like `cos`, its first half negated; for `is_interleaved` too.
        k_cache: [num_blocks, num_kv_heads, block_size, head_dim], contiguous.
        v_cache: like `k_cache`.
        block_table: int32 or int64 [max_rows, max_blocks]; only the entries of the positions are read.
        rows: int32 or int64 [num_tokens]: each token's row of the table; below 0, its K and V are not written.
        positions: int32 or int64 [num_tokens].
        num_heads: of Q.
        q_norm: [head_dim], or None where the model has no norm over each head.
        k_norm: like `q_norm`.
        eps: of these norms.
        k_scales: float32 [num_blocks, num_kv_heads, block_size] of a cache of 8 bits, else None; as `v_scales`.
        v_scales: like `k_scales`.
        is_interleaved: pairs are neighbours, as in GGUF files of Llama that were not permuted back.
        out_dtype: of the result; by default that of `qkv`.
        pdl: overlap with the kernel before, on devices that can. Only `qkv` may be that kernel's work.

    Returns:
        Q as [num_tokens, num_heads, head_dim].

    Raises:
        ValueError: shapes that do not fit.
    """
    num_kv_heads, block_size, head_dim = k_cache.shape[1:]
    num_tokens, rotary_dim = cos.shape[0], cos.shape[-1]
    if qkv.shape != (num_tokens, (num_heads + 2 * num_kv_heads) * head_dim) or qkv.stride(-1) != 1:
        raise ValueError(
            f"rope_store: qkv is {tuple(qkv.shape)}; {num_heads} heads, {num_kv_heads} of K and of V, of {head_dim}, "
            f"and angles of {num_tokens} tokens need ({num_tokens}, {(num_heads + 2 * num_kv_heads) * head_dim})"
        )
    if rotary_dim % 2 or rotary_dim > head_dim or sin.shape != cos.shape or cos.stride(-1) != 1 or sin.stride(-1) != 1:
        raise ValueError(
            f"rope_store: cos is {tuple(cos.shape)}, sin {tuple(sin.shape)}; they must be alike, and even and at most "
            f"{head_dim} wide"
        )
    if v_cache.shape != k_cache.shape or not k_cache.is_contiguous() or not v_cache.is_contiguous():
        raise ValueError(
            f"rope_store: the caches are {tuple(k_cache.shape)} and {tuple(v_cache.shape)}; they must be alike and "
            "contiguous"
        )
    check_scales("rope_store", k_cache, k_scales, v_scales)
    if rows.shape != (num_tokens,) or positions.shape != (num_tokens,):
        raise ValueError(
            f"rope_store: rows are {tuple(rows.shape)}, positions {tuple(positions.shape)}; one a token: {num_tokens}"
        )
    if (q_norm is None) != (k_norm is None):
        raise ValueError("rope_store: q_norm and k_norm come together or not at all")
    q = torch.empty(num_tokens, num_heads, head_dim, dtype=out_dtype or qkv.dtype, device=qkv.device)
    if num_tokens == 0:
        return q
    all_heads = num_heads + 2 * num_kv_heads
    heads = min(HEADS, triton.next_power_of_2(all_heads))
    num_groups = triton.cdiv(all_heads, heads)
    pairs, rest = triton.next_power_of_2(max(1, rotary_dim // 2)), head_dim - rotary_dim
    _rope_store_kernel[(num_tokens * num_groups,)](
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
        q,
        qkv.stride(0),
        cos.stride(0),
        sin.stride(0),
        block_table.stride(0),
        num_heads,
        num_kv_heads,
        num_groups,
        eps,
        HEADS=heads,
        HEAD_DIM=head_dim,
        ROTARY_DIM=rotary_dim,
        PAIRS_BLOCK=pairs,
        REST_BLOCK=triton.next_power_of_2(rest) if rest else 0,
        BLOCK_SIZE=block_size,
        INTERLEAVED=is_interleaved,
        HAS_NORM=q_norm is not None,
        **launch_options(min(8, max(1, heads * pairs // 256)), pdl, qkv.device),
    )
    return q
