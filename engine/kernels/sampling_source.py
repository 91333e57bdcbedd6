"""Where the search among a row's candidates reads them: the row itself, or a short list of its likeliest.

A source is a tuple of pointers at the row and what turns a logit x into s = (x - largest) / temperature:
(list_s, list_token, logits, work, adjusted, largest, temperature, vocab_size). Called by `sampling_select`, and by
`logprobs` with raw logits, a largest of 0 and a temperature of 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.sampling_scan import load_logits


@triton.jit
def scaled(x, largest, temperature):
    """s: at most 0, -inf where the token is ruled out or too far from the largest for a tiny temperature."""
    return tl.div_rn(x - largest, temperature + tl.zeros_like(x))


@triton.jit
def read_candidates(index, count, source, SOURCE_IS_LIST):
    """Candidates `index` of the source, which are `count`: s, token."""
    if SOURCE_IS_LIST:
        mask = index < count
        s = tl.load(source[0] + index, mask=mask, other=float("-inf"))
        token = tl.load(source[1] + index, mask=mask, other=0)
    else:
        # A row has vocab_size candidates; being a multiple of 16, mostly, it lets several be loaded at once.
        x = load_logits(source[2], source[3], source[4], index, index < source[7])
        s = scaled(x, source[5], source[6])
        token = index
    return s, token


@triton.jit
def list_likeliest(
    groups_ptr,  # int32 [num_groups], scratch
    list_s_ptr,  # float32 [LIST], written
    list_token_ptr,  # int32 [LIST], written
    group_max_ptr,  # float32 [num_groups]
    num_groups,
    top_k,
    vocab_size,
    source,
    GROUP: tl.constexpr,
    ALL_GROUPS: tl.constexpr,
    LIST: tl.constexpr,
    TILE: tl.constexpr,
):
    """Lists, by token id, what may be among the top_k likeliest. Returns how many there are, perhaps more than LIST.

    The top_k-th largest maximum of a group is no greater than the top_k-th largest logit, so what is below it is not
    listed, and groups below it are not read.
    """
    group = tl.arange(0, ALL_GROUPS)
    maxima = tl.load(group_max_ptr + group, mask=group < num_groups, other=float("-inf"))
    s = scaled(maxima, source[5], source[6])
    num_alive = tl.sum((s > float("-inf")).to(tl.int32), axis=0)
    low = tl.full([], -3.0e38, dtype=tl.float32)  # fewer groups than top_k: the k-th may be anywhere in them
    if num_alive >= top_k:
        high = tl.max(s, axis=0)
        low = tl.min(tl.where(s > float("-inf"), s, high), axis=0)
        for _ in range(20):  # at least top_k groups reach `low`, always
            middle = 0.5 * low + 0.5 * high
            reaches = tl.sum((s >= middle).to(tl.int32), axis=0) >= top_k
            low = tl.where(reaches, middle, low)
            high = tl.where(reaches, high, middle)
    selected = ((s >= low) & (s > float("-inf"))).to(tl.int32)
    tl.store(groups_ptr + tl.cumsum(selected, axis=0) - 1, group, mask=selected != 0)
    num_selected = tl.sum(selected, axis=0)
    tl.debug_barrier()  # what other threads wrote is read next

    WIDTH: tl.constexpr = TILE // GROUP
    num_written = tl.full([], 0, dtype=tl.int32)
    for first in range(0, num_selected, WIDTH):
        index = first + tl.arange(0, WIDTH)
        member = tl.load(groups_ptr + index, mask=index < num_selected, other=ALL_GROUPS)
        token = tl.reshape(member[:, None] * GROUP + tl.arange(0, GROUP)[None, :], [TILE])
        found, _ = read_candidates(token, vocab_size, source, False)
        inside = ((found >= low) & (found > float("-inf"))).to(tl.int32)
        place = num_written + tl.cumsum(inside, axis=0) - 1
        fits = (inside != 0) & (place < LIST)
        tl.store(list_s_ptr + place, found, mask=fits)
        tl.store(list_token_ptr + place, token, mask=fits)
        num_written += tl.sum(inside, axis=0)
    tl.debug_barrier()
    return num_written
