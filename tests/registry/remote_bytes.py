"""A source of blobs in memory, that does what a test tells it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from registry.errors import RemoteError
from registry.manifest import Digest
from registry.remote import RangeReply, RemoteBlob
from registry.retries import RetryPolicy
from registry.transfer_limits import TransferLimits

SMALL_LIMITS = TransferLimits(
    max_streams=3,
    min_chunk_bytes=16_000,
    max_chunk_bytes=16_000,
    segment_bytes=4_000,
    sync_bytes=100_000,
    retries=RetryPolicy(max_attempts=4, first_pause_s=0.001, max_pause_s=0.002, max_retry_after_s=0.01),
    min_progress_bytes=1,
)
"""For blobs of some 100 KB."""


def random_bytes(num_bytes: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(b"%d" % seed).digest(num_bytes)


@dataclass
class RemoteBytes:
    """Bytes that can be asked for by ranges.

    `on_request(number, start)` is called before each reply and may raise; `on_piece(position)` before each piece.
    """

    data: bytes
    piece_bytes: int = 1_000
    has_ranges: bool = True
    validator: str = '"v1"'
    total: int | None = -1
    """What replies say of the size; -1 is the truth."""
    on_request: Callable[[int, int], object] = lambda number, start: None
    on_piece: Callable[[int], object] = lambda position: None
    on_interrupt: Callable[[], object] = lambda: None
    requests: list[tuple[int, int | None]] = field(default_factory=list)
    num_sent: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def open(self, start: int, stop: int | None) -> Iterator[RangeReply]:
        with self._lock:
            number = len(self.requests)
            self.requests.append((start, stop))
        self.on_request(number, start)
        if not self.has_ranges:
            start, stop = 0, None
        total = len(self.data) if self.total == -1 else self.total
        yield RangeReply(start, total, self.validator, self._pieces(start, stop), self._interrupt)

    def _interrupt(self) -> None:
        self.on_interrupt()

    def _pieces(self, start: int, stop: int | None) -> Iterator[bytes]:
        end = len(self.data) if stop is None else stop
        for position in range(start, end, self.piece_bytes):
            self.on_piece(position)
            piece = self.data[position : min(end, position + self.piece_bytes)]
            with self._lock:
                self.num_sent += len(piece)
            yield piece

    def blob(
        self, *, announced: bytes | None = None, key: str = "", has_digest: bool = True, **more: object
    ) -> RemoteBlob:
        """As a source describes it; `announced` are the bytes that it believes to have."""
        announced = self.data if announced is None else announced
        digest = Digest.of(announced)
        fields: dict[str, object] = {
            "key": key or str(digest),
            "label": digest.hex[:12],
            "size": len(announced),
            "digest": digest if has_digest else None,
            "git_hash": "",
            "open": self.open,
        }
        return RemoteBlob(**(fields | more))  # type: ignore[arg-type]


def broken(text: str = "reset", **more: bool | float) -> RemoteError:
    return RemoteError(f"registry.test: {text}", is_temporary=True, **more)  # type: ignore[arg-type]


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
