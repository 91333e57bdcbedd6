"""First passes of sampling over the logits: bias, penalties and masks where asked, then maxima that passes after need.

Rows with biases, penalties or a mask get their adjusted logits written to `work`; the logits themselves stay as they
are, because log-probabilities are of the raw ones. Occurrences in the history are counted by a histogram over a chunk's
own tokens, so no table of counts needs to be kept or cleared. That takes many registers, so it is a kernel of its own,
with few programs: for other rows they return at once. A greedy row then costs one pass over its logits, and leaves
three numbers a chunk.

Order and rounding are those of the twin: bias; then a positive logit divided by the repeat penalty, another multiplied;
then occurrences times the frequency penalty, then the presence penalty; then the mask. Compiled without fused
multiply-add.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.sampling_state import (
    FREQUENCY_PENALTY,
    HAS_MASK,
    LAST_N,
    NUM_BIAS,
    NUM_FLOATS,
    NUM_INTS,
    PRESENCE_PENALTY,
    REPEAT_PENALTY,
    TEMPERATURE,
)


@triton.jit
def is_adjusted(ints_ptr, row):
    """Whether the row's logits are in `work`."""
    row_ints = ints_ptr + row * NUM_INTS
    asks = (tl.load(row_ints + LAST_N) != 0) | (tl.load(row_ints + NUM_BIAS) != 0)
    return asks | (tl.load(row_ints + HAS_MASK) != 0)


@triton.jit
def load_logits(logits_ptr, work_ptr, adjusted, offset, mask):
    """float32 logits after bias, penalties and the row's mask, -inf outside `mask`. Pointers are at the row."""
    if adjusted:
        x = tl.load(work_ptr + offset, mask=mask, other=float("-inf")).to(tl.float32)
    else:
        x = tl.load(logits_ptr + offset, mask=mask, other=float("-inf")).to(tl.float32)
    return x


