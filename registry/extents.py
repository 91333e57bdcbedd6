"""Extents: which bytes of a blob are here, which are on their way, and which are missing.

`registry.transfer` keeps one, and guards it; there are no locks, no threads and no files in here. Every byte of
[0, size) is in exactly one of three places: a segment that is here, a claim that somebody is fetching, a hole.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from registry.journal import Segment


class Extents:
    """Args:
    segments: what is here, in order and without overlaps.
    size: bytes of the blob; where they are not known, more than it can have.
    """

    def __init__(self, segments: Iterable[Segment], size: int) -> None:
        self._size = size
        self._segments = {segment.start: segment for segment in segments}
        self._claims: dict[int, int] = {}  # what is left of each: start -> stop
        self._holes: list[tuple[int, int]] = []  # in order; [start, stop)
        position = 0
        for segment in self._segments.values():
            if position < segment.start:
                self._holes.append((position, segment.start))
            position = segment.stop
        if position < size:
            self._holes.append((position, size))

    @property
    def has_holes(self) -> bool:
        return bool(self._holes)

    @property
    def first_run(self) -> list[Segment]:
        """The segments before the first byte that is not here."""
        run: list[Segment] = []
        while segment := self._segments.get(run[-1].stop if run else 0):
            run.append(segment)
        return run

    def segment_at(self, start: int) -> Segment | None:
        return self._segments.get(start)

    def claim(self, max_bytes: int) -> tuple[int, int]:
        """Take the beginning of the first hole, [start, stop); there must be one."""
        start, end = self._holes.pop(0)
        stop = min(end, start + max_bytes)
        if stop < end:
            self._holes.insert(0, (stop, end))
        self._claims[start] = stop
        return start, stop

    def arrive(self, segment: Segment) -> None:
        """The next bytes of a claim are here."""
        stop = self._claims.pop(segment.start)
        if segment.stop < stop:
            self._claims[segment.stop] = stop
        self._segments[segment.start] = segment

    def give_back(self, start: int, stop: int) -> None:
        """Make a hole of what is left of a claim, if anything is."""
        if start < stop:
            del self._claims[start]
            bisect.insort(self._holes, (start, stop))

    def lose(self, segment: Segment) -> None:
        """Make a hole of a segment."""
        del self._segments[segment.start]
        bisect.insort(self._holes, (segment.start, segment.stop))

    def end_at(self, size: int) -> None:
        """The blob turned out to end here, where the only claim has come to."""
        self._claims.pop(size, None)
        self._size = size

    def check(self) -> None:
        """Raise AssertionError unless every byte is in exactly one place."""
        spans = [(segment.start, segment.stop) for segment in self._segments.values()]
        spans = sorted([*spans, *self._claims.items(), *self._holes])
        position = 0
        for start, stop in spans:
            assert start == position < stop, f"byte {position} is nowhere, or [{start}, {stop}) overlaps"
            position = stop
        assert position == self._size
        assert self._holes == sorted(self._holes)
