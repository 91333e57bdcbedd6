"""TransferLimits: how a download goes about it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from registry.retries import RetryPolicy

END = sys.maxsize
"""Where a blob ends as long as its size is not known."""
RETRIES = RetryPolicy(max_attempts=6)
MB = 1024 * 1024


@dataclass(frozen=True)
class TransferLimits:
    """Sizes and times of one blob's transfer; tests make all of them small."""

    max_streams: int = 4
    min_chunk_bytes: int = 16 * MB
    max_chunk_bytes: int = 64 * MB
    segment_bytes: int = 4 * MB
    """The journal is told of so much at a time: what a crash costs, for each stream."""
    sync_bytes: int = 64 * MB
    """So much is hashed between two fsyncs, which spares the last one most of its work."""
    retries: RetryPolicy = RETRIES
    """Attempts are those in a row that make no progress."""
    min_progress_bytes: int = 64 * 1024
    """An attempt that brought less made no progress."""
    window_s: float = 15
    """Over how long the rate of a connection is taken."""
    min_bytes_per_s: float = 1024
    """A connection below this is replaced, and counts as failed."""
    slow_share: float = 0.05
    """A connection below this share of the fastest is replaced, too."""

    def chunk_bytes(self, size: int | None) -> int:
        """How much one request asks for. What comes is hashed in order, so large chunks of a small blob come late."""
        if size is None:
            return END
        return min(max(size // (16 * self.max_streams), self.min_chunk_bytes), self.max_chunk_bytes)

    def num_streams(self, size: int, num_missing: int) -> int:
        """How many connections what is missing of a blob is worth; one at least, since what is here may be wrong."""
        return max(1, min(self.max_streams, -(-num_missing // self.chunk_bytes(size))))
