"""Downloads: blobs from where they lie into the store, each fetched once however many wait for it.

The daemon has one. `fetch_all` brings all blobs of a model, yielding progress as Ollama's pull does; `fetch` brings
one. Whoever asks for a blob that is being fetched waits with the others, and the last one who leaves cancels it; what
came so far stays in its partial file (`registry.partials`), and the next one who asks goes on from there, also after a
restart. How the bytes come: `registry.transfer`.

A blob gets its name when it is whole, hashed, compared with what its source announced, and on the disk. Bytes that do
not fit are thrown away and, once, fetched anew, in a single stream from the beginning, since servers have been seen
whose ranges are wrong.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for_futures
from contextlib import ExitStack, contextmanager
from pathlib import Path

from registry.create import CreateStatus
from registry.errors import OutOfSpace, RemoteError, as_store_error
from registry.journal import Segment
from registry.manifest import Digest
from registry.partials import Partial, finished_digest, forget_partial, open_partial, partial_bytes
from registry.remote import RemoteBlob, RemoteModel
from registry.store import Store
from registry.transfer import (
    END,
    READ_BYTES,
    Cancelled,
    Hashes,
    RangesIgnored,
    Transfer,
    TransferLimits,
    VersionChanged,
)

PROGRESS_S = 0.1
"""Between two looks at the progress of a blob."""
HEARTBEAT_S = 1.0
"""A status is repeated after so long a silence: between two items a client that left is noticed."""
MAX_VERSIONS = 3
"""How often the file may change at its source while it is fetched."""

DEFAULT_LIMITS = TransferLimits()

FreeBytes = Callable[[Path], int]


def free_bytes(path: Path) -> int:
    """What a user may still write on the disk of a folder."""
    return shutil.disk_usage(path).free


class Download:
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
        journal = partial.journal
        if journal is not None and journal.digest is not None and self._store.keep_blob(journal.digest, journal.size):
            return journal.digest
        hashes = self._fetch_verified(partial, self._resume(partial))
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

    def _fetch_verified(self, partial: Partial, resumed: list[Segment]) -> Hashes:
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
                is_sequential = True
                resumed = self._first_run(partial)
                continue
            is_sequential = True
            partial.begin(self.blob.size)
            resumed = []

    def _transfer_once(self, partial: Partial, resumed: list[Segment], is_sequential: bool) -> Hashes:
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

    def _first_run(self, partial: Partial) -> list[Segment]:
        """What one stream can go on behind; the rest is dropped, since that stream brings it again."""
        run = self._transfer.first_run if self._transfer is not None else []
        partial.drop(run[-1].stop if run else 0, END)
        return run


class Downloads:
    """All downloads into one store.

    Args:
        limits: `max_streams` is for each blob.
        free: bytes that may still be written on a folder's disk.
    """

    def __init__(self, store: Store, limits: TransferLimits = DEFAULT_LIMITS, *, free: FreeBytes = free_bytes) -> None:
        self._store = store
        self._limits = limits
        self._free = free
        self._lock = threading.Lock()
        self._active: dict[str, Download] = {}  # by key; guarded by _lock
        self._started: list[Download] = []  # those whose threads may still run; guarded by _lock

    def fetch_all(self, model: RemoteModel) -> Generator[CreateStatus, None, dict[str, Digest]]:
        """Bring the blobs of a model that are not here, yielding progress; closing the generator stops that.

        The blobs are safe from collection until a manifest names them or the daemon ends.

        Returns:
            The digest of each blob by its key, as `RemoteModel.publish` wants them.

        Raises:
            RemoteError: the source failed, or sent what it had not announced.
            OutOfSpace, StoreError: the disk is too small, or refused.
        """
        blobs = list({blob.key: blob for blob in model.blobs}.values())
        digests = {blob.key: digest for blob in blobs if (digest := self._stored(blob)) is not None}
        check_space(self._store, [blob for blob in blobs if blob.key not in digests], self._free)
        running: list[Download] = []
        shown: dict[str, CreateStatus] = {}
        with ExitStack() as stack:
            for blob in blobs:
                if blob.key in digests:
                    yield _status(blob, blob.size or 0, blob.size or 0)
                    continue
                running.append(stack.enter_context(self._join(blob)))
                # The next one begins while this one is hashed and synced.
                yield from _follow(running, shown, lambda: running[-1].is_received)
            yield from _follow(running, shown, lambda: all(download.result.done() for download in running))
            return digests | {download.blob.key: download.result.result() for download in running}

    def fetch(self, blob: RemoteBlob, on_progress: Callable[[int, int], object] | None = None) -> Digest:
        """Bring one blob, unless it is here.

        Args:
            on_progress: called with the bytes that are here and those in all (0 where unknown), now and then.

        Raises:
            RemoteError, OutOfSpace, StoreError: as `fetch_all`.
        """
        stored = self._stored(blob)
        if stored is not None:
            return stored
        with self._join(blob) as download:
            while not download.wait(PROGRESS_S):
                if on_progress is not None:
                    on_progress(download.completed, download.total)
            return download.result.result()

    def forget(self, model: RemoteModel) -> None:
        """Remove what downloads have left behind, once a manifest names the model's blobs."""
        for blob in model.blobs:
            forget_partial(self._store, blob.key)

    def close(self, timeout_s: float = 60) -> None:
        """Stop all downloads, and wait for their threads."""
        with self._lock:
            started = list(self._started)
        for download in started:
            download.cancel()
        for download in started:
            download.join_threads(timeout_s)

    def _stored(self, blob: RemoteBlob) -> Digest | None:
        """The blob's digest, if it is here; a file of another size than announced is damaged, and so not here."""
        digest = blob.digest or finished_digest(self._store, blob.key)
        return digest if digest is not None and self._store.keep_blob(digest, blob.size) else None

    @contextmanager
    def _join(self, blob: RemoteBlob) -> Iterator[Download]:
        """Take part in the blob's download, started if there is none; stopped if nobody is left at the end."""
        while True:
            with self._lock:
                download = self._active.get(blob.key)
                if download is None:
                    download = self._start(blob)
                if not download.is_cancelled:
                    download.num_followers += 1
                    break
            download.wait()  # it is about to end: it waits for no server
        try:
            yield download
        finally:
            with self._lock:
                download.num_followers -= 1
                if download.num_followers == 0:
                    download.cancel()

    def _start(self, blob: RemoteBlob) -> Download:
        def is_over() -> None:
            with self._lock:
                del self._active[blob.key]

        self._started = [other for other in self._started if other.is_alive]
        download = Download(self._store, blob, self._limits, self._free, is_over)
        self._active[blob.key] = download
        self._started.append(download)
        download.start()
        return download


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


