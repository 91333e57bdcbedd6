"""Log-probabilities of raw logits: the chosen token's and the likeliest ones', without a sort.

    logprob[t] = x[t] - log(sum over j of exp(x[j]))

Two launches: a scan (rows, parts of the vocabulary) with each chunk's maximum and sum and each group's maximum, and
one program a row that merges the sums and ranks. The likeliest are not below the n-th largest maximum of a group; they
are listed and ranked by counting, for each, those before it. Where too many are alike for the list, the row is passed
over once for each of the likeliest. Of equal logits the lower token id comes first. How many a row asks for is in its
SamplingState; rows that ask for nothing return at once, so a captured graph serves any mixture.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.sampling import num_parts
from engine.kernels.sampling_source import list_likeliest
from engine.kernels.sampling_state import NUM_INTS, NUM_TOP, SamplingState
from engine.sampling_params import MAX_TOP_LOGPROBS

Tensor = torch.Tensor

MAX_GROUPS = 1024


@triton.jit
def _num_asked(item, rows_ptr, ints_ptr, chosen_ids_ptr):
    """How many of the likeliest this row asks for; -1: nothing, or there is nothing to tell."""
    row = tl.load(rows_ptr + item).to(tl.int64)
    is_there = (row >= 0) & (tl.load(chosen_ids_ptr + item) >= 0)
    num_top = tl.load(ints_ptr + tl.maximum(row, 0) * NUM_INTS + NUM_TOP).to(tl.int32)
    return tl.where(is_there, num_top, -1)


@triton.jit(do_not_specialize=["rows_ptr", "chosen_ids_ptr"])
def logprob_scan_kernel(
    logits_ptr,  # float [num_rows, vocab_size]
    rows_ptr,  # int32 [num_rows], negative: padding
    ints_ptr,  # int64 [max_rows, NUM_INTS]
    chosen_ids_ptr,  # int32 [num_rows], negative: skipped
    group_max_ptr,  # float32 [num_rows, num_groups], written
    chunk_max_ptr,  # float32 [num_rows, num_chunks], written
    chunk_sum_ptr,  # float32 [num_rows, num_chunks], written: sum of exp(x - chunk_max)
    logits_stride,
    vocab_size,
    num_groups,
    num_chunks,
    GROUP: tl.constexpr,  # tokens a group
    GROUPS: tl.constexpr,  # groups a chunk
):
    item = tl.program_id(0).to(tl.int64)
    if _num_asked(item, rows_ptr, ints_ptr, chosen_ids_ptr) >= 0:
        for chunk in range(tl.program_id(1), num_chunks, tl.num_programs(1)):
            token = chunk * GROUP * GROUPS + tl.arange(0, GROUP * GROUPS)
            x = tl.load(logits_ptr + item * logits_stride + token, mask=token < vocab_size, other=float("-inf"))
            x = x.to(tl.float32)
            group = chunk * GROUPS + tl.arange(0, GROUPS)
            group_max = tl.max(tl.reshape(x, [GROUPS, GROUP]), axis=1)
            tl.store(group_max_ptr + item * num_groups + group, group_max, mask=group < num_groups)
            chunk_max = tl.max(x, axis=0)
            shift = tl.where(tl.abs(chunk_max) < float("inf"), chunk_max, 0.0)  # inf - inf is NaN
            place = item * num_chunks + chunk
            tl.store(chunk_max_ptr + place, chunk_max)
            tl.store(chunk_sum_ptr + place, tl.sum(tl.exp(x - shift), axis=0))


@triton.jit
def _rank_list(count, list_x_ptr, list_token_ptr, num_top, normalizer, top_ptr, ids_ptr, LIST: tl.constexpr):
    """Writes the likeliest of the list by their rank."""
    TILE: tl.constexpr = 16
    index = tl.arange(0, LIST)
    x = tl.load(list_x_ptr + index, mask=index < count, other=float("-inf"))
    token = tl.load(list_token_ptr + index, mask=index < count, other=0)
    rank = tl.zeros([LIST], dtype=tl.int32)
    for first in range(0, count, TILE):
        other = first + tl.arange(0, TILE)
        other_x = tl.load(list_x_ptr + other, mask=other < count, other=float("-inf"))
        other_token = tl.load(list_token_ptr + other, mask=other < count, other=0)
        is_earlier = (other_x[None, :] > x[:, None]) | (
            (other_x[None, :] == x[:, None]) & (other_token[None, :] < token[:, None])
        )
        rank += tl.sum((is_earlier & (other < count)[None, :]).to(tl.int32), axis=1)
    mask = (index < count) & (rank < num_top)
    tl.store(top_ptr + rank, x - normalizer, mask=mask)
    tl.store(ids_ptr + rank, token.to(tl.int64), mask=mask)


@triton.jit
def _rank_row(logits_ptr, vocab_size, num_top, normalizer, top_ptr, ids_ptr, TILE: tl.constexpr):
    """Writes the likeliest of the row, one pass for each."""
    last_x = tl.full([], float("inf"), dtype=tl.float32)
    last_token = tl.full([], -1, dtype=tl.int32)
    for rank in range(num_top):
        best_x = tl.full([], float("-inf"), dtype=tl.float32)
        best_token = tl.full([], 0x7FFFFFFF, dtype=tl.int32)
        for first in range(0, vocab_size, TILE):
            token = first + tl.arange(0, TILE)
            x = tl.load(logits_ptr + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
            is_left = (token < vocab_size) & ((x < last_x) | ((x == last_x) & (token > last_token)))
            x = tl.where(is_left, x, float("-inf"))
            here = tl.max(x, axis=0)
            here_token = tl.min(tl.where(is_left & (x == here), token, 0x7FFFFFFF), axis=0)
            is_better = (here > best_x) | ((here == best_x) & (here_token < best_token))
            best_token = tl.where(is_better, here_token, best_token)
            best_x = tl.maximum(best_x, here)
        tl.store(top_ptr + rank, best_x - normalizer)
        tl.store(ids_ptr + rank, best_token.to(tl.int64))
        last_x, last_token = best_x, best_token


@triton.jit(do_not_specialize=["rows_ptr", "chosen_ids_ptr", "chosen_ptr", "top_ptr", "top_ids_ptr"])
def logprob_finish_kernel(
    logits_ptr,  # float [num_rows, vocab_size]
    rows_ptr,  # int32 [num_rows]
    ints_ptr,  # int64 [max_rows, NUM_INTS]
    chosen_ids_ptr,  # int32 [num_rows]
    group_max_ptr,  # float32 [num_rows, num_groups]
    chunk_max_ptr,  # float32 [num_rows, num_chunks]
    chunk_sum_ptr,  # float32 [num_rows, num_chunks]
    groups_ptr,  # int32 [num_rows, num_groups], scratch
    list_x_ptr,  # float32 [num_rows, LIST], scratch
    list_token_ptr,  # int32 [num_rows, LIST], scratch
    chosen_ptr,  # float32 [num_rows], written
    top_ptr,  # float32 [num_rows, max_top], written
    top_ids_ptr,  # int64 [num_rows, max_top], written
    logits_stride,
    max_top,
    vocab_size,
    num_groups,
    num_chunks,
    GROUP: tl.constexpr,
    ALL_GROUPS: tl.constexpr,  # power of two >= num_groups
    ALL_CHUNKS: tl.constexpr,  # power of two >= num_chunks
    LIST: tl.constexpr,
    TILE: tl.constexpr,  # a multiple of GROUP
):
    item = tl.program_id(0).to(tl.int64)
    num_top = _num_asked(item, rows_ptr, ints_ptr, chosen_ids_ptr)
    if num_top < 0:
        return
    chunk = tl.arange(0, ALL_CHUNKS)
    place, mask = item * num_chunks + chunk, chunk < num_chunks
    maxima = tl.load(chunk_max_ptr + place, mask=mask, other=float("-inf"))
    largest = tl.max(maxima, axis=0)
    if not (tl.abs(largest) < float("inf")):
        return  # a broken row has no probabilities
    sums = tl.load(chunk_sum_ptr + place, mask=mask, other=0.0)
    normalizer = largest + tl.log(tl.sum(sums * tl.exp(maxima - largest), axis=0))
    row_ptr = logits_ptr + item * logits_stride
    chosen = tl.load(row_ptr + tl.load(chosen_ids_ptr + item)).to(tl.float32)
    tl.store(chosen_ptr + item, chosen - normalizer)
    num_top = tl.minimum(tl.minimum(num_top, max_top), vocab_size)
    if num_top > 0:
        list_x, list_token = list_x_ptr + item * LIST, list_token_ptr + item * LIST
        # No scratch of adjusted logits: the third and fourth are the same, and the row is read as it is.
        source = (list_x, list_token, row_ptr, row_ptr, False, 0.0, 1.0, vocab_size)
        count = list_likeliest(
            groups_ptr + item * num_groups, list_x, list_token, group_max_ptr + item * num_groups,
            num_groups, num_top, vocab_size, source, GROUP, ALL_GROUPS, LIST, TILE,
        )  # fmt: skip
        top_row, ids_row = top_ptr + item * max_top, top_ids_ptr + item * max_top
        # A list that is too short holds tokens that were ruled out no longer: they count as the least likely.
        if (count <= LIST) & (count >= num_top):
            _rank_list(count, list_x, list_token, num_top, normalizer, top_row, ids_row, LIST)
        else:
            _rank_row(row_ptr, vocab_size, num_top, normalizer, top_row, ids_row, TILE)


class LogprobWorkspace:
    """Scratch memory for up to `max_rows` rows of logits; nothing in it outlives a call."""

    def __init__(
        self,
        max_rows: int,
        vocab_size: int,
        device: torch.device,
        *,
        group: int = 256,
        groups: int = 8,
        listed: int = 512,
        tile: int = 1024,
    ) -> None:
        """
        Args:
            group: tokens whose maximum is kept; a power of two, doubled for vocabularies of many of them.
            groups: groups a chunk, a power of two.
            listed: candidates that are ranked at once, a power of two.
            tile: tokens that are read at once, a power of two.
        """
        self.max_rows, self.vocab_size, self.groups, self.listed = max_rows, vocab_size, groups, listed
        self.group = max(group, triton.next_power_of_2(triton.cdiv(vocab_size, MAX_GROUPS)))
        self.tile = max(tile, self.group)
        self.num_groups = triton.cdiv(vocab_size, self.group)
        self.num_chunks = triton.cdiv(vocab_size, self.group * groups)
        self.group_max = torch.empty(max_rows, self.num_groups, dtype=torch.float32, device=device)
        self.group_ids = torch.empty(max_rows, self.num_groups, dtype=torch.int32, device=device)
        self.chunk_max = torch.empty(max_rows, self.num_chunks, dtype=torch.float32, device=device)
        self.chunk_sum = torch.empty(max_rows, self.num_chunks, dtype=torch.float32, device=device)
        self.list_x = torch.empty(max_rows, listed, dtype=torch.float32, device=device)
        self.list_token = torch.empty(max_rows, listed, dtype=torch.int32, device=device)


def logprobs(
    logits: Tensor,
    rows: Tensor,
    state: SamplingState,
    chosen_ids: Tensor,
    workspace: LogprobWorkspace,
    chosen: Tensor,
    top: Tensor,
    top_ids: Tensor,
) -> None:
    """Natural-log probabilities at each row's position, before bias, penalties, temperature and filters.

    Args:
        logits: float [num_rows, vocab_size], elements of a row together.
        rows: int32 [num_rows], the row of `state` that each belongs to; negative is padding.
        state: how many of the likeliest each row asks for; 0 is none, -1 not even the chosen one.
        chosen_ids: int32 [num_rows], as `sample_tokens` gives them; a row with a negative one is skipped.
        chosen: float32 [num_rows], written where asked; like the next two unchanged for a row that is not finite.
        top: float32 [num_rows, max_top], descending; as many of each row are written as it asks for.
        top_ids: int64, like `top`.

    Raises:
        ValueError: shapes or types disagree, or the workspace is too small.
    """
    num_rows, vocab_size = logits.shape
    w = workspace
    if num_rows > w.max_rows or vocab_size != w.vocab_size:
        raise ValueError(
            f"logprobs: logits are {tuple(logits.shape)}, but the workspace is for at most {w.max_rows} rows of "
            f"{w.vocab_size}"
        )
    if logits.stride(1) != 1:
        raise ValueError("logprobs: the last axis of logits must be contiguous")
    max_top = top.shape[1]
    if max_top > MAX_TOP_LOGPROBS:
        raise ValueError(f"logprobs: room for {max_top} of the likeliest; at most {MAX_TOP_LOGPROBS} are computed")
    expected = {
        "rows": (rows, torch.int32, (num_rows,)),
        "chosen_ids": (chosen_ids, torch.int32, (num_rows,)),
        "chosen": (chosen, torch.float32, (num_rows,)),
        "top": (top, torch.float32, (num_rows, max_top)),
        "top_ids": (top_ids, torch.int64, (num_rows, max_top)),
    }
    for name, (tensor, dtype, shape) in expected.items():
        if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(
                f"logprobs: {name} is {tensor.dtype} {tuple(tensor.shape)} but must be contiguous {dtype} {shape}"
            )
    if num_rows == 0:
        return
    logprob_scan_kernel[(num_rows, num_parts(num_rows, w.num_chunks))](
        logits, rows, state.ints, chosen_ids, w.group_max, w.chunk_max, w.chunk_sum,
        logits.stride(0), vocab_size, w.num_groups, w.num_chunks,
        GROUP=w.group, GROUPS=w.groups, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    logprob_finish_kernel[(num_rows,)](
        logits, rows, state.ints, chosen_ids, w.group_max, w.chunk_max, w.chunk_sum,
        w.group_ids, w.list_x, w.list_token, chosen, top, top_ids,
        logits.stride(0), max_top, vocab_size, w.num_groups, w.num_chunks,
        GROUP=w.group, ALL_GROUPS=triton.next_power_of_2(w.num_groups),
        ALL_CHUNKS=triton.next_power_of_2(w.num_chunks), LIST=w.listed, TILE=w.tile,
        num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
