"""The end of a decode step and the begin of the next, without the host: the token, the row's state, its embedding.

One program a token. It takes the best of the head's candidates (`gemv_argmax` leaves one for each of its programs; a
sampler that has chosen already leaves one), writes it where the scheduler's contract says, at the position after the
one just computed, advances the position, and turns the token's embedding into what the first product of the next step
reads: the float32 residual stream, its product with the first norm's weight, and its sum of squares.

A row whose largest logit is not finite gets token id -1 in the result and 0 in its state, so that the host can end it
while the step that may already follow computes something harmless.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.gemv_epilogue import NO_ROW
from engine.kernels.launch import launch_options, wait_for_predecessor

Tensor = torch.Tensor

CANDIDATES_BLOCK = 2048


@triton.jit
def _step_end_kernel(
    values_ptr,  # float32 [num_tokens, num_candidates]
    candidates_ptr,  # int32 [num_tokens, num_candidates], token ids
    rows_ptr,  # integers [num_tokens], rows of `tokens`; below 0: padding
    positions_ptr,  # integers [num_tokens], advanced by 1
    tokens_ptr,  # int32 [max_rows, max_tokens], one entry a row is written
    embedding_ptr,  # [vocab_size, hidden_size]
    gamma_ptr,  # [hidden_size], weight of the next step's first norm
    token_ids_ptr,  # int32 [num_tokens], written
    residual_ptr,  # float32 [num_tokens, hidden_size], written
    hidden_ptr,  # [num_tokens, hidden_size], written
    sum_squares_ptr,  # float32 [num_tokens], written
    tokens_stride,  # elements from row to row
    embedding_stride,
    num_candidates,
    max_tokens,
    hidden_size,
    embedding_scale,
    CANDIDATES_BLOCK: tl.constexpr,  # candidates at a time
    HIDDEN_BLOCK: tl.constexpr,  # power of two >= hidden_size
    PDL: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + index).to(tl.int64)
    column = tl.arange(0, HIDDEN_BLOCK)
    mask = column < hidden_size
    gamma = tl.load(gamma_ptr + column, mask=mask, other=0.0).to(tl.float32)
    wait_for_predecessor(PDL)

    best_values = tl.full((CANDIDATES_BLOCK,), float("-inf"), tl.float32)
    best_ids = tl.full((CANDIDATES_BLOCK,), NO_ROW, tl.int32)
    for start in range(0, num_candidates, CANDIDATES_BLOCK):
        candidate = start + tl.arange(0, CANDIDATES_BLOCK)
        there = index * num_candidates + candidate
        values = tl.load(values_ptr + there, mask=candidate < num_candidates, other=float("-inf"))
        ids = tl.load(candidates_ptr + there, mask=candidate < num_candidates, other=NO_ROW)
        # Of equals the lowest id: across blocks here, and below.
        is_better = (values > best_values) | ((values == best_values) & (ids < best_ids))
        best_values = tl.where(is_better, values, best_values)
        best_ids = tl.where(is_better, ids, best_ids)
    best = tl.max(best_values, axis=0)
    token = tl.min(tl.where(best_values == best, best_ids, NO_ROW), axis=0)
    is_finite = tl.abs(best) < float("inf")
    tl.store(token_ids_ptr + index, tl.where(is_finite, token, -1))
    token = tl.where(is_finite, token, 0)

    if row >= 0:
        position = tl.load(positions_ptr + index) + 1
        tl.store(positions_ptr + index, position)
        tl.store(tokens_ptr + row * tokens_stride + position, token, mask=position < max_tokens)

    embedded = tl.load(embedding_ptr + token.to(tl.int64) * embedding_stride + column, mask=mask, other=0.0)
    stream = embedded.to(tl.float32) * embedding_scale  # [HIDDEN_BLOCK]
    here = index * hidden_size + column
    tl.store(residual_ptr + here, stream, mask=mask)
    tl.store(hidden_ptr + here, (stream * gamma).to(hidden_ptr.dtype.element_ty), mask=mask)
    tl.store(sum_squares_ptr + index, tl.sum(stream * stream, axis=0))


def step_end(
    values: Tensor,
    candidates: Tensor,
    rows: Tensor,
    positions: Tensor,
    tokens: Tensor,
    embedding: Tensor,
    gamma: Tensor,
    token_ids: Tensor,
    residual: Tensor,
    hidden: Tensor,
    sum_squares: Tensor,
    *,
    embedding_scale: float = 1.0,
    pdl: bool = False,
) -> None:
    """Chooses each row's token, stores it, and prepares the next step in the memory that a captured graph reads.

    Args:
        values: float32 [num_tokens, num_candidates], as `gemv_argmax` gives them; of one candidate only whether it is
            finite counts.
        candidates: int32, like `values`: token ids; the lowest of equals wins.
        rows: int32 or int64 [num_tokens]: each token's row of `tokens`; below 0 it is padding, whose state is left.
        positions: int32 or int64 [num_tokens], of the tokens just computed; each is advanced by 1.
        tokens: int32 [max_rows, max_tokens]: the chosen token goes to the new position, if there is such a column.
        embedding: [vocab_size, hidden_size].
        gamma: [hidden_size], weight of the first norm, its offset added.
        token_ids: int32 [num_tokens], written: the tokens, -1 where no logit was finite.
        residual: float32 [num_tokens, hidden_size], written: embedding * embedding_scale.
        hidden: [num_tokens, hidden_size], written: gamma * residual.
        sum_squares: float32 [num_tokens, 1], written: for gemv.DeferredNorm.
        embedding_scale: Gemma's; rounded to the computing type by the caller, as that model wants it.
        pdl: overlap with the kernel before, on devices that can. Only `values` and `candidates` may be its work.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    num_tokens, num_candidates = values.shape
    hidden_size = embedding.shape[1]
    shapes = {
        "candidates": (candidates, (num_tokens, num_candidates), torch.int32),
        "rows": (rows, (num_tokens,), None),
        "positions": (positions, (num_tokens,), None),
        "gamma": (gamma, (hidden_size,), None),
        "token_ids": (token_ids, (num_tokens,), torch.int32),
        "residual": (residual, (num_tokens, hidden_size), torch.float32),
        "hidden": (hidden, (num_tokens, hidden_size), None),
        "sum_squares": (sum_squares, (num_tokens, 1), torch.float32),
        "values": (values, (num_tokens, max(1, num_candidates)), torch.float32),
    }
    for name, (tensor, shape, dtype) in shapes.items():
        if tensor.shape != shape or not tensor.is_contiguous() or tensor.dtype != (dtype or tensor.dtype):
            raise ValueError(
                f"step_end: {name} is {tensor.dtype} {tuple(tensor.shape)}; it must be {dtype or tensor.dtype} {shape} "
                "and contiguous"
            )
    if tokens.dtype != torch.int32 or tokens.stride(1) != 1 or embedding.stride(1) != 1:
        raise ValueError(
            f"step_end: tokens is {tokens.dtype}, strides {tokens.stride()}, embedding's {embedding.stride()}; tokens "
            "must be int32, and the rows of both contiguous"
        )
    _step_end_kernel[(num_tokens,)](
        values,
        candidates,
        rows,
        positions,
        tokens,
        embedding,
        gamma,
        token_ids,
        residual,
        hidden,
        sum_squares,
        tokens.stride(0),
        embedding.stride(0),
        num_candidates,
        tokens.shape[1],
        hidden_size,
        embedding_scale,
        CANDIDATES_BLOCK=min(CANDIDATES_BLOCK, triton.next_power_of_2(num_candidates)),
        HIDDEN_BLOCK=triton.next_power_of_2(hidden_size),
        **launch_options(8, pdl, values.device),
    )
