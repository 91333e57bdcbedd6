"""Tiny models of every architecture: the CPU's tokens, by graphs or without, at every batch size."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.llm import LLM, Output
from tests.gpu.engines import assert_equal, assert_logprobs_equal, greedy, load, load_on_cpu
from tests.gpu.tiny_models import ARCHITECTURES

pytestmark = pytest.mark.gpu
LENGTHS = (1, 2, 15, 16, 17, 40, 77, 130)
NUM_TOKENS = 24
BATCH_SIZES = (1, 2, 3, 5, 8, 17, 33)
CHUNK = 96
"""Tokens a step: prompts are computed in parts, beside rows that decode."""


def prompts(count: int) -> list[list[int]]:
    choose = random.Random(5)
    return [choose.choices(range(3, 250), k=LENGTHS[n % len(LENGTHS)]) for n in range(count)]


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ARCHITECTURES]
)
def folder(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Path:
    return tiny(request.param)


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return load(folder, max_num_batched_tokens=CHUNK)


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[Output]:
    """Each prompt's text without company."""
    return [llm.generate([prompt], greedy(NUM_TOKENS))[0] for prompt in prompts(max(BATCH_SIZES))]


def test_tokens_and_logprobs_are_the_cpus(folder: Path, llm: LLM) -> None:
    expected = load_on_cpu(folder).generate(prompts(8), greedy(NUM_TOKENS, logprobs=5))
    outputs = llm.generate(prompts(8), greedy(NUM_TOKENS, logprobs=5))
    assert_equal(outputs, expected)
    for output, reference in zip(outputs, expected, strict=True):
        assert_logprobs_equal(output, reference)


@pytest.mark.parametrize("num_rows", BATCH_SIZES)
def test_every_batch_size_equals_alone(llm: LLM, alone: list[Output], num_rows: int) -> None:
    assert_equal(llm.generate(prompts(num_rows), greedy(NUM_TOKENS)), alone[:num_rows])


@pytest.mark.parametrize("options", [{"use_graphs": False}, {"use_pdl": False}, {"run_ahead": 0}], ids=str)
def test_how_a_step_is_launched_changes_nothing(folder: Path, alone: list[Output], options: dict[str, object]) -> None:
    llm = load(folder, max_num_batched_tokens=CHUNK, **options)
    assert_equal(llm.generate(prompts(5), greedy(NUM_TOKENS)), alone[:5])
