"""StoreFolder: where things lie in the models folder, and the durable steps by which they change.

Store and Collector work on one of these together; `registry.store` explains the layout. Changes go through the Disk,
whole ones inside `exclusive`. It knows paths and bytes, no models.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from registry.blob_writer import BlobWriter
from registry.disk import Disk
from registry.errors import StoreLocked, as_store_error, unreadable

PRIVATE = ".hob"


class StoreFolder:
    """The places in one models folder.

    Args:
        lock_timeout_s: how long a change waits for another process's change.
    """

    def __init__(self, root: Path, disk: Disk, lock_timeout_s: float) -> None:
        self.root = root
        self.manifests = root / "manifests"
        self.blobs = root / "blobs"
        self.private = root / PRIVATE
        self.tmp = self.private / "tmp"
        self.collectable = self.private / "collectable"
        self.linked = self.private / "linked"
        self.inbox = self.private / "inbox"
        self.quarantine = self.private / "quarantine"
        self.notes = self.private / "notes"
        self.disk = disk
        self.lock = threading.RLock()
        """Guards what this process knows of the folder; `exclusive` holds it, too."""
        self._process_lock = filelock.FileLock(self.private / "lock", timeout=lock_timeout_s)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the store's lock against other threads and processes. Reentrant in a thread.

        Raises:
            StoreLocked: another process kept it for too long.
        """
        with self.lock:
            with as_store_error("write into the models folder"):
                self.make_directories(self.private)
                try:
                    self._process_lock.acquire()
                except filelock.Timeout as error:
                    waited = self._process_lock.timeout
                    raise StoreLocked(f"another process kept the models folder busy for {waited} s") from error
            try:
                yield
            finally:
                self._process_lock.release()

    def temporary(self) -> Path:
        """A path for a file that is about to be written."""
        with as_store_error("write into the models folder"):
            self.make_directories(self.tmp)
        return self.tmp / f"{os.getpid()}-{secrets.token_hex(8)}"

    def write_small(self, path: Path, data: bytes) -> None:
        """Put a file in its place, durably and at once."""
        with as_store_error("write into the models folder"):
            self.make_directories(path.parent)
        with BlobWriter(self.disk, self.temporary(), lambda source, _: self.publish(source, path)) as writer:
            writer.write(data)
            writer.commit()

    def publish(self, temporary: Path, path: Path) -> None:
        self.disk.rename(temporary, path)
        self.disk.sync_directory(path.parent)

    def make_directories(self, path: Path) -> None:
        """Create a directory and its parents, durably."""
        if path.is_dir():
            return
        self.make_directories(path.parent)
        with suppress(FileExistsError):  # another thread was faster
            self.disk.make_directory(path)
        self.disk.sync_directory(path.parent)

    def remove_empty_directories(self, path: Path) -> None:
        """Remove a folder of manifests, and those above it, as far as nothing is left in them."""
        while path != self.manifests and not any(path.iterdir()):
            self.disk.remove_directory(path)
            path = path.parent


def entries(directory: Path) -> list[Path]:
    """What is in a directory, sorted; nothing where it is missing or is none.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable("the models folder", error) from error


def is_ollama_temporary(file_name: str) -> bool:
    """Whether a file among the blobs is one that an Ollama beside us is writing, and cleans up by itself."""
    return re.fullmatch(r"sha256-([0-9a-f]{64}-partial(-\d+)?|\d{1,20})", file_name) is not None
