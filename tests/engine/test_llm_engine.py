"""LLMEngine: the same tokens whether or not it runs ahead, and order after an exception."""

from __future__ import annotations

import random

import pytest

from engine.errors import EngineError
from engine.llm_engine import LLMEngine
from engine.messages import Load, TokenRow
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import ScheduledBatch
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence
from tests.engine.fake_runner import FakeRunner, expected_output

LOAD = Load(files={}, max_num_seqs=8, max_num_batched_tokens=64)


def run(engine: LLMEngine) -> dict[int, tuple[list[int], str | None]]:
    """Steps to the end: (tokens, finish_reason) of each sequence."""
    outputs: dict[int, tuple[list[int], str | None]] = {}
    while engine.has_work:
        for row in engine.step():
            token_ids, _ = outputs.get(row.seq_id, ([], None))
            outputs[row.seq_id] = (token_ids + row.token_ids, row.finish_reason)
        engine.scheduler.check()
    return outputs


@pytest.mark.parametrize("windows", [(None,), (None, 7)])
@pytest.mark.parametrize("run_ahead", [0, 1, 2])
def test_every_output_equals_the_one_produced_alone(run_ahead: int, windows: tuple[int | None, ...]) -> None:
    random_ = random.Random(1)
    runner = FakeRunner(num_blocks=30, windows=windows)
    engine = LLMEngine.for_runner(
        runner, Load(files={}, max_num_seqs=8, max_num_batched_tokens=64, run_ahead=run_ahead)
    )
    requests = {}
    for seq_id in range(40):
        prompt_ids = [random_.randrange(2) for _ in range(random_.randrange(1, 30))]
        params = SamplingParams(
            max_tokens=random_.randrange(0, 50),
            seed=seq_id % 3,
            stop_token_ids=(seq_id,),
            max_context=random_.choice([None, 40]),
            shift=True,
        )
        requests[seq_id] = (prompt_ids, params)
        engine.add(Sequence(seq_id, prompt_ids, params))
    assert run(engine) == {
        seq_id: expected_output(prompt_ids, params) for seq_id, (prompt_ids, params) in requests.items()
    }
    stats = engine.stats()
    assert min(stats.num_preemptions, stats.num_shifts, stats.num_cached_tokens) > 0, "the case is too easy"


@pytest.mark.parametrize(("run_ahead", "num_in_flight"), [(0, 0), (1, 1), (2, 2)])
def test_the_device_has_work_while_a_result_is_awaited(run_ahead: int, num_in_flight: int) -> None:
    runner = FakeRunner()
    engine = LLMEngine(Scheduler(LLMEngine.for_runner(runner, LOAD).scheduler._config), runner, run_ahead)
    engine.add(Sequence(1, [1], SamplingParams(max_tokens=10)))
    engine.step()
    assert len(runner.in_flight) == num_in_flight


def test_drain_takes_in_what_was_launched_and_launches_no_more() -> None:
    runner = FakeRunner()
    engine = LLMEngine.for_runner(runner, LOAD)
    engine.add(Sequence(1, [1], SamplingParams(max_tokens=10)))
    engine.step()
    assert [row.seq_id for row in engine.drain()] == [1]
    assert runner.in_flight == []
    assert engine.drain() == []


def test_no_work_is_no_step() -> None:
    assert LLMEngine.for_runner(FakeRunner(), LOAD).step() == []


def test_a_sequence_goes_on_after_a_step_that_failed() -> None:
    def fail_once(batch: ScheduledBatch) -> None:
        if batch.step == 4:
            raise RuntimeError("out of luck")

    runner = FakeRunner(before_result=fail_once, max_num_seqs=1)
    engine = LLMEngine.for_runner(runner, Load(files={}, max_num_seqs=1, max_num_batched_tokens=64))
    params = SamplingParams(max_tokens=9)
    engine.add(Sequence(1, [1, 2, 3], params))
    engine.add(Sequence(2, [1, 2, 3], params))
    with pytest.raises(RuntimeError, match="out of luck"):
        run(engine)
    assert engine.fail("sorry") == [TokenRow(1, [], finish_reason="error", error="sorry")]
    assert runner.in_flight == [], "every launched step was waited for"
    assert run(engine) == {2: expected_output([1, 2, 3], params)}


def test_a_scheduler_that_cannot_go_on_is_reported() -> None:
    class Stuck(Scheduler):
        def schedule(self) -> ScheduledBatch | None:
            return None

    engine = LLMEngine(Stuck(LLMEngine.for_runner(FakeRunner(), LOAD).scheduler._config), FakeRunner())
    engine.add(Sequence(1, [1], SamplingParams()))
    with pytest.raises(EngineError, match="a bug of the scheduler"):
        engine.step()
