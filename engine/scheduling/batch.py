"""The contract between Scheduler and ModelRunner: plain integers that could be sent to another rank.

The runner keeps state for each *row* for a request's whole life: its tokens, its block tables (one a KV group), its
sampling parameters. The scheduler sends differences only: who came (`admitted`), which blocks were added (`appended`),
who computes how many tokens (`steps`). A sampled token is written by the runner at position `start + num_tokens` of its
row, where the next step reads it, so the scheduler may run a step ahead without knowing its value.
The row of a sequence that has left stays its own until its last launched step is done: that step writes its token to
a row that nobody else has, whatever order the device works in.
When the same rows decode on and on, a step says so in one flag (`is_repeat`), and the runner need not look at its rows.

Positions are absolute, intervals half-open: a step computes [start, start + num_tokens).

The structs hold no reference cycles and are made hundreds a step, so the garbage collector need not follow them
(`gc=False`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DUMMY_BLOCK = 0
"""Block 0 belongs to nobody: padding, and table entries whose block has left a sliding window, point at it."""


class Admission(msgspec.Struct, frozen=True, gc=False):
    """A sequence takes a row: at its first step, after a preemption, and after a context shift.

    It replaces whatever the row held. Block tables start empty; every block, cached ones too, comes in `appended`.
    """

    row: int
    seq_id: int
    token_ids: list[int]
    """All tokens known so far: prompt and, after a preemption, what was generated."""
    origin: int
    """The token at position p is generation number p - origin, the counter of its noise; negative after a shift."""
    params: SamplingParams
    adapter: int = 0
    is_constrained: bool = False
    """Whether each of its steps that sample comes with a mask."""


class BlockAppend(msgspec.Struct, frozen=True, gc=False):
    """Blocks for the table of `row` in KV group `group`: entries [start, start + len(block_ids)) are set.

    Entries below `dead` have left the group's window and may be overwritten by DUMMY_BLOCK.
    """

    row: int
    group: int
    start: int
    block_ids: list[int]
    dead: int = 0


class RowStep(msgspec.Struct, frozen=True, gc=False):
    """One row's share of a step: compute positions [start, start + num_tokens)."""

    row: int
    seq_id: int
    start: int
    num_tokens: int
    samples: bool
    """Whether the last position's logits yield the token at `start + num_tokens`."""


class ScheduledBatch(msgspec.Struct, frozen=True, gc=False):
    """One step. Rows appear once; rows that only decode come first."""

    step: int
    admitted: list[Admission]
    appended: list[BlockAppend]
    steps: list[RowStep]
    is_repeat: bool = False
    """Whether this is the step launched before it, each row one token further: then a runner can advance what it built.

    Exactly: this step and the one before have the same rows of the same sequences in the same order, each computes one
    token and samples in both, and nobody is admitted in this one. Tables may grow all the same: `appended` is as ever.
    """

    @property
    def num_tokens(self) -> int:
        return sum(step.num_tokens for step in self.steps)


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Natural-log probabilities at one position, before temperature and filters."""

    logprob: float
    top: list[tuple[int, float]]
    """(token id, log-probability) of the likeliest, descending."""


class StepResult(msgspec.Struct):
    """What a step yields: one entry for each RowStep with `samples`, in their order."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
    errors: list[str | None]
    """A sentence where the row's logits were not finite; its token id is then 0 and the sequence ends with "error"."""


class TokenMasks(Protocol):
    """Which tokens constrained rows of a step may sample; they may still be computed when the step is launched."""

    @property
    def rows(self) -> Sequence[int]:
        """The rows, in the order of the batch's steps."""
        ...

    def words(self) -> npt.NDArray[np.int32]:
        """Waits for them: [num_rows, ceil(vocab_size / 32)], bit t % 32 of word t // 32 for token t."""
        ...


class Handle(Protocol):
    """A launched step."""

    def result(self) -> StepResult:
        """Waits for the step. Called once, in the order of launches."""
        ...


class Runner(Protocol):
    """The seam at which tests put a fake."""

    def launch(self, batch: ScheduledBatch, masks: TokenMasks | None = None) -> Handle:
        """Starts a step; the device may still be running the one before.

        Args:
            masks: of all constrained rows that sample in it; None where there are none.
        """
        ...
