"""Plain-torch twin of every kernel: same name, same signature. The oracle in tests, and what runs on the CPU.

A module of kernels is what the decoder is given; it calls nothing else that touches tensors, beside matrix products.
Arithmetic is in float32 and rounded at the end, with one exception that Llama's reference makes: a norm's result is
rounded to the input type before its weight, where the weight has that type too. Attention and sampling, being longer,
lie in files of their own.

Source: Zhang & Sennrich 2019, arXiv:1910.07467 (RMSNorm); Su et al. 2021, arXiv:2104.09864 (rotary embedding); Shazeer
2020, arXiv:2002.05202 (gated units).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engine.kernels.reference_attention import AttentionPlan, paged_attention, plan_attention, store_kv

__all__ = [
    "AttentionPlan",
    "add_rms_norm",
    "gated",
    "paged_attention",
    "plan_attention",
    "rms_norm",
    "rope_store",
    "store_kv",
]

Tensor = torch.Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x / sqrt(mean(x ** 2) + eps) * (weight + offset) over the last axis.

    Args:
        x: [..., width].
        weight: [width], of the type of `x`; or float32, which then takes part before the result is rounded (Gemma).
        offset: 1.0 for Gemma weights that lack it.
    """
    if offset:
        weight = weight + offset
    return _normalised(x.to(weight.dtype), eps).mul_(weight).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """The next layer's input, typed like `x`, and the new residual: rms_norm(x + residual), x + residual."""
    residual = x + residual
    return rms_norm(residual, weight, eps, offset).to(x.dtype), residual


def rope_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    num_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> Tensor:
    """Norms (optionally) and rotates Q and K, and writes K and V into the cache.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]; overwritten.
        cos: float32 [num_tokens, 1, rotary_dim]; the second half repeats the first.
        sin: like `cos`, its first half negated.
        k_cache: [num_blocks, num_kv_heads, block_size, head_dim].
        v_cache: like `k_cache`.
        q_norm: [head_dim], or None where the model has no norm over each head.
        k_norm: like `q_norm`.
        k_scales: as for `store_kv`; so is `v_scales`.
        v_scales: like `k_scales`.

    Returns:
        Q as [num_tokens, num_heads, head_dim].
    """
    num_kv_heads, head_dim = k_cache.shape[1], k_cache.shape[3]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    qk, v = heads[:, :-num_kv_heads], heads[:, -num_kv_heads:]
    if q_norm is not None and k_norm is not None:
        normed = _normalised(qk.to(q_norm.dtype), eps)
        normed[:, :num_heads].mul_(q_norm)
        normed[:, num_heads:].mul_(k_norm)
        qk = normed.to(qk.dtype)
    qk = rotate(qk, cos, sin)  # Q and K in one go
    store_kv(qk[:, num_heads:], v, k_cache, v_cache, plan, k_scales, v_scales)
    return qk[:, :num_heads]


def _normalised(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x ** 2) + eps), a new tensor, computed in float32. Given the weight, too, torch would round only
    after that."""
    return F.rms_norm(x, x.shape[-1:], None, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (j, j + rotary_dim / 2) of each head; what lies behind rotary_dim stays.

    Args:
        x: [num_tokens, num_heads, head_dim].
        cos: as in `rope_store`.
        sin: as in `rope_store`.
    """
    rotary_dim = cos.shape[-1]
    if rotary_dim < x.shape[-1]:
        return torch.cat([rotate(x[..., :rotary_dim], cos, sin), x[..., rotary_dim:]], dim=-1)
    # Rolling by half the width swaps the halves; the sign that belongs to the first lies in `sin`.
    return (x * cos + x.roll(rotary_dim // 2, -1) * sin).to(x.dtype)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """activation(gate) * up.

    Args:
        gate_up: [num_tokens, 2 * width], gate first.
        activation: "silu", "gelu" or "gelu_tanh".
    """
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate).mul_(up)
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none").mul_(up)
