"""The runner under the real engine and scheduler: prefix hits, preemption and running ahead change no token."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from engine.execution.model_runner import ModelRunner
from engine.llm_engine import LLMEngine
from engine.sampling_params import SamplingParams
from engine.scheduling.sequence import Sequence
from tests.engine.execution.driver import load_runner


def prompts() -> list[list[int]]:
    choose = random.Random(3)
    shared = choose.choices(range(3, 97), k=21)
    return [shared + choose.choices(range(3, 97), k=5 + 4 * n) for n in range(8)]


PARAMS = [
    SamplingParams(max_tokens=30, ignore_eos=True, **options)  # type: ignore[arg-type]
    for options in (
        {"temperature": 0.0},
        {"seed": 1},
        {"seed": 2, "top_k": 12, "top_p": 0.9},
        {"seed": 3, "repeat_penalty": 1.3, "repeat_last_n": -1},
        {"temperature": 0.0, "frequency_penalty": 0.7},
        {"seed": 5, "min_p": 0.05, "temperature": 1.4},
        {"temperature": 0.0, "logprobs": 2},
        {"seed": 7, "typical_p": 0.8},
    )
]


def run(engine: LLMEngine, requests: list[tuple[list[int], SamplingParams]], first_id: int) -> list[list[int]]:
    tokens: dict[int, list[int]] = {}
    for seq_id, (prompt, params) in enumerate(requests, first_id):
        engine.add(Sequence(seq_id, prompt, params))
        tokens[seq_id] = []
    while engine.has_work:
        for row in engine.step():
            assert row.finish_reason in (None, "length")
            tokens[row.seq_id] += row.token_ids
    return list(tokens.values())


def engine_of(runner: ModelRunner) -> LLMEngine:
    return LLMEngine.for_runner(runner, runner.load_options)


@pytest.fixture(scope="module", params=["tiny_dir", "windowed_dir"])
def folder(request: pytest.FixtureRequest) -> Path:
    chosen: Path = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    """Each request's tokens, run alone with room to spare."""
    roomy = load_runner(folder, num_blocks=200, block_size=4, run_ahead=0)
    return [run(engine_of(roomy), [request], 0)[0] for request in zip(prompts(), PARAMS, strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {"run_ahead": 0},
        {"run_ahead": 1, "max_num_batched_tokens": 13},
        {"num_blocks": 40, "run_ahead": 1},
        {"num_blocks": 44, "max_num_batched_tokens": 7, "max_num_seqs": 3, "run_ahead": 0},
    ],
    ids=str,
)
def test_every_schedule_yields_the_same_tokens(
    folder: Path, expected: list[list[int]], options: dict[str, object]
) -> None:
    assert all(len(tokens) == 30 for tokens in expected)
    requests = list(zip(prompts(), PARAMS, strict=True))
    engine = engine_of(load_runner(folder, **({"num_blocks": 300, "block_size": 4} | options)))
    assert run(engine, requests, 0) == expected
    assert run(engine, requests[::-1], 50) == expected[::-1], "now over a filled prefix cache"


def stories() -> list[tuple[list[int], SamplingParams]]:
    """64 requests: every kind of sampling, lengths at random, beginnings shared, some with a context that shifts."""
    choose = random.Random(11)
    beginning = choose.choices(range(300, 4000), k=9)
    requests = []
    for number in range(64):
        prompt = beginning[: choose.randrange(2, 10)] + choose.choices(range(300, 4000), k=choose.randrange(1, 12))
        params = msgspec.structs.replace(
            PARAMS[number % 8],
            seed=number,
            max_tokens=choose.randrange(1, 12),
            max_context=len(prompt) + 3 if number % 5 == 0 else None,
            shift=True,
        )
        requests.append((prompt, params))
    return requests


@pytest.fixture(scope="module")
def alone(tale_dir: Path) -> list[list[int]]:
    """What each of the stories is without company."""
    if not (tale_dir / "model.safetensors").exists():
        pytest.skip("the built-in model has no weights here")
    engine = engine_of(load_runner(tale_dir, run_ahead=0))
    return [run(engine, [request], number)[0] for number, request in enumerate(stories())]


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_64_streams_of_the_built_in_model_equal_those_alone(
    tale_dir: Path, alone: list[list[int]], run_ahead: int
) -> None:
    """Random arrivals and aborts, and a pool so small that sequences are preempted."""
    choose = random.Random(12)
    options = {"num_blocks": 24, "block_size": 4, "max_num_seqs": 64, "max_num_batched_tokens": 70}
    engine = engine_of(load_runner(tale_dir, run_ahead=run_ahead, **options))
    waiting = list(enumerate(stories()))
    choose.shuffle(waiting)
    tokens: dict[int, list[int]] = {number: [] for number, _ in waiting}
    leaving = {number: choose.randrange(1, 6) for number in range(0, 64, 6)}
    left: set[int] = set()
    while waiting or engine.has_work:
        for _ in range(min(len(waiting), choose.randrange(8))):
            number, (prompt, params) = waiting.pop()
            engine.add(Sequence(number, prompt, params))
        for row in engine.step():
            tokens[row.seq_id] += row.token_ids
            if row.finish_reason is None and len(tokens[row.seq_id]) >= leaving.get(row.seq_id, 100):
                engine.abort(row.seq_id)
                left.add(row.seq_id)
        engine.scheduler.check()
    assert left
    for number, expected in enumerate(alone):
        assert tokens[number] == (expected[: len(tokens[number])] if number in left else expected)
    stats = engine.stats()
    assert min(stats.num_preemptions, stats.num_shifts, stats.num_cached_tokens) > 0
