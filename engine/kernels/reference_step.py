"""Plain-torch twins of the kernels of any step: its state, its begin, its prompts and its end. Loops over the tokens.

Same names and signatures as `patch`, `step_begin`, `prefill_attention` and `step_end`, but for the overlap of launches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.kernels import reference, reference_decode
from engine.kernels.step_begin import RotaryFactors

Tensor = torch.Tensor


def apply_patch(arena: Tensor, offsets: Tensor, values: Tensor) -> None:
    """arena[offsets] = values, where an offset is not below 0."""
    for offset, value in zip(offsets.tolist(), values.tolist(), strict=True):
        if offset >= 0:
            arena[offset] = value


def step_begin(
    rows: Tensor,
    positions: Tensor,
    tokens: Tensor,
    embedding: Tensor,
    gamma: Tensor,
    eps: float,
    rotaries: Sequence[RotaryFactors],
    residual: Tensor,
    *,
    embedding_scale: float = 1.0,
    is_gathered: bool = False,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Each token's embedding, its norm, and its angles; zeros where there is no row."""
    factor = torch.tensor(embedding_scale, dtype=embedding.dtype)
    residual.zero_()
    for index, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        if row >= 0:
            residual[index] = embedding[index if is_gathered else int(tokens[row, position])] * factor
    hidden = reference.rms_norm(residual, gamma, eps).to(embedding.dtype)
    angles = [positions[:, None, None].float() * rotary.inv_freq for rotary in rotaries]
    pairs = [
        (angle.cos() * rotary.cos_factor, angle.sin() * rotary.sin_factor)
        for angle, rotary in zip(angles, rotaries, strict=True)
    ]
    return hidden, pairs


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
) -> Tensor:
    """Each row's tokens are rows of one token for `decode_attention`, in float32; zeros for tokens of no row."""
    num_tokens = q.shape[0]
    token_rows = torch.full((num_tokens,), -1)
    positions = torch.zeros(num_tokens, dtype=torch.int64)
    begins = cu_seqlens.tolist()
    for number, (row, start) in enumerate(zip(rows.tolist(), starts.tolist(), strict=True)):
        begin, end = begins[number], begins[number + 1]
        token_rows[begin:end] = row
        positions[begin:end] = torch.arange(start, start + end - begin)
    return reference_decode.decode_attention(
        q, k_cache, v_cache, block_table, token_rows, positions, scale,
        k_scales=k_scales, v_scales=v_scales, window=window, softcap=softcap,
    )  # fmt: skip


def step_end(
    values: Tensor, candidates: Tensor, rows: Tensor, positions: Tensor, tokens: Tensor, token_ids: Tensor
) -> None:
    """The candidate of the largest value, written to the row's state."""
    for index, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        if row < 0:
            continue
        best = values[index].max()
        is_valid = bool(best.isfinite())
        token = int(candidates[index][values[index] == best].min()) if is_valid else 0
        token_ids[index] = token if is_valid else -1
        positions[index] += 1
        if position + 1 < tokens.shape[1]:
            tokens[row, position + 1] = token
