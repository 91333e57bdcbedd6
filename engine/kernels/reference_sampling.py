"""Sampling in plain torch: noise that is a pure function, filters, penalties. The twin of the sampling kernels.

**The noise.** A draw of token t as generation number g with seed s needs a uniform number that depends on (s, g, t)
and on nothing else, so that neither neighbours in the batch, nor the row, nor chunking or preemption change a
request's tokens. It is made with 32-bit integer arithmetic alone (wrapping multiplication, xor, logical shift), so a
GPU kernel computes the same bits. With mix = the finaliser of MurmurHash3 (fmix32), all values modulo 2**32:

    low, high = s mod 2**32, s >> 32                    g in two's complement
    key0 = mix(low ^ mix(g + 0x9E3779B9))
    key1 = mix((high ^ g * 0xC2B2AE3D) + low * 0x27D4EB2F)
    bits = mix(mix(t * 0x9E3779B1 ^ key0) + key1)
    u    = float32(bits >> 1) * 2**-31 + 2**-32         in (0, 1]
    e    = -log1p(-min(u, 1 - 2**-24))                  exponentially distributed, exact where it is small
    token = argmax(logit - log(e))                      Gumbel-max: a draw from softmax(logits)

Source: Appleby, MurmurHash3 (public domain); Gumbel 1954, Maddison et al. 2014, arXiv:1411.0030; Meister et al. 2022,
arXiv:2202.00666 (typical sampling); Nguyen et al. 2024, arXiv:2407.01082 (min-p); Holtzman et al. 2020,
arXiv:1904.09751 (top-p).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Tensor = torch.Tensor

FMIX_1, FMIX_2 = 0x85EBCA6B, 0xC2B2AE35
GOLDEN = 0x9E3779B9
TOKEN_STEP = 0x9E3779B1
INDEX_STEP = 0xC2B2AE3D
SEED_STEP = 0x27D4EB2F
LEAST_LOGIT = -87.0
"""Relative to the largest. Below it a probability is no normal float32, and the token is the least typical of all."""


def _int32(value: int) -> int:
    """The number whose two's complement is `value` modulo 2**32: torch's int32 has no unsigned constants."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; `>>` on int32 drags the sign along."""
    return (x >> bits) & (0xFFFFFFFF >> bits)


def mix(x: Tensor) -> Tensor:
    """fmix32, on int32 with wrapping arithmetic."""
    x = (x ^ _shifted(x, 16)) * _int32(FMIX_1)
    x = (x ^ _shifted(x, 13)) * _int32(FMIX_2)
    return x ^ _shifted(x, 16)


