"""Scheduler: who computes how many tokens next. Called by LLMEngine; meets the device only through values.

Theory of operation
-------------------
There are no phases. Every sequence has `num_computed_tokens` that chases `num_tokens`, and a step hands out tokens
under one budget (engine.scheduling.token_budget), which leaves some for waiting ones; these are admitted in order of
(priority, arrival). A decoding sequence always gets its one token, a long prompt gets a chunk and continues in the next
step. Prefix hits, preemption and context shifts only change where `num_computed_tokens` starts.

*Running ahead.* `schedule()` may be called again before `update()`. A launched step's tokens count as computed, its
sampled token as a placeholder whose value the runner knows and the host does not. Results arrive in the order of
launch. A sequence that wants no more tokens gets no more steps, so length stops cost nothing; a stop token is seen one
step late, and the result of the step launched meanwhile is ignored. Rows and blocks of a sequence that left return
when its last launched step has.

*Preemption.* When no block is free, the last of the running sequences goes back to waiting with all its tokens and is
computed again later; its full blocks stay in the radix cache, so that this is cheap. Tokens in flight are kept, too: it
is not admitted before they have arrived. The first running sequence can take everything from the others, and `add`
refuses what does not fit alone, so somebody always gets on.

*Constraints.* The tokens that a constrained sequence may sample depend on all before, so it takes no step while one is
in flight; the others run ahead without it. While most rows are constrained nobody does (`runs_ahead`): steps of a few
would cost as much as steps of all.

*Context.* At the end of its context a sequence finishes with "length", or its tokens are replaced by the kept prefix
and the tail and computed again, as if preempted. `origin` moves along, so the noise counter goes on.

What may live here: integers, Sequence, TokenRow. No clock, no I/O, no randomness, no logging.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from typing import NamedTuple

import msgspec

from engine.errors import SchedulerError
from engine.messages import Stats, TokenRow
from engine.scheduling.batch import Admission, BlockAppend, RowStep, ScheduledBatch, StepResult, TokenLogprobs
from engine.scheduling.block_manager import BlockManager, KVUsage
from engine.scheduling.block_pool import Node
from engine.scheduling.sequence import Sequence, SequenceStatus, TokenConstraint
from engine.scheduling.token_budget import share_out


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one worker. `num_blocks` is known once the model is loaded."""

    num_blocks: int
    """KV blocks of each group, the dummy block not counted."""
    block_size: int = 16
    windows: tuple[int | None, ...] = (None,)
    """One a KV group: position p attends [p - window + 1, p]; None is full attention."""
    max_num_seqs: int = 256
    """Rows: sequences in one step."""
    max_num_batched_tokens: int = 2048
    """Tokens in one step."""
    max_context: int = 2**31 - 1
    """The model's own limit on prompt plus generated tokens."""
    kv_cache_type: str = "auto"

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_num_seqs", "max_context"):
            if getattr(self, name) < 1:
                raise SchedulerError(f"{name} is {getattr(self, name)} but must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise SchedulerError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens} but must be at least max_num_seqs, "
                f"which is {self.max_num_seqs}: every running sequence gets a token a step"
            )
        if not self.windows or any(window is not None and window < 1 for window in self.windows):
            raise SchedulerError(f"windows are {self.windows} but must be at least one, each None or at least 1")


