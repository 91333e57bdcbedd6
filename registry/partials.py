"""Partial: a blob on its way into the store, as it lies on the disk until it is whole.

    .hob/partials/<sha256 of its key>/data      the bytes, each in its place; sparse
    .hob/partials/<sha256 of its key>/journal   what of them is there: `registry.journal`
    .hob/partials/<sha256 of its key>/lock      held by the one process that writes

`registry.blob_download` opens one for each blob that it fetches. Bytes are written before the journal tells of them,
and whoever goes on with a partial file reads what is there and compares it with its checksums. So a crash between any
two system calls costs at most the bytes that the journal did not tell of, and what a power loss takes is found missing.

Where the blob is whole, its digest is noted, the file moves to its place in the store, and the journal stays: it keeps
the blob of an unfinished pull from being collected at the next start (`collect_partials`), until the pull is through
and calls `forget`, or gives up.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from registry.disk import read_regular
from registry.errors import StoreError, StoreLocked, as_store_error
from registry.journal import Journal, Segment, encode_line, parse_journal
from registry.manifest import Digest
from registry.store import Store

LOG = logging.getLogger(__name__)

PARTIALS = "partials"
MAX_JOURNAL_BYTES = 64 * 1024 * 1024
ACTION = "write a downloaded file into the models folder"


class Partial:
    """The files of one blob, open for this process; `open_partial` makes it.

    `write` may be called from several threads at once, for places that do not overlap.
    """

    def __init__(self, store: Store, folder: Path, key: str) -> None:
        self.path = folder / "data"
        self.journal: Journal | None = None
        """What is there; None where nothing is that could be of use. It is not kept up to date."""
        self._journal_path = folder / "journal"
        self._disk = store.disk
        self._key = key
        self._lock = threading.Lock()  # guards the journal's end
        self._data_fd = -1
        self._journal_fd = -1
        self._journal_end = 0
        self._read()

    def begin(self, size: int | None) -> None:
        """Throw away what is there and start from nothing."""
        self.clear()
        with as_store_error(ACTION):
            self._data_fd = self._disk.create(self.path)
            self._journal_fd = self._disk.create(self._journal_path)
        self.journal = Journal(self._key, size)
        self._add("blob", self._key, size)

    def clear(self) -> None:
        """Throw away what is there."""
        self.close()
        with as_store_error(ACTION):
            for path in (self._journal_path, self.path):  # data without a journal counts for nothing
                with suppress(FileNotFoundError):
                    self._disk.unlink(path)
        self.journal = None
        self._journal_end = 0

    def resume(self) -> None:
        """Go on with what is there.

        Raises:
            StoreError: the files cannot be opened.
        """
        with as_store_error(ACTION):
            self._data_fd = self._disk.reopen(self.path)
            self._journal_fd = self._disk.reopen(self._journal_path)

    def write(self, offset: int, data: bytes) -> None:
        with as_store_error(ACTION):
            self._disk.write_at(self._data_fd, data, offset)

    def record(self, segment: Segment) -> None:
        """Note bytes that were written, so that they need not be fetched again."""
        self._add("have", segment.start, segment.stop, segment.crc)

    def drop(self, start: int, stop: int) -> None:
        """Note that what overlaps [start, stop) is not to be used."""
        self._add("lost", start, stop)

    def set_validator(self, validator: str) -> None:
        """Note of which version all bytes are that will be written."""
        if self.journal is not None:
            self.journal.validator = validator
        self._add("validator", validator)

    def sync(self) -> None:
        with as_store_error(ACTION):
            self._disk.sync(self._data_fd)

    def finish(self, digest: Digest) -> None:
        """Make the file durable, and note what it is before it moves away."""
        self.sync()
        self._add("digest", digest.hex)
        with as_store_error(ACTION):
            self._disk.sync(self._journal_fd)

    def close(self) -> None:
        for fd in (self._data_fd, self._journal_fd):
            if fd >= 0:
                os.close(fd)
        self._data_fd = self._journal_fd = -1

    def _read(self) -> None:
        try:
            data, _ = read_regular(self._journal_path, MAX_JOURNAL_BYTES)
        except (OSError, ValueError):
            return
        journal = parse_journal(data)
        if journal is None or journal.key != self._key:
            return
        if not self.path.is_file() or self.path.is_symlink():
            if journal.digest is None:
                return
            journal.segments = []
        self.journal = journal
        self._journal_end = len(data)
        if not data.endswith(b"\n"):
            self._journal_end = data.rfind(b"\n") + 1  # the next line takes the place of the torn one

    def _add(self, *words: str | int | None) -> None:
        line = encode_line(*words)
        with self._lock, as_store_error(ACTION):
            self._disk.write_at(self._journal_fd, line, self._journal_end)
            self._journal_end += len(line)


@contextmanager
def open_partial(store: Store, key: str) -> Iterator[Partial]:
    """The partial file of a blob, for this process alone inside the block.

    Raises:
        StoreLocked: another process has it open.
        OutOfSpace, StoreError: the disk refused.
    """
    name = _folder_name(key)
    folder = store.private_folder(PARTIALS, name)
    with _locked(folder):
        partial = Partial(store, folder, key)
        try:
            yield partial
        finally:
            partial.close()


def finished_digest(store: Store, key: str) -> Digest | None:
    """The blob that a download has become, if it was finished; the blob may be gone since."""
    journal = Partial(store, store.private / PARTIALS / _folder_name(key), key).journal
    return None if journal is None else journal.digest


def partial_bytes(store: Store, key: str) -> int:
    """How many bytes of the disk the partial file of a blob takes."""
    try:
        return os.lstat(store.private / PARTIALS / _folder_name(key) / "data").st_blocks * 512
    except OSError:
        return 0


def forget_partial(store: Store, key: str) -> None:
    """Remove what is left of a download, unless somebody is writing it."""
    folder = store.private / PARTIALS / _folder_name(key)
    with suppress(StoreError):
        if folder.is_dir():
            with _locked(folder):
                _remove(store, folder)


def collect_partials(store: Store, max_age_s: float) -> frozenset[Digest]:
    """Remove partial files that nobody has gone on with for long, and what is of no use.

    For the start of a daemon, before `Store.collect_garbage`.

    Returns:
        The blobs that finished pulls of models which are not here yet: for `collect_garbage(keep=...)`.
    """
    kept = set()
    root = store.private / PARTIALS
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        try:
            with _locked(folder):
                digest = _sort_out(store, folder, max_age_s)
                if digest is not None:
                    kept.add(digest)
        except StoreError as error:
            LOG.warning("a partly downloaded file stays: %s", error)
    return frozenset(kept)


def _sort_out(store: Store, folder: Path, max_age_s: float) -> Digest | None:
    """The blob that a partial file has become; removes the folder where it is of no use any more."""
    try:
        data, status = read_regular(folder / "journal", MAX_JOURNAL_BYTES)
        journal = parse_journal(data)
    except (OSError, ValueError):
        journal = None
    if journal is not None and _folder_name(journal.key) == folder.name:
        # A clock that was set back must not keep files for ever, so the future is as far away as the past.
        is_young = abs(time.time() - status.st_mtime) <= max_age_s
        is_stored = journal.digest is not None and store.has_blob(journal.digest)
        if is_young and is_stored:
            return journal.digest
        if is_young and (folder / "data").is_file():
            return None
    _remove(store, folder)
    return None


def _folder_name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = filelock.FileLock(folder / "lock", timeout=0, thread_local=False)
    with as_store_error(ACTION):
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise StoreLocked("another process is downloading the same file into this models folder") from error
    try:
        yield
    finally:
        lock.release()


def _remove(store: Store, folder: Path) -> None:
    with as_store_error("clean up the models folder"):
        for name in ("journal", "data", "lock"):
            with suppress(FileNotFoundError):
                store.disk.unlink(folder / name)
        store.disk.remove_directory(folder)
