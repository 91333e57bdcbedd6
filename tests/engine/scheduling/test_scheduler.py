"""The textbook cases by hand: exact tokens a step, rows, block ids and order of preemption."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import SchedulerError
from engine.messages import TokenRow
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import ScheduledBatch, StepResult
from engine.scheduling.scheduler import Scheduler, SchedulerConfig
from engine.scheduling.sequence import IllegalTransition, Sequence, SequenceStatus


class Driver:
    """A scheduler whose results are made up: token 100 + sequence number, unless the test says otherwise."""

    def __init__(self, **config: Any) -> None:
        fields = {"num_blocks": 16, "block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16, **config}
        self.scheduler = Scheduler(SchedulerConfig(**fields))

    def add(self, seq_id: int, prompt: list[int] | int, *, salt: str = "", priority: int = 0, **params: Any) -> None:
        prompt_ids = list(range(prompt)) if isinstance(prompt, int) else prompt
        sequence = Sequence(seq_id, prompt_ids, SamplingParams(**params), cache_salt=salt, priority=priority)
        self.scheduler.add(sequence)
        self.scheduler.check()

    def schedule(self) -> ScheduledBatch | None:
        batch = self.scheduler.schedule()
        self.scheduler.check()
        return batch

    def launch(self) -> ScheduledBatch:
        batch = self.schedule()
        assert batch is not None
        return batch

    def update(self, batch: ScheduledBatch, tokens: dict[int, int] | None = None) -> list[TokenRow]:
        token_ids = [(tokens or {}).get(step.seq_id, 100 + step.seq_id) for step in batch.steps if step.samples]
        result = StepResult(token_ids, [None] * len(token_ids), [None] * len(token_ids))
        rows = self.scheduler.update(batch, result)
        self.scheduler.check()
        return rows

    def step(self, tokens: dict[int, int] | None = None) -> tuple[ScheduledBatch, list[TokenRow]]:
        batch = self.launch()
        return batch, self.update(batch, tokens)

    def run(self) -> list[TokenRow]:
        rows = []
        while self.scheduler.has_work:
            rows += self.step()[1]
        return rows


def work(batch: ScheduledBatch) -> list[tuple[int, int, int]]:
    """(sequence, start, number of tokens) of each row."""
    return [(step.seq_id, step.start, step.num_tokens) for step in batch.steps]


def blocks(batch: ScheduledBatch) -> list[tuple[int, int, int, list[int]]]:
    """(row, group, start, block ids) of each change of a table."""
    return [(append.row, append.group, append.start, append.block_ids) for append in batch.appended]


def test_a_prompt_then_one_token_a_step() -> None:
    driver = Driver()
    driver.add(7, 6, max_tokens=4)
    batch, rows = driver.step()
    assert work(batch) == [(7, 0, 6)]
    assert [(admission.row, admission.seq_id, admission.origin) for admission in batch.admitted] == [(0, 7, 6)]
    assert blocks(batch) == [(0, 0, 0, [1, 2])]
    assert batch.steps[0].samples
    assert rows == [TokenRow(7, [107])]
    batch, _ = driver.step()
    assert (work(batch), batch.admitted, blocks(batch)) == ([(7, 6, 1)], [], [])
    driver.step()
    batch, rows = driver.step()
    assert (work(batch), blocks(batch)) == ([(7, 8, 1)], [(0, 0, 2, [3])])
    assert rows == [TokenRow(7, [107], finish_reason="length")]
    assert not driver.scheduler.has_work
    assert driver.schedule() is None


def test_a_long_prompt_is_computed_in_chunks_beside_decoding_rows() -> None:
    driver = Driver()
    driver.add(1, 3, max_tokens=9)
    driver.step()
    driver.add(2, [50 + n for n in range(22)], max_tokens=1)
    batch, rows = driver.step()
    assert work(batch) == [(1, 3, 1), (2, 0, 8)], "beside a sequence that decodes, half of the 16"
    assert [step.samples for step in batch.steps] == [True, False]
    assert [row.seq_id for row in rows] == [1], "a chunk that is not the last yields no token"
    assert work(driver.step()[0]) == [(1, 4, 1), (2, 8, 8)]
    batch, rows = driver.step()
    assert work(batch) == [(1, 5, 1), (2, 16, 6)]
    assert [row.finish_reason for row in rows] == [None, "length"]


def test_chunks_take_all_that_is_left_when_nearly_all_rows_decode() -> None:
    driver = Driver(max_num_seqs=4, max_num_batched_tokens=4)
    for seq_id in (1, 2, 3):
        driver.add(seq_id, [seq_id], max_tokens=9)
    driver.step()
    driver.add(4, [40] * 3, max_tokens=1)
    assert work(driver.step()[0])[3:] == [(4, 0, 1)], "every row gets its token and there is one for the prompt"


def test_a_long_prompt_leaves_a_token_for_every_decoding_row_behind_it() -> None:
    driver = Driver(num_blocks=64, max_num_seqs=4, max_num_batched_tokens=4)
    for seq_id in (1, 2, 3):
        driver.add(seq_id, [seq_id], max_tokens=9, priority=1)
    driver.step()
    driver.add(4, [50 + n for n in range(40)], max_tokens=1)
    driver.step()
    expected = [(1, 3, 1), (2, 3, 1), (3, 3, 1), (4, 2, 1)]
    driver.step()
    assert sorted(work(driver.step()[0])) == expected, "the last is served first, and yet not with two"


def test_a_short_prompt_does_not_wait_for_all_chunks_of_a_long_one() -> None:
    driver = Driver(num_blocks=64)
    driver.add(1, 90, max_tokens=1)
    driver.step()
    assert work(driver.step()[0]) == [(1, 16, 16)]
    driver.add(2, [70, 71], max_tokens=2)
    assert work(driver.step()[0]) == [(1, 32, 8), (2, 0, 2)]
    assert work(driver.step()[0]) == [(2, 2, 1), (1, 40, 8)], "alone again, it takes all that prompts may have"
    assert work(driver.step()[0]) == [(1, 48, 16)]


def test_rows_that_decode_come_first_in_a_batch() -> None:
    driver = Driver(max_num_batched_tokens=8)
    driver.add(1, 10, max_tokens=3, priority=1)
    driver.add(2, [30, 31], max_tokens=3)
    assert work(driver.step()[0]) == [(2, 0, 2), (1, 0, 6)]
    driver.add(3, [40] * 9, max_tokens=3, priority=-1)
    assert work(driver.step()[0]) == [(2, 2, 1), (1, 6, 2), (3, 0, 2)]


def test_a_step_says_that_it_is_the_one_before_a_token_further() -> None:
    driver = Driver()
    driver.add(1, 3, max_tokens=20)
    driver.add(2, [30, 31], max_tokens=8)
    assert [driver.step()[0].is_repeat for _ in range(2)] == [False, False], "prompts, then other work than prompts"
    first, second = driver.launch(), driver.launch()
    assert (first.is_repeat, second.is_repeat) == (True, True), "also before the result has arrived"
    assert [append.row for append in first.appended + second.appended] == [0, 1], "although tables grow"
    driver.update(first)
    driver.update(second)
    driver.add(3, [40], max_tokens=9)
    joined = driver.launch()
    assert [step.num_tokens for step in joined.steps] == [1, 1, 1]
    assert not joined.is_repeat, "somebody came"
    driver.update(joined)
    assert [driver.step()[0].is_repeat for _ in range(4)] == [True, True, True, False], "the second has left"
    assert driver.step()[0].is_repeat


def test_a_shifted_row_is_no_repeat() -> None:
    driver = Driver()
    driver.add(1, 1, max_context=2, max_tokens=3, shift=True)
    batches = [driver.step()[0] for _ in range(2)]
    assert [work(batch) for batch in batches] == [[(1, 0, 1)], [(1, 0, 1)]]
    assert not batches[1].is_repeat, "the same row, but not a token further"


def test_waiting_sequences_come_by_priority_then_arrival() -> None:
    driver = Driver(max_num_seqs=1)
    for seq_id, priority in [(1, 5), (2, 0), (3, 5), (4, 0)]:
        driver.add(seq_id, [seq_id], max_tokens=1, priority=priority)
    assert [row.seq_id for row in driver.run()] == [2, 4, 1, 3]


def test_a_row_is_reused_by_the_next_sequence() -> None:
    driver = Driver(max_num_seqs=2)
    for seq_id in (1, 2, 3):
        driver.add(seq_id, [seq_id], max_tokens=seq_id)
    batch, _ = driver.step()
    assert [(admission.row, admission.seq_id) for admission in batch.admitted] == [(0, 1), (1, 2)]
    batch, _ = driver.step()
    assert [(admission.row, admission.seq_id) for admission in batch.admitted] == [(0, 3)]


def test_a_second_request_shares_full_blocks_and_computes_the_rest() -> None:
    driver = Driver()
    driver.add(1, 10, max_tokens=20)
    driver.step()
    driver.add(2, [*range(8), 90, 91], max_tokens=2)
    batch, rows = driver.step()
    assert work(batch) == [(1, 10, 1), (2, 8, 2)]
    assert blocks(batch) == [(1, 0, 0, [1, 2, 4])], "block 3 holds the tail of the first and is its own"
    assert rows[1].num_cached_tokens == 8
    assert driver.step()[1][1].num_cached_tokens == 0, "reported once"


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    driver = Driver()
    driver.add(1, 8, max_tokens=1)
    driver.run()
    driver.add(2, 8, max_tokens=1)
    batch, rows = driver.step()
    assert work(batch) == [(2, 4, 4)]
    assert rows[0].num_cached_tokens == 4


def test_salts_do_not_share() -> None:
    driver = Driver()
    driver.add(1, 8, max_tokens=1, salt="a")
    driver.run()
    driver.add(2, 8, max_tokens=1, salt="b")
    assert work(driver.step()[0]) == [(2, 0, 8)]


def test_ten_turns_of_a_chat_compute_their_new_tokens_only() -> None:
    driver = Driver(num_blocks=200, max_num_batched_tokens=64)
    history: list[int] = []
    for turn in range(10):
        history = [*history, *([turn] * 10)]
        before = driver.scheduler.stats().num_computed_tokens
        num_cached = len(history) - 10 if turn else 0
        driver.add(turn, history, max_tokens=6)
        history = [*history, *(token_id for row in driver.run() for token_id in row.token_ids)]
        computed = driver.scheduler.stats().num_computed_tokens - before
        # The ten new ones, five of the six generated, and what of the last turn did not fill a block.
        partial = (num_cached - (num_cached > 0)) % 4 + (num_cached > 0)
        assert computed == 10 + 5 + partial
    assert driver.scheduler.stats().num_free_blocks == 200


def test_two_that_compute_the_same_keep_one_copy() -> None:
    driver = Driver()
    driver.add(1, 9, max_tokens=9)
    driver.add(2, 9, max_tokens=9)
    batch = driver.launch()
    assert blocks(batch) == [(0, 0, 0, [1, 2, 3]), (1, 0, 0, [4, 5])]
    driver.update(batch)
    assert driver.scheduler.stats().num_free_blocks == 16 - 4, "block 4 came back"
    batch, _ = driver.step()
    # Row 1 goes on with block 1 of row 0, and gets block 4 again for the end of its prompt.
    assert work(batch) == [(1, 9, 1), (2, 7, 2)]
    assert blocks(batch) == [(1, 0, 0, [1]), (1, 0, 2, [4])]
    assert driver.scheduler.stats().num_free_blocks == 16 - 4, "block 5 was a copy of block 2"


def test_memory_is_evicted_oldest_first() -> None:
    driver = Driver(num_blocks=4)
    driver.add(1, [1, 1, 1, 1, 1], max_tokens=1)
    driver.run()
    driver.add(2, [2, 2, 2, 2, 2], max_tokens=1)
    driver.run()
    driver.add(3, [3] * 9, max_tokens=1)  # needs three blocks; two hold nothing, the third is the first prompt's
    driver.run()
    driver.add(4, [2, 2, 2, 2, 2], max_tokens=1)
    assert driver.run()[0].num_cached_tokens == 4
    driver.add(5, [1, 1, 1, 1, 1], max_tokens=1)
    assert driver.run()[0].num_cached_tokens == 0


def test_the_last_of_the_running_is_preempted_and_comes_back_with_all_its_tokens() -> None:
    driver = Driver(num_blocks=4)
    driver.add(1, [1, 1, 1], max_tokens=12)
    driver.add(2, [2, 2, 2, 2, 2, 2], max_tokens=9)
    assert work(driver.step()[0]) == [(1, 0, 3), (2, 0, 6)]
    driver.step()
    driver.step()  # the first takes its second block, and all four are in use
    assert driver.scheduler.stats().num_preemptions == 0
    batch, _ = driver.step()  # the second would need its third
    assert work(batch) == [(1, 5, 1)]
    assert driver.scheduler.stats().num_preemptions == 1
    while not batch.admitted:
        batch, _ = driver.step()
    assert batch.admitted[0].token_ids == [2, 2, 2, 2, 2, 2, 102, 102, 102]
    assert batch.admitted[0].origin == 6
    assert driver.run()[-1].finish_reason == "length"


def test_a_preempted_sequence_finds_its_blocks_again() -> None:
    driver = Driver(num_blocks=5)
    driver.add(1, [1, 1, 1], max_tokens=3)
    driver.add(2, [2] * 11, max_tokens=6)
    driver.step()
    driver.step()
    driver.scheduler._preempt(driver.scheduler._running[-1])
    driver.scheduler.check()
    batch, rows = driver.step()
    assert work(batch) == [(1, 4, 1)], "who was preempted waits while others need its blocks"
    assert rows[-1].finish_reason == "length"
    batch, rows = driver.step()
    assert work(batch) == [(2, 12, 1)], "thirteen tokens, twelve of them cached"
    assert rows[0].num_cached_tokens == 0, "what the first admission found is reported, once"


def test_nobody_is_admitted_before_all_its_tokens_fit() -> None:
    driver = Driver(num_blocks=8, max_num_batched_tokens=24)
    driver.add(1, 20, max_tokens=2)
    driver.add(2, [70] * 16, max_tokens=1)
    batch, _ = driver.step()
    assert work(batch) == [(1, 0, 20)], "four tokens and three blocks were left, but not four blocks"
    driver.run()
    assert driver.scheduler.stats().num_preemptions == 0


def test_who_was_refused_is_admitted_as_soon_as_blocks_come_free() -> None:
    driver = Driver(num_blocks=6)
    driver.add(1, [1] * 9, max_tokens=2)
    driver.add(2, [2], max_tokens=9)
    driver.step()
    driver.add(3, [3] * 13, max_tokens=1)
    assert work(driver.step()[0]) == [(1, 9, 1), (2, 1, 1)]
    assert work(driver.step()[0]) == [(2, 2, 1), (3, 0, 8)]


def test_who_was_refused_for_the_margin_is_admitted_after_the_pool_shrank() -> None:
    driver = Driver(num_blocks=64, max_num_batched_tokens=512)
    driver.add(1, [1] * 104, max_tokens=2)
    driver.add(2, [2] * 108, max_tokens=2)
    driver.add(3, [3] * 43, max_tokens=1)
    assert [seq_id for seq_id, _, _ in work(driver.step()[0])] == [1, 2], "eleven are free, one of them the margin"
    driver.scheduler.abort(1)
    driver.scheduler.abort(2)
    driver.scheduler.resize(11)
    assert work(driver.step()[0]) == [(3, 0, 43)]


def test_the_limit_on_a_sequence_can_shrink_with_the_pools() -> None:
    """With windows only, blocks come back and a sequence may be longer than the pool: not longer than the rows."""
    driver = Driver(num_blocks=64, windows=(8,))
    driver.scheduler.resize(16, max_context=40)
    assert driver.scheduler.max_context == 40
    with pytest.raises(SchedulerError, match="leaves no room in a context of 40 tokens"):
        driver.add(1, 40, max_tokens=1)
    driver.add(2, 30, max_tokens=1)
    driver.run()


def test_a_sequence_in_the_pool_alone_goes_to_its_very_end() -> None:
    driver = Driver(num_blocks=3)
    driver.add(1, 5)
    rows = driver.run()
    assert len(rows) == 7, "twelve tokens fit, five are the prompt's"
    assert rows[-1].finish_reason == "length"


def test_a_stop_token_ends_and_is_reported() -> None:
    driver = Driver()
    driver.add(1, 3, stop_token_ids=(9,))
    driver.step()
    assert driver.step({1: 9})[1] == [TokenRow(1, [9], finish_reason="stop")]


def test_ignore_eos_goes_on_over_stop_tokens() -> None:
    driver = Driver()
    driver.add(1, 3, stop_token_ids=(101,), ignore_eos=True, max_tokens=3)
    assert [row.finish_reason for row in driver.run()] == [None, None, "length"]


def test_max_tokens_0_computes_the_prompt_and_yields_nothing() -> None:
    driver = Driver()
    driver.add(1, 20, max_tokens=0)
    batch, rows = driver.step()
    assert (work(batch), rows) == ([(1, 0, 16)], [])
    batch, rows = driver.step()
    assert work(batch) == [(1, 16, 4)]
    assert not batch.steps[0].samples
    assert rows == [TokenRow(1, [], finish_reason="length")]
    driver.add(2, 20, max_tokens=1)
    assert driver.run()[0].num_cached_tokens == 16


def test_max_context_ends_with_length() -> None:
    driver = Driver()
    driver.add(1, 4, max_context=6)
    assert [row.finish_reason for row in driver.run()] == [None, "length"]


def test_a_shift_keeps_the_beginning_and_the_tail() -> None:
    driver = Driver()
    driver.add(1, 6, max_context=10, shift=True, num_keep=2, max_tokens=6)
    for _ in range(3):
        driver.step()
    _, rows = driver.step()
    assert rows == [TokenRow(1, [101], truncated=True)]
    batch, rows = driver.step()
    admission = batch.admitted[0]
    assert admission.token_ids == [0, 1, 101, 101, 101, 101]
    assert admission.origin == 2, "position 6 is generation number 4"
    assert work(batch) == [(1, 0, 6)]
    assert rows[0].truncated
    assert driver.step()[1] == [TokenRow(1, [101], finish_reason="length", truncated=True)]
    assert driver.scheduler.stats().num_shifts == 1


@pytest.mark.parametrize(("num_keep", "num_kept"), [(-1, 9), (0, 0), (3, 3), (100, 12)])
def test_num_keep_of_a_shift(num_keep: int, num_kept: int) -> None:
    driver = Driver()
    driver.add(1, 9, max_context=16, shift=True, num_keep=num_keep, max_tokens=9)
    generated = [100 + n for n in range(7)]
    for token_id in generated:
        driver.step({1: token_id})
    token_ids = driver.launch().admitted[0].token_ids
    whole = [*range(9), *generated]
    num_dropped = (16 - num_kept) // 2
    assert token_ids == whole[:num_kept] + whole[num_kept + num_dropped :]


class TestRunAhead:
    def test_the_next_step_is_scheduled_before_the_token_is_known(self) -> None:
        driver = Driver()
        driver.add(1, 3, max_tokens=3)
        first, second = driver.launch(), driver.launch()
        assert work(second) == [(1, 3, 1)]
        assert driver.update(first) == [TokenRow(1, [101])]
        third = driver.launch()
        assert work(third) == [(1, 4, 1)]
        assert driver.schedule() is None, "a length stop is known ahead and costs no step"
        driver.update(second)
        assert driver.update(third) == [TokenRow(1, [101], finish_reason="length")]
        assert not driver.scheduler.has_work

    def test_a_stop_token_costs_one_row_and_its_blocks_wait_for_it(self) -> None:
        driver = Driver(max_num_seqs=1)
        driver.add(1, 4, stop_token_ids=(9,))
        driver.add(2, [7], max_tokens=1)
        first, second = driver.launch(), driver.launch()
        assert driver.update(first, {1: 9}) == [TokenRow(1, [9], finish_reason="stop")]
        assert driver.scheduler.stats().num_free_blocks == 14, "the second step still writes to them"
        assert driver.schedule() is None, "and to its row"
        assert driver.update(second) == [], "the wasted row's result is ignored"
        assert driver.scheduler.stats().num_free_blocks == 16
        assert work(driver.launch()) == [(2, 0, 1)]

    def test_abort_in_flight(self) -> None:
        driver = Driver()
        driver.add(1, 4)
        batch = driver.launch()
        row = driver.scheduler.abort(1)
        driver.scheduler.check()
        assert row == TokenRow(1, [], finish_reason="abort")
        assert driver.scheduler.abort(1) is None
        assert driver.scheduler.stats().num_free_blocks == 15
        assert driver.scheduler.has_work, "the step has to be taken in"
        assert driver.update(batch) == []
        assert not driver.scheduler.has_work
        assert driver.scheduler.stats().num_free_blocks == 16

    def test_a_token_in_flight_survives_a_preemption(self) -> None:
        driver = Driver(num_blocks=3, max_num_seqs=2)
        driver.add(1, [1, 1, 1], max_tokens=8)
        driver.add(2, [2, 2, 2, 2, 2], max_tokens=5)
        first = driver.launch()
        second = driver.launch()
        assert work(second) == [(1, 3, 1), (2, 5, 1)]
        driver.update(first)
        assert driver.schedule() is None, "the second was preempted for the first, but still writes to its blocks"
        assert driver.scheduler.stats().num_preemptions == 1
        assert driver.update(second) == [TokenRow(1, [101]), TokenRow(2, [102])]
        batch = driver.launch()
        assert work(batch) == [(1, 4, 1)]
        driver.update(batch)
        while not batch.admitted:
            batch, _ = driver.step()
        assert batch.admitted[0].token_ids == [2, 2, 2, 2, 2, 102, 102]

    def test_who_was_preempted_is_not_admitted_before_its_tokens_have_arrived(self) -> None:
        driver = Driver()
        driver.add(1, [1, 1, 1], max_tokens=8)
        first = driver.launch()
        driver.scheduler._preempt(driver.scheduler._running[0])
        driver.scheduler.check()
        assert driver.schedule() is None, "blocks would do, but a token is missing"
        driver.update(first)
        assert driver.launch().admitted[0].token_ids == [1, 1, 1, 101]

    def test_one_preemption_is_enough_while_its_blocks_are_on_their_way(self) -> None:
        driver = Driver(num_blocks=3)
        for seq_id in (1, 2, 3):
            driver.add(seq_id, [seq_id] * 3, max_tokens=8)
        first, second = driver.launch(), driver.launch()
        driver.update(first)
        assert driver.schedule() is None
        assert driver.scheduler.stats().num_preemptions == 1, "the first and the second both wait for the third's block"
        driver.update(second)
        assert work(driver.launch()) == [(1, 4, 1)]
        assert driver.scheduler.stats().num_preemptions == 2

    def test_a_token_in_flight_that_a_failed_step_lost_is_drawn_again(self) -> None:
        driver = Driver()
        driver.add(1, [1, 1, 1], max_tokens=8)
        driver.launch()
        driver.scheduler._preempt(driver.scheduler._running[0])
        assert driver.scheduler.fail("the device broke") == []
        driver.scheduler.check()
        batch = driver.launch()
        assert (work(batch), batch.admitted[0].token_ids) == ([(1, 0, 3)], [1, 1, 1])

    def test_results_are_taken_in_the_order_of_launch(self) -> None:
        driver = Driver()
        driver.add(1, 3)
        driver.launch()
        second = driver.launch()
        with pytest.raises(AssertionError, match="the result of step 1 is due, not 2"):
            driver.update(second)


class TestSlidingWindow:
    def test_blocks_that_left_the_window_return_while_the_sequence_runs(self) -> None:
        driver = Driver(windows=(None, 5), max_num_batched_tokens=64)
        driver.add(1, 17, max_tokens=8)
        driver.step()
        full, sliding = driver.scheduler._blocks.pools
        assert (full.num_free, sliding.num_free) == (16 - 5, 16 - 2), "position 17 attends 13 to 17: blocks 3 and 4"
        for _ in range(3):
            driver.step()
        batch, _ = driver.step()
        assert [(append.group, append.start, append.dead) for append in batch.appended] == [(0, 5, 0), (1, 5, 4)]
        driver.run()
        assert (full.num_free, sliding.num_free) == (16, 16)

    def test_a_hit_brings_the_window_only(self) -> None:
        driver = Driver(windows=(None, 5), max_num_batched_tokens=64)
        driver.add(1, 17, max_tokens=1)
        driver.run()
        driver.add(2, 17, max_tokens=1)
        batch, rows = driver.step()
        assert rows[0].num_cached_tokens == 16
        assert [(append.group, append.start, len(append.block_ids), append.dead) for append in batch.appended] == [
            (0, 0, 5, 0),
            (1, 3, 2, 3),
        ]

    def test_a_model_of_windows_only_runs_past_its_pool(self) -> None:
        driver = Driver(windows=(5,), num_blocks=4, max_context=1000)
        assert driver.scheduler.max_context == 1000
        driver.add(1, 100, max_tokens=100)
        rows = driver.run()
        assert len(rows) == 100
        assert driver.scheduler.stats().num_preemptions == 0

    def test_a_copy_that_left_the_window_is_not_swapped_in_the_table(self) -> None:
        driver = Driver(windows=(None, 5), max_num_batched_tokens=64)
        driver.add(1, 17, max_tokens=9)
        driver.add(2, 17, max_tokens=9)
        first, _ = driver.step()
        ids = {(append.row, append.group): append.block_ids for append in first.appended}
        batch, _ = driver.step()
        # Row 1 goes on with four blocks of row 0, of which the window keeps the last.
        assert blocks(batch) == [(1, 0, 0, ids[0, 0][:4]), (1, 1, 3, ids[0, 1][3:4])]

    @pytest.mark.parametrize(("num_blocks", "max_context"), [(1, 4), (2, 8), (3, 1000)])
    def test_how_long_a_sequence_may_get(self, num_blocks: int, max_context: int) -> None:
        driver = Driver(windows=(8,), num_blocks=num_blocks, max_context=1000)
        assert driver.scheduler.max_context == max_context
        driver.add(1, [1], max_tokens=100)
        assert len(driver.run()) == min(100, max_context - 1)
        assert driver.scheduler.stats().num_preemptions == 0

    def test_a_sequence_whose_cached_beginning_was_evicted_goes_on_uncached(self) -> None:
        driver = Driver(windows=(1,), num_blocks=1, max_context=1000)
        driver.add(1, 20, max_tokens=20)
        assert len(driver.run()) == 20, "its one block is taken from its own past again and again"

    def test_it_waits_for_its_own_dead_blocks_when_a_step_is_in_flight(self) -> None:
        driver = Driver(windows=(5,), num_blocks=2, max_context=1000)
        driver.add(1, 4, max_tokens=50)
        batch = driver.launch()
        while driver.scheduler.has_work:
            ahead = driver.schedule()
            driver.update(batch)
            batch = ahead if ahead is not None or not driver.scheduler.has_work else driver.launch()  # type: ignore[assignment]
        assert driver.scheduler.stats().num_preemptions == 0
        assert driver.scheduler.stats().num_generated_tokens == 50


class TestRefusals:
    @pytest.mark.parametrize(
        ("prompt", "params", "message"),
        [
            (0, {}, "the prompt is empty"),
            (
                64,
                {},
                "the prompt has 64 tokens, which leaves no room in a context of 64 tokens; .* memory of the KV cache",
            ),
            (65, {"max_tokens": 0}, "leaves no room in a context of 64 tokens"),
            (5, {"max_context": 5}, "context of 5 tokens; shorten the prompt or raise num_ctx"),
        ],
    )
    def test_what_can_never_run_is_refused(self, prompt: int, params: dict[str, Any], message: str) -> None:
        driver = Driver()
        with pytest.raises(SchedulerError, match=message):
            driver.add(1, prompt, **params)
        assert not driver.scheduler.has_work

    def test_the_model_s_own_limit(self) -> None:
        driver = Driver(max_context=10)
        with pytest.raises(SchedulerError, match=r"context of 10 tokens; shorten the prompt or .* another model"):
            driver.add(1, 10)

    def test_a_number_is_used_once(self) -> None:
        driver = Driver()
        driver.add(1, 3)
        with pytest.raises(SchedulerError, match="sequence 1 is already there"):
            driver.add(1, 3)

    def test_the_budget_must_cover_every_row(self) -> None:
        with pytest.raises(SchedulerError, match="every running sequence gets a token a step"):
            Driver(max_num_seqs=8, max_num_batched_tokens=7)

    @pytest.mark.parametrize("field", ["num_blocks", "block_size", "max_num_seqs", "max_context"])
    def test_limits_must_be_positive(self, field: str) -> None:
        with pytest.raises(SchedulerError, match=f"{field} is 0 but must be at least 1"):
            Driver(**{field: 0})

    def test_windows_must_be_positive(self) -> None:
        with pytest.raises(SchedulerError, match="windows are"):
            Driver(windows=(None, 0))


def fail_row(driver: Driver, batch: ScheduledBatch, seq_id: int) -> None:
    """Takes in a result in which the row of `seq_id` was not finite."""
    sampled = [step.seq_id for step in batch.steps if step.samples]
    errors = ["not finite" if other == seq_id else None for other in sampled]
    driver.scheduler.update(batch, StepResult([0] * len(sampled), [None] * len(sampled), errors))
    driver.scheduler.check()


def num_cached(driver: Driver, seq_id: int, prompt: int) -> int:
    """Prompt tokens that a new sequence finds in the cache."""
    driver.add(seq_id, prompt, max_tokens=1)
    (row,) = driver.run()
    return row.num_cached_tokens


def test_values_that_went_wrong_are_not_found_again() -> None:
    driver = Driver()
    driver.add(1, 9)
    fail_row(driver, driver.launch(), 1)
    assert num_cached(driver, 2, 9) == 0
    assert num_cached(driver, 3, 9) == 8


def test_a_prefix_that_others_compute_on_stays_when_a_sequence_fails() -> None:
    driver = Driver()
    driver.add(1, 5, max_tokens=8)
    driver.step()
    driver.add(2, 9)
    fail_row(driver, driver.launch(), 2)
    assert driver.scheduler.abort(1) is not None
    assert num_cached(driver, 3, 9) == 4


def test_a_preempted_sequence_whose_step_went_wrong_leaves_nothing_to_find() -> None:
    driver = Driver(num_blocks=5)
    driver.add(1, 4, max_tokens=12)
    driver.add(2, 8, salt="its own", max_tokens=12)
    launched = driver.launch()
    # Running ahead until the second sequence loses its blocks to the first with a step in flight.
    while driver.scheduler.stats().num_preemptions == 0:
        ahead = driver.schedule()
        if driver.scheduler.stats().num_preemptions == 0:
            assert ahead is not None
            driver.update(launched)
            launched = ahead
    assert any(step.seq_id == 2 for step in launched.steps)
    fail_row(driver, launched, 2)
    assert driver.scheduler.abort(1) is not None
    driver.add(3, 8, salt="its own", max_tokens=1)
    assert [row.num_cached_tokens for row in driver.run() if row.seq_id == 3] == [0]


def test_an_error_of_a_row_ends_its_sequence_only() -> None:
    driver = Driver()
    driver.add(1, 3)
    driver.add(2, [8, 8], max_tokens=1)
    batch = driver.launch()
    rows = driver.scheduler.update(batch, StepResult([0, 5], [None, None], ["not finite", None]))
    assert rows == [
        TokenRow(1, [], finish_reason="error", error="not finite"),
        TokenRow(2, [5], finish_reason="length"),
    ]
    driver.scheduler.check()


def test_a_failed_step_ends_who_runs_and_forgets_the_cache() -> None:
    driver = Driver(max_num_seqs=1)
    driver.add(1, 8)
    driver.add(2, 8, max_tokens=1)
    driver.step()
    driver.launch()
    rows = driver.scheduler.fail("the device broke")
    driver.scheduler.check()
    assert rows == [TokenRow(1, [], finish_reason="error", error="the device broke")]
    batch, rows = driver.step()
    assert work(batch) == [(2, 0, 8)], "nothing of the broken device's KV is used again"
    assert not driver.scheduler.has_work


def test_waste_is_less_than_a_block_a_sequence() -> None:
    driver = Driver(num_blocks=200, max_num_seqs=16, max_num_batched_tokens=64)
    for seq_id in range(16):
        driver.add(seq_id, [seq_id] * (seq_id + 1), max_tokens=20)
    while driver.scheduler.has_work:
        driver.step()  # check() holds every sequence to it after each call
        running = driver.scheduler._running
        slots = 4 * (200 - driver.scheduler.stats().num_free_blocks)
        assert 0 <= slots - sum(seq.num_computed_tokens for seq in running) < 4 * max(1, len(running))


def test_a_sequence_tells_what_it_is() -> None:
    assert repr(Sequence(3, [1, 2], SamplingParams())) == "Sequence(3, waiting, 0/2 tokens)"


def test_an_illegal_transition_raises_and_changes_nothing() -> None:
    seq = Sequence(3, [1], SamplingParams())
    seq.status = SequenceStatus.FINISHED
    with pytest.raises(IllegalTransition, match="sequence 3 cannot go from finished to running"):
        seq.status = SequenceStatus.RUNNING
    assert seq.status is SequenceStatus.FINISHED
