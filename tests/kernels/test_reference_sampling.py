"""The sampling arithmetic: noise bits against whole numbers, its uniformity, filters against their definitions."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels import reference_sampling as kernels

MASK = 0xFFFFFFFF


def mix(x: int) -> int:
    x &= MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def uniform(seed: int, index: int, token: int) -> float:
    """The specification in the module's docstring, in unbounded integers."""
    low, high, index = seed & MASK, seed >> 32, index & MASK
    key0 = mix(low ^ mix(index + 0x9E3779B9))
    key1 = mix((high ^ (index * 0xC2B2AE3D & MASK)) + low * 0x27D4EB2F)
    bits = mix(mix((token * 0x9E3779B1 & MASK) ^ key0) + key1)
    rounded: float = struct.unpack("f", struct.pack("f", float(bits >> 1)))[0]
    return rounded * 2.0**-31 + 2.0**-32


def keys_of(seed: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    return kernels.noise_keys(torch.tensor([seed]), torch.tensor([index]))


@given(
    seed=st.integers(0, 2**63 - 1),
    index=st.integers(-(2**31), 2**31 - 1),
    tokens=st.lists(st.integers(0, 2**20), min_size=1),
)
@settings(deadline=None, max_examples=200, derandomize=True)
def test_noise_equals_its_specification(seed: int, index: int, tokens: list[int]) -> None:
    result = kernels.uniform(keys_of(seed, index), torch.tensor(tokens))[0]
    expected = torch.tensor([uniform(seed, index, token) for token in tokens], dtype=torch.float32)
    assert torch.equal(result, expected)


def test_noise_of_known_arguments_never_changes() -> None:
    """Outputs for a seed are a promise to users; a change here breaks it."""
    values = [uniform(*arguments) for arguments in ((0, 0, 0), (42, 7, 1000), (2**63 - 1, -3, 151_935))]
    assert values == pytest.approx([0.2182230, 0.8264274, 0.1460417], abs=1e-6)


@pytest.mark.parametrize("varies", ["token", "index", "seed"])
def test_noise_is_uniform_and_uncorrelated(varies: str) -> None:
    n = 1 << 16
    numbers = torch.arange(n)
    if varies == "token":
        u = kernels.uniform(keys_of(1, 0), numbers)[0]
    else:
        seeds, indices = (numbers, torch.zeros(n).long()) if varies == "seed" else (torch.ones(n).long(), numbers)
        u = kernels.uniform(kernels.noise_keys(seeds, indices), torch.tensor([17]))[:, 0]
    counts = torch.histc(u, bins=256, min=0.0, max=1.0)
    chi_square = ((counts - n / 256) ** 2 / (n / 256)).sum().item()
    assert chi_square < 256 + 5 * math.sqrt(2 * 256), "far beyond chance for 255 degrees of freedom"
    for lag in (1, 2, 32):
        correlation = torch.corrcoef(torch.stack([u[lag:], u[:-lag]]))[0, 1].item()
        assert abs(correlation) < 5 / math.sqrt(n)


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, -torch.inf, 0.5])
    n = 20_000
    keys = kernels.noise_keys(torch.full((n,), 5), torch.arange(n))
    drawn = kernels.draw(logits.expand(n, -1), torch.tensor([3, 9, 27, 81, 243, 729]), keys)
    frequencies = torch.bincount(drawn, minlength=6) / n
    probs = logits.softmax(-1)
    assert ((frequencies - probs).abs() <= 5 * (probs * (1 - probs) / n).sqrt()).all()


def test_noise_belongs_to_the_token_and_not_to_its_column() -> None:
    logits, tokens = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([[40, 30, 20, 10]])
    order = torch.tensor([2, 0, 3, 1])
    for index in range(50):
        keys = keys_of(9, index)
        plain = tokens[0, kernels.draw(logits, tokens, keys)]
        assert plain == tokens[0, order][kernels.draw(logits[:, order], tokens[:, order], keys)]


PROBS = [0.4, 0.3, 0.15, 0.1, 0.05]


def kept(
    top_k: int = 0, typical_p: float = 1.0, top_p: float = 1.0, min_p: float = 0.0, probs: list[float] = PROBS
) -> list[int]:
    """Which of the candidates survive; the row stands between two that are not filtered."""
    logits = torch.tensor([probs] * 3).log()
    result = kernels.filter_candidates(
        logits,
        torch.tensor([0, top_k, 0]),
        torch.tensor([1.0, typical_p, 1.0]),
        torch.tensor([1.0, top_p, 1.0]),
        torch.tensor([0.0, min_p, 0.0]),
    )
    assert torch.equal(result[0], logits[0])
    assert torch.equal(result[2], logits[2])
    survivors: list[int] = result[1].isfinite().nonzero().flatten().tolist()
    assert torch.equal(result[1, survivors], logits[1, survivors])
    return survivors


def test_filters_keep_what_their_definitions_say() -> None:
    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [0, 1]
    assert kept(top_k=99) == [0, 1, 2, 3, 4]
    assert kept(top_p=0.39) == [0]
    assert kept(top_p=0.41) == [0, 1]
    assert kept(top_p=0.84) == [0, 1, 2]
    assert kept(top_p=0.0) == [0]
    assert kept(min_p=0.3) == [0, 1, 2]
    assert kept(min_p=0.76) == [0]
    assert kept(min_p=1.0) == [0]


def test_filters_work_on_what_the_one_before_left() -> None:
    # Among the first two, renormalised, the first has 0.571: more than 0.55, less than 0.58.
    assert kept(top_k=2, top_p=0.55) == [0]
    assert kept(top_k=2, top_p=0.58) == [0, 1]


def test_typical_keeps_what_is_nearest_to_the_entropy() -> None:
    # Entropy 0.898 nat; surprises 0.511, 1.204, 2.303: the second candidate is the most typical one.
    assert kept(typical_p=0.2, probs=[0.6, 0.3, 0.1]) == [1]
    assert kept(typical_p=0.31, probs=[0.6, 0.3, 0.1]) == [0, 1]
    entropy = -sum(p * math.log(p) for p in PROBS)
    by_distance = sorted(range(5), key=lambda i: abs(-math.log(PROBS[i]) - entropy))
    mass, expected = 0.0, []
    for candidate in by_distance:
        if mass >= 0.6:
            break
        expected.append(candidate)
        mass += PROBS[candidate]
    assert kept(typical_p=0.6) == sorted(expected)
    assert kept(typical_p=0.0) == [by_distance[0]]
    assert kept(typical_p=0.0, top_p=0.0) == [by_distance[0]], "top-p keeps the likeliest that is left"


def test_penalties_count_what_occurs() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, 0.5])
    kernels.penalize(logits, torch.tensor([0, 1, 1, 1, 3]), 2.0, 0.25, 0.1)
    expected = [2.0 / 2 - 0.1 - 0.25, -2.0 * 2 - 0.3 - 0.25, 1.0, 0.5 / 2 - 0.1 - 0.25]
    torch.testing.assert_close(logits, torch.tensor(expected))