def noise_keys(seeds: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """key0, key1: int32 [num_rows] each.

    Args:
        seeds: int64 [num_rows], not negative.
        indices: int64 [num_rows], generation numbers.
    """
    low, high = _to_int32(seeds & 0xFFFFFFFF), _to_int32(seeds >> 32)
    index = _to_int32(indices & 0xFFFFFFFF)
    key0 = mix(low ^ mix(index + _int32(GOLDEN)))
    key1 = mix((high ^ (index * _int32(INDEX_STEP))) + low * _int32(SEED_STEP))
    return key0, key1


def _to_int32(x: Tensor) -> Tensor:
    """int64 in [0, 2**32) -> int32 of the same bits."""
    return torch.where(x >= 1 << 31, x - (1 << 32), x).to(torch.int32)


def uniform(keys: tuple[Tensor, Tensor], token_ids: Tensor) -> Tensor:
    """float32 in (0, 1], shaped like `token_ids`.

    Args:
        keys: int32 [num_rows] each.
        token_ids: integers [num_rows, num_candidates], or [num_candidates] for all rows alike.
    """
    key0, key1 = keys[0][:, None], keys[1][:, None]
    bits = mix(mix((token_ids.to(torch.int32) * _int32(TOKEN_STEP)) ^ key0) + key1)
    return _shifted(bits, 1).float() * 2.0**-31 + 2.0**-32


def draw(logits: Tensor, token_ids: Tensor, keys: tuple[Tensor, Tensor]) -> Tensor:
    """A draw from softmax(logits) of each row: int64 [num_rows], column numbers. Of equal sums the lowest id wins.

    Args:
        logits: float32 [num_rows, num_candidates], -inf where a filter removed the candidate.
        token_ids: as `uniform`.
    """
    u = uniform(keys, token_ids).clamp_(max=1 - 2.0**-24)
    scores = logits - (-torch.log1p(-u)).log()
    if token_ids.dim() == 1:
        return scores.argmax(-1)  # columns are in the order of ids: the first of equal ones is the lowest
    is_best = scores == scores.amax(-1, keepdim=True)
    return token_ids.masked_fill(~is_best, torch.iinfo(token_ids.dtype).max).argmin(-1)


def likeliest(logits: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """The largest of each row, descending, and their columns. Of equal logits the lower column comes first.

    Args:
        logits: float32 [num_rows, vocab_size].
        num_candidates: at most vocab_size.
    """
    if num_candidates < logits.shape[1]:
        # One more tells whether equal logits lie on both sides of the limit: topk takes any of them.
        values, columns = logits.topk(num_candidates + 1, dim=-1)
        if not ((values[:, -1] == values[:, -2]) & values[:, -1].isfinite()).any():
            columns = columns[:, :-1].sort(dim=-1).values
            ordered, order = logits.gather(1, columns).sort(dim=-1, descending=True, stable=True)
            return ordered, columns.gather(1, order)
    ordered, columns = logits.sort(dim=-1, descending=True, stable=True)
    return ordered[:, :num_candidates], columns[:, :num_candidates]


def filter_candidates(logits: Tensor, top_k: Tensor, typical_p: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Applies top-k, typical-p, top-p and min-p, in this order; each works on what the one before left, renormalised.

    At least one candidate survives each.

    Args:
        logits: float32 [num_rows, num_candidates], after temperature, descending in each row.
        top_k: int64 [num_rows]; 0 is off.
        typical_p: float32 [num_rows]; 1 is off.
        top_p: float32 [num_rows]; 1 is off.
        min_p: float32 [num_rows]; 0 is off.

    Returns:
        `logits` with -inf at the removed candidates.
    """
    rank = torch.arange(logits.shape[1], device=logits.device)
    if top_k.any():
        limit = torch.where(top_k > 0, top_k, logits.shape[1])
        logits = logits.masked_fill(rank >= limit[:, None], -torch.inf)
    if (typical_p < 1).any():
        logits = _typical(logits, typical_p)
    if (top_p < 1).any():
        weights = _weights(logits)
        before = weights.cumsum(-1) - weights  # of the likelier ones
        limit = (top_p * weights.sum(-1))[:, None]
        removed = (before >= limit) & (top_p < 1)[:, None] & (rank > _first_kept(logits)[:, None])
        logits = logits.masked_fill(removed, -torch.inf)
    if (min_p > 0).any():
        threshold = logits.amax(-1) + min_p.log()  # p >= min_p * p_max, as logits
        logits = logits.masked_fill(logits < threshold[:, None], -torch.inf)
    return logits


def mask(logits: Tensor, rows: Sequence[int], words: Tensor) -> None:
    """Rules out tokens of some rows, in place.

    Args:
        logits: float32 [num_rows, vocab_size].
        rows: which they are, ascending.
        words: int32 [len(rows), ceil(vocab_size / 32)]: bit t % 32 of word t // 32 is set where token t stays.
    """
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)
    # Byte by byte (of little-endian words): a quarter of the memory, which is what unpacking takes its time for.
    bits = (words.view(torch.uint8)[:, :, None] >> shifts).bitwise_and_(1)  # [len(rows), num_bytes, 8]
    forbidden = bits.flatten(1)[:, : logits.shape[1]] == 0
    if len(rows) == len(logits):
        logits.masked_fill_(forbidden, -torch.inf)
    else:
        logits[rows] = logits[rows].masked_fill_(forbidden, -torch.inf)


def _weights(logits: Tensor) -> Tensor:
    """Probabilities but for a common factor: candidates that are alike have sums without rounding."""
    return (logits - logits.amax(-1, keepdim=True)).exp()


def _first_kept(logits: Tensor) -> Tensor:
    """Column of the likeliest candidate that is left: typical sampling may have removed the very likeliest."""
    return logits.argmax(-1)


def _typical(logits: Tensor, typical_p: Tensor) -> Tensor:
    """Keeps the candidates whose surprise is nearest to the entropy, until their mass reaches typical_p.

    Surprise and entropy hold the same normaliser, so their distance is that of the logit from the mean logit: without
    it, candidates that are nearly alike keep their order.
    """
    weights = _weights(logits)
    finite = logits.masked_fill(weights == 0, 0.0)
    mean = (weights * finite).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    is_nothing = logits - logits.amax(-1, keepdim=True) < LEAST_LOGIT
    distance = (logits - mean).abs().masked_fill(is_nothing, torch.inf)
    order = distance.argsort(stable=True, dim=-1)
    weights = weights.gather(-1, order)
    limit = (typical_p * weights.sum(-1))[:, None]
    removed = (weights.cumsum(-1) - weights >= limit) & (typical_p < 1)[:, None]
    removed[:, 0] = False
    return logits.masked_fill(torch.zeros_like(removed).scatter_(-1, order, removed), -torch.inf)


def penalize(
    logits: Tensor, history: Tensor, repeat_penalty: float, presence_penalty: float, frequency_penalty: float
) -> None:
    """Lowers the logits of tokens in one row's history, in place.

    A positive logit is divided by `repeat_penalty`, another multiplied; then `frequency_penalty` is subtracted for each
    occurrence and `presence_penalty` once.

    Args:
        logits: float32 [vocab_size].
        history: int64 [num_tokens], at least one.
    """
    tokens, counts = history.unique(return_counts=True)
    chosen = logits[tokens]
    chosen = torch.where(chosen > 0, chosen / repeat_penalty, chosen * repeat_penalty)
    logits[tokens] = chosen - counts * frequency_penalty - presence_penalty
