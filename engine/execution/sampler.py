"""Sampler: logits of a step's sampling rows -> one token each, with log-probabilities where asked.

Order of application: logit bias, penalties, mask, temperature, top-k, typical-p, top-p, min-p, noise. Log-probabilities
are of the raw logits. What a request gets depends on its own logits, parameters, history and generation number alone:
rows are handled row-wise or in groups of the same top-k, and the noise is a hash (`kernels.reference_sampling`). A
batch of greedy requests costs one argmax, one without filters one more pass for the noise; only what needs sorting is
sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.kernels import reference_sampling as kernels
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import TokenLogprobs

Tensor = torch.Tensor

MAX_BIAS = 1e30
"""Logit biases are cut to this, so that a float32 sum stays finite."""


@dataclass(frozen=True)
class SamplingRow:
    """One row's share of sampling a step."""

    params: SamplingParams
    index: int
    """Generation number of the token to choose."""
    history: Tensor | None
    """int64, the tokens that penalties look back on; None where there are no penalties."""


@dataclass(frozen=True)
class MaskedRows:
    """Rows that may sample some tokens only."""

    numbers: Sequence[int]
    """Of the rows, ascending."""
    words: Tensor
    """int32 [len(numbers), ceil(vocab_size / 32)]: bit t % 32 of word t // 32 is set where token t may be sampled."""


@dataclass(frozen=True)
class Sampled:
    """What a step chose; still on its device."""

    token_ids: Tensor
    """int64 [num_rows]"""
    is_broken: Tensor
    """bool [num_rows]: the logits were not finite, and the token is 0."""
    logprobs: LogprobTensors | None


@dataclass(frozen=True)
class LogprobTensors:
    """Log-probabilities of the rows that asked."""

    rows: Sequence[int]
    counts: Sequence[int]
    """How many of the likeliest each wants."""
    chosen: Tensor
    """float32 [num_rows]"""
    top: Tensor
    """float32 [num_rows, max(counts)], descending."""
    top_ids: Tensor
    """int64, like `top`."""

    def to_lists(self, num_rows: int) -> list[TokenLogprobs | None]:
        """One entry for each row of the step."""
        result: list[TokenLogprobs | None] = [None] * num_rows
        columns = zip(
            self.rows, self.counts, self.chosen.tolist(), self.top.tolist(), self.top_ids.tolist(), strict=True
        )
        for row, count, chosen, top, top_ids in columns:
            result[row] = TokenLogprobs(chosen, list(zip(top_ids[:count], top[:count], strict=True)))
        return result


def sample(logits: Tensor, rows: Sequence[SamplingRow], masks: MaskedRows | None = None) -> Sampled:
    """Chooses a token for each row.

    Args:
        logits: float32 [num_rows, vocab_size]; overwritten.
        masks: of the rows that have one.
    """
    likeliest, token_ids = logits.max(dim=-1)
    # NaN and +inf win every maximum; -inf alone is a token ruled out, unless all are.
    is_broken = ~likeliest.isfinite()
    asking = [number for number, row in enumerate(rows) if row.params.logprobs is not None]
    raw = logits[asking] if asking else None
    changed = [number for number, row in enumerate(rows) if row.params.logit_bias or row.history is not None]
    for number in changed:
        _adjust(logits[number], rows[number])
    if masks is not None:
        kernels.mask(logits, masks.numbers, masks.words)
        changed = sorted({*changed, *masks.numbers})
    if changed:
        token_ids[changed] = logits[changed].argmax(-1)
    noisy = [number for number, row in enumerate(rows) if not row.params.is_greedy]
    if noisy:
        token_ids = _draw(logits, rows, noisy, token_ids)
    token_ids.masked_fill_(is_broken, 0)
    logprobs = None if raw is None else _logprobs(raw, asking, rows, token_ids)
    return Sampled(token_ids, is_broken, logprobs)


def _adjust(logits: Tensor, row: SamplingRow) -> None:
    """Logit bias and penalties of one row, in place. Ids beyond the vocabulary are ignored."""
    params = row.params
    bias = {token: value for token, value in params.logit_bias.items() if token < len(logits)}
    if bias:
        values = torch.tensor([max(-MAX_BIAS, min(MAX_BIAS, value)) for value in bias.values()], device=logits.device)
        logits[torch.tensor(list(bias), device=logits.device)] += values
    if row.history is not None and len(row.history):
        kernels.penalize(logits, row.history, params.repeat_penalty, params.presence_penalty, params.frequency_penalty)


def _draw(logits: Tensor, rows: Sequence[SamplingRow], noisy: list[int], token_ids: Tensor) -> Tensor:
    """Draws the tokens of the rows `noisy`, group by group."""
    groups: dict[int, list[int]] = {}
    for number in noisy:
        groups.setdefault(_num_candidates(rows[number].params, logits.shape[1]), []).append(number)
    for num_candidates, members in groups.items():
        params = [rows[number].params for number in members]
        floats = torch.tensor(
            [(p.temperature, p.typical_p, p.top_p, p.min_p) for p in params], device=logits.device
        )  # [members, 4]
        keys = kernels.noise_keys(
            torch.tensor([p.seed for p in params], device=logits.device),
            torch.tensor([rows[number].index for number in members], device=logits.device),
        )
        chosen = logits if len(members) == len(logits) else logits[members]
        # The maximum goes first: a tiny temperature then makes the rest -inf instead of the likeliest inf.
        scaled = (chosen - chosen.amax(-1, keepdim=True)) / floats[:, :1]
        if num_candidates == 0:
            drawn = kernels.draw(scaled, torch.arange(logits.shape[1], device=logits.device), keys)
        else:
            ordered, candidates = kernels.likeliest(scaled, num_candidates)
            top_k = torch.tensor([p.top_k for p in params], device=logits.device)
            kept = kernels.filter_candidates(ordered, top_k, *floats[:, 1:].unbind(1))
            drawn = candidates.gather(1, kernels.draw(kept, candidates, keys)[:, None])[:, 0]
        if len(members) == len(logits):
            return drawn
        token_ids[members] = drawn
    return token_ids


def _num_candidates(params: SamplingParams, vocab_size: int) -> int:
    """How many of the likeliest tokens the filters must see in order; 0: no filter is on."""
    if 0 < params.top_k < vocab_size:
        return params.top_k
    if params.top_p < 1.0 or params.min_p > 0.0 or params.typical_p < 1.0:
        return vocab_size
    return 0


def _logprobs(raw: Tensor, asking: list[int], rows: Sequence[SamplingRow], token_ids: Tensor) -> LogprobTensors:
    counts = [min(rows[number].params.logprobs or 0, raw.shape[1]) for number in asking]
    normalizer = raw.logsumexp(-1, keepdim=True)
    top, top_ids = raw.topk(max(counts), dim=-1)
    chosen = raw.gather(1, token_ids[asking][:, None]) - normalizer
    return LogprobTensors(asking, counts, chosen[:, 0], top - normalizer, top_ids)
