"""Sequence: one prompt and its continuation, as the scheduler sees it.

There is no prefill flag. A sequence has tokens, and `num_computed_tokens` chases `num_tokens`; what is a prefill, a
chunk of one, a decode or a recompute is only how far the two are apart.

When the scheduler runs ahead of the device, launched steps will yield tokens that nobody on the host knows yet. They
are counted in `num_tokens`:

    token_ids                              in flight
    [0 ............................ len)  [len .. num_tokens)
    [0 .. num_done_tokens)  result has arrived: full blocks may be cached
          [num_done_tokens .. num_computed_tokens)  launched

The legal changes of status are the table TRANSITIONS; an illegal one raises and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from enum import Enum
from typing import Protocol

from engine.sampling_params import SamplingParams
from engine.scheduling.block_pool import Block, Node


class SequenceStatus(Enum):
    """Where a sequence is. A preempted or shifted sequence is WAITING again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


TRANSITIONS: Mapping[SequenceStatus, frozenset[SequenceStatus]] = {
    SequenceStatus.WAITING: frozenset({SequenceStatus.RUNNING, SequenceStatus.FINISHED}),
    SequenceStatus.RUNNING: frozenset({SequenceStatus.WAITING, SequenceStatus.FINISHED}),
    SequenceStatus.FINISHED: frozenset(),
}


class IllegalTransition(RuntimeError):
    """A change of status that TRANSITIONS does not list: a bug of the scheduler."""


class TokenConstraint(Protocol):
    """What a sequence's text must look like, and how far it is; engine.grammar.state has it."""

    @property
    def end_token_id(self) -> int:
        """A token that ends a text."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether the text is complete and nothing but an end can follow."""
        ...

    @property
    def error(self) -> str | None:
        """A sentence, where the text cannot go on."""
        ...

    def accept(self, token_id: int) -> None:
        """Takes the next token."""
        ...


class Sequence:
    """State of one request. Owned and changed by the Scheduler; `add` fills in what the constructor leaves empty.

    What every step looks at in every row is a plain number here, kept up to date where it changes: `num_tokens`,
    `max_length`, `num_slots`, `next_block_event`. A step of hundreds of rows has well under a millisecond.
    """

    def __init__(
        self,
        seq_id: int,
        prompt_ids: Seq[int],
        params: SamplingParams,
        *,
        cache_salt: str = "",
        adapter: int = 0,
        priority: int = 0,
        constraint: TokenConstraint | None = None,
    ) -> None:
        self.seq_id = seq_id
        self.token_ids = list(prompt_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.params = params
        self.cache_salt = cache_salt
        self.adapter = adapter
        self.priority = priority
        self.constraint = constraint
        """It knows every token whose value is known; its sequence takes no step while one is in flight."""

        self.arrival = 0
        """Number of the sequence in the order of `add`."""
        self.max_context = 0
        """Tokens, generated ones included, that this sequence may have at a time."""
        self.origin = self.num_prompt_tokens
        """The token at position p is generation number p - origin; a context shift moves it, the noise goes on."""
        self.max_length = 0
        """With so many tokens it wants no more, for now: it has all that were asked for, or its context is full."""
        self.samples = params.max_tokens != 0
        """Whether it wants tokens at all, or only its prompt computed."""
        self.stop_token_ids = () if params.ignore_eos else params.stop_token_ids

        self._status = SequenceStatus.WAITING
        self.row: int | None = None
        self.block_tables: list[list[Block]] = []
        """One a KV group, all of the same length; the pool's dummy where a block has left the window."""
        self.num_dead_blocks: list[int] = []
        """Leading table entries that have left the window, one count a KV group."""
        self.num_sent_blocks = 0
        """Table entries that the runner knows."""
        self.swapped_blocks: list[tuple[int, int]] = []
        """(group, index) of entries that changed after they were sent."""
        self.has_new_blocks = False
        """Whether the runner does not know all of the tables."""
        self.num_slots = 0
        """Tokens that its blocks have room for, from the sequence's beginning."""
        self.next_block_event = 0
        """Value of num_done_tokens at which the next block is full or leaves a window."""

        self.num_tokens = self.num_prompt_tokens
        """Known tokens and those in flight."""
        self.num_computed_tokens = 0
        self.num_done_tokens = 0
        self.num_in_flight = 0
        """Launched steps that have not been updated, those before a preemption included."""
        self.last_step = 0
        """The last step launched for this sequence."""
        self.was_admitted = False

        self.node: Node | None = None
        """The radix cache's node of the last full block that is cached; None before the first."""
        self.num_cached_blocks = 0
        self.num_cached_tokens = 0
        """Tokens that the first admission found in the prefix cache."""
        self.is_reported = False
        """Whether a row has been sent."""
        self.is_truncated = False
        """Whether the context has been shifted."""

    def __repr__(self) -> str:
        return f"Sequence({self.seq_id}, {self._status.value}, {self.num_computed_tokens}/{self.num_tokens} tokens)"

    @property
    def status(self) -> SequenceStatus:
        return self._status

    @status.setter
    def status(self, status: SequenceStatus) -> None:
        if status not in TRANSITIONS[self._status]:
            raise IllegalTransition(f"sequence {self.seq_id} cannot go from {self._status.value} to {status.value}")
        self._status = status

    @property
    def rank(self) -> tuple[int, int]:
        """Who is served first: priority, then arrival; the greatest is preempted first."""
        return (self.priority, self.arrival)

    @property
    def num_generated_tokens(self) -> int:
        """Generated tokens whose value is known, those that a shift has dropped included."""
        return len(self.token_ids) - self.origin

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens to compute before the next one can be sampled; 0 once the last token it wants is known or in flight.

        A length stop is predictable, so no step is spent on the token that ends the sequence.
        """
        return self.num_tokens - self.num_computed_tokens if self.num_tokens < self.max_length else 0

    def set_max_context(self, max_context: int) -> None:
        """Limits the tokens that the sequence may have at a time."""
        self.max_context = max_context
        max_tokens = self.params.max_tokens
        if max_tokens is None:
            self.max_length = max_context
        elif max_tokens == 0:
            self.max_length = self.num_prompt_tokens + 1  # out of reach: all of the prompt is computed
        else:
            self.max_length = min(max_context, self.origin + max_tokens)

    def forget_in_flight(self) -> None:
        """Launched steps will yield nothing."""
        self.num_in_flight = 0
        self.num_tokens = len(self.token_ids)

    def shift(self) -> None:
        """Drops about half of the tokens after the first `num_keep`: the context is full and generation shall go on.

        The last quarter of the context is never kept, whatever `num_keep` says; a sequence could not go on otherwise.
        """
        keep = self.num_prompt_tokens if self.params.num_keep < 0 else self.params.num_keep
        keep = min(keep, self.max_context - max(2, self.max_context // 4))
        dropped = (len(self.token_ids) - keep) // 2
        del self.token_ids[keep : keep + dropped]
        self.origin -= dropped
        self.num_tokens -= dropped
        self.set_max_context(self.max_context)
        self.is_truncated = True
