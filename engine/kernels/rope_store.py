"""Between QKV and attention: an RMSNorm over each head where the model has one, rotary embedding, the KV write.

One program for each token and each head of Q and K; a key's program copies the value too. The rotation turns pairs of a
head's first `rotary_dim` elements, halves apart or side by side; what lies behind is kept. Where keys and values go
follows from the token's row, its position and the block table, all on the device, so that a step needs nothing of the
host. A row below 0 is padding: it has a Q, and nothing is written for it. Arithmetic is in float32.

Source: Su et al. 2021, arXiv:2104.09864 (rotary embedding); Henry et al. 2020, arXiv:2010.04245 (norms of Q and K).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.launch import launch_options, wait_for_predecessor

Tensor = torch.Tensor


@triton.jit
def _rope_store_kernel(
    qkv_ptr,  # [num_tokens, (num_heads + 2 * num_kv_heads) * HEAD_DIM]
    cos_ptr,  # float32 [num_tokens, ROTARY_DIM], the second half repeats the first
    sin_ptr,  # float32 [num_tokens, ROTARY_DIM], the first half is the second negated
    k_cache_ptr,  # [num_blocks, num_kv_heads, BLOCK_SIZE, HEAD_DIM]
    v_cache_ptr,  # like k_cache
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
    eps,
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,  # power of two >= HEAD_DIM
    ROTARY_DIM: tl.constexpr,
    PAIRS_BLOCK: tl.constexpr,  # power of two >= ROTARY_DIM / 2
    REST_BLOCK: tl.constexpr,  # power of two >= HEAD_DIM - ROTARY_DIM
    BLOCK_SIZE: tl.constexpr,  # tokens of a KV block
    INTERLEAVED: tl.constexpr,  # pairs are (2j, 2j + 1) instead of (j, j + ROTARY_DIM / 2)
    HAS_NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)  # of Q, then of K, as they lie in qkv
    kv_head = head - num_heads
    is_key = kv_head >= 0
    row = tl.load(rows_ptr + token)
    position = tl.load(positions_ptr + token)

    PAIRS: tl.constexpr = ROTARY_DIM // 2
    pair = tl.arange(0, PAIRS_BLOCK)
    pair_mask = pair < PAIRS
    if INTERLEAVED:
        first, second = 2 * pair, 2 * pair + 1
    else:
        first, second = pair, pair + PAIRS
    rest = ROTARY_DIM + tl.arange(0, REST_BLOCK)
    rest_mask = rest < HEAD_DIM
    cos = tl.load(cos_ptr + token * cos_stride + pair, mask=pair_mask, other=0.0)
    sin = tl.load(sin_ptr + token * sin_stride + PAIRS + pair, mask=pair_mask, other=0.0)

    wait_for_predecessor(PDL)
    source = qkv_ptr + token * qkv_stride + head * HEAD_DIM
    a = tl.load(source + first, mask=pair_mask, other=0.0).to(tl.float32)  # [PAIRS_BLOCK]
    b = tl.load(source + second, mask=pair_mask, other=0.0).to(tl.float32)
    c = tl.load(source + rest, mask=rest_mask, other=0.0).to(tl.float32)  # [REST_BLOCK]
    if HAS_NORM:
        squares = tl.sum(a * a, axis=0) + tl.sum(b * b, axis=0) + tl.sum(c * c, axis=0)
        inverse_rms = tl.rsqrt(squares / HEAD_DIM + eps)
        norm_ptr = k_norm_ptr if is_key else q_norm_ptr
        a *= inverse_rms * tl.load(norm_ptr + first, mask=pair_mask, other=0.0).to(tl.float32)
        b *= inverse_rms * tl.load(norm_ptr + second, mask=pair_mask, other=0.0).to(tl.float32)
        c *= inverse_rms * tl.load(norm_ptr + rest, mask=rest_mask, other=0.0).to(tl.float32)
    turned_a = a * cos - b * sin
    turned_b = b * cos + a * sin

    if is_key:
        if row >= 0:
            block = tl.load(block_table_ptr + row.to(tl.int64) * table_stride + position // BLOCK_SIZE).to(tl.int64)
            slot = ((block * num_kv_heads + kv_head) * BLOCK_SIZE + position % BLOCK_SIZE) * HEAD_DIM
            dtype = k_cache_ptr.dtype.element_ty
            tl.store(k_cache_ptr + slot + first, turned_a.to(dtype), mask=pair_mask)
            tl.store(k_cache_ptr + slot + second, turned_b.to(dtype), mask=pair_mask)
            tl.store(k_cache_ptr + slot + rest, c.to(dtype), mask=rest_mask)
            element = tl.arange(0, HEAD_BLOCK)
            v = tl.load(source + num_kv_heads * HEAD_DIM + element, mask=element < HEAD_DIM)
            tl.store(v_cache_ptr + slot + element, v.to(dtype), mask=element < HEAD_DIM)
    else:
        target = q_ptr + (token * num_heads + head) * HEAD_DIM
        dtype = q_ptr.dtype.element_ty
        tl.store(target + first, turned_a.to(dtype), mask=pair_mask)
        tl.store(target + second, turned_b.to(dtype), mask=pair_mask)
        tl.store(target + rest, c.to(dtype), mask=rest_mask)


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
    if rows.shape != (num_tokens,) or positions.shape != (num_tokens,):
        raise ValueError(
            f"rope_store: rows are {tuple(rows.shape)}, positions {tuple(positions.shape)}; one a token: {num_tokens}"
        )
    if (q_norm is None) != (k_norm is None):
        raise ValueError("rope_store: q_norm and k_norm come together or not at all")
    q = torch.empty(num_tokens, num_heads, head_dim, dtype=out_dtype or qkv.dtype, device=qkv.device)
    _rope_store_kernel[(num_tokens, num_heads + num_kv_heads)](
        qkv,
        cos,
        sin,
        k_cache,
        v_cache,
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
        eps,
        HEAD_DIM=head_dim,
        HEAD_BLOCK=triton.next_power_of_2(head_dim),
        ROTARY_DIM=rotary_dim,
        PAIRS_BLOCK=triton.next_power_of_2(max(1, rotary_dim // 2)),
        REST_BLOCK=triton.next_power_of_2(max(1, head_dim - rotary_dim)),
        BLOCK_SIZE=block_size,
        INTERLEAVED=is_interleaved,
        HAS_NORM=q_norm is not None,
        **launch_options(1, pdl, qkv.device),
    )
    return q
