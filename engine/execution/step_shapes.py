"""What sizes a step on a GPU is rounded up to, so that few graphs serve all steps. Pure arithmetic, for `gpu_steps`.

A step is a segment of rows that bring one token each, and a segment of rows that bring any number of tokens. Padding of
the first costs next to nothing, since a product takes as long for 20 tokens as for 24. Padding of the second is
computed like any token: beyond some hundred tokens it is kept to an eighth of them, and a step that no size comes near
to is launched as it is, kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

DECODE_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""Rows of steps in which each brings one token; beyond, multiples of 64."""
MIXED_DECODES = 32
"""Beside prompts, such rows are rounded up to a multiple of this, or to half of it."""
PROMPT_SIZES = (
    *(16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048),
    *range(2560, 8193, 512),
)  # fmt: skip
"""Tokens of the rows that bring more than one."""
FREE_PADDING = 64
"""Tokens of padding that are worth a graph, however short the prompt."""
PADDING_SHARE = 8
"""Of longer prompts, padding may be one part in this many."""
PROMPT_ROWS = (4, 64)
"""Rows that bring more than one token."""


SEVERAL = -1
"""In the place of an adapter's number: not all rows of a step have the same."""


@dataclass(frozen=True)
class StepShape:
    """What tells one graph from another."""

    num_decodes: int
    """Rows that bring one token and sample, with padding."""
    num_tokens: int
    """Of all other rows together, with padding."""
    num_rows: int
    """All other rows, with padding."""
    is_greedy: bool
    """No row needs more of the logits than their maximum."""
    has_long_row: bool = False
    """A row that decodes is much longer than most."""
    is_rounded: bool = True
    """Whether these are sizes that come again; others get no graph."""
    adapter: int = 0
    """Number of the LoRA adapter that all rows have, 0: none has one, SEVERAL: they differ."""

    @property
    def is_decode(self) -> bool:
        return self.num_tokens == 0

    @property
    def is_small(self) -> bool:
        """Whether its graph is captured at once: the device has little to do, and waits for the host otherwise."""
        return self.is_decode or (self.num_decodes == 0 and self.num_tokens <= 512)


class StepSizes:
    """The rounding for a worker of so many rows and tokens a step."""

    def __init__(self, max_rows: int, max_tokens: int, *, pads: bool) -> None:
        """
        Args:
            pads: off, every step keeps its own size.
        """
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self._pads = pads
        self.max_padding_rows = min(PROMPT_ROWS[-1], max_rows)
        """A step has no more rows than `max_rows` and this, with padding."""

    @property
    def max_padded_tokens(self) -> int:
        """The most tokens that a step has with all its padding."""
        return self.max_tokens + MIXED_DECODES + max(FREE_PADDING, self.max_tokens // PADDING_SHARE)

    def decode(self, num_rows: int, *, is_greedy: bool, has_long_row: bool, adapter: int = 0) -> StepShape:
        """The shape of a step of rows that bring one token each; without padding where their adapters differ."""
        size, pads = num_rows, self._pads and adapter != SEVERAL
        if pads:
            size = next((size for size in DECODE_SIZES if size >= num_rows), -(-num_rows // 64) * 64)
        return StepShape(min(size, self.max_rows), 0, 0, is_greedy, has_long_row, pads, adapter)

    def mixed(
        self,
        num_decodes: int,
        num_tokens: int,
        num_rows: int,
        *,
        is_greedy: bool,
        has_long_row: bool,
        adapter: int = 0,
    ) -> StepShape:
        """The shape of any other step.

        Args:
            num_decodes: rows that bring one token and sample.
            num_tokens: of all other rows, `num_rows`.
        """
        tokens = next((size for size in PROMPT_SIZES if size >= num_tokens), 0)
        rows = next((min(size, self.max_rows) for size in PROMPT_ROWS if min(size, self.max_rows) >= num_rows), 0)
        allowed = max(FREE_PADDING, num_tokens // PADDING_SHARE)
        pads = self._pads and adapter != SEVERAL
        if not pads or not tokens or not rows or tokens - num_tokens > allowed:
            return StepShape(num_decodes, num_tokens, num_rows, is_greedy, has_long_row, False, adapter)
        return StepShape(self._mixed_decodes(num_decodes), tokens, rows, is_greedy, has_long_row, adapter=adapter)

    def expected(self) -> Iterator[StepShape]:
        """What requests will ask for, the likeliest first."""
        if not self._pads:
            return
        sizes = sorted({self.decode(n, is_greedy=True, has_long_row=False).num_decodes for n in self._row_counts()})
        rows = min(PROMPT_ROWS[0], self.max_rows)
        prompts = [size for size in PROMPT_SIZES if size <= self.max_tokens]
        for size in sizes[:4]:
            yield from _both(size, 0, 0)
        for size in prompts:
            yield from _both(0, size, rows)
        for size in sizes[4:]:
            yield from _both(size, 0, 0)
        # While rows decode, the scheduler gives prompts half of a step.
        half = max((size for size in prompts if size <= self.max_tokens // 2), default=0)
        if half:
            for size in sorted({self._mixed_decodes(n) for n in self._row_counts() if n + half <= self.max_tokens}):
                yield from _both(size, half, self.max_padding_rows)

    def _row_counts(self) -> range:
        return range(1, self.max_rows + 1)

    def _mixed_decodes(self, num_decodes: int) -> int:
        if 0 < num_decodes <= MIXED_DECODES // 2:
            return min(MIXED_DECODES // 2, self.max_rows)
        return min(-(-num_decodes // MIXED_DECODES) * MIXED_DECODES, self.max_rows)


def _both(num_decodes: int, num_tokens: int, num_rows: int) -> Iterator[StepShape]:
    """Where somebody samples, which is the default, and where all are greedy."""
    for is_greedy in (False, True):
        yield StepShape(num_decodes, num_tokens, num_rows, is_greedy)
