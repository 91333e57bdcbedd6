"""Host time of a step: what the scheduler, the engine and the worker's message cost when the device costs nothing.

    python benchmarks/host_step.py [--rows 1 8 64 256] [--out benchmarks/results/host_step.jsonl]

All rows decode, with about 400 tokens each and one step launched ahead, over a runner that answers at once. What is
reported is the median over the steps, block boundaries included, because the device waits for exactly this time when
it is faster than the host. `schedule` and `update` are the scheduler's; `step` is LLMEngine's, the fake runner
included; `output` encodes a step's rows as the frame that the worker sends.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from report import Report

from engine.channel import encode_frame
from engine.llm_engine import LLMEngine
from engine.messages import StepOutput, TokenRow
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import ScheduledBatch, StepResult, TokenMasks
from engine.scheduling.scheduler import Scheduler, SchedulerConfig
from engine.scheduling.sequence import Sequence

BLOCK_SIZE = 16
PROMPT_LENGTH = 300
WARMUP_STEPS = 100


class Answer:
    """The handle of a step: token 7 for each row that samples."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows

    def result(self) -> StepResult:
        nothing: list[None] = [None] * self._num_rows
        return StepResult([7] * self._num_rows, nothing, nothing)  # type: ignore[arg-type]  # it is only read


class InstantRunner:
    """A runner at the seam whose steps take no time."""

    def launch(self, batch: ScheduledBatch, masks: TokenMasks | None = None) -> Answer:
        return Answer(sum(step.samples for step in batch.steps))


class Timed:
    """A scheduler's method that notes how long each call takes."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self.times: list[float] = []

    def __call__(self, *args: object) -> Any:
        start = time.perf_counter()
        result = self._call(*args)
        self.times.append(time.perf_counter() - start)
        return result


def decoding_engine(num_rows: int, num_steps: int) -> LLMEngine:
    """An engine in which `num_rows` sequences decode; `num_steps` more are possible."""
    num_tokens = PROMPT_LENGTH + WARMUP_STEPS + num_steps + 100
    config = SchedulerConfig(
        num_blocks=num_rows * (num_tokens // BLOCK_SIZE + 2), block_size=BLOCK_SIZE, max_num_seqs=num_rows
    )
    engine = LLMEngine(Scheduler(config), InstantRunner(), run_ahead=1)
    for seq_id in range(num_rows):
        # Lengths differ, so that the rows fill their blocks in different steps, as they do in life.
        prompt_ids = [seq_id] * (PROMPT_LENGTH + seq_id % BLOCK_SIZE)
        engine.add(Sequence(seq_id, prompt_ids, SamplingParams(max_tokens=None, stop_token_ids=(2,))))
    while engine.scheduler.stats().num_generated_tokens < num_rows * (WARMUP_STEPS // 2):
        engine.step()
    for _ in range(WARMUP_STEPS // 2):
        engine.step()
    return engine


def measure(report: Report, num_rows: int, num_steps: int) -> None:
    """Reports schedule, update, whole step and frame of a step of `num_rows` rows, in microseconds."""
    engine = decoding_engine(num_rows, 2 * num_steps)
    steps: list[float] = []
    frames: list[float] = []
    for _ in range(num_steps):
        start = time.perf_counter()
        rows: list[TokenRow] = engine.step()
        middle = time.perf_counter()
        encode_frame(StepOutput(rows=rows))
        frames.append(time.perf_counter() - middle)
        steps.append(middle - start)
    # The parts in a second run, so that their clocks do not lengthen the whole.
    schedule, update = Timed(engine.scheduler.schedule), Timed(engine.scheduler.update)
    vars(engine.scheduler).update(schedule=schedule, update=update)
    for _ in range(num_steps):
        engine.step()
    for part, times in (("schedule", schedule.times), ("update", update.times), ("step", steps), ("output", frames)):
        report.case(
            f"host time of {part}, {num_rows} rows decoding",
            median(times) * 1e6,
            "us",
            least=round(min(times) * 1e6, 1),
            p99=round(sorted(times)[len(times) * 99 // 100] * 1e6, 1),
            steps=num_steps,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = Report(args.out)
    gc.disable()  # as the worker does while a model is loaded
    for num_rows in args.rows:
        measure(report, num_rows, args.steps)


if __name__ == "__main__":
    main()
