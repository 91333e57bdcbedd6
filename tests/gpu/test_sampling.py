"""Every sampling option through the engine on the GPU: the CPU's draws, whoever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.llm import LLM, Output
from tests.gpu.engines import (
    assert_equal,
    assert_few_part,
    assert_logprobs_equal,
    load,
    load_on_cpu,
)
from tests.gpu.requests import OPTIONS, Request, sampled

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("sampling")]
NUM_TOKENS = 24
SEEDS = range(4)


@pytest.fixture(scope="module")
def llm(tale_dir: Path) -> LLM:
    return load(tale_dir, num_blocks=2000, max_num_seqs=128)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return sampled(NUM_TOKENS, SEEDS)


@pytest.fixture(scope="module")
def together(llm: LLM, requests: list[Request]) -> list[Output]:
    """One batch in which every row chooses in another way."""
    return llm.generate(*map(list, zip(*requests, strict=True)))


@pytest.fixture(scope="module")
def expected(tale_dir: Path, requests: list[Request]) -> list[Output]:
    cpu = load_on_cpu(tale_dir, num_blocks=2000, max_num_seqs=128)
    return cpu.generate(*map(list, zip(*requests, strict=True)))


def test_draws_are_the_cpus(together: list[Output], expected: list[Output]) -> None:
    assert_few_part(together, expected)
    assert_equal(together[: len(SEEDS)], expected[: len(SEEDS)])


def test_logprobs_are_the_cpus(together: list[Output], expected: list[Output], requests: list[Request]) -> None:
    for output, reference, (_, params) in zip(together, expected, requests, strict=True):
        assert len(output.logprobs) == (0 if params.logprobs is None else NUM_TOKENS)
        assert_logprobs_equal(output, reference)


def test_options_and_seeds_make_a_difference(together: list[Output]) -> None:
    texts = [tuple(output.token_ids) for output in together]
    by_option = [texts[n : n + len(SEEDS)] for n in range(0, len(texts), len(SEEDS))]
    for options, four in zip(OPTIONS, by_option, strict=True):
        is_certain = options.get("temperature") == 0.0 or options.get("top_k") == 1
        assert len(set(four)) == 1 if is_certain else len(set(four)) > 1, options


def test_a_row_does_not_depend_on_its_neighbours(llm: LLM, together: list[Output], requests: list[Request]) -> None:
    chosen = range(0, len(requests), len(SEEDS))
    alone = [llm.generate([requests[n][0]], requests[n][1])[0] for n in chosen]
    assert_few_part([together[n] for n in chosen], alone)


def test_a_row_does_not_depend_on_its_place(llm: LLM, together: list[Output], requests: list[Request]) -> None:
    backwards = llm.generate(*map(list, zip(*requests[::-1], strict=True)))[::-1]
    assert_few_part(backwards, together)


def test_without_graphs_and_running_ahead_the_draws_are_the_same(
    tale_dir: Path, together: list[Output], requests: list[Request]
) -> None:
    plain = load(tale_dir, num_blocks=2000, max_num_seqs=128, use_graphs=False, run_ahead=0)
    outputs = plain.generate(*map(list, zip(*requests, strict=True)))
    assert [one.token_ids for one in outputs] == [one.token_ids for one in together]
