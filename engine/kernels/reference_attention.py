"""Attention over a paged KV cache in plain torch: the twin of the Triton kernel, and what runs on the CPU.

A step's rows bring one or many query tokens each, prefill and decode alike. `plan_attention` turns the rows' lengths
and block tables into `AttentionPlan` once a step and KV group; `paged_attention` then runs once a layer with no
Python a row, because rows with one query are padded to a common length and computed together. The keys of a query at
position p are the positions (p - window, p]; slots outside are never trusted to be finite: they may hold another
request's NaN.

Intervals are half-open and absolute: a row computes queries [start, stop) over keys [first, stop), `first` being a
multiple of the block size.

Source: Kwon et al. 2023, arXiv:2309.06180 (paging); Beltagy et al. 2020, arXiv:2004.05150 (sliding window).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine.kernels.reference_kv import dequantize, quantize

Tensor = torch.Tensor

MAX_SCORES = 1 << 22
"""Elements of one mask: bounds what a long chunk over a long context holds at once."""
SMALL_BLOCKS = 8
"""Decoding rows of at most this many blocks are padded to each other; beyond it, to the next power of two."""


@dataclass(frozen=True)
class Span:
    """Queries that are computed by one call: many rows with one query each, or a piece of one row."""

    tokens: slice | Tensor
    """Which tokens of the step these queries are: a slice, or int64 [num_rows]."""
    num_rows: int
    num_queries: int
    """Queries a row."""
    gather: Tensor
    """int64 [num_rows * num_kv_heads * blocks]: rows of the cache seen as [num_blocks * num_kv_heads, ...]."""
    keys: slice
    """The part of the gathered positions that holds keys of every row; the whole where `mask` tells."""
    mask: Tensor | None
    """bool, True where a query sees a key: [num_rows, 1, num_queries or 1, num_keys]; None: all of them, or causal."""
    is_causal: bool
    unused: Tensor | None
    """int64: gathered slots that no query of their row may see, in the flattened [num_rows, num_kv_heads, num_keys]."""


@dataclass(frozen=True)
class AttentionPlan:
    """What attention and the KV write of one group need to know of a step."""

    slots: Tensor
    """int64 [num_tokens, num_kv_heads]: where K and V go, in the flattened [num_blocks, num_kv_heads, block_size]."""
    spans: tuple[Span, ...]


def plan_attention(
    block_table: Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
    positions: Tensor,
    row_of_token: Tensor | None,
    *,
    block_size: int,
    num_kv_heads: int,
    window: int | None,
) -> AttentionPlan:
    """Plans one step of one KV group.

    Args:
        block_table: int64 [num_rows, max_blocks], this step's rows in the order of their tokens.
        starts: first position that each row computes.
        counts: tokens that each row computes, at least 1.
        positions: int64 [num_tokens].
        row_of_token: int64 [num_tokens], index into `block_table`; None where each row has one token.
        window: positions a query sees, its own included; None is all.
    """
    device = block_table.device
    rows = torch.arange(len(starts), device=device) if row_of_token is None else row_of_token
    blocks = block_table[rows, positions // block_size]  # [num_tokens]
    heads = torch.arange(num_kv_heads, device=device)
    slots = (blocks[:, None] * num_kv_heads + heads) * block_size + (positions % block_size)[:, None]

    spans: list[Span] = []
    singles: dict[int, list[int]] = {}  # padded number of blocks -> rows
    token = 0
    firsts_of_single: dict[int, int] = {}
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        if count == 1:
            firsts_of_single[row] = token
            first = 0 if window is None else max(0, start + 1 - window)
            num_blocks = start // block_size - first // block_size + 1
            singles.setdefault(max(SMALL_BLOCKS, 1 << (num_blocks - 1).bit_length()), []).append(row)
        else:
            spans += _chunk(block_table[row], start, count, token, block_size, heads, window)
        token += count
    for members in singles.values():
        tokens = [firsts_of_single[row] for row in members]
        spans.append(
            _singles(block_table, members, [starts[row] for row in members], tokens, block_size, heads, window)
        )
    return AttentionPlan(slots, tuple(spans))


def _chunk(
    table: Tensor, start: int, count: int, token: int, block_size: int, heads: Tensor, window: int | None
) -> list[Span]:
    """Pieces of one row's queries, each small enough for its mask."""
    stop = start + count
    needs_mask = start > 0 or (window is not None and stop > window)
    piece = max(16, MAX_SCORES // stop) if needs_mask else count
    spans = []
    for lower in range(start, stop, piece):
        upper = min(lower + piece, stop)
        oldest = 0 if window is None else max(0, lower + 1 - window)
        first = oldest // block_size * block_size
        blocks = table[first // block_size : (upper - 1) // block_size + 1]
        mask = None
        if needs_mask:
            query = torch.arange(lower, upper, device=table.device)[:, None]
            key = torch.arange(first, upper, device=table.device)
            mask = key <= query
            if window is not None:
                mask &= key > query - window
            mask = mask[None, None]  # [1, 1, num_queries, num_keys]
        spans.append(
            Span(
                tokens=slice(token + lower - start, token + upper - start),
                num_rows=1,
                num_queries=upper - lower,
                gather=(blocks * len(heads) + heads[:, None]).flatten(),
                keys=slice(0, upper - first),
                mask=mask,
                is_causal=not needs_mask,
                unused=None,
            )
        )
    return spans


def _singles(
    block_table: Tensor,
    rows: list[int],
    positions: list[int],
    tokens: list[int],
    block_size: int,
    heads: Tensor,
    window: int | None,
) -> Span:
    """Rows with one query each, padded to the longest of them."""
    oldest = [0 if window is None else max(0, position + 1 - window) for position in positions]
    first_blocks = [position // block_size for position in oldest]
    num_blocks = max(p // block_size - b for p, b in zip(positions, first_blocks, strict=True)) + 1
    is_consecutive = tokens == list(range(tokens[0], tokens[0] + len(tokens)))
    if len(set(positions)) == 1:  # one length: cut instead of masking
        blocks = block_table[rows, first_blocks[0] : first_blocks[0] + num_blocks]
        first = first_blocks[0] * block_size
        keys, mask, unused = slice(oldest[0] - first, positions[0] + 1 - first), None, None
    else:
        firsts, row_numbers, newest, least = torch.tensor(
            [first_blocks, rows, positions, oldest], device=heads.device
        ).unsqueeze(-1)  # [num_rows, 1] each
        columns = firsts + torch.arange(num_blocks, device=heads.device)
        # A row's last columns may lie beyond its table; whatever they clamp to is masked.
        blocks = block_table[row_numbers, columns.clamp_(max=block_table.shape[1] - 1)]
        key = firsts * block_size + torch.arange(num_blocks * block_size, device=heads.device)
        sees = (key <= newest) & (key >= least)  # [num_rows, num_keys]
        keys, mask = slice(None), sees[:, None, None, :]
        unused = (~sees)[:, None].expand(-1, len(heads), -1).flatten().nonzero().flatten()
    return Span(
        tokens=slice(tokens[0], tokens[0] + len(tokens)) if is_consecutive else torch.tensor(tokens),
        num_rows=len(rows),
        num_queries=1,
        gather=(blocks[:, None, :] * len(heads) + heads[:, None]).flatten(),
        keys=keys,
        mask=mask,
        is_causal=False,
        unused=unused,
    )


def store_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> None:
    """Writes a step's keys and values into the cache.

    Args:
        k: [num_tokens, num_kv_heads, head_dim].
        v: like `k`.
        k_cache: [num_blocks, num_kv_heads, block_size, head_dim], contiguous.
        v_cache: like `k_cache`.
        k_scales: float32 [num_blocks, num_kv_heads, block_size] of a cache of 8 bits, else None; as `v_scales`.
        v_scales: like `k_scales`.
    """
    slots, head_dim = plan.slots.flatten(), k.shape[-1]
    for cache, scales, x in ((k_cache, k_scales, k), (v_cache, v_scales, v)):
        vectors = x.reshape(-1, head_dim)
        if scales is None:
            cache.view(-1, head_dim).index_copy_(0, slots, vectors.to(cache.dtype))
        else:
            stored, own = quantize(vectors, cache.dtype)
            # As bytes: torch does not copy float8 by index.
            cache.view(torch.uint8).view(-1, head_dim).index_copy_(0, slots, stored.view(torch.uint8))
            scales.view(-1).index_copy_(0, slots, own)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    scale: float,
    softcap: float | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> Tensor:
    """Softmax attention of a step's queries over their rows' cached keys and values.

    Args:
        q: [num_tokens, num_heads, head_dim], rotated; num_heads is a multiple of the cache's heads (grouped queries).
        k_cache: [num_blocks, num_kv_heads, block_size, head_dim], this step's keys already in it.
        v_cache: like `k_cache`.
        scale: factor on Q.K.
        softcap: scores x become softcap * tanh(x / softcap), before the mask.
        k_scales: as for `store_kv`; so is `v_scales`.
        v_scales: like `k_scales`.

    Returns:
        [num_tokens, num_heads * head_dim], typed like `q`.
    """
    num_tokens, num_heads, head_dim = q.shape
    out = None
    for span in plan.spans:
        shape = span.num_rows, span.num_queries, num_heads, head_dim
        queries = q[span.tokens].view(shape).transpose(1, 2)  # [rows, heads, queries, dim]
        keys = _gathered(k_cache, k_scales, span, q.dtype)
        values = _gathered(v_cache, v_scales, span, q.dtype)
        if softcap is None:
            result = F.scaled_dot_product_attention(
                queries, keys, values, span.mask, is_causal=span.is_causal, scale=scale, enable_gqa=True
            )
        else:
            result = _softcapped(queries, keys, values, span, scale, softcap)
        result = result.transpose(1, 2).reshape(-1, num_heads * head_dim)
        if len(plan.spans) == 1:
            return result
        out = q.new_empty(num_tokens, num_heads * head_dim) if out is None else out
        out[span.tokens] = result
    assert out is not None, "a plan has at least one span"
    return out


def _gathered(cache: Tensor, scales: Tensor | None, span: Span, dtype: torch.dtype) -> Tensor:
    """[num_rows, num_kv_heads, num_keys, head_dim]"""
    if scales is None:
        return _gathered_vectors(cache, span)[:, :, span.keys].to(dtype)
    stored = _gathered_vectors(cache.view(torch.uint8), span).view(cache.dtype)
    own = _gathered_vectors(scales[..., None], span)[..., 0]
    return dequantize(stored[:, :, span.keys], own[:, :, span.keys], dtype)


def _gathered_vectors(cache: Tensor, span: Span) -> Tensor:
    """[num_rows, num_kv_heads, all positions that are gathered, head_dim]"""
    _, num_kv_heads, block_size, head_dim = cache.shape
    blocks = cache.view(-1, block_size * head_dim).index_select(0, span.gather)
    vectors = blocks.view(span.num_rows, num_kv_heads, -1, head_dim)
    if span.unused is not None:
        # A masked score alone does not help: its weight of zero times NaN is NaN.
        vectors.view(-1, head_dim).index_fill_(0, span.unused, 0)
    return vectors


def _softcapped(q: Tensor, k: Tensor, v: Tensor, span: Span, scale: float, softcap: float) -> Tensor:
    """As scaled_dot_product_attention, with the scores squashed; float32 inside."""
    num_rows, num_heads, num_queries, head_dim = q.shape
    num_kv_heads = k.shape[1]
    grouped = q.float().reshape(num_rows, num_kv_heads, -1, head_dim)  # the heads of a group lie side by side
    scores = (grouped @ k.float().transpose(-1, -2)) * scale
    scores = (torch.tanh(scores / softcap) * softcap).view(num_rows, num_heads, num_queries, -1)
    mask = span.mask
    if span.is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1).reshape(num_rows, num_kv_heads, -1, scores.shape[-1])
    return (weights @ v.float()).view(q.shape).to(q.dtype)
