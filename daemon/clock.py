"""Clock: the one seam through which the daemon reads time, so that tests need not wait for it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Durations come from the monotonic clock, dates from the wall clock; never one from the other."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some start; never goes back."""
        ...

    def time_ns(self) -> int:
        """Nanoseconds since 1970 in UTC."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def time_ns(self) -> int:
        return time.time_ns()


def rfc3339(time_ns: int) -> str:
    """UTC with nine digits of fraction, e.g. "2026-01-31T12:00:00.000000001Z"."""
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    # Every chunk has one: isoformat takes a fifth of strftime's time.
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{fraction:09d}Z"
