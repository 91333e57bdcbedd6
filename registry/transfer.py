"""Transfer: a blob's bytes from their source into a partial file, over several connections, hashed in order.

`registry.download` runs one at a time for a blob, and starts another where this one says that the rest must come in
another way (`RangesIgnored`, `VersionChanged`).

Theory of operation.

*Who does what.* The thread that calls `run` reads the file from its beginning as far as it has no holes, and hashes
it; it makes no requests. Up to `max_streams` worker threads claim chunks of what is missing, the first hole first, and
write what comes into the file. So hashing keeps up with the network, and memory holds no more than one piece of each
connection, however large the blob is.

*What is there* are segments: what a worker has written and the journal tells of, a few MB at most, so that little is
lost in a crash. Segments of an earlier process are compared with their checksums when the hash comes by; those that do
not fit are fetched again.

*Failures.* A claim that ends early leaves a hole from where it ended, and any worker takes that. A worker waits longer
after each failure of its own; what came through before sets that back. At `max_attempts` failures the transfer fails,
unless other workers got on meanwhile: then this one retires, since some servers allow few connections.
A connection that crawls is replaced; one that is silent is the source's to notice.

*Ends.* Whoever fails, or cancels, sets `_failure`; everybody looks at it before anything else. `run` does not wait for
workers that are stuck in a read: it takes their claims away, after which they can change nothing, and interrupts the
read.
"""

from __future__ import annotations

import bisect
import hashlib
import random
import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO

from registry.errors import RemoteError, StoreError, as_store_error
from registry.journal import Segment
from registry.manifest import Digest
from registry.partials import Partial
from registry.remote import RangeReply, RemoteBlob
from registry.retries import RetryPolicy

READ_BYTES = 1024 * 1024
END = sys.maxsize
"""Where a claim ends as long as the blob's size is not known."""
RETRIES = RetryPolicy(max_attempts=6)


