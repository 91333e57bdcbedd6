"""LLMEngine: the one place where the scheduler and the runner meet. Called by the worker's loop and by engine.llm.

One step is three calls: schedule, launch, update. With `run_ahead` n, n more steps are launched before the result of
the first is awaited, so that the device never waits for Python; 0 is the plain order, and both give the same tokens.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import msgspec

from engine.embedding_engine import Embedder
from engine.errors import EngineError
from engine.messages import Load, Stats, TokenRow
from engine.scheduling.batch import Handle, Runner, ScheduledBatch, TokenMasks
from engine.scheduling.scheduler import Scheduler, SchedulerConfig
from engine.scheduling.sequence import Sequence, TokenConstraint

FillMasks = Callable[[list[tuple[int, TokenConstraint]]], TokenMasks]
"""Starts to compute the masks of rows with a constraint."""


@runtime_checkable
class LoadedRunner(Runner, Embedder, Protocol):
    """A model on a device that generates, as the worker needs it (ModelRunner, or a fake in tests)."""

    @property
    def windows(self) -> tuple[int | None, ...]:
        """One a KV group; position p attends [p - window + 1, p], None: all before p."""
        ...

    def has_adapter(self, adapter: int) -> bool:
        """Whether a number is an adapter's; 0 is none, and always there."""
        ...

    def has_room_for(self, files: Mapping[str, str]) -> bool:
        """Whether adapters fit beside the KV cache as it is. Raises what `add_adapter` does."""
        ...

    def add_adapter(self, adapter: int, files: Mapping[str, str]) -> None:
        """Loads adapters under one number, while no KV cache is allocated if there is no room for both."""
        ...

    def remove_adapter(self, adapter: int) -> None:
        """Gives an adapter's memory back. No step is in flight, and no sequence uses it."""
        ...

    def prepare(self) -> bool:
        """Does a piece of the work that would delay a later step; False when none is left. No step is in flight."""
        ...

    def free_kv(self) -> None:
        """Gives the memory of the KV cache back. No step is in flight."""
        ...

    def allocate_kv(self, num_blocks: int = 0, budget_bytes: int = 0) -> None:
        """Allocates the KV cache anew; 0 computes the number. No step is in flight, all rows are forgotten."""
        ...


class LLMEngine:
    """A scheduler and a runner, and the steps between them."""

    def __init__(
        self, scheduler: Scheduler, runner: Runner, run_ahead: int = 1, fill_masks: FillMasks | None = None
    ) -> None:
        """
        Args:
            fill_masks: needed by sequences with a constraint.
        """
        self.scheduler = scheduler
        self._fill_masks = fill_masks
        self._runner = runner
        self._run_ahead = run_ahead
        self._launched: deque[tuple[ScheduledBatch, Handle]] = deque()

    @classmethod
    def for_runner(cls, runner: LoadedRunner, load: Load, fill_masks: FillMasks | None = None) -> LLMEngine:
        """The engine over a loaded model, with the limits that it was loaded with."""
        ready = runner.ready
        max_num_seqs = load.max_num_seqs or ready.max_num_seqs
        config = SchedulerConfig(
            num_blocks=ready.num_blocks,
            block_size=ready.block_size,
            windows=runner.windows,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max(load.max_num_batched_tokens, max_num_seqs),
            max_context=ready.max_context,
            kv_cache_type=load.kv_cache_type,
        )
        return cls(Scheduler(config), runner, load.run_ahead, fill_masks)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self.scheduler.has_work

    def add(self, seq: Sequence) -> None:
        """Queues a sequence.

        Raises:
            SchedulerError: it can never run.
        """
        self.scheduler.add(seq)

    def abort(self, seq_id: int) -> TokenRow | None:
        """Ends a sequence; its row, or None if there is none of that number."""
        return self.scheduler.abort(seq_id)

    def step(self) -> list[TokenRow]:
        """Launches what can be launched and takes in the oldest result.

        Raises:
            EngineError: sequences wait and nothing can ever wake them, a bug of the scheduler.
            Exception: whatever the runner raises; then call `fail` before the next step.
        """
        while len(self._launched) <= (self._run_ahead if self.scheduler.runs_ahead else 0):
            batch = self.scheduler.schedule()
            if batch is None:
                break
            # The masks are filled while the step is put together, and where the runner can, while it is computed.
            constraints = self.scheduler.constraints()
            masks = self._fill_masks(constraints) if constraints and self._fill_masks is not None else None
            self._launched.append((batch, self._runner.launch(batch, masks)))
        if not self._launched:
            if self.scheduler.has_work:
                raise EngineError("no sequence can run although some are unfinished; this is a bug of the scheduler")
            return []
        return self._collect()

    def drain(self) -> list[TokenRow]:
        """Takes in the results of all launched steps and launches no more."""
        rows = []
        while self._launched:
            rows += self._collect()
        return rows

    def fail(self, error: str) -> list[TokenRow]:
        """After an exception of `step` or `drain`: ends the running sequences with `error` and forgets all KV."""
        while self._launched:
            _, handle = self._launched.popleft()
            # Their sequences end here anyway, and a broken device would only say the same again.
            with contextlib.suppress(Exception):
                handle.result()
        return self.scheduler.fail(error)

    def stats(self, *, is_sleeping: bool = False) -> Stats:
        """Counters since the model was loaded."""
        return msgspec.structs.replace(self.scheduler.stats(), is_sleeping=is_sleeping)

    def _collect(self) -> list[TokenRow]:
        batch, handle = self._launched.popleft()
        return self.scheduler.update(batch, handle.result())
