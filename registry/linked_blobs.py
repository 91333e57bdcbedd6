"""LinkedBlobs: blobs that share their bytes with a file of somebody else's, and whether it was written to since.

A hard link costs no second copy, but whoever owns the file can still write into it, and then the blob no longer holds
what its digest says. So the store notes what the file was when its digest was verified, in
`.hob/linked/sha256-<hex>`: size, time of the last change in ns, inode. A blob that differs from its note is not relied
on; `hob fsck` reads it whole and either notes it anew or takes it away.

A program that writes into a file and then sets its time back is not noticed here, only by `hob fsck`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from registry.disk import read_regular
from registry.manifest import Digest
from registry.store_folder import StoreFolder

MAX_NOTE_BYTES = 256

Stamp = tuple[int, int, int]
"""Size in bytes, time of the last change in ns, inode."""


def stamp_of(status: os.stat_result) -> Stamp:
    return (status.st_size, status.st_mtime_ns, status.st_ino)


class LinkedBlobs:
    """The notes. What changes them is called under the folder's lock."""

    def __init__(self, folder: StoreFolder) -> None:
        self._folder = folder

    def note(self, digest: Digest, stamp: Stamp) -> None:
        """Remember what a blob's file was when its bytes were verified."""
        self._folder.write_small(self._folder.linked / digest.file_name, msgspec.json.encode(stamp))

    def forget(self, digest: Digest) -> None:
        with suppress(FileNotFoundError):
            self._folder.disk.unlink(self._folder.linked / digest.file_name)

    def is_changed(self, digest: Digest, status: os.stat_result) -> bool:
        """Whether the file that is now under the digest's name was written to after it was verified."""
        path = f"{self._folder.linked}/{digest.file_name}"
        if not os.path.lexists(path):  # as of most blobs; a listing asks this of thousands
            return False
        try:
            data, _ = read_regular(Path(path), MAX_NOTE_BYTES)
            size, mtime_ns, inode = msgspec.json.decode(data, type=Stamp)
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            return True
        # Another inode is a blob that was written afterwards, and is nobody else's.
        return status.st_ino == inode and (status.st_size, status.st_mtime_ns) != (size, mtime_ns)
