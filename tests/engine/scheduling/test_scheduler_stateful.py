"""The scheduler against a runner that checks every table and position, driven at random by hypothesis."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.errors import SchedulerError
from engine.messages import TokenRow
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import ScheduledBatch
from engine.scheduling.scheduler import Scheduler, SchedulerConfig
from engine.scheduling.sequence import Sequence
from tests.engine.fake_runner import FakeHandle, FakeRunner, expected_output

WINDOWS = [(None,), (None, 6), (5,), (6,), (8,), (1,), (None, None), (3, None, 9)]
MAX_CONTEXT = 30
VOCAB_SIZE = 12


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, aborts, schedules and updates in any order; two steps may be in flight."""

    @initialize(
        num_blocks=st.integers(3, 16),
        block_size=st.sampled_from([1, 2, 4]),
        windows=st.sampled_from(WINDOWS),
        max_num_seqs=st.integers(1, 4),
        spare_tokens=st.integers(0, 8),
        run_ahead=st.integers(0, 2),
    )
    def start(
        self,
        num_blocks: int,
        block_size: int,
        windows: tuple[int | None, ...],
        max_num_seqs: int,
        spare_tokens: int,
        run_ahead: int,
    ) -> None:
        config = SchedulerConfig(
            num_blocks=num_blocks,
            block_size=block_size,
            windows=windows,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare_tokens,
            max_context=MAX_CONTEXT,
        )
        self.scheduler = Scheduler(config)
        self.runner = FakeRunner(
            num_blocks=num_blocks,
            block_size=block_size,
            windows=windows,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare_tokens,
            vocab_size=VOCAB_SIZE,
        )
        self.run_ahead = run_ahead
        self.launched: deque[tuple[ScheduledBatch, FakeHandle]] = deque()
        self.requests: dict[int, tuple[list[int], SamplingParams]] = {}
        self.outputs: dict[int, list[int]] = {}
        self.ends: dict[int, str] = {}
        self.limits: dict[int, int] = {}
        self.failed: set[int] = set()
        self.next_id = 0

    @rule(
        # Few different tokens and a common beginning: prefixes are shared, also by chance.
        prompt=st.one_of(
            st.lists(st.integers(0, 2), min_size=1, max_size=20),
            st.integers(1, 20).map(lambda n: list(range(n))),
        ),
        max_tokens=st.one_of(st.none(), st.integers(0, 12)),
        max_context=st.one_of(st.none(), st.integers(2, 24)),
        shift=st.booleans(),
        num_keep=st.integers(-1, 5),
        stops=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=2).map(tuple),
        priority=st.integers(0, 1),
        seed=st.integers(0, 1),
    )
    def add(
        self,
        prompt: list[int],
        max_tokens: int | None,
        max_context: int | None,
        shift: bool,
        num_keep: int,
        stops: tuple[int, ...],
        priority: int,
        seed: int,
    ) -> None:
        if shift and max_tokens is None:
            max_tokens = 40  # would never end
        params = SamplingParams(
            max_tokens=max_tokens,
            max_context=max_context,
            shift=shift,
            num_keep=num_keep,
            stop_token_ids=stops,
            seed=seed,
        )
        seq_id, self.next_id = self.next_id, self.next_id + 1
        limit = min(self.scheduler.max_context, max_context or MAX_CONTEXT)
        if len(prompt) + (max_tokens != 0) > limit:
            with pytest.raises(SchedulerError, match="leaves no room"):
                self.scheduler.add(Sequence(seq_id, prompt, params, priority=priority))
            return
        self.scheduler.add(Sequence(seq_id, prompt, params, priority=priority))
        self.requests[seq_id] = (prompt, params)
        self.outputs[seq_id] = []
        self.limits[seq_id] = limit

    @precondition(lambda self: len(self.launched) <= self.run_ahead)
    @rule()
    def schedule(self) -> None:
        batch = self.scheduler.schedule()
        if batch is not None:
            self.launched.append((batch, self.runner.launch(batch)))

    @precondition(lambda self: self.launched)
    @rule()
    def update(self) -> None:
        batch, handle = self.launched.popleft()
        self.take(self.scheduler.update(batch, handle.result()))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        seq_id = data.draw(st.sampled_from(sorted(self.requests)))
        row = self.scheduler.abort(seq_id)
        assert (row is None) == (seq_id in self.ends), "abort of a finished sequence does nothing, of another ends it"
        self.take([] if row is None else [row])

    @rule()
    def fail(self) -> None:
        """The device broke in a step: who runs ends, who waits goes on."""
        self.launched.clear()
        self.runner.in_flight.clear()
        rows = self.scheduler.fail("the device broke")
        self.failed |= {row.seq_id for row in rows}
        self.take(rows)

    @precondition(lambda self: not self.launched)
    @rule(num_blocks=st.integers(3, 16))
    def resize(self, num_blocks: int) -> None:
        before = self.scheduler.max_context
        rows = self.scheduler.resize(num_blocks)
        self.runner.allocate_kv(num_blocks=num_blocks)
        self.failed |= {row.seq_id for row in rows}
        self.take(rows)
        if self.scheduler.max_context != before:
            for seq_id in self.requests.keys() - self.ends.keys():
                self.limits[seq_id] = 0  # has lived under two limits: its output is nobody's alone

    def take(self, rows: list[TokenRow]) -> None:
        assert len({row.seq_id for row in rows}) == len(rows)
        for row in rows:
            assert row.seq_id not in self.ends, "a row for a sequence that has ended"
            self.outputs[row.seq_id] += row.token_ids
            if row.finish_reason is not None:
                self.ends[row.seq_id] = row.finish_reason

    @invariant()
    def check(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()

    @invariant()
    def a_step_in_flight_has_its_rows_and_blocks_to_itself(self) -> None:
        """It writes a token behind each row and reads blocks at a time of its own, until its result has arrived."""
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        owners = {seq.row: seq.seq_id for seq in scheduler._running}
        counts = [pool.ref_counts() for pool in scheduler._blocks.pools]
        for batch, handle in self.launched:
            for step in batch.steps:
                assert step.row not in scheduler._free_rows, "a row is free while a step writes its token"
                assert owners.get(step.row, step.seq_id) == step.seq_id, "a row has a new owner while a step uses it"
            for group, block_id in handle.reads:
                assert counts[group][block_id] > 0, "a block is free while a step uses it"

    def teardown(self) -> None:
        """Runs everything to its end: each output equals the one produced alone."""
        if not hasattr(self, "scheduler"):
            return
        num_steps = 0
        while self.scheduler.has_work:
            num_launched = len(self.launched)
            if num_launched <= self.run_ahead:
                self.schedule()
            assert self.launched, "sequences wait and nothing runs"
            if len(self.launched) == num_launched or len(self.launched) > self.run_ahead:
                self.update()
            self.scheduler.check()
            num_steps += 1
            assert num_steps < 20_000, "no progress"
        self.scheduler.check()
        assert self.ends.keys() == self.requests.keys()
        for seq_id, (prompt, params) in self.requests.items():
            if self.limits[seq_id] == 0:
                continue
            expected, reason = expected_output(prompt, params, vocab_size=VOCAB_SIZE, max_context=self.limits[seq_id])
            output = self.outputs[seq_id]
            if self.ends[seq_id] == "abort" or seq_id in self.failed:
                assert output == expected[: len(output)]
            else:
                assert (output, self.ends[seq_id]) == (expected, reason)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