@triton.jit(do_not_specialize=["rows_ptr", "positions_ptr"])
def sampling_adjust_kernel(
    logits_ptr,  # float [num_rows, vocab_size]
    work_ptr,  # float32 [num_rows, vocab_size], written for rows that are adjusted
    rows_ptr,  # int32 [num_rows], the state row of each row of logits; negative: padding
    positions_ptr,  # int32 [num_rows], position of the token just computed
    tokens_ptr,  # int32 [max_rows, max_tokens], every state row's tokens
    floats_ptr,  # float32 [max_rows, NUM_FLOATS]
    ints_ptr,  # int64 [max_rows, NUM_INTS]
    bias_ids_ptr,  # int32 [max_rows, max_bias]
    bias_values_ptr,  # float32 [max_rows, max_bias]
    masks_ptr,  # int32 [max_rows, masks_stride], bit t % 32 of word t // 32 is set where token t may be sampled
    logits_stride,
    work_stride,
    tokens_stride,
    masks_stride,
    max_bias,
    vocab_size,
    num_chunks,
    CHUNK: tl.constexpr,  # tokens
    HISTORY: tl.constexpr,  # tokens of the history that are counted at once
):
    item = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + item).to(tl.int64)
    if row < 0:
        return
    if is_adjusted(ints_ptr, row):
        num_bias = tl.load(ints_ptr + row * NUM_INTS + NUM_BIAS)
        last_n = tl.load(ints_ptr + row * NUM_INTS + LAST_N)
        has_mask = tl.load(ints_ptr + row * NUM_INTS + HAS_MASK) != 0
        position = tl.load(positions_ptr + item).to(tl.int64) + 1
        repeat = tl.load(floats_ptr + row * NUM_FLOATS + REPEAT_PENALTY)
        presence = tl.load(floats_ptr + row * NUM_FLOATS + PRESENCE_PENALTY)
        frequency = tl.load(floats_ptr + row * NUM_FLOATS + FREQUENCY_PENALTY)
        for chunk in range(tl.program_id(1), num_chunks, tl.num_programs(1)):
            first = chunk * CHUNK
            token = first + tl.arange(0, CHUNK)
            is_valid = token < vocab_size
            x = tl.load(logits_ptr + item * logits_stride + token, mask=is_valid, other=float("-inf")).to(tl.float32)
            for bias in range(num_bias):
                bias_token = tl.load(bias_ids_ptr + row * max_bias + bias)
                if (bias_token >= first) & (bias_token < first + CHUNK):
                    value = tl.load(bias_values_ptr + row * max_bias + bias)
                    x = tl.where(token == bias_token, x + value, x)
            if last_n > 0:
                counts = tl.zeros([CHUNK], dtype=tl.int32)
                for begin in range(tl.maximum(position - last_n, 0), position, HISTORY):
                    where = begin + tl.arange(0, HISTORY)
                    seen = tl.load(tokens_ptr + row * tokens_stride + where, mask=where < position, other=-1) - first
                    is_here = (seen >= 0) & (seen < CHUNK)
                    counts += tl.histogram(tl.where(is_here, seen, 0), CHUNK, mask=is_here)
                penalized = tl.where(x > 0, tl.div_rn(x, repeat), x * repeat)
                penalized = penalized - counts.to(tl.float32) * frequency - presence
                x = tl.where(counts > 0, penalized, x)
            # A NaN stays out of comparisons, and a tiny repeat penalty may have made an inf, from which no distance is
            # finite: the raw logits tell what is broken.
            x = tl.where(x == x, tl.minimum(x, 3.0e38), 3.0e38)
            if has_mask:
                word = tl.load(masks_ptr + row * masks_stride + token // 32, mask=is_valid, other=0)
                x = tl.where(((word >> (token % 32)) & 1) != 0, x, float("-inf"))
            tl.store(work_ptr + item * work_stride + token, x, mask=is_valid)


@triton.jit(do_not_specialize=["rows_ptr"])
def sampling_scan_kernel(
    logits_ptr,  # float [num_rows, vocab_size]
    work_ptr,  # float32 [num_rows, vocab_size]
    rows_ptr,  # int32 [num_rows]
    floats_ptr,  # float32 [max_rows, NUM_FLOATS]
    ints_ptr,  # int64 [max_rows, NUM_INTS]
    group_max_ptr,  # float32 [num_rows, num_groups], of the adjusted logits; written for rows that are not greedy
    chunk_max_ptr,  # float32 [num_rows, num_chunks], of the adjusted logits
    chunk_token_ptr,  # int32 [num_rows, num_chunks], the first that has it
    chunk_raw_max_ptr,  # float32 [num_rows, num_chunks], of the raw logits, a NaN counting as inf
    logits_stride,
    work_stride,
    vocab_size,
    num_groups,
    GROUP: tl.constexpr,  # tokens a group
    GROUPS: tl.constexpr,  # groups a chunk
):
    CHUNK: tl.constexpr = GROUP * GROUPS
    item, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    is_valid = token < vocab_size
    # Before it is known whether the row is padding: what it asks for is on its way meanwhile.
    x = tl.load(logits_ptr + item * logits_stride + token, mask=is_valid, other=float("-inf")).to(tl.float32)
    row = tl.load(rows_ptr + item).to(tl.int64)
    if row < 0:
        return
    x = tl.where(x == x, x, float("inf"))  # a NaN would lose comparisons; as infinity it shows
    raw_max = tl.max(x, axis=0)
    chunk_max = raw_max
    if is_adjusted(ints_ptr, row):
        x = tl.load(work_ptr + item * work_stride + token, mask=is_valid, other=float("-inf"))
        chunk_max = tl.max(x, axis=0)
    if tl.load(floats_ptr + row * NUM_FLOATS + TEMPERATURE) != 0.0:
        group = chunk * GROUPS + tl.arange(0, GROUPS)
        group_max = tl.max(tl.reshape(x, [GROUPS, GROUP]), axis=1)
        tl.store(group_max_ptr + item * num_groups + group, group_max, mask=group < num_groups)
    best = tl.min(tl.where(x == chunk_max, token, 0x7FFFFFFF), axis=0)
    place = item * tl.num_programs(1) + chunk
    tl.store(chunk_max_ptr + place, chunk_max)
    tl.store(chunk_token_ptr + place, best)
    tl.store(chunk_raw_max_ptr + place, raw_max)
