"""The end of a decode step, without the host: the token, and the row's state.

One program a token. It takes the best of the head's candidates (`gemv_argmax` leaves one for each of its programs),
writes it where the scheduler's contract says, at the position after the one just computed, and advances the position.
The next step begins by reading it there (`step_begin`). Rows that sample end with `sample_tokens` instead, which
leaves the same behind.

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


@triton.jit(do_not_specialize=["rows_ptr", "positions_ptr", "token_ids_ptr"])
def _step_end_kernel(
    values_ptr,  # float32 [num_tokens, num_candidates]
    candidates_ptr,  # int32 [num_tokens, num_candidates], token ids
    rows_ptr,  # integers [num_tokens], rows of `tokens`; below 0: padding
    positions_ptr,  # integers [num_tokens], advanced by 1
    tokens_ptr,  # int32 [max_rows, max_tokens], one entry a row is written
    token_ids_ptr,  # int32 [num_tokens], written
    tokens_stride,  # elements from row to row
    num_candidates,
    max_tokens,
    CANDIDATES_BLOCK: tl.constexpr,  # candidates at a time
    PDL: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + index).to(tl.int64)
    wait_for_predecessor(PDL)
    if row < 0:
        return

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
    position = tl.load(positions_ptr + index) + 1
    tl.store(positions_ptr + index, position)
    tl.store(tokens_ptr + row * tokens_stride + position, tl.where(is_finite, token, 0), mask=position < max_tokens)


def step_end(
    values: Tensor,
    candidates: Tensor,
    rows: Tensor,
    positions: Tensor,
    tokens: Tensor,
    token_ids: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Chooses each row's token and stores it in the memory that the next step's graph reads.

    Args:
        values: float32 [num_tokens, num_candidates], as `gemv_argmax` gives them; of one candidate only whether it is
            finite counts.
        candidates: int32, like `values`: token ids; the lowest of equals wins.
        rows: int32 or int64 [num_tokens]: each token's row of `tokens`; below 0 it is padding, for which nothing is
            written.
        positions: int32 or int64 [num_tokens], of the tokens just computed; each is advanced by 1.
        tokens: int32 [max_rows, max_tokens]: the chosen token (0 where no logit was finite) goes to the new position,
            if there is such a column.
        token_ids: int32 [num_tokens], written: the tokens, -1 where no logit was finite.
        pdl: overlap with the kernel before, on devices that can. Only `values` and `candidates` may be its work.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    num_tokens, num_candidates = values.shape
    shapes = {
        "candidates": (candidates, (num_tokens, num_candidates), torch.int32),
        "rows": (rows, (num_tokens,), None),
        "positions": (positions, (num_tokens,), None),
        "token_ids": (token_ids, (num_tokens,), torch.int32),
        "values": (values, (num_tokens, max(1, num_candidates)), torch.float32),
    }
    for name, (tensor, shape, dtype) in shapes.items():
        if tensor.shape != shape or not tensor.is_contiguous() or tensor.dtype != (dtype or tensor.dtype):
            raise ValueError(
                f"step_end: {name} is {tensor.dtype} {tuple(tensor.shape)}; it must be {dtype or tensor.dtype} {shape} "
                "and contiguous"
            )
    if tokens.dtype != torch.int32 or tokens.stride(1) != 1:
        raise ValueError(
            f"step_end: tokens is {tokens.dtype}, strides {tokens.stride()}; it must be int32 and its rows contiguous"
        )
    if num_tokens == 0:
        return
    _step_end_kernel[(num_tokens,)](
        values,
        candidates,
        rows,
        positions,
        tokens,
        token_ids,
        tokens.stride(0),
        num_candidates,
        tokens.shape[1],
        CANDIDATES_BLOCK=min(CANDIDATES_BLOCK, triton.next_power_of_2(num_candidates)),
        **launch_options(8, pdl, values.device),
    )