class _Step:
    """A step while it is put together."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.admissions: list[Admission] = []
        self.appended: list[BlockAppend] = []
        # Rows that only decode come first: their kernel knows that a row is one token.
        self.decodes: list[RowStep] = []
        self.decoding: list[Sequence] = []
        self.chunks: list[RowStep] = []
        self.prefilling: list[Sequence] = []
        self.num_samples = 0


class _Launched(NamedTuple):
    """A step whose result has not arrived, with the sequence of each of its rows."""

    batch: ScheduledBatch
    sequences: list[Sequence]


class Scheduler:
    """Hands out tokens, rows and blocks to sequences."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._blocks = self._new_block_manager(config.num_blocks)
        self._sequences: dict[int, Sequence] = {}
        self._waiting: list[Sequence] = []  # both sorted by rank
        self._running: list[Sequence] = []
        self._launched: deque[_Launched] = deque()
        self._free_rows = list(range(config.max_num_seqs))  # heap: low rows first keeps the batch dense
        self._retired_rows: list[tuple[int, int]] = []  # (row, step that may still use it)
        self._refused: tuple[Sequence | None, int] = (None, 0)  # who did not fit, and how many blocks were free
        self._decoding: list[Sequence] | None = None  # rows of the last step if each decoded one token in it
        self._num_constrained = 0  # unfinished sequences
        self._num_arrivals = 0
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self._num_computed_tokens = 0
        self._num_generated_tokens = 0
        self._num_preemptions = 0
        self._num_shifts = 0

    @property
    def has_work(self) -> bool:
        """Whether a sequence is unfinished or a step is in flight."""
        return bool(self._sequences or self._launched)

    @property
    def runs_ahead(self) -> bool:
        """Whether it is worth while to launch a step before the tokens of the one before are known."""
        return not self._num_constrained or 2 * self._num_constrained <= len(self._running)

    @property
    def max_context(self) -> int:
        """The longest sequence that fits both the model and the pools."""
        return self._blocks.max_context(self._config.max_context)

    def add(self, seq: Sequence) -> None:
        """Queues a sequence.

        Raises:
            SchedulerError: it can never run; the message says why.
        """
        if seq.seq_id in self._sequences:
            raise SchedulerError(f"sequence {seq.seq_id} is already there; every request needs a number of its own")
        if seq.num_prompt_tokens == 0:
            raise SchedulerError("the prompt is empty; the engine needs at least one token to continue")
        limit = self._limit(seq)
        needed = seq.num_prompt_tokens + (seq.params.max_tokens != 0)
        if needed > limit:
            raise SchedulerError(
                f"the prompt has {seq.num_prompt_tokens} tokens, which leaves no room in a context of {limit} tokens; "
                f"shorten the prompt or raise {self._name_of_limit(limit, seq)}"
            )
        seq.set_max_context(limit)
        seq.arrival = self._num_arrivals
        self._num_arrivals += 1
        self._num_constrained += seq.constraint is not None
        self._sequences[seq.seq_id] = seq
        insort(self._waiting, seq, key=_rank)

    def abort(self, seq_id: int) -> TokenRow | None:
        """Ends a sequence with "abort"; None if it is unknown or has ended already."""
        seq = self._sequences.get(seq_id)
        return None if seq is None else self._finish(seq, "abort")

    def sequences_with(self, adapter: int) -> list[int]:
        """Numbers of the sequences that use an adapter."""
        return [seq.seq_id for seq in self._sequences.values() if seq.adapter == adapter]

    def schedule(self) -> ScheduledBatch | None:
        """The next step, or None if nobody can compute anything now: all wait for results, or there is nobody."""
        step = _Step(self._num_steps + 1)
        uncomputed = [
            seq.num_tokens - seq.num_computed_tokens if seq.num_tokens < seq.max_length else 0 for seq in self._running
        ]
        if self._num_constrained:
            for index, seq in enumerate(self._running):
                if seq.constraint is not None and seq.num_tokens > len(seq.token_ids):
                    uncomputed[index] = 0
        someone_waits = bool(self._waiting and self._free_rows and self._waiting[0] is not self._refused[0])
        shares, num_left = share_out(uncomputed, self._config.max_num_batched_tokens, someone_waits=someone_waits)
        # Blocks go by rank, too, so whoever is preempted is at the end and has not been served yet.
        for seq, wanted, share in zip(self._running, uncomputed, shares, strict=False):
            if wanted == 1:
                self._decode(step, seq)
            elif share and (num_tokens := self._make_room(seq, share)):
                self._compute(step, seq, num_tokens, num_tokens == wanted)
        self._admit(step, num_left)
        if not step.decodes and not step.chunks:
            return None
        return self._launch(step)

    def constraints(self) -> list[tuple[int, TokenConstraint]]:
        """Rows of the step just scheduled that sample under a constraint, in the order of its steps."""
        if not self._num_constrained:
            return []
        batch, sequences = self._launched[-1]
        return [
            (step.row, seq.constraint)
            for step, seq in zip(batch.steps, sequences, strict=True)
            if step.samples and seq.constraint is not None
        ]

    def update(self, batch: ScheduledBatch, result: StepResult) -> list[TokenRow]:
        """Takes in the result of the oldest launched step.

        Returns:
            A row for each sequence that got a token or ended. A step of a sequence that ended meanwhile yields none.
        """
        launched = self._launched.popleft()
        assert launched.batch.step == batch.step, f"the result of step {launched.batch.step} is due, not {batch.step}"
        samples = zip(result.token_ids, result.logprobs, result.errors, strict=True)
        rows = []
        for step, seq in zip(batch.steps, launched.sequences, strict=True):
            if step.samples:
                token_id, logprobs, error = next(samples)
            seq.num_in_flight -= 1
            if seq.row is not None:
                # A sequence that was preempted is not admitted before its steps have arrived, so this one is of now.
                seq.num_done_tokens = num_done_tokens = step.start + step.num_tokens
                if num_done_tokens >= seq.next_block_event:
                    self._blocks.step_result_arrived(seq)
            elif seq.status is SequenceStatus.FINISHED:
                continue
            if step.samples:
                rows.append(self._take_sample(seq, token_id, logprobs, error))
            elif not seq.samples and seq.num_done_tokens == len(seq.token_ids):
                rows.append(self._finish(seq, "length"))  # it wanted no token, only its prompt computed
        self._step_done(batch.step)
        return rows

    def fail(self, error: str) -> list[TokenRow]:
        """A step went wrong: ends every running sequence with "error" and forgets all KV.

        Waiting sequences stay, those that were preempted with tokens in flight too: they draw the same tokens again.
        """
        self._launched.clear()
        for seq in self._sequences.values():
            seq.forget_in_flight()
        rows = [self._finish(seq, "error", error=error) for seq in list(self._running)]
        self._step_done(self._num_steps)
        self._blocks.cache.clear()
        return rows

    def preempt_all(self) -> None:
        """Sends every running sequence back to waiting and forgets all KV. No step may be in flight."""
        assert not self._launched, "a step is in flight"
        while self._running:
            self._preempt(self._running[-1])
        self._blocks.cache.clear()

    def resize(self, num_blocks: int, max_context: int | None = None) -> list[TokenRow]:
        """Goes on with pools of another size. No step may be in flight.

        Args:
            max_context: the limit on one sequence, where that changes, too.

        Returns:
            The ends of sequences that do not fit any more.
        """
        self.preempt_all()
        if max_context is not None:
            self._config = msgspec.structs.replace(self._config, max_context=max_context)
        self._blocks = self._new_block_manager(num_blocks)
        rows = []
        for seq in list(self._waiting):
            limit = self._limit(seq)
            if len(seq.token_ids) + (seq.params.max_tokens != 0) > limit:
                error = (
                    f"the KV cache was made smaller and holds {limit} tokens now, this sequence has "
                    f"{len(seq.token_ids)}; unload another model or ask again with a shorter prompt"
                )
                rows.append(self._finish(seq, "error", error=error))
            else:
                seq.set_max_context(limit)
        return rows

    def stats(self) -> Stats:
        """Counters since the start; `num_prompt_tokens` and `num_cached_tokens` count first admissions only."""
        return Stats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_blocks=self._blocks.num_blocks,
            num_free_blocks=self._blocks.num_free_blocks,
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_computed_tokens=self._num_computed_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_preemptions=self._num_preemptions,
            num_shifts=self._num_shifts,
        )

    def kv_usage(self) -> KVUsage:
        """What the KV cache holds for running sequences now. Cheap enough for every step."""
        return self._blocks.usage(self._running)

    def check(self) -> None:
        """Recomputes every invariant; for tests and for debugging."""
        config = self._config
        assert [seq.rank for seq in self._waiting] == sorted(seq.rank for seq in self._waiting)
        assert [seq.rank for seq in self._running] == sorted(seq.rank for seq in self._running)
        assert all(seq.status is SequenceStatus.WAITING for seq in self._waiting)
        assert all(seq.status is SequenceStatus.RUNNING for seq in self._running)
        assert {seq.seq_id for seq in (*self._waiting, *self._running)} == self._sequences.keys()
        assert len(self._waiting) + len(self._running) == len(self._sequences)
        rows = [*self._free_rows, *(row for row, _ in self._retired_rows), *(seq.row for seq in self._running)]
        assert sorted(row for row in rows if row is not None) == list(range(config.max_num_seqs)), "a row is lost"
        assert all(seq.row is None and not seq.block_tables for seq in self._waiting)
        for launched in self._launched:
            assert launched.batch.num_tokens <= config.max_num_batched_tokens, "a step is over its budget"
            assert len(launched.batch.steps) <= config.max_num_seqs
        in_flight = [id(seq) for launched in self._launched for seq in launched.sequences]
        for seq in self._sequences.values():
            assert seq.num_in_flight == in_flight.count(id(seq)), f"{seq} miscounts its steps in flight"
            assert seq.num_done_tokens <= seq.num_computed_tokens <= seq.num_tokens <= seq.max_context
        self._blocks.check(self._running)
        if not self._running and not self._launched:
            assert self._blocks.num_free_blocks == self._blocks.num_blocks, "blocks leaked"
            assert not self._blocks.has_retired
            assert not self._retired_rows

    # ---- schedule

    def _make_room(self, seq: Sequence, wanted: int) -> int:
        """Slots for the next `wanted` tokens of a running sequence, or for some of them, or 0: not in this step."""
        while True:
            num_tokens = self._blocks.grow(seq, wanted)
            if num_tokens > 0 or wanted <= 0:
                return num_tokens
            victim = self._running[-1]
            # Blocks will come with the next result: those that were retired, or `seq`'s own that left a window.
            if self._blocks.has_retired or (victim is seq and seq.num_in_flight):
                return 0
            self._preempt(victim)
            if victim is seq:
                return 0

    def _preempt(self, seq: Sequence) -> None:
        self._num_preemptions += 1
        self._running.remove(seq)
        self._back_to_waiting(seq)

    def _back_to_waiting(self, seq: Sequence) -> None:
        seq.status = SequenceStatus.WAITING
        self._give_back(seq)
        insort(self._waiting, seq, key=_rank)

    def _decode(self, step: _Step, seq: Sequence) -> None:
        """One token more of a running sequence. As short as can be: hundreds of rows in every step."""
        start = seq.num_computed_tokens
        if start == seq.num_slots and not self._make_room(seq, 1):
            return
        if seq.has_new_blocks:
            step.appended += self._blocks.take_appends(seq)
        assert seq.row is not None
        step.decodes.append(RowStep(seq.row, seq.seq_id, start, 1, seq.samples))
        step.decoding.append(seq)
        seq.num_computed_tokens = start + 1
        if seq.samples:
            seq.num_tokens += 1
            step.num_samples += 1
        seq.num_in_flight += 1
        seq.last_step = step.number

    def _compute(self, step: _Step, seq: Sequence, num_tokens: int, is_last: bool) -> None:
        """Writes a chunk down and counts it as computed; after the last one, the next token can be sampled."""
        assert seq.row is not None
        samples = is_last and seq.samples
        step.appended += self._blocks.take_appends(seq)
        row = RowStep(seq.row, seq.seq_id, seq.num_computed_tokens, num_tokens, samples)
        if num_tokens == 1:
            step.decodes.append(row)
            step.decoding.append(seq)
        else:
            step.chunks.append(row)
            step.prefilling.append(seq)
        seq.num_computed_tokens += num_tokens
        seq.num_tokens += samples
        step.num_samples += samples
        seq.num_in_flight += 1
        seq.last_step = step.number

    def _admit(self, step: _Step, budget: int) -> None:
        """Moves waiting sequences to running while tokens, rows and blocks last."""
        # With all rows taken, one comes free every step or so. Prompts beside decoding rows have a price of their own
        # (another kind of step, launched anew), so let some come free first, unless the step pays it anyway.
        if not step.chunks and len(self._free_rows) < min(self._config.max_num_seqs // 32, len(self._waiting)):
            return
        while self._waiting and self._free_rows and budget > 0:
            seq = self._waiting[0]
            if seq.num_in_flight:  # preempted with tokens in flight
                break
            # Looking up a long prompt in every step, only to refuse it again, would cost more than the step's decode.
            if self._running and self._refused[0] is seq and self._blocks.num_free_blocks <= self._refused[1]:
                break
            path = self._blocks.match(seq)
            if not self._blocks.can_admit(seq, path, len(self._running)):
                self._refused = (seq, self._blocks.num_free_blocks)
                break
            self._start_running(seq, path)
            wanted = seq.num_uncomputed_tokens
            num_tokens = self._blocks.grow(seq, min(wanted, budget))
            assert num_tokens > 0, f"{seq} was admitted without a free block"
            budget -= num_tokens
            assert seq.row is not None
            step.admissions.append(
                Admission(
                    seq.row,
                    seq.seq_id,
                    list(seq.token_ids),
                    seq.origin,
                    seq.params,
                    seq.adapter,
                    seq.constraint is not None,
                )
            )
            self._compute(step, seq, num_tokens, num_tokens == wanted)

    def _start_running(self, seq: Sequence, path: list[Node]) -> None:
        self._refused = (None, 0)
        self._waiting.remove(seq)
        seq.status = SequenceStatus.RUNNING
        seq.row = heapq.heappop(self._free_rows)
        insort(self._running, seq, key=_rank)
        self._blocks.admit(seq, path)
        if not seq.was_admitted:
            seq.was_admitted = True
            seq.num_cached_tokens = seq.num_computed_tokens
            self._num_prompt_tokens += seq.num_prompt_tokens
            self._num_cached_tokens += seq.num_cached_tokens

    def _launch(self, step: _Step) -> ScheduledBatch:
        self._num_steps = step.number
        steps, sequences = step.decodes + step.chunks, step.decoding + step.prefilling
        only_decodes = not step.chunks and step.num_samples == len(steps)
        # Who decoded in the last step has one token to compute again, unless it came back with another context.
        is_repeat = not step.admissions and sequences == self._decoding
        self._decoding = sequences if only_decodes else None
        batch = ScheduledBatch(step.number, step.admissions, step.appended, steps, is_repeat)
        self._launched.append(_Launched(batch, sequences))
        self._num_computed_tokens += len(step.decodes) + sum(row.num_tokens for row in step.chunks)
        return batch

    # ---- update

    def _take_sample(self, seq: Sequence, token_id: int, logprobs: TokenLogprobs | None, error: str | None) -> TokenRow:
        if error is not None:
            self._blocks.forget(seq)
            return self._finish(seq, "error", error=error)
        token_ids = seq.token_ids
        token_ids.append(token_id)
        self._num_generated_tokens += 1
        is_stop = token_id in seq.stop_token_ids
        if seq.constraint is not None and (end := self._take_constrained(seq, seq.constraint, logprobs, is_stop)):
            return end
        if seq.is_reported and logprobs is None and not is_stop and len(token_ids) < seq.max_length:
            return TokenRow(seq.seq_id, [token_id], truncated=seq.is_truncated)  # all but a few rows
        kept = [] if logprobs is None else [logprobs]
        if is_stop:
            return self._finish(seq, "stop", [token_id], kept)
        if len(token_ids) < seq.max_length:
            return self._row(seq, [token_id], kept)
        if seq.num_generated_tokens == seq.params.max_tokens or not seq.params.shift:
            return self._finish(seq, "length", [token_id], kept)
        self._shift(seq)
        return self._row(seq, [token_id], kept)

    def _take_constrained(
        self, seq: Sequence, constraint: TokenConstraint, logprobs: TokenLogprobs | None, is_stop: bool
    ) -> TokenRow | None:
        """Tells the constraint of the newest token; the sequence's last row where it ends by that."""
        token_id = seq.token_ids[-1]
        constraint.accept(token_id)
        if constraint.error is not None:
            return self._finish(seq, "error", error=constraint.error)
        if is_stop or not constraint.is_over:
            return None
        # The end that had to come is told at once; a step that could sample nothing else is not worth its time.
        ends = [] if token_id == constraint.end_token_id else [constraint.end_token_id]
        return self._finish(seq, "stop", [token_id, *ends], [] if logprobs is None else [logprobs])

    def _shift(self, seq: Sequence) -> None:
        self._num_shifts += 1
        if seq.status is SequenceStatus.RUNNING:
            self._running.remove(seq)
            self._back_to_waiting(seq)
        seq.shift()

    def _finish(
        self,
        seq: Sequence,
        reason: str,
        token_ids: list[int] | None = None,
        logprobs: list[TokenLogprobs] | None = None,
        error: str | None = None,
    ) -> TokenRow:
        (self._running if seq.status is SequenceStatus.RUNNING else self._waiting).remove(seq)
        seq.status = SequenceStatus.FINISHED
        del self._sequences[seq.seq_id]
        self._num_constrained -= seq.constraint is not None
        self._give_back(seq)
        return self._row(seq, token_ids or [], logprobs or [], reason, error)

    def _row(
        self,
        seq: Sequence,
        token_ids: list[int],
        logprobs: list[TokenLogprobs],
        reason: str | None = None,
        error: str | None = None,
    ) -> TokenRow:
        num_cached_tokens = 0 if seq.is_reported else seq.num_cached_tokens
        seq.is_reported = True
        return TokenRow(seq.seq_id, token_ids, logprobs, reason, num_cached_tokens, seq.is_truncated, error)

    def _give_back(self, seq: Sequence) -> None:
        """Takes row and blocks from a sequence; they return with the result of its last launched step."""
        self._blocks.release(seq)
        if seq.row is not None:
            if seq.num_in_flight:
                self._retired_rows.append((seq.row, seq.last_step))
            else:
                heapq.heappush(self._free_rows, seq.row)
            seq.row = None

    def _step_done(self, step: int) -> None:
        self._blocks.step_done(step)
        for row, last_step in self._retired_rows:
            if last_step <= step:
                heapq.heappush(self._free_rows, row)
        self._retired_rows = [(row, last_step) for row, last_step in self._retired_rows if last_step > step]

    # ---- limits

    def _limit(self, seq: Sequence) -> int:
        return min(self.max_context, seq.params.max_context or self.max_context)

    def _name_of_limit(self, limit: int, seq: Sequence) -> str:
        if limit == seq.params.max_context:
            return "num_ctx"
        return "the memory of the KV cache" if limit < self._config.max_context else "the limit by another model"

    def _new_block_manager(self, num_blocks: int) -> BlockManager:
        config = self._config
        return BlockManager(
            num_blocks, config.block_size, config.windows, config.max_num_batched_tokens, config.kv_cache_type
        )


def _rank(seq: Sequence) -> tuple[int, int]:
    return seq.rank
