"""Last passes of sampling: the draw over a whole row, chunk by chunk; the choice among the chunks and the row's state.

A draw adds noise to each candidate that the filters left and takes the greatest sum. Of equal sums, as of equal logits
in a greedy row, the token with the lowest id is taken.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.sampling_noise import noise_keys, perturbed
from engine.kernels.sampling_scan import is_adjusted, load_logits
from engine.kernels.sampling_select import (
    CHOSEN,
    CUT_KEYS,
    CUT_TOKENS,
    DRAW,
    FLOOR,
    LARGEST,
    MEAN,
    NUM_DECISIONS,
    STATUS,
    TOKEN,
    stays,
)
from engine.kernels.sampling_source import scaled
from engine.kernels.sampling_state import NUM_FLOATS, NUM_INTS, ORIGIN, SEED, TEMPERATURE


@triton.jit
def _float(decision_ptr, column):
    return tl.load(decision_ptr + column).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["rows_ptr", "positions_ptr"])
def sampling_draw_kernel(
    logits_ptr,  # float [num_rows, vocab_size]
    work_ptr,  # float32 [num_rows, vocab_size]
    rows_ptr,  # int32 [num_rows]
    positions_ptr,  # int32 [num_rows], position of the token just computed
    floats_ptr,  # float32 [max_rows, NUM_FLOATS]
    ints_ptr,  # int64 [max_rows, NUM_INTS]
    decisions_ptr,  # int32 [num_rows, NUM_DECISIONS]
    chunk_max_ptr,  # float32 [num_rows, num_chunks], overwritten where a row draws: the greatest perturbed logit
    chunk_token_ptr,  # int32 [num_rows, num_chunks], likewise
    logits_stride,
    work_stride,
    vocab_size,
    num_chunks,
    CHUNK: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + item).to(tl.int64)
    if row < 0:
        return
    decision = decisions_ptr + item * NUM_DECISIONS
    if tl.load(decision + STATUS) == DRAW:
        adjusted = is_adjusted(ints_ptr, row)
        largest = _float(decision, LARGEST)
        floor = _float(decision, FLOOR)
        temperature = tl.load(floats_ptr + row * NUM_FLOATS + TEMPERATURE)
        cuts = (
            _float(decision, MEAN),
            tl.load(decision + CUT_KEYS),
            tl.load(decision + CUT_TOKENS),
            tl.load(decision + CUT_KEYS + 1),
            tl.load(decision + CUT_TOKENS + 1),
            tl.load(decision + CUT_KEYS + 2),
            tl.load(decision + CUT_TOKENS + 2),
        )
        index = tl.load(positions_ptr + item).to(tl.int64) + 1 - tl.load(ints_ptr + row * NUM_INTS + ORIGIN)
        key0, key1 = noise_keys(tl.load(ints_ptr + row * NUM_INTS + SEED), index)
        logits_row, work_row = logits_ptr + item * logits_stride, work_ptr + item * work_stride
        for chunk in range(tl.program_id(1), num_chunks, tl.num_programs(1)):
            token = chunk * CHUNK + tl.arange(0, CHUNK)
            s = scaled(load_logits(logits_row, work_row, adjusted, token, token < vocab_size), largest, temperature)
            alive, _, _ = stays(s, token, cuts)
            alive &= s >= floor
            score = tl.where(alive, perturbed(s, token, key0, key1), float("-inf"))
            best = tl.max(score, axis=0)
            best_token = tl.min(tl.where(alive & (score == best), token, 0x7FFFFFFF), axis=0)
            place = item * num_chunks + chunk
            tl.store(chunk_max_ptr + place, best)
            tl.store(chunk_token_ptr + place, best_token)


@triton.jit(do_not_specialize=["rows_ptr", "positions_ptr", "token_ids_ptr"])
def sampling_finish_kernel(
    rows_ptr,  # int32 [num_rows]
    positions_ptr,  # int32 [num_rows], advanced by 1 if ADVANCE
    tokens_ptr,  # int32 [max_rows, max_tokens], one entry a row is written
    decisions_ptr,  # int32 [num_rows, NUM_DECISIONS]
    chunk_max_ptr,  # float32 [num_rows, num_chunks]
    chunk_token_ptr,  # int32 [num_rows, num_chunks]
    chunk_raw_max_ptr,  # float32 [num_rows, num_chunks]
    token_ids_ptr,  # int32 [num_rows], written
    tokens_stride,
    max_tokens,
    num_chunks,
    ALL_CHUNKS: tl.constexpr,  # power of two >= num_chunks
    ADVANCE: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + item).to(tl.int64)
    if row < 0:
        return
    chunk = tl.arange(0, ALL_CHUNKS)
    place, mask = item * num_chunks + chunk, chunk < num_chunks
    raw_max = tl.max(tl.load(chunk_raw_max_ptr + place, mask=mask, other=float("-inf")), axis=0)
    is_broken = not (tl.abs(raw_max) < float("inf"))
    maxima = tl.load(chunk_max_ptr + place, mask=mask, other=float("-inf"))
    tokens = tl.load(chunk_token_ptr + place, mask=mask, other=0x7FFFFFFF)
    best = tl.max(maxima, axis=0)
    token = tl.min(tl.where(maxima == best, tokens, 0x7FFFFFFF), axis=0)
    decision = decisions_ptr + item * NUM_DECISIONS
    if tl.load(decision + STATUS) == CHOSEN:
        token = tl.load(decision + TOKEN)
    # The state of a broken row is whatever it is; its token must be one all the same.
    token = tl.where(is_broken | (token == 0x7FFFFFFF), 0, token)
    tl.store(token_ids_ptr + item, tl.where(is_broken, -1, token))
    position = tl.load(positions_ptr + item) + 1
    tl.store(tokens_ptr + row * tokens_stride + position, token, mask=position < max_tokens)
    if ADVANCE:
        tl.store(positions_ptr + item, position)
