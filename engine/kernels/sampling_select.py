"""Second pass of sampling: where each filter of a row cuts, without sorting. One program a row.

Top-k, typical-p and top-p are one rule: put the candidates in an order, and keep those before which the weight of the
others is below a limit.

    stage  filter      order                             weight     limit
    0      top-k       s, descending                     1          k
    1      typical-p   |s - mean of s|, ascending        exp(s)     typical_p * sum of the weights
    2      top-p       s, descending                     exp(s)     top_p * sum of the weights

with s = (logit - largest) / temperature; its distance from its mean is that of a token's surprise from the entropy.
Candidates alike in the order come by token id, the lower first; the first
always stays. A cut is the last candidate that stays, as (order key, token id), so that later passes decide for each
token by comparing. It is found in three steps: the range of keys is narrowed, eight pivots a pass, until at most CAP
candidates share it; those are collected; and for each of them the weight before it is summed, all pairs at once. Where
more than CAP candidates have one key, a pass in the order of ids takes the place of the last two steps.

With top-k, what can be among the k likeliest is collected first, into a list that all stages then read in place of the
row (`sampling_source`). If the list does not hold them, the stages read the row. A row that has its list gets its
token right here.

Sums are of float32 in a fixed order: a row's result does not depend on its neighbours.

Source: Holtzman et al. 2020, arXiv:1904.09751 (top-p); Meister et al. 2022, arXiv:2202.00666 (typical-p); Qrita,
arXiv:2602.01518 (pivots in place of sorting).
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.sampling_noise import noise_keys, order_key, perturbed
from engine.kernels.sampling_scan import is_adjusted
from engine.kernels.sampling_source import list_likeliest, read_candidates
from engine.kernels.sampling_state import (
    LOG_MIN_P,
    NUM_FLOATS,
    NUM_INTS,
    ORIGIN,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    TYPICAL_P,
)

# What is decided of a row: its status.
LIKELIEST = tl.constexpr(0)  # the first token with the largest adjusted logit
DRAW = tl.constexpr(1)  # a draw from the row, after the cuts
CHOSEN = tl.constexpr(2)  # already chosen

# Columns of a decision, int32 [NUM_DECISIONS]; floats hold their bits.
STATUS = tl.constexpr(0)
TOKEN = tl.constexpr(1)
LARGEST = tl.constexpr(2)  # float32
MEAN = tl.constexpr(3)  # float32, of s
FLOOR = tl.constexpr(4)  # float32, of s
CUT_KEYS = tl.constexpr(5)  # three, by stage
CUT_TOKENS = tl.constexpr(8)  # three
NUM_DECISIONS = tl.constexpr(11)

LOWEST_KEY = tl.constexpr(-2139095040)  # order_key of the lowest finite float32
NO_CUT = tl.constexpr(-2147483648)


@triton.jit
def stays(s, token, cuts):
    """Whether a candidate survives the three cuts; and its order keys, by likelihood and by distance.

    cuts: the mean of s, then key and token of each stage.
    """
    key = order_key(s)
    # What has hardly a probability in float32 is the last of all, wherever the mean is.
    typical_key = order_key(tl.where(s < -87.0, float("-inf"), -tl.abs(s - cuts[0])))
    alive = (s > float("-inf")) & ((key > cuts[1]) | ((key == cuts[1]) & (token <= cuts[2])))
    alive &= (typical_key > cuts[3]) | ((typical_key == cuts[3]) & (token <= cuts[4]))
    alive &= (key > cuts[5]) | ((key == cuts[5]) & (token <= cuts[6]))
    return alive, key, typical_key


@triton.jit
def _weigh(s, token, stage, cuts):
    """Order key, weight and liveness of candidates in a stage."""
    alive, key, typical_key = stays(s, token, cuts)
    key = tl.where(stage == 1, typical_key, key)
    weight = tl.where(alive, tl.where(stage == 0, 1.0, tl.exp(s)), 0.0)
    return key, weight, alive


@triton.jit
def _totals(count, source, is_list, cuts, TILE: tl.constexpr):
    """Over the candidates that are left: the largest s, the sum of exp(s) and of exp(s) * s."""
    largest = tl.full([TILE], float("-inf"), dtype=tl.float32)
    total = tl.zeros([TILE], dtype=tl.float32)
    moment = tl.zeros([TILE], dtype=tl.float32)
    for first in range(0, count, TILE):
        s, token = read_candidates(first + tl.arange(0, TILE), count, source, is_list)
        _, weight, alive = _weigh(s, token, 2, cuts)
        largest = tl.maximum(largest, tl.where(alive, s, float("-inf")))
        total += weight
        moment += weight * tl.where(alive, s, 0.0)
    return tl.max(largest, axis=0), tl.sum(total, axis=0), tl.sum(moment, axis=0)


@triton.jit
def _above(count, source, is_list, stage, cuts, pivots, stop, TILE: tl.constexpr):
    """For each pivot: the weight and the number of candidates with pivot <= key < stop. Two [8]."""
    weights = tl.zeros([8, TILE], dtype=tl.float32)
    counts = tl.zeros([8, TILE], dtype=tl.int32)
    for first in range(0, count, TILE):
        s, token = read_candidates(first + tl.arange(0, TILE), count, source, is_list)
        key, weight, alive = _weigh(s, token, stage, cuts)
        above = (key[None, :] >= pivots[:, None]) & (alive & (key < stop))[None, :]
        weights += tl.where(above, weight[None, :], 0.0)
        counts += above.to(tl.int32)
    return tl.sum(weights, axis=1), tl.sum(counts, axis=1)


@triton.jit
def _narrow(count, source, is_list, stage, cuts, fraction, limit, CAP: tl.constexpr, TILE: tl.constexpr):
    """The range of keys that holds the last candidate that stays.

    fraction: the limit, as a part of all weight. limit: the limit itself where it is known, else negative.

    Returns: start, stop of the range; the weight above it; how many candidates are in it; the limit.
    """
    lane = tl.arange(0, 8)
    # Most nuclei end within a few units of the largest, so the first pass looks there: s = -16 ... -0.87.
    first_pivots = order_key(-tl.exp2(4.7 - 0.7 * lane.to(tl.float32)))
    pivots = tl.where(lane == 0, LOWEST_KEY, first_pivots)
    start = tl.full([], LOWEST_KEY, dtype=tl.int32)
    stop = tl.full([], 1, dtype=tl.int32)
    base = tl.full([], 0.0, dtype=tl.float32)
    num_inside = count + tl.full([], 0, dtype=tl.int32)
    is_open = (limit < 0) | (num_inside > CAP)
    while is_open:
        weights, counts = _above(count, source, is_list, stage, cuts, pivots, stop, TILE)
        if limit < 0:
            total = tl.sum(tl.where(lane == 0, weights, 0.0), axis=0)
            limit = tl.maximum(fraction, 1e-30) * total  # above 0: the first always stays
        # The last pivot that so much weight lies above: what stays last is not below it, but below the next.
        chosen = tl.maximum(tl.sum((base + weights >= limit).to(tl.int32), axis=0) - 1, 0)
        is_top = chosen == 7
        stop = tl.where(is_top, stop, tl.sum(tl.where(lane == chosen + 1, pivots, 0), axis=0))
        base += tl.sum(tl.where(lane == chosen + 1, weights, 0.0), axis=0)
        start = tl.sum(tl.where(lane == chosen, pivots, 0), axis=0)
        num_inside = tl.sum(tl.where(lane == chosen, counts, 0), axis=0)
        num_inside -= tl.sum(tl.where(lane == chosen + 1, counts, 0), axis=0)
        width = stop.to(tl.int64) - start.to(tl.int64)
        is_open = (num_inside > CAP) & (width > 1)
        pivots = (start + width * lane // 8).to(tl.int32)
    return start, stop, base, num_inside, limit


@triton.jit
def _collect(count, source, is_list, stage, cuts, start, stop, near_s_ptr, near_token_ptr, TILE: tl.constexpr):
    """Writes the candidates with start <= key < stop, in their order."""
    num_written = tl.full([], 0, dtype=tl.int32)
    for first in range(0, count, TILE):
        s, token = read_candidates(first + tl.arange(0, TILE), count, source, is_list)
        key, _, alive = _weigh(s, token, stage, cuts)
        inside = (alive & (key >= start) & (key < stop)).to(tl.int32)
        num_here = tl.sum(inside, axis=0)
        if num_here > 0:
            place = num_written + tl.cumsum(inside, axis=0) - 1
            tl.store(near_s_ptr + place, s, mask=inside != 0)
            tl.store(near_token_ptr + place, token, mask=inside != 0)
            num_written += num_here
    return num_written


@triton.jit
def _cut_among(
    num_near, near_s_ptr, near_token_ptr, stage, cuts, stop, base, limit, CAP: tl.constexpr, TILE: tl.constexpr
):
    """Key and token of the last candidate that stays, from the collected ones of one range."""
    index = tl.arange(0, CAP)
    s = tl.load(near_s_ptr + index, mask=index < num_near, other=float("-inf"))
    token = tl.load(near_token_ptr + index, mask=index < num_near, other=0)
    key, _, alive = _weigh(s, token, stage, cuts)
    before = base + tl.zeros([CAP], dtype=tl.float32)
    for first in range(0, num_near, TILE):
        other = first + tl.arange(0, TILE)
        other_s = tl.load(near_s_ptr + other, mask=other < num_near, other=float("-inf"))
        other_token = tl.load(near_token_ptr + other, mask=other < num_near, other=0)
        other_key, weight, other_alive = _weigh(other_s, other_token, stage, cuts)
        earlier = (other_key[None, :] > key[:, None]) | (
            (other_key[None, :] == key[:, None]) & (other_token[None, :] < token[:, None])
        )
        before += tl.sum(tl.where(earlier & other_alive[None, :], weight[None, :], 0.0), axis=1)
    kept = alive & (before < limit)
    # If rounding leaves none of them, what lies above the range stays, and it ends above `stop`.
    cut_key = tl.min(tl.where(kept, key, stop), axis=0)
    cut_token = tl.max(tl.where(kept & (key == cut_key), token, -1), axis=0)
    return cut_key, cut_token


@triton.jit
def _cut_among_equals(count, source, is_list, stage, cuts, key_of_all, base, limit, TILE: tl.constexpr):
    """The last token that stays of very many with one key: they come by id."""
    cut_token = tl.full([], -1, dtype=tl.int32)
    before = base
    for first in range(0, count, TILE):
        s, token = read_candidates(first + tl.arange(0, TILE), count, source, is_list)
        key, weight, alive = _weigh(s, token, stage, cuts)
        inside = alive & (key == key_of_all)
        weight = tl.where(inside, weight, 0.0)
        kept = inside & (before + tl.cumsum(weight, axis=0) - weight < limit)
        cut_token = tl.maximum(cut_token, tl.max(tl.where(kept, token, -1), axis=0))
        before += tl.sum(weight, axis=0)
    return cut_token


@triton.jit
def _draw_from_list(count, source, cuts, floor, key0, key1, TILE: tl.constexpr):
    """The token of the greatest perturbed logit; of equal ones the lowest."""
    best = tl.full([], float("-inf"), dtype=tl.float32)
    best_token = tl.full([], 0x7FFFFFFF, dtype=tl.int32)
    for first in range(0, count, TILE):
        s, token = read_candidates(first + tl.arange(0, TILE), count, source, True)
        _, _, alive = _weigh(s, token, 2, cuts)
        score = tl.where(alive & (s >= floor), perturbed(s, token, key0, key1), float("-inf"))
        top = tl.max(score, axis=0)
        top_token = tl.min(tl.where((score == top) & (score > float("-inf")), token, 0x7FFFFFFF), axis=0)
        is_better = (top > best) | ((top == best) & (top_token < best_token))
        best_token = tl.where(is_better, top_token, best_token)
        best = tl.maximum(best, top)
    return best_token


@triton.jit(do_not_specialize=["rows_ptr", "positions_ptr"])
def sampling_select_kernel(
    logits_ptr,  # float [num_rows, vocab_size]
    work_ptr,  # float32 [num_rows, vocab_size]
    rows_ptr,  # int32 [num_rows]
    positions_ptr,  # int32 [num_rows], position of the token just computed
    floats_ptr,  # float32 [max_rows, NUM_FLOATS]
    ints_ptr,  # int64 [max_rows, NUM_INTS]
    group_max_ptr,  # float32 [num_rows, num_groups]
    chunk_max_ptr,  # float32 [num_rows, num_chunks]
    groups_ptr,  # int32 [num_rows, num_groups], scratch
    list_s_ptr,  # float32 [num_rows, LIST], scratch
    list_token_ptr,  # int32 [num_rows, LIST], scratch
    near_s_ptr,  # float32 [num_rows, CAP], scratch
    near_token_ptr,  # int32 [num_rows, CAP], scratch
    decisions_ptr,  # int32 [num_rows, NUM_DECISIONS], written
    logits_stride,
    work_stride,
    vocab_size,
    num_groups,
    num_chunks,
    GROUP: tl.constexpr,
    ALL_GROUPS: tl.constexpr,  # power of two >= num_groups
    ALL_CHUNKS: tl.constexpr,  # power of two >= num_chunks
    LIST: tl.constexpr,
    CAP: tl.constexpr,
    TILE: tl.constexpr,  # tokens a pass reads at once, a multiple of GROUP
    PAIR_TILE: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + item).to(tl.int64)
    if row < 0:
        return
    decision_ptr = decisions_ptr + item * NUM_DECISIONS
    chunk = tl.arange(0, ALL_CHUNKS)
    maxima = tl.load(chunk_max_ptr + item * num_chunks + chunk, mask=chunk < num_chunks, other=float("-inf"))
    largest = tl.max(maxima, axis=0)
    temperature = tl.load(floats_ptr + row * NUM_FLOATS + TEMPERATURE)
    # `not <` is true of NaN too: a broken row is not searched.
    if (temperature == 0.0) | (not (tl.abs(largest) < float("inf"))):
        tl.store(decision_ptr + STATUS, LIKELIEST)
        return

    top_k = tl.load(ints_ptr + row * NUM_INTS + TOP_K)
    top_k = tl.minimum(top_k, vocab_size).to(tl.int32)
    typical_p = tl.load(floats_ptr + row * NUM_FLOATS + TYPICAL_P)
    top_p = tl.load(floats_ptr + row * NUM_FLOATS + TOP_P)
    log_min_p = tl.load(floats_ptr + row * NUM_FLOATS + LOG_MIN_P)
    source = (
        list_s_ptr + item * LIST,
        list_token_ptr + item * LIST,
        logits_ptr + item * logits_stride,
        work_ptr + item * work_stride,
        is_adjusted(ints_ptr, row),
        largest,
        temperature,
        vocab_size,
    )
    has_top_k = (top_k > 0) & (top_k < vocab_size)
    is_list = tl.full([], 0, dtype=tl.int1)
    count = vocab_size + tl.full([], 0, dtype=tl.int32)
    if has_top_k:
        num_listed = list_likeliest(
            groups_ptr + item * num_groups, source[0], source[1], group_max_ptr + item * num_groups,
            num_groups, top_k, vocab_size, source, GROUP, ALL_GROUPS, LIST, TILE,
        )  # fmt: skip
        is_list = num_listed <= LIST
        count = tl.where(is_list, num_listed, count)

    mean = tl.full([], 0.0, dtype=tl.float32)
    cut_key0 = tl.full([], NO_CUT, dtype=tl.int32)
    cut_key1, cut_key2 = cut_key0, cut_key0
    cut_token0 = tl.full([], -1, dtype=tl.int32)
    cut_token1, cut_token2 = cut_token0, cut_token0
    for stage in range(3):
        if ((stage == 0) & has_top_k) | ((stage == 1) & (typical_p < 1.0)) | ((stage == 2) & (top_p < 1.0)):
            cuts = (mean, cut_key0, cut_token0, cut_key1, cut_token1, cut_key2, cut_token2)
            if stage == 1:
                _, total, moment = _totals(count, source, is_list, cuts, TILE)
                mean = tl.div_rn(moment, total)
                cuts = (mean, cut_key0, cut_token0, cut_key1, cut_token1, cut_key2, cut_token2)
            limit = tl.where(stage == 0, top_k.to(tl.float32), -1.0)
            start, stop, base, num_inside, limit = _narrow(
                count, source, is_list, stage, cuts, tl.where(stage == 1, typical_p, top_p), limit, CAP, TILE
            )
            if num_inside <= CAP:
                near_s, near_token = near_s_ptr + item * CAP, near_token_ptr + item * CAP
                num_near = _collect(count, source, is_list, stage, cuts, start, stop, near_s, near_token, TILE)
                tl.debug_barrier()
                cut_key, cut_token = _cut_among(
                    num_near, near_s, near_token, stage, cuts, stop, base, limit, CAP, PAIR_TILE
                )
                tl.debug_barrier()  # before the next stage overwrites what was collected
            else:
                cut_key = start
                cut_token = _cut_among_equals(count, source, is_list, stage, cuts, start, base, limit, TILE)
            cut_key0 = tl.where(stage == 0, cut_key, cut_key0)
            cut_token0 = tl.where(stage == 0, cut_token, cut_token0)
            cut_key1 = tl.where(stage == 1, cut_key, cut_key1)
            cut_token1 = tl.where(stage == 1, cut_token, cut_token1)
            cut_key2 = tl.where(stage == 2, cut_key, cut_key2)
            cut_token2 = tl.where(stage == 2, cut_token, cut_token2)

    cuts = (mean, cut_key0, cut_token0, cut_key1, cut_token1, cut_key2, cut_token2)
    floor = log_min_p
    if (typical_p < 1.0) & (log_min_p > float("-inf")):
        largest_left, _, _ = _totals(count, source, is_list, cuts, TILE)  # typical-p may have removed the likeliest
        floor += largest_left
    status = tl.full([], DRAW, dtype=tl.int32)
    if is_list:
        seed = tl.load(ints_ptr + row * NUM_INTS + SEED)
        index = tl.load(positions_ptr + item).to(tl.int64) + 1 - tl.load(ints_ptr + row * NUM_INTS + ORIGIN)
        key0, key1 = noise_keys(seed, index)
        tl.store(decision_ptr + TOKEN, _draw_from_list(count, source, cuts, floor, key0, key1, TILE))
        status = tl.full([], CHOSEN, dtype=tl.int32)
    tl.store(decision_ptr + STATUS, status)
    tl.store(decision_ptr + LARGEST, largest.to(tl.int32, bitcast=True))
    tl.store(decision_ptr + MEAN, mean.to(tl.int32, bitcast=True))
    tl.store(decision_ptr + FLOOR, floor.to(tl.int32, bitcast=True))
    tl.store(decision_ptr + CUT_KEYS, cut_key0)
    tl.store(decision_ptr + CUT_KEYS + 1, cut_key1)
    tl.store(decision_ptr + CUT_KEYS + 2, cut_key2)
    tl.store(decision_ptr + CUT_TOKENS, cut_token0)
    tl.store(decision_ptr + CUT_TOKENS + 1, cut_token1)
    tl.store(decision_ptr + CUT_TOKENS + 2, cut_token2)
