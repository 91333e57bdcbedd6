"""Plain-torch twins of the kernels of a decode step: same names, same signatures, loops instead of cleverness.

They take what a step that runs without the host has, which the twins that also run on the CPU do not: rows and
positions as tensors, norms that are begun by one product and finished by the next. Everything is computed in float32.
"""

from __future__ import annotations

from typing import Literal

import torch

from engine.kernels import reference
from engine.kernels.gemv import DeferredNorm
from engine.kernels.reference_kv import dequantize, quantize

Tensor = torch.Tensor


def gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x @ weight.T + bias, divided by the root mean square that `norm` tells before the bias is added."""
    y = x.float() @ weight.float().T
    if norm is not None:
        y /= torch.sqrt(norm.sum_squares.sum(1, keepdim=True) / x.shape[1] + norm.eps)
    if bias is not None:
        y += bias.float()
    return y.to(out_dtype or x.dtype)


def gemv_residual(
    x: Tensor,
    weight: Tensor,
    residual: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
) -> tuple[Tensor, Tensor]:
    """residual += x @ weight.T + bias; gamma * residual, and its sum of squares as one partial sum."""
    residual += gemv(x, weight, bias, norm=norm, out_dtype=torch.float32)
    return (residual * gamma.float()).to(x.dtype), residual.pow(2).sum(1, keepdim=True)


def gemv_gated(
    x: Tensor,
    gate_up: Tensor,
    activation: str,
    bias: Tensor | None = None,
    *,
    layout: Literal["split", "interleaved"] = "split",
    norm: DeferredNorm | None = None,
) -> Tensor:
    """activation(gate) * up."""
    y = gemv(x, gate_up, bias, norm=norm, out_dtype=torch.float32)
    if layout == "interleaved":
        y = torch.cat([y[:, 0::2], y[:, 1::2]], dim=1)
    return reference.gated(y, activation).to(x.dtype)


def gemv_argmax(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, norm: DeferredNorm | None = None
) -> tuple[Tensor, Tensor]:
    """The largest product of all rows, as if one program had computed them."""
    values, rows = gemv(x, weight, bias, norm=norm, out_dtype=torch.float32).max(dim=1, keepdim=True)
    return values, rows.int()


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
) -> Tensor:
    """Norms (optionally) and rotates Q and K; writes K and V into the cache; returns Q."""
    num_kv_heads, block_size, head_dim = k_cache.shape[1:]
    heads = qkv.float().unflatten(1, (-1, head_dim))
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_norm is not None and k_norm is not None:
        q, k = reference.rms_norm(q, q_norm.float(), eps), reference.rms_norm(k, k_norm.float(), eps)
    q, k = (_rotate(x, cos, sin, is_interleaved) for x in (q, k))
    for token, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        if row >= 0:
            slot = block_table[row, position // block_size], slice(None), position % block_size
            for cache, scales, x in ((k_cache, k_scales, k[token]), (v_cache, v_scales, v[token])):
                if scales is None:
                    cache[slot] = x.to(cache.dtype)
                else:
                    cache[slot], scales[slot] = quantize(x, cache.dtype)
    return q.to(out_dtype or qkv.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, is_interleaved: bool) -> Tensor:
    """`reference.rotate`, or the same over pairs of neighbours."""
    if not is_interleaved:
        return reference.rotate(x, cos, sin)
    rotary_dim = cos.shape[-1]
    pairs = torch.cat([x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]], dim=-1)
    turned = reference.rotate(pairs, cos, sin).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return torch.cat([turned, x[..., rotary_dim:]], dim=-1)


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
) -> Tensor:
    """Softmax attention of one query a row over the keys up to its position; zeros where there is no row."""
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, block_size, _ = k_cache.shape
    out = torch.zeros(num_tokens, num_heads * head_dim, dtype=q.dtype, device=q.device)
    for token, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        if row < 0:
            continue
        first = 0 if window is None else max(0, position + 1 - window)
        seen = torch.arange(first, position + 1, device=q.device)
        blocks = block_table[row, seen // block_size].long()
        slots = blocks, slice(None), seen % block_size
        k, v = (
            cache[slots].float() if scales is None else dequantize(cache[slots], scales[slots])
            for cache, scales in ((k_cache, k_scales), (v_cache, v_scales))
        )  # [num_keys, num_kv_heads, head_dim]
        k, v = (x.repeat_interleave(num_heads // num_kv_heads, dim=1) for x in (k, v))
        scores = torch.einsum("hd,nhd->hn", q[token].float(), k) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        out[token] = torch.einsum("hn,nhd->hd", scores.softmax(-1), v).flatten().to(q.dtype)
    return out


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
) -> Tensor:
    """`rope_store`, then `decode_attention`."""
    out_dtype = out_dtype or (k_cache.dtype if k_scales is None else qkv.dtype)
    tables = block_table, rows, positions
    q = rope_store(
        qkv, cos, sin, k_cache, v_cache, *tables, num_heads, q_norm, k_norm, eps,
        k_scales=k_scales, v_scales=v_scales, out_dtype=out_dtype,
    )  # fmt: skip
    return decode_attention(
        q, k_cache, v_cache, *tables, scale, k_scales=k_scales, v_scales=v_scales, window=window, softcap=softcap
    )
