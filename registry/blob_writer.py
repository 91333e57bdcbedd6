"""BlobWriter: one file on its way into the store.

The store makes it; `create`, uploads and downloads push bytes into it, from one thread at a time. The bytes go to a
temporary file that nobody else knows and are hashed on the way. Only `commit` moves it to its place, after fsync and
after comparing size and digest; every other end of the block removes it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from registry.disk import Disk, open_regular
from registry.errors import DigestMismatch, as_store_error
from registry.manifest import Digest


class BlobWriter:
    """Use as a context: `with store.blob_writer(digest) as writer: writer.write(chunk); writer.commit()`.

    Args:
        publish: moves the finished temporary file to its place.
        expected: what the bytes must hash to, where that is known.
        size: how many bytes there must be, where that is known; more are refused as they come.
    """

    def __init__(
        self,
        disk: Disk,
        temporary: Path,
        publish: Callable[[Path, Digest], None],
        expected: Digest | None = None,
        size: int | None = None,
    ) -> None:
        self._disk = disk
        self._temporary = temporary
        self._publish = publish
        self._expected = expected
        self._size = size
        self._hash = hashlib.sha256()
        self._fd = -1
        self._is_published = False
        self.num_bytes = 0

    def __enter__(self) -> BlobWriter:
        with as_store_error("write into the models folder"):
            self._fd = self._disk.create(self._temporary)
        return self

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            DigestMismatch: there are more of them than announced.
            OutOfSpace, StoreError: the disk refused.
        """
        self.num_bytes += len(data)
        if self._size is not None and self.num_bytes > self._size:
            raise DigestMismatch(f"{self._size} bytes", f"at least {self.num_bytes} bytes")
        self._hash.update(data)
        with as_store_error("write into the models folder"):
            self._disk.write(self._fd, data)

    def commit(self) -> Digest:
        """Make the file durable and put it in its place.

        Raises:
            DigestMismatch: the bytes are not the announced ones.
            OutOfSpace, StoreError: the disk refused.
        """
        digest = Digest(self._hash.hexdigest())
        if self._size is not None and self.num_bytes != self._size:
            raise DigestMismatch(f"{self._size} bytes", f"{self.num_bytes} bytes")
        check_digest(self._expected, digest)
        with as_store_error("write into the models folder"):
            self._disk.sync(self._fd)
            self._publish(self._temporary, digest)
        self._is_published = True
        return digest

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        if not self._is_published:
            with suppress(OSError):  # where it cannot be removed, or is in its place already, the next start cleans up
                self._disk.unlink(self._temporary)


def check_digest(expected: Digest | None, got: Digest) -> None:
    """Raise DigestMismatch where bytes are not the expected ones."""
    if expected is not None and got != expected:
        raise DigestMismatch(str(expected), str(got))


def hash_file(path: Path) -> Digest:
    """The digest of a regular file; a link is not followed.

    Raises:
        OSError: it is none, or cannot be read.
    """
    with open_regular(path) as (fd, _):
        return hash_descriptor(fd)


def hash_descriptor(fd: int) -> Digest:
    """The digest of what is left to read."""
    with os.fdopen(fd, "rb", buffering=0, closefd=False) as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())
