"""Disk: the system calls by which the store changes something, one method each.

The store calls nothing else to change a file, so a test can fail or stop it at the k-th change, for every k, and look
at what is left. Reading is not part of the seam: `open_regular` is how the store opens files that somebody else may
have put there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Disk:
    """Changes to files; every method is one step that happened or did not."""

    def create(self, path: Path) -> int:
        """Open a file that must not exist yet, for writing.

        Returns:
            The descriptor, which the caller closes.
        """
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)

    def reopen(self, path: Path) -> int:
        """Open a file that is there, to write into its middle or at its end.

        Returns:
            The descriptor, which the caller closes.
        """
        return os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)

    def write(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        """Write at a place of a file; several threads may do so at once."""
        view = memoryview(data)
        while view:
            num_bytes = os.pwrite(fd, view, offset)
            view, offset = view[num_bytes:], offset + num_bytes

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Atomically put `source` in the place of `target`."""
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name, which must not exist yet; a symbolic link is not followed."""
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def make_directory(self, path: Path) -> None:
        path.mkdir()

    def remove_directory(self, path: Path) -> None:
        path.rmdir()

    def sync_directory(self, path: Path) -> None:
        """Make the directory's entries durable; a rename is only so after this."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """A regular file's descriptor, for reading, and what the file was when it was opened.

    A link is not followed and a pipe or device not waited for, since anybody may have put one into the store.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(None, "it is no regular file")
        yield fd, status
    finally:
        os.close(fd)


def read_regular(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
    """The bytes of a regular file and what it was when they were read.

    Raises:
        OSError: it cannot be opened, or is no regular file.
        ValueError: it is longer than `limit` bytes.
    """
    with open_regular(path) as (fd, status), os.fdopen(fd, "rb", closefd=False) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is longer than {limit} bytes")
    return data, status
