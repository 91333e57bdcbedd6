"""Downloads: blobs from where they lie into the store, each fetched once however many wait for it.

The daemon has one. `fetch_all` brings all blobs of a model, yielding progress as Ollama's pull does; `fetch` brings
one. Whoever asks for a blob that is being fetched waits with the others, and the last one who leaves cancels it; what
came so far stays in its partial file (`registry.partials`), and the next one who asks goes on from there, also after a
restart. What becomes of one blob: `registry.blob_download`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED
from concurrent.futures import wait as wait_for_futures
from contextlib import ExitStack, contextmanager

from registry.blob_download import BlobDownload, FreeBytes, check_space, free_bytes
from registry.create import CreateStatus
from registry.manifest import Digest
from registry.partials import finished_digest, forget_partial
from registry.remote import RemoteBlob, RemoteModel
from registry.store import Store
from registry.transfer_limits import TransferLimits

PROGRESS_S = 0.1
"""Between two looks at the progress of a blob."""
HEARTBEAT_S = 1.0
"""A status is repeated after so long a silence: between two items a client that left is noticed."""

DEFAULT_LIMITS = TransferLimits()


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
        self._active: dict[str, BlobDownload] = {}  # by key; guarded by _lock
        self._started: list[BlobDownload] = []  # those whose threads may still run; guarded by _lock

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
        running: list[BlobDownload] = []
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
    def _join(self, blob: RemoteBlob) -> Iterator[BlobDownload]:
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

    def _start(self, blob: RemoteBlob) -> BlobDownload:
        def is_over() -> None:
            with self._lock:
                del self._active[blob.key]

        self._started = [other for other in self._started if other.is_alive]
        download = BlobDownload(self._store, blob, self._limits, self._free, is_over)
        download.start()  # `is_over` waits for the lock that is held here
        self._active[blob.key] = download
        self._started.append(download)
        return download


def _status(blob: RemoteBlob, completed: int, total: int) -> CreateStatus:
    # Clients draw one bar for each digest, so a blob whose digest is not known yet needs a stand-in.
    digest = blob.digest or Digest.of(blob.key.encode())
    return CreateStatus(f"pulling {blob.label}", str(digest), completed, total)


def _follow(
    downloads: list[BlobDownload], shown: dict[str, CreateStatus], is_over: Callable[[], bool]
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
