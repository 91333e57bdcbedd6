"""64 streams of the built-in model on the GPU, arriving, leaving, preempted and shifted: each is what it is alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.llm import Output
from tests.gpu.engines import assert_equal, assert_few_part, load, margin, num_equal
from tests.gpu.requests import Crowd, as_greedy, run_alone, streams

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("streams")]
CROWDED = {"num_blocks": 40, "max_num_batched_tokens": 90}
"""A pool so small that sequences are preempted, and steps so short that prompts are computed in parts."""
CLOSE = 1.0
"""Margins above this do not count when the noise of bfloat16 is measured: it grows with them, and overturns none."""
MAX_NOISE = 0.4
"""Of bfloat16, in natural-log probability; more would be no noise."""


def pairs(crowd: Crowd, alone: list[Output]) -> list[tuple[Output, Output]]:
    """What each stream got and what it gets alone, both as far as it stayed."""
    for number in crowd.left:
        length = len(crowd.outputs[number].token_ids)
        alone[number] = Output(
            prompt_ids=[], token_ids=alone[number].token_ids[:length], logprobs=alone[number].logprobs[:length]
        )
    return list(zip(crowd.outputs, alone, strict=True))


@pytest.fixture(scope="module")
def alone(tale_dir: Path) -> list[Output]:
    return run_alone(load(tale_dir, run_ahead=0), streams())


@pytest.mark.parametrize("use_graphs", [True, False])
@pytest.mark.parametrize("run_ahead", [0, 1])
def test_64_streams_equal_those_alone(tale_dir: Path, alone: list[Output], run_ahead: int, use_graphs: bool) -> None:
    llm = load(tale_dir, run_ahead=run_ahead, use_graphs=use_graphs, **CROWDED)
    crowd = Crowd(llm, streams())
    assert crowd.left
    assert not crowd.errors
    both = pairs(crowd, alone.copy())
    assert_equal(*zip(*both[1::2], strict=True))
    assert_few_part(*zip(*both[::2], strict=True), share=0.04)
    stats = llm.stats()
    assert min(stats.num_preemptions, stats.num_shifts, stats.num_cached_tokens) > 0, "the case is too easy"
    assert stats.num_free_blocks == CROWDED["num_blocks"]


def test_in_bfloat16_they_part_within_its_noise_only(tale_dir: Path) -> None:
    """The noise is measured: by how much bfloat16 moves the close margins of float32, over equal texts."""
    requests = as_greedy(streams())
    exact = run_alone(load(tale_dir, run_ahead=0), requests)
    rough = run_alone(load(tale_dir, run_ahead=0, dtype="bfloat16"), requests)
    noise = max(
        abs(margin(one, n) - margin(other, n))
        for one, other in zip(rough, exact, strict=True)
        for n in range(len(one.token_ids))
        if one.token_ids[:n] == other.token_ids[:n] and margin(other, n) < CLOSE
    )
    assert 0 < noise < MAX_NOISE
    crowd = Crowd(load(tale_dir, dtype="bfloat16", **CROWDED), requests)
    both = pairs(crowd, rough)
    whole = [num_equal(ours, reference, noise) == len(reference.token_ids) for ours, reference in both]
    assert sum(whole) >= 0.75 * len(whole)
