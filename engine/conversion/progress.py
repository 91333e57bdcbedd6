"""Progress: counts bytes of a long job and tells whoever asked, not more often than a person can see."""

from __future__ import annotations

from collections.abc import Callable

MAX_REPORTS = 1000


class Progress:
    """Args: bytes of the whole job, and who is told (bytes done, bytes in all)."""

    def __init__(self, total_bytes: int, on_progress: Callable[[int, int], None]) -> None:
        self._total_bytes = total_bytes
        self._on_progress = on_progress
        self._done_bytes = 0
        self._told_bytes = 0

    def advance(self, num_bytes: int) -> None:
        """So many bytes more are done."""
        self._done_bytes += num_bytes
        is_over = self._done_bytes >= self._total_bytes
        if is_over or self._done_bytes - self._told_bytes >= self._total_bytes / MAX_REPORTS:
            self._told_bytes = self._done_bytes
            self._on_progress(self._done_bytes, self._total_bytes)