def _difference(blob: RemoteBlob, hashes: Hashes, path: Path) -> str:
    """What is wrong with bytes that came, in a few words; "" where nothing is."""
    if blob.size is not None and hashes.num_bytes != blob.size:
        return f"{hashes.num_bytes} bytes instead of {blob.size}"
    if blob.digest is not None:
        return "" if hashes.digest == blob.digest else f"{hashes.digest} instead of {blob.digest}"
    if blob.git_hash:
        git_hash = hashes.git_hash or git_hash_of(path, hashes.num_bytes)
        return "" if git_hash == blob.git_hash else f"git hash {git_hash} instead of {blob.git_hash}"
    return ""


def _status(blob: RemoteBlob, completed: int, total: int) -> CreateStatus:
    # Clients draw one bar for each digest, so a blob whose digest is not known yet needs a stand-in.
    digest = blob.digest or Digest.of(blob.key.encode())
    return CreateStatus(f"pulling {blob.label}", str(digest), completed, total)


def _follow(
    downloads: list[Download], shown: dict[str, CreateStatus], is_over: Callable[[], bool]
) -> Iterator[CreateStatus]:
    """Yield what has changed since it was shown, until there is no more to wait for.

    Raises:
        RemoteError, StoreError: one of the downloads failed.
    """
    heard_s = time.monotonic()
    while True:
        is_last = is_over()
        for download in downloads:
            if download.result.done():
                download.result.result()
            if not download.has_begun:
                continue
            status = _status(download.blob, download.completed, download.total)
            if shown.get(download.blob.key) != status or time.monotonic() - heard_s >= HEARTBEAT_S:
                shown[download.blob.key] = status
                heard_s = time.monotonic()
                yield status
        if is_last:
            return
        wait_for_futures([one.result for one in downloads if not one.result.done()], PROGRESS_S, FIRST_COMPLETED)


def git_hash_of(path: Path, size: int) -> str:
    """The hash of a file as a git blob, for one whose size was not known when it began to come."""
    hashes = Hashes(size)
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            hashes.update(data)
    return hashes.git_hash