@dataclass(frozen=True)
class TransferLimits:
    """How a transfer goes about it; tests make all of them small."""

    max_streams: int = 4
    min_chunk_bytes: int = 16 * 1024 * 1024
    max_chunk_bytes: int = 64 * 1024 * 1024
    segment_bytes: int = 4 * 1024 * 1024
    """The journal is told of so much at a time: what a crash costs, for each stream."""
    sync_bytes: int = 256 * 1024 * 1024
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
        """How much one request asks for: enough of them that all streams have work to the end."""
        if size is None:
            return END
        return min(max(size // (4 * self.max_streams), self.min_chunk_bytes), self.max_chunk_bytes)


class RangesIgnored(Exception):
    """The server sends the whole file whatever is asked for; it has to come in one stream."""


class VersionChanged(Exception):
    """The bytes that come now are of another version than those that are here, as far as anybody can tell."""


class Cancelled(RemoteError):
    """Nobody waits for the blob any more, or the daemon ends."""

    def __init__(self, label: str) -> None:
        super().__init__(f"{label}: the download was stopped; what came is kept for the next one")


class Hashes:
    """The hashes of a blob's first bytes.

    Args:
        size: of the whole blob, which a git hash begins with; None where no git hash is wanted.
    """

    def __init__(self, size: int | None) -> None:
        self.num_bytes = 0
        self._sha256 = hashlib.sha256()
        self._git = None if size is None else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        self.num_bytes += len(data)
        self._sha256.update(data)
        if self._git is not None:
            self._git.update(data)

    def copy(self) -> Hashes:
        twin = Hashes(None)
        twin.num_bytes = self.num_bytes
        twin._sha256 = self._sha256.copy()
        twin._git = None if self._git is None else self._git.copy()
        return twin

    @property
    def digest(self) -> Digest:
        return Digest(self._sha256.hexdigest())

    @property
    def git_hash(self) -> str:
        return "" if self._git is None else self._git.hexdigest()


@dataclass(eq=False)
class Claim:
    """Bytes [position, stop) that one worker is fetching."""

    position: int
    stop: int
    recorded: int = -1
    """What was written before this is in the journal."""
    crc: int = 0
    """Of [recorded, position)."""
    is_closed: bool = False
    window_start_s: float = 0.0
    window_bytes: int = 0
    interrupt: Callable[[], None] = lambda: None
    """Ends its worker's read."""
    bytes_per_s: float = 0.0
    """In the last window that is over; 0 before that."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while bytes are written; taken before the transfer's."""


class Transfer:
    """One way of getting what a partial file lacks.

    Args:
        size: bytes of the blob, where that is known.
        resumed: what is there already, in order; may be wrong.
        is_sequential: one stream, from the first hole on; then `resumed` has no further hole.
        validator: the version that `resumed` is of, for a blob without a hash.
    """

    def __init__(
        self,
        partial: Partial,
        blob: RemoteBlob,
        limits: TransferLimits,
        *,
        size: int | None,
        resumed: list[Segment],
        is_sequential: bool,
        validator: str,
    ) -> None:
        self.size = size
        self.completed = sum(segment.stop - segment.start for segment in resumed)
        self._partial = partial
        self._blob = blob
        self._limits = limits
        self._is_sequential = is_sequential
        self._validator = validator
        self._is_versioned = bool(resumed)  # whether `_validator` is that of a reply
        self._unchecked = set(resumed)
        self._changed = threading.Condition()  # guards all that follows, and what is above
        self._segments = {segment.start: segment for segment in resumed}
        self._holes = _holes(resumed, END if size is None else size)
        self._claims: set[Claim] = set()
        self._num_workers = 1 if is_sequential else max(1, limits.max_streams)
        self._not_before_s = 0.0
        self._failure: BaseException | None = None
        self._is_over = False
        self.threads: list[threading.Thread] = []

    @property
    def is_received(self) -> bool:
        """Whether all bytes have come; they may still have to be hashed."""
        return self.size is not None and self.completed >= self.size

    @property
    def first_run(self) -> list[Segment]:
        """The segments before the first hole."""
        run: list[Segment] = []
        while segment := self._segments.get(run[-1].stop if run else 0):
            run.append(segment)
        return run

    def run(self) -> Hashes:
        """Fetch and hash everything.

        Raises:
            RangesIgnored, VersionChanged: what is here stays; the rest must come in another way.
            Cancelled: `cancel` was called.
            RemoteError: the source failed.
            OutOfSpace, StoreError: the disk refused.
        """
        names = (f"download {self._blob.label} {number}" for number in range(self._num_workers))
        self.threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        try:
            for thread in self.threads:
                thread.start()
            return self._hash_in_order()
        finally:
            self._end()

    def cancel(self) -> None:
        self._fail(Cancelled(self._blob.label))

    # ---- the hashing thread

    def _hash_in_order(self) -> Hashes:
        hashes = Hashes(self.size if self._blob.git_hash else None)
        num_synced = 0
        with as_store_error("read a downloaded file"), FileIO(self._partial.path) as file:
            while (segment := self._next_segment(hashes.num_bytes)) is not None:
                ahead = hashes.copy()
                if not _read_into(ahead, file, segment, has_crc=segment in self._unchecked):
                    self._lose(segment)
                    continue
                hashes = ahead
                if hashes.num_bytes - num_synced >= self._limits.sync_bytes:
                    self._partial.sync()
                    num_synced = hashes.num_bytes
        return hashes

    def _next_segment(self, position: int) -> Segment | None:
        """Wait for the segment that begins here; None at the end of the blob."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure is not None or position in self._segments or position == self.size
            )
            if self._failure is not None:
                raise self._failure
            return self._segments.get(position)

    def _lose(self, segment: Segment) -> None:
        """Have a segment fetched again whose bytes are not those that were written."""
        self._partial.drop(segment.start, segment.stop)
        self._unchecked.discard(segment)
        with self._changed:
            del self._segments[segment.start]
            self.completed -= segment.stop - segment.start
            bisect.insort(self._holes, (segment.start, segment.stop))
            self._changed.notify_all()

    def _end(self) -> None:
        """Take all claims away, noting what they brought."""
        with self._changed:
            self._is_over = True
            claims = list(self._claims)
            self._changed.notify_all()
        for claim in claims:
            self._give_back(claim)
            claim.interrupt()

    # ---- the workers

    def _work(self) -> None:
        num_failures = completed_before = 0
        try:
            while (claim := self._claim()) is not None:
                start = claim.position
                try:
                    self._receive(claim)
                    num_failures = 0
                except RemoteError as error:
                    if claim.position - start >= self._limits.min_progress_bytes:
                        num_failures = 0
                    if num_failures == 0:
                        completed_before = self.completed
                    num_failures += 1
                    if not error.is_temporary:
                        raise
                    if num_failures >= self._limits.retries.max_attempts:
                        if self.completed - completed_before < self._limits.min_progress_bytes:
                            raise RemoteError(f"{error}; gave up after {num_failures} attempts") from error
                        if self._retire():
                            return
                        num_failures = 1
                    self._give_back(claim)
                    self._pause(error, num_failures)
                finally:
                    self._give_back(claim)
        except BaseException as error:
            self._fail(error)

    def _claim(self) -> Claim | None:
        """Wait for something to fetch; None where nothing is left to do."""
        with self._changed:
            while not self._is_done:
                wait_s = self._not_before_s - time.monotonic()
                if wait_s <= 0 and self._holes:
                    start, stop = self._holes.pop(0)
                    end = stop if self._is_sequential else min(stop, start + self._limits.chunk_bytes(self.size))
                    if end < stop:
                        bisect.insort(self._holes, (end, stop))
                    claim = Claim(start, end, recorded=start)
                    self._claims.add(claim)
                    return claim
                # Nothing now, but another worker may fail and leave a hole.
                self._changed.wait(wait_s if wait_s > 0 else None)
        return None

    @property
    def _is_done(self) -> bool:
        return self._is_over or self._failure is not None

    def _receive(self, claim: Claim) -> None:
        """Fetch a claim to its end.

        Raises:
            RemoteError: it was not reached.
            RangesIgnored, VersionChanged: as `run`.
        """
        until = None if claim.stop == END or self._is_sequential else claim.stop
        with self._blob.open(claim.position, until) as reply:
            position = reply.start
            self._check(reply, claim)
            claim.window_start_s = time.monotonic()
            claim.interrupt = reply.interrupt
            if self._is_done:  # whoever ended the transfer did not see `interrupt` in time
                return
            for data in reply.chunks:
                position += len(data)
                self._watch_rate(claim, len(data))
                # A server without ranges begins at 0, whatever is here already.
                if position > claim.position and not self._take(claim, data[claim.position - position :]):
                    with suppress(RemoteError):  # a body that was read to its end leaves a connection for the next
                        next(reply.chunks, None)
                    return
            self._end_of_body(claim, reply)

    def _check(self, reply: RangeReply, claim: Claim) -> None:
        """Whether a reply is of use."""
        if reply.start not in (0, claim.position):
            raise RemoteError(
                f"{self._blob.label}: asked for bytes from {claim.position} on, the server sends from {reply.start} on",
                is_temporary=True,
            )
        if None not in (reply.total, self.size) and reply.total != self.size:
            raise RemoteError(
                f"{self._blob.label}: the server has {reply.total} bytes where {self.size} were announced",
                is_temporary=True,
            )
        if reply.start != claim.position and not self._is_sequential:
            raise RangesIgnored
        if self._blob.digest is None and not self._blob.git_hash:
            self._check_version(reply.validator)

    def _check_version(self, validator: str) -> None:
        """Without a hash, only the validator tells whether two replies are of one version; with one, the hash does:
        mirrors of one file name its versions as they like."""
        with self._changed:
            if self._is_done:
                raise Cancelled(self._blob.label)
            if not self._is_versioned:
                self._partial.set_validator(validator)
                self._validator = validator
                self._is_versioned = True
            elif not validator or validator != self._validator:
                raise VersionChanged

    def _take(self, claim: Claim, data: bytes) -> bool:
        """Write bytes that came, as far as the claim goes; whether it goes further."""
        with claim.lock:
            if claim.is_closed:
                return False
            data = data[: claim.stop - claim.position]
            self._partial.write(claim.position, data)
            claim.crc = zlib.crc32(data, claim.crc)
            claim.position += len(data)
            with self._changed:
                self.completed += len(data)
                if self._is_done:
                    return False
            if claim.position - claim.recorded >= self._limits.segment_bytes or claim.position == claim.stop:
                self._record(claim)
            return claim.position < claim.stop

    def _record(self, claim: Claim) -> None:
        """Note what a claim has brought; its lock is held."""
        if claim.position > claim.recorded:
            segment = Segment(claim.recorded, claim.position, claim.crc)
            self._partial.record(segment)
            claim.recorded, claim.crc = claim.position, 0
            with self._changed:
                self._segments[segment.start] = segment
                self._changed.notify_all()

    def _end_of_body(self, claim: Claim, reply: RangeReply) -> None:
        """The body ended before the claim did: that is the end of a blob of unknown size, or it is too short."""
        with claim.lock:
            if claim.is_closed:
                return
            if claim.stop < END or reply.total not in (None, claim.position):
                raise RemoteError(
                    f"{self._blob.label}: the server sent {claim.position} bytes of {reply.total or self.size}",
                    is_temporary=True,
                )
            claim.stop = claim.position
            self._record(claim)
        with self._changed:
            self.size = claim.position
            self._changed.notify_all()

    def _watch_rate(self, claim: Claim, num_bytes: int) -> None:
        claim.window_bytes += num_bytes
        elapsed_s = time.monotonic() - claim.window_start_s
        if elapsed_s < self._limits.window_s:
            return
        claim.bytes_per_s = claim.window_bytes / elapsed_s
        claim.window_start_s += elapsed_s
        claim.window_bytes = 0
        with self._changed:
            fastest = max((other.bytes_per_s for other in self._claims), default=0.0)
        if claim.bytes_per_s < max(self._limits.min_bytes_per_s, fastest * self._limits.slow_share):
            raise RemoteError(
                f"{self._blob.label}: the server sends {claim.bytes_per_s:.0f} bytes a second", is_temporary=True
            )

    def _give_back(self, claim: Claim) -> None:
        """End a claim; what it did not reach is a hole again."""
        with claim.lock:
            if claim.is_closed:
                return
            claim.is_closed = True
            with suppress(StoreError):  # it is fetched again, if the transfer goes on at all
                self._record(claim)
        with self._changed:
            self._claims.discard(claim)
            if claim.recorded < claim.stop:
                self.completed -= claim.position - claim.recorded
                bisect.insort(self._holes, (claim.recorded, claim.stop))
            self._changed.notify_all()

    def _retire(self) -> bool:
        """Whether others are left to go on without this worker."""
        with self._changed:
            if self._num_workers == 1:
                return False
            self._num_workers -= 1
            return True

    def _pause(self, error: RemoteError, num_failures: int) -> None:
        """Wait before the next attempt; all workers wait, where it is the server that asks for it."""
        wait_s = self._limits.retries.pause_s(num_failures, error, random.random())
        with self._changed:
            if error.retry_after_s is not None:
                self._not_before_s = max(self._not_before_s, time.monotonic() + wait_s)
            self._changed.wait_for(lambda: self._is_done, timeout=wait_s)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = error
            self._changed.notify_all()


def _holes(segments: list[Segment], size: int) -> list[tuple[int, int]]:
    """What [0, size) lacks, in order."""
    holes = []
    position = 0
    for segment in segments:
        if position < segment.start:
            holes.append((position, segment.start))
        position = segment.stop
    if position < size:
        holes.append((position, size))
    return holes


def _read_into(hashes: Hashes, file: FileIO, segment: Segment, *, has_crc: bool) -> bool:
    """Hash a segment; whether it is there, and where `has_crc` whether it is what was written."""
    file.seek(segment.start)
    num_left, crc = segment.stop - segment.start, 0
    while num_left and (data := file.read(min(num_left, READ_BYTES))):
        hashes.update(data)
        num_left -= len(data)
        if has_crc:
            crc = zlib.crc32(data, crc)
    return num_left == 0 and (crc == segment.crc or not has_crc)
