"""What the scheduler's rules are worth, counted over whole loads: pauses, throughput, fairness and memory.

Time is a model of it, so nothing depends on the machine: a step costs what a decode step costs, the greater of reading
the weights once and a share a row, and a price a prompt token. The prices are those of an 8-billion-parameter model
in bfloat16 on an H200, to about a tenth; what is asserted holds for any prices near these proportions.
"""

from __future__ import annotations

import gc
import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from engine.sampling_params import SamplingParams
from engine.scheduling.batch import RowStep, ScheduledBatch, StepResult
from engine.scheduling.block_manager import KVUsage
from engine.scheduling.scheduler import Scheduler, SchedulerConfig
from engine.scheduling.sequence import Sequence
from engine.scheduling.token_budget import share_out

WEIGHTS_MS = 3.4
ROW_MS = 8.3 / 256
PROMPT_TOKEN_MS = 0.02
BLOCK_SIZE = 16


def is_decode(step: RowStep) -> bool:
    return step.num_tokens == 1


def cost_ms(batch: ScheduledBatch) -> float:
    num_decodes = sum(map(is_decode, batch.steps))
    return max(WEIGHTS_MS, num_decodes * ROW_MS) + (batch.num_tokens - num_decodes) * PROMPT_TOKEN_MS


def result(batch: ScheduledBatch) -> StepResult:
    num_samples = sum(step.samples for step in batch.steps)
    return StepResult([7] * num_samples, [None] * num_samples, [None] * num_samples)


def run(scheduler: Scheduler, run_ahead: int = 1) -> Iterator[ScheduledBatch]:
    """Steps to the end; yields each batch while it and those behind it are in flight."""
    launched: deque[ScheduledBatch] = deque()
    while scheduler.has_work:
        while len(launched) <= run_ahead and (batch := scheduler.schedule()) is not None:
            launched.append(batch)
        batch = launched.popleft()
        yield batch
        scheduler.update(batch, result(batch))


def new_scheduler(num_blocks: int = 50_000, **config: Any) -> Scheduler:
    return Scheduler(SchedulerConfig(num_blocks=num_blocks, block_size=BLOCK_SIZE, **config))


def add(scheduler: Scheduler, seq_id: int, num_prompt_tokens: int, max_tokens: int) -> None:
    prompt_ids = [seq_id + 1] * num_prompt_tokens  # nothing is shared
    scheduler.add(Sequence(seq_id, prompt_ids, SamplingParams(max_tokens=max_tokens)))


def log_normal(rng: random.Random, mean: float) -> int:
    return min(2000, 1 + round(rng.lognormvariate(0.0, 0.8) * mean / 1.377))


def test_512_requests_at_once_run_near_the_devices_limit_without_long_pauses() -> None:
    scheduler = new_scheduler()
    for seq_id in range(512):
        add(scheduler, seq_id, 205, 184)
    total_ms = longest_ms = 0.0
    for batch in run(scheduler):
        step_ms = cost_ms(batch)
        total_ms += step_ms
        if any(map(is_decode, batch.steps)):
            longest_ms = max(longest_ms, step_ms)
    # The first token of an answer comes with its prompt, each other one is a row of a decode step.
    least_ms = 512 * (205 * PROMPT_TOKEN_MS + 183 * ROW_MS)
    assert least_ms / total_ms > 0.98
    assert longest_ms < 30


def test_prompts_fill_the_whole_step_while_nobody_decodes() -> None:
    scheduler = new_scheduler(max_num_batched_tokens=1000)
    add(scheduler, 1, 2500, 20)
    assert [batch.num_tokens for batch in run(scheduler)][:4] == [1000, 1000, 500, 1]


def test_prompts_are_collected_while_all_rows_are_taken() -> None:
    scheduler = new_scheduler()
    rng = random.Random(0)
    for seq_id in range(512):
        add(scheduler, seq_id, log_normal(rng, 205), log_normal(rng, 184))
    num_steps = num_mixed = 0
    for batch in run(scheduler):
        if scheduler.stats().num_waiting > 8 and scheduler.stats().num_running > 240:
            num_steps += 1
            num_mixed += not all(map(is_decode, batch.steps))
    assert num_mixed / num_steps < 0.4, "more than one row comes free a step, but prompts come eight at a time"


@pytest.mark.parametrize(
    ("num_waiting", "steps_with_admissions"), [(1, {0: 64, 5: 1}), (2, {0: 64, 6: 2}), (0, {0: 64})]
)
def test_nobody_waits_for_more_rows_than_there_are_sequences(
    num_waiting: int, steps_with_admissions: dict[int, int]
) -> None:
    scheduler = new_scheduler(max_num_seqs=64)  # two rows are collected; they come free one a step from the fifth on
    for seq_id in range(64 + num_waiting):
        add(scheduler, seq_id, 2, 5 + seq_id)
    admitted = {number: len(batch.admitted) for number, batch in enumerate(run(scheduler, run_ahead=0))}
    assert {number: count for number, count in admitted.items() if count} == steps_with_admissions


