"""BlobDownload: one blob on its way into the store, from its partial file to its name.

`registry.download` makes it and shares it among those who wait. It runs in a thread of its own, has `registry.transfer`
fetch what is missing, and decides what to do with the result: the blob gets its name when it is whole, compared with
what its source announced, and on the disk. Bytes that do not fit are thrown away and, once, fetched anew, in a single
stream from the beginning, since servers have been seen whose ranges are wrong.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from pathlib import Path

from registry.blob_hashes import BlobHashes, git_hash_of
from registry.errors import OutOfSpace, RemoteError, as_store_error
from registry.journal import Segment
from registry.manifest import Digest
from registry.partials import Partial, open_partial, partial_bytes
from registry.remote import RemoteBlob
from registry.store import Store
from registry.transfer import Cancelled, RangesIgnored, Transfer, VersionChanged
from registry.transfer_limits import TransferLimits

MAX_VERSIONS = 3
"""How often the file may change at its source while it is fetched."""

FreeBytes = Callable[[Path], int]


def free_bytes(path: Path) -> int:
    """What a user may still write on the disk of a folder."""
    return shutil.disk_usage(path).free


class BlobDownload:
    """One blob that is being fetched; `Downloads` makes it.

    Args:
        is_over: called when nobody can join any more, before the result is there.
    """

    def __init__(
        self, store: Store, blob: RemoteBlob, limits: TransferLimits, free: FreeBytes, is_over: Callable[[], None]
    ) -> None:
        self.blob = blob
        self.num_followers = 0  # guarded by the lock of Downloads
        self.result: Future[Digest] = Future()
        self._store = store
        self._limits = limits
        self._free = free
        self._is_over = is_over
        self._lock = threading.Lock()
        self._transfer: Transfer | None = None
        self._is_cancelled = False
        self._threads: list[threading.Thread] = []

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled

    @property
    def has_begun(self) -> bool:
        """Whether it is known how much is here already."""
        return self.result.done() or self._transfer is not None

    @property
    def total(self) -> int:
        """Bytes in all; 0 as long as nobody knows."""
        size = self._transfer.size if self._transfer is not None else self.blob.size
        return size or 0

    @property
    def completed(self) -> int:
        """Bytes that are here, those of earlier attempts included."""
        if self.result.done() and self.result.exception() is None:
            return self.total
        return self._transfer.completed if self._transfer is not None else 0

    @property
    def is_received(self) -> bool:
        """Whether the network has done its part."""
        return self.result.done() or (self._transfer is not None and self._transfer.is_received)

    @property
    def is_alive(self) -> bool:
        """Whether any of its threads is."""
        return any(thread.is_alive() for thread in self._threads)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it has come."""
        return bool(wait_for_futures([self.result], timeout_s).done)

    def start(self) -> None:
        thread = threading.Thread(target=self._run, name=f"download {self.blob.label}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def cancel(self) -> None:
        """Stop as soon as it can be; what is here stays."""
        with self._lock:
            self._is_cancelled = True
            if self._transfer is not None:
                self._transfer.cancel()

    def join_threads(self, timeout_s: float) -> None:
        """Wait for all threads; those that wait for a silent server need as long as its timeout."""
        for thread in self._threads:
            thread.join(timeout_s)

    def _run(self) -> None:
        try:
            with open_partial(self._store, self.blob.key) as partial:
                digest = self._fetch(partial)
        except BaseException as error:
            self._is_over()
            self.result.set_exception(error)
        else:
            self._is_over()
            self.result.set_result(digest)

    def _fetch(self, partial: Partial) -> Digest:
        digest = self.blob.digest or (partial.journal.digest if partial.journal is not None else None)
        if digest is not None and self._store.keep_blob(digest, self.blob.size):
            return digest  # another one has brought it meanwhile
        try:
            hashes = self._fetch_verified(partial, self._resume(partial))
        except BaseException:
            if self.blob.size is None:  # nobody could go on with it, and an endless one would fill the disk
                partial.clear()
            raise
        partial.finish(hashes.digest)
        self._store.publish_blob(partial.path, hashes.digest)
        return hashes.digest

    def _resume(self, partial: Partial) -> list[Segment]:
        """Open the partial file; what of it can be gone on with."""
        journal = partial.journal
        is_known = self.blob.digest is not None or self.blob.git_hash or (journal is not None and journal.validator)
        if journal is not None and is_known and journal.size == self.blob.size is not None and partial.path.is_file():
            check_space(self._store, [self.blob], self._free)
            partial.resume()
            return journal.segments
        partial.clear()
        check_space(self._store, [self.blob], self._free)
        partial.begin(self.blob.size)
        return []

    def _fetch_verified(self, partial: Partial, resumed: list[Segment]) -> BlobHashes:
        is_sequential = self.blob.size is None
        was_wrong = False
        num_versions = 1
        while True:
            try:
                hashes = self._transfer_once(partial, resumed, is_sequential)
                problem = _difference(self.blob, hashes, partial.path)
                if not problem:
                    return hashes
                if was_wrong:
                    partial.clear()
                    raise RemoteError(f"{self.blob.label}: the server sent other bytes than announced: {problem}")
                was_wrong = True
            except VersionChanged as error:
                if num_versions == MAX_VERSIONS:
                    raise RemoteError(f"{self.blob.label}: the file changes while it is downloaded") from error
                num_versions += 1
            except RangesIgnored:
                # One stream goes on behind the first run, and brings again what lies beyond.
                is_sequential = True
                resumed = self._transfer.first_run if self._transfer is not None else []
                continue
            is_sequential = True
            partial.begin(self.blob.size)
            resumed = []

    def _transfer_once(self, partial: Partial, resumed: list[Segment], is_sequential: bool) -> BlobHashes:
        transfer = Transfer(
            partial,
            self.blob,
            self._limits,
            size=self.blob.size,
            resumed=resumed,
            is_sequential=is_sequential,
            validator=partial.journal.validator if partial.journal is not None else "",
        )
        with self._lock:
            if self._is_cancelled:
                raise Cancelled(self.blob.label)
            self._transfer = transfer
        try:
            return transfer.run()
        finally:
            self._threads += transfer.threads


def check_space(store: Store, blobs: Iterable[RemoteBlob], free: FreeBytes = free_bytes) -> None:
    """Refuse blobs for which the disk is too small; what is there of them already counts.

    Raises:
        OutOfSpace: it is.
    """
    needed = sum(max(0, (blob.size or 0) - partial_bytes(store, blob.key)) for blob in blobs)
    if needed == 0:
        return
    folder = store.private_folder()
    with as_store_error("look at the models folder"):
        num_free = free(folder)
    if needed > num_free:
        raise OutOfSpace(
            f"insufficient storage: the download needs {_megabytes(needed)} more, {_megabytes(num_free)} are free; "
            "free some, or keep the models on another disk"
        )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _difference(blob: RemoteBlob, hashes: BlobHashes, path: Path) -> str:
    """What is wrong with bytes that came, in a few words; "" where nothing is."""
    if blob.size is not None and hashes.num_bytes != blob.size:
        return f"{hashes.num_bytes} bytes instead of {blob.size}"
    if blob.digest is not None:
        return "" if hashes.digest == blob.digest else f"{hashes.digest} instead of {blob.digest}"
    if blob.git_hash:
        git_hash = hashes.git_hash or git_hash_of(path, hashes.num_bytes)
        return "" if git_hash == blob.git_hash else f"git hash {git_hash} instead of {blob.git_hash}"
    return ""
