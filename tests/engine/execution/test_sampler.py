"""The sampler: each option alone, and that a row's token depends on nothing but its own request."""

from __future__ import annotations

import pytest
import torch

from engine.execution.sampler import SamplingRow, sample
from engine.sampling_params import SamplingParams

VOCAB = 50


def row(index: int = 0, history: list[int] | None = None, **options: object) -> SamplingRow:
    params = SamplingParams(**options)  # type: ignore[arg-type]
    return SamplingRow(params, index, None if history is None else torch.tensor(history))


def logits_of(*rows: int) -> torch.Tensor:
    """Row n is the same whatever it is batched with."""
    return torch.stack([torch.randn(VOCAB, generator=torch.Generator().manual_seed(n)) * 2 for n in rows])


def tokens(logits: torch.Tensor, rows: list[SamplingRow]) -> list[int]:
    result: list[int] = sample(logits.clone(), rows).token_ids.tolist()
    return result


MANY = [
    row(temperature=0.0),
    row(0, seed=3),
    row(4, seed=3, temperature=0.3),
    row(4, seed=3, top_k=5),
    row(9, seed=1, top_k=7, top_p=0.8),
    row(2, seed=8, top_p=0.5),
    row(2, seed=8, min_p=0.2, typical_p=0.7),
    row(1, [3, 3, 9], seed=2, repeat_penalty=1.5, top_k=5),
    row(1, [3, 3, 9], temperature=0.0, frequency_penalty=2.0),
    row(0, temperature=0.0, logit_bias={7: 100.0}),
    row(-5, seed=3, temperature=1.7),
]


def test_a_rows_token_does_not_depend_on_its_neighbours() -> None:
    alone = [tokens(logits_of(n), [request])[0] for n, request in enumerate(MANY)]
    assert tokens(logits_of(*range(len(MANY))), MANY) == alone
    backwards = list(reversed(range(len(MANY))))
    assert tokens(logits_of(*backwards), [MANY[n] for n in backwards]) == [alone[n] for n in backwards]


def test_greedy_takes_the_likeliest() -> None:
    logits = logits_of(0, 1)
    assert tokens(logits, [row(temperature=0.0), row(temperature=0.0)]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("options", [{}, {"top_k": 30}, {"top_p": 0.99}, {"top_k": VOCAB + 5}], ids=str)
def test_seed_and_index_decide(options: dict[str, object]) -> None:
    logits = torch.zeros(1, VOCAB)
    by_index = [tokens(logits, [row(index, seed=1, **options)])[0] for index in range(40)]
    assert by_index == [tokens(logits, [row(index, seed=1, **options)])[0] for index in range(40)]
    by_seed = [tokens(logits, [row(0, seed=seed, **options)])[0] for seed in range(40)]
    assert len(set(by_index)) > 10
    assert len(set(by_seed)) > 10


def test_a_filter_that_removes_nothing_changes_no_token() -> None:
    logits = logits_of(5) * 0.1
    for index in range(30):
        assert tokens(logits, [row(index, seed=4)]) == tokens(logits, [row(index, seed=4, top_p=0.9999999, min_p=1e-9)])


def test_top_k_and_top_p_bound_what_comes() -> None:
    logits = logits_of(2)
    likeliest = logits[0].argsort(descending=True).tolist()
    drawn = {tokens(logits, [row(index, top_k=3, temperature=5.0)])[0] for index in range(100)}
    assert drawn == set(likeliest[:3])
    assert {tokens(logits, [row(index, top_p=0.0, temperature=5.0)])[0] for index in range(20)} == {likeliest[0]}
    assert {tokens(logits, [row(index, min_p=1.0, temperature=5.0)])[0] for index in range(20)} == {likeliest[0]}


@pytest.mark.parametrize("temperature", [1e-40, 1e-20, 1e-6, 1e6, 1e30])
def test_extreme_temperatures_yield_tokens(temperature: float) -> None:
    logits = logits_of(2)
    token = tokens(logits, [row(temperature=temperature)])[0]
    assert 0 <= token < VOCAB
    if temperature < 1:
        assert token == logits.argmax()


def test_logit_bias_forces_and_bans() -> None:
    logits = logits_of(3)
    best = int(logits.argmax())
    assert tokens(logits, [row(temperature=0.0, logit_bias={11: 100.0})]) == [11]
    assert tokens(logits, [row(temperature=0.0, logit_bias={best: -100.0})]) != [best]
    assert tokens(logits, [row(seed=2, logit_bias={11: 1e300, VOCAB + 3: 5.0})]) == [11], "huge, and an id out of range"


def test_penalties_apply_to_greedy_rows_too() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [4, 5]] = torch.tensor([3.0, 2.9])
    assert tokens(logits, [row(0, [4], temperature=0.0, repeat_penalty=1.1)]) == [5]
    assert tokens(logits, [row(0, [4], temperature=0.0, presence_penalty=0.2)]) == [5]
    assert tokens(logits, [row(0, [4, 4, 4], temperature=0.0, frequency_penalty=0.04)]) == [5]
    assert tokens(logits, [row(0, [4], temperature=0.0, frequency_penalty=0.04)]) == [4]


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = logits_of(0, 1, 2)
    requests = [
        row(temperature=0.0, logprobs=3, logit_bias={9: 50.0}),
        row(temperature=0.0),
        row(3, [1, 2], temperature=0.2, repeat_penalty=2.0, top_k=4, logprobs=0),
    ]
    sampled = sample(logits.clone(), requests)
    assert sampled.logprobs is not None
    first, none, last = sampled.logprobs.to_lists(3)
    expected = logits.log_softmax(-1)
    assert none is None
    assert first is not None
    assert last is not None
    assert first.logprob == pytest.approx(expected[0, 9].item(), abs=1e-5)
    assert [token for token, _ in first.top] == logits[0].argsort(descending=True)[:3].tolist()
    assert [value for _, value in first.top] == pytest.approx(
        expected[0].sort(descending=True).values[:3].tolist(), abs=1e-5
    )
    assert last.top == []
    assert last.logprob == pytest.approx(expected[2, sampled.token_ids[2]].item(), abs=1e-5)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"top_k": 4}, {"top_p": 0.5}, {"logprobs": 2}], ids=str)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=["nan", "inf"])
def test_broken_rows_are_told_and_harm_nobody(poison: float, options: dict[str, object]) -> None:
    logits = logits_of(0, 1, 2)
    whole = tokens(logits, [row(**options)] * 3)
    logits[1, 13] = poison
    sampled = sample(logits.clone(), [row(**options)] * 3)
    assert sampled.is_broken.tolist() == [False, True, False]
    assert sampled.token_ids.tolist() == [whole[0], 0, whole[2]]


def test_tokens_ruled_out_by_the_model_are_no_error() -> None:
    logits = logits_of(0)
    logits[0, 10:] = -torch.inf
    sampled = sample(logits.clone(), [row(temperature=9.0)])
    assert not sampled.is_broken.any()
    assert sampled.token_ids[0] < 10
    assert sample(torch.full((1, VOCAB), -torch.inf), [row()]).is_broken.all()