@pytest.mark.parametrize("num_long", [1, 4])
def test_neither_long_nor_short_prompts_starve(num_long: int) -> None:
    scheduler = new_scheduler(max_num_batched_tokens=1024, max_num_seqs=64)
    num_chunks = 16  # of the half of 512 that the first prompt has beside rows that decode
    for seq_id in range(num_long):
        add(scheduler, seq_id, 256 * num_chunks, 1)
    came: dict[int, int] = {}
    first_token: dict[int, int] = {}
    for number, batch in enumerate(run(scheduler)):
        for step in batch.steps:
            if step.samples:
                first_token.setdefault(step.seq_id, number)
        if number < num_long * num_chunks:
            came[1000 + number] = number
            add(scheduler, 1000 + number, 100, 3)
    for position in range(num_long):
        assert first_token[position] <= (position + 1) * num_chunks, "half of each step is its own until it is done"
    delays = [first_token[seq_id] - number for seq_id, number in came.items()]
    assert max(delays) <= 4, "a step is in flight, and two are needed at most"


@pytest.mark.parametrize(
    ("uncomputed", "someone_waits", "shares", "num_left"),
    [
        ([], True, [], 100),
        ([300], False, [100], 0),
        ([300], True, [50], 50),
        ([1, 0, 1], True, [1, 0, 1], 50),
        ([1, 300, 1], False, [1, 50, 1], 0),
        ([1, 300, 1], True, [1, 25, 1], 25),
        ([300, 30], False, [70, 30], 0),
        ([300, 30], True, [50, 25], 25),
        ([300, 400, 30, 10], False, [60, 0, 30, 10], 0),
        ([300, 400, 12, 300], True, [50, 0, 12, 13], 25),
        ([300, 300], False, [100, 0], 0),
        ([20, 400], False, [20, 80], 0),
        ([1] * 99 + [7], True, [1] * 99 + [1], 0),
    ],
)
def test_shares_of_a_step(uncomputed: list[int], someone_waits: bool, shares: list[int], num_left: int) -> None:
    assert share_out(uncomputed, 100, someone_waits=someone_waits) == (shares, num_left)


def usages_over_a_load(num_blocks: int) -> list[KVUsage]:
    """A log-normal load that is larger than the pool: the KV cache's use in each step while sequences wait."""
    rng = random.Random(0)
    scheduler = new_scheduler(num_blocks)
    for seq_id in range(400):
        add(scheduler, seq_id, log_normal(rng, 205), log_normal(rng, 184))
    usages = []
    for _ in run(scheduler):
        if scheduler.stats().num_waiting:
            usages.append(scheduler.kv_usage())
    return usages


def test_less_than_4_percent_of_the_slots_are_wasted_and_nobody_waits_beside_free_blocks() -> None:
    usages = usages_over_a_load(num_blocks=2000)
    assert {(usage.num_blocks, usage.num_slots - BLOCK_SIZE * usage.num_used_blocks) for usage in usages} == {(2000, 0)}
    assert 1 - sum(usage.num_stored_tokens for usage in usages) / sum(usage.num_slots for usage in usages) < 0.04
    used = [usage.num_used_blocks / usage.num_blocks for usage in usages]
    num_steps_to_fill = next(number for number, share in enumerate(used) if share > 0.95)
    assert num_steps_to_fill < 40, "the pool holds as many tokens as 32 half steps"
    assert min(used[num_steps_to_fill:]) > 0.95


def test_usage_counts_what_is_shared_once_and_what_is_left_behind_as_wasted() -> None:
    scheduler = new_scheduler(100, max_num_seqs=4)
    for seq_id in range(2):  # two blocks are equal; neither finds the other's, because both are computed in one step
        scheduler.add(Sequence(seq_id, [5] * 40, SamplingParams(max_tokens=9)))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None
    assert second is not None
    assert scheduler.kv_usage() == KVUsage(100, 6, 96, 82)
    scheduler.update(first, result(first))  # the later one goes on with the first one's blocks; a step reads its own
    assert scheduler.kv_usage() == KVUsage(100, 6, 96, 50)
    scheduler.update(second, result(second))
    assert scheduler.kv_usage() == KVUsage(100, 4, 64, 50)
    third = scheduler.schedule()
    assert third is not None
    scheduler.abort(1)
    assert scheduler.kv_usage() == KVUsage(100, 4, 64, 42)
    scheduler.update(third, result(third))
    assert scheduler.kv_usage() == KVUsage(100, 3, 48, 42)


def test_usage_sums_the_groups() -> None:
    scheduler = Scheduler(SchedulerConfig(num_blocks=100, block_size=BLOCK_SIZE, windows=(None, 20)))
    add(scheduler, 1, 40, 9)
    batch = scheduler.schedule()
    assert batch is not None
    assert scheduler.kv_usage() == KVUsage(200, 6, 96, 80)
    scheduler.update(batch, result(batch))
    assert scheduler.kv_usage() == KVUsage(200, 5, 80, 64), "a block has left the window"


def test_a_load_leaves_nothing_to_the_garbage_collector() -> None:
    """The worker switches it off, because a look at all blocks would stop the steps for long."""
    rng = random.Random(0)
    gc.collect()
    gc.disable()
    try:
        scheduler = new_scheduler(200, max_num_seqs=64)
        for seq_id in range(60):
            add(scheduler, seq_id, log_normal(rng, 205), log_normal(rng, 184))
        for _ in run(scheduler):
            pass
        assert scheduler.stats().num_preemptions > 0
        scheduler.preempt_all()  # forgets what is cached
        assert gc.collect() == 0
    finally:
        gc.enable()
