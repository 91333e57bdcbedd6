"""Transfer: a blob's bytes from their source into a partial file, over several connections, hashed in order.

`registry.blob_download` runs one at a time for a blob, and starts another where this one says that the rest must come
in another way (`RangesIgnored`, `VersionChanged`).

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

import random
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO

from registry.blob_hashes import BlobHashes
from registry.errors import RemoteError, StoreError, as_store_error
from registry.extents import Extents
from registry.journal import Segment
from registry.partials import Partial
from registry.remote import RangeReply, RemoteBlob
from registry.transfer_limits import END, TransferLimits


class RangesIgnored(Exception):
    """The server sends the whole file whatever is asked for; it has to come in one stream."""


class VersionChanged(Exception):
    """The bytes that come now are of another version than those that are here, as far as anybody can tell."""


class Cancelled(RemoteError):
    """Nobody waits for the blob any more, or the daemon ends."""

    def __init__(self, label: str) -> None:
        super().__init__(f"{label}: the download was stopped; what came is kept for the next one")


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


@dataclass
class Failures:
    """A worker's failures in a row."""

    num: int = 0
    completed_before: int = 0
    """Bytes that were here at the first of them."""


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
        self._extents = Extents(resumed, END if size is None else size)
        self._claims: set[Claim] = set()
        self._num_workers = 1 if is_sequential or size is None else limits.num_streams(size, size - self.completed)
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
        """The segments before the first byte that is not here."""
        return self._extents.first_run

    def run(self) -> BlobHashes:
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

    def _hash_in_order(self) -> BlobHashes:
        hashes = BlobHashes(self.size if self._blob.git_hash else None)
        num_synced = 0
        with as_store_error("read a downloaded file"), FileIO(self._partial.path) as file:
            while (segment := self._next_segment(hashes.num_bytes)) is not None:
                ahead = hashes.with_segment(file, segment, has_crc=segment in self._unchecked)
                if ahead is None:
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
            while self._failure is None and position != self.size:
                segment = self._extents.segment_at(position)
                if segment is not None:
                    return segment
                self._changed.wait()
            if self._failure is not None:
                raise self._failure
        return None

    def _lose(self, segment: Segment) -> None:
        """Have a segment fetched again whose bytes are not those that were written."""
        self._partial.drop(segment.start, segment.stop)
        self._unchecked.discard(segment)
        with self._changed:
            self._extents.lose(segment)
            self.completed -= segment.stop - segment.start
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
        failures = Failures()
        try:
            while (claim := self._claim()) is not None:
                start = claim.position
                try:
                    self._receive(claim)
                    failures.num = 0
                except RemoteError as error:
                    self._give_back(claim)
                    if claim.position - start >= self._limits.min_progress_bytes:
                        failures.num = 0
                    if not self._goes_on(error, failures):
                        return
                finally:
                    self._give_back(claim)
        except BaseException as error:
            self._fail(error)

    def _goes_on(self, error: RemoteError, failures: Failures) -> bool:
        """Wait after a failure; whether this worker then goes on.

        Raises:
            RemoteError: there is no point in that.
        """
        if not error.is_temporary:
            raise error
        if failures.num == 0:
            failures.completed_before = self.completed
        failures.num += 1
        if failures.num >= self._limits.retries.max_attempts:
            if self.completed - failures.completed_before < self._limits.min_progress_bytes:
                raise RemoteError(f"{error}; gave up after {failures.num} attempts") from error
            if self._retire():
                return False
            failures.num = 1
        self._pause(error, failures.num)
        return True

    def _claim(self) -> Claim | None:
        """Wait for something to fetch; None where nothing is left to do."""
        with self._changed:
            while not self._is_done:
                wait_s = self._not_before_s - time.monotonic()
                if wait_s <= 0 and self._extents.has_holes:
                    max_bytes = END if self._is_sequential else self._limits.chunk_bytes(self.size)
                    start, stop = self._extents.claim(max_bytes)
                    claim = Claim(start, stop, recorded=start)
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
                self._extents.arrive(segment)
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
            self._extents.end_at(self.size)
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
            self._extents.give_back(claim.recorded, claim.stop)
            self.completed -= claim.position - claim.recorded  # what could not be recorded comes again
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
