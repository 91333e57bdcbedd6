"""Sampling on the device: logits of a step's rows -> one token each. No sort, no host sync, no data-dependent shape.

The order is that of SamplingParams: logit bias, penalties, mask, temperature, top-k, typical-p, top-p, min-p, noise;
the result is that of `engine.execution.sampler`, with the same noise bits. Five launches:

    adjust  (rows, parts)   bias, penalties and mask, for rows that have any        `sampling_scan`
    scan    (rows, chunks)  maxima of groups and chunks                             `sampling_scan`
    select  (rows)          the filters' cuts; rows with top-k get their token      `sampling_select`
    draw    (rows, parts)   noise and the greatest sum, for rows not yet decided    `sampling_draw`
    finish  (rows)          the choice among chunks, and the row's state; tells broken rows

Greedy rows are done with the scan, rows without a filter skip the search. The end is that of `step_end`: the token is
where the next step reads it. Parameters come from `SamplingState` by row, so the launches can be captured in one CUDA
graph that serves any mixture of requests. What may have nothing to do for a row has few programs, each for several
chunks: thousands that only begin and end take longer than a pass over the logits.

**Ties.** Of tokens alike in a filter's order the lower id comes first; of equal perturbed logits, and of equal logits
in a greedy row, the lowest id is chosen. Two tokens at the same distance from the entropy on either side of it are
alike for typical-p, whose order the twin continues by likelihood: only a rounding coincidence makes such a pair.

**Exactness.** Weights are summed in float32 in an order that is fixed for a vocabulary size, but is not the twin's: a
token whose place in the nucleus hangs on the last bits of a sum of probabilities may fall on the other side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from engine.kernels.sampling_draw import sampling_draw_kernel, sampling_finish_kernel
from engine.kernels.sampling_scan import sampling_adjust_kernel, sampling_scan_kernel
from engine.kernels.sampling_select import NUM_DECISIONS, sampling_select_kernel
from engine.kernels.sampling_state import SamplingState

Tensor = torch.Tensor

MAX_GROUPS = 1024
MAX_PARTS = 1024
"""Programs of a launch that has nothing to do for most rows, unless there are more rows."""


@dataclass(frozen=True)
class SamplingTile:
    """Sizes of the search; all powers of two."""

    group: int = 256
    """Tokens whose maximum is kept; doubled for vocabularies of more than MAX_GROUPS of them."""
    groups: int = 8
    """Groups a chunk: what one program of the scan and of the draw reads."""
    listed: int = 2048
    """Candidates of top-k that fit the list."""
    cap: int = 512
    """Candidates that all pairs are made of."""
    tile: int = 1024
    """Tokens that a pass of the search reads at once; at least a group."""
    pair_tile: int = 16
    history: int = 1024
    """Tokens of the history that are counted at once."""


class SamplingWorkspace:
    """Scratch memory for up to `max_rows` rows of logits; nothing in it outlives a call."""

    def __init__(
        self,
        max_rows: int,
        vocab_size: int,
        device: torch.device,
        tile: SamplingTile | None = None,
    ) -> None:
        """
        Args:
            tile: smaller ones reach every path of the search with few tokens; that is for tests.
        """
        tile = tile or SamplingTile()
        self.max_rows, self.vocab_size, self.tile = max_rows, vocab_size, tile
        self.group = max(tile.group, triton.next_power_of_2(triton.cdiv(vocab_size, MAX_GROUPS)))
        self.num_groups = triton.cdiv(vocab_size, self.group)
        self.num_chunks = triton.cdiv(vocab_size, self.group * tile.groups)

        def floats(width: int) -> Tensor:
            return torch.empty(max_rows, width, dtype=torch.float32, device=device)

        def ints(width: int) -> Tensor:
            return torch.empty(max_rows, width, dtype=torch.int32, device=device)

        self.work = floats(vocab_size)
        self.group_max, self.groups = floats(self.num_groups), ints(self.num_groups)
        self.chunk_max, self.chunk_token = floats(self.num_chunks), ints(self.num_chunks)
        self.chunk_raw_max = floats(self.num_chunks)
        self.list_s, self.list_token = floats(tile.listed), ints(tile.listed)
        self.near_s, self.near_token = floats(tile.cap), ints(tile.cap)
        self.decisions = ints(NUM_DECISIONS.value)


def sample_tokens(
    logits: Tensor,
    rows: Tensor,
    positions: Tensor,
    tokens: Tensor,
    state: SamplingState,
    workspace: SamplingWorkspace,
    token_ids: Tensor,
    *,
    advance: bool,
) -> None:
    """Chooses a token for each row of logits, and writes it behind the row's tokens. Padding: nothing is written.

    Args:
        logits: float [num_rows, vocab_size], elements of a row together; not changed.
        rows: int32 [num_rows], the row of `state` and `tokens` that each belongs to; negative is padding.
        positions: int32 [num_rows], position of the token just computed, whose logits these are.
        tokens: int32 [max_rows, max_tokens]: what every row's penalties look back on. The chosen token (0 where the
            logits were not finite) goes to the next position, if there is such a column.
        token_ids: int32 [num_rows], written: the tokens, -1 where the largest logit was not finite.
        advance: positions are advanced by 1, in place: of rows that decode again in the next step.

    Raises:
        ValueError: shapes or types disagree, or the workspace is too small.
    """
    num_rows, vocab_size = logits.shape
    _check(logits, rows, positions, tokens, workspace, token_ids)
    if num_rows == 0:
        return
    w, tile = workspace, workspace.tile
    chunk = w.group * tile.groups
    all_chunks = triton.next_power_of_2(w.num_chunks)
    parts = num_rows, num_parts(num_rows, w.num_chunks)
    sampling_adjust_kernel[parts](
        logits, w.work, rows, positions, tokens, state.floats, state.ints, state.bias_ids, state.bias_values,
        state.masks, logits.stride(0), w.work.stride(0), tokens.stride(0), state.masks.stride(0),
        state.max_bias, vocab_size, w.num_chunks,
        CHUNK=chunk, HISTORY=tile.history, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    sampling_scan_kernel[(num_rows, w.num_chunks)](
        logits, w.work, rows, state.floats, state.ints, w.group_max, w.chunk_max, w.chunk_token, w.chunk_raw_max,
        logits.stride(0), w.work.stride(0), vocab_size, w.num_groups,
        GROUP=w.group, GROUPS=tile.groups, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    sampling_select_kernel[(num_rows,)](
        logits, w.work, rows, positions, state.floats, state.ints, w.group_max, w.chunk_max,
        w.groups, w.list_s, w.list_token, w.near_s, w.near_token, w.decisions,
        logits.stride(0), w.work.stride(0), vocab_size, w.num_groups, w.num_chunks,
        GROUP=w.group, ALL_GROUPS=triton.next_power_of_2(w.num_groups), ALL_CHUNKS=all_chunks,
        LIST=tile.listed, CAP=tile.cap, TILE=max(tile.tile, w.group), PAIR_TILE=tile.pair_tile,
        num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    sampling_draw_kernel[parts](
        logits, w.work, rows, positions, state.floats, state.ints, w.decisions, w.chunk_max, w.chunk_token,
        logits.stride(0), w.work.stride(0), vocab_size, w.num_chunks, CHUNK=chunk, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    sampling_finish_kernel[(num_rows,)](
        rows, positions, tokens, w.decisions, w.chunk_max, w.chunk_token, w.chunk_raw_max, token_ids,
        tokens.stride(0), tokens.shape[1], w.num_chunks,
        ALL_CHUNKS=all_chunks, ADVANCE=advance, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


def num_parts(num_rows: int, num_chunks: int) -> int:
    """Programs that share the chunks of a row in such a launch."""
    return max(1, min(num_chunks, MAX_PARTS // num_rows))


def _check(
    logits: Tensor,
    rows: Tensor,
    positions: Tensor,
    tokens: Tensor,
    workspace: SamplingWorkspace,
    token_ids: Tensor,
) -> None:
    """
    Raises:
        ValueError: as `sample_tokens`.
    """
    num_rows, vocab_size = logits.shape
    if num_rows > workspace.max_rows or vocab_size != workspace.vocab_size:
        raise ValueError(
            f"sample_tokens: logits are {tuple(logits.shape)}, but the workspace is for at most {workspace.max_rows} "
            f"rows of {workspace.vocab_size}"
        )
    if logits.stride(1) != 1 or tokens.stride(1) != 1:
        raise ValueError("sample_tokens: the last axes of logits and tokens must be contiguous")
    for name, tensor in (("rows", rows), ("positions", positions), ("token_ids", token_ids)):
        if tensor.shape != (num_rows,) or tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(
                f"sample_tokens: {name} is {tensor.dtype} {tuple(tensor.shape)} but must be contiguous torch.int32 "
                f"({num_rows},)"
            )
    if tokens.dtype != torch.int32:
        raise ValueError(f"sample_tokens: tokens are {tokens.dtype} but must be int32")
