"""BlobHashes: what a blob's bytes hash to, as far as they are here.

`registry.transfer` feeds it in order, `registry.blob_download` compares the result with what the source announced.
"""

from __future__ import annotations

import hashlib
import zlib
from io import FileIO
from pathlib import Path

from registry.journal import Segment
from registry.manifest import Digest

READ_BYTES = 1024 * 1024


class BlobHashes:
    """The hashes of a blob's first bytes.

    Args:
        git_size: bytes of the whole blob, which a git hash begins with; None where no git hash is wanted.
    """

    def __init__(self, git_size: int | None = None) -> None:
        self.num_bytes = 0
        self._sha256 = hashlib.sha256()
        self._git = None if git_size is None else hashlib.sha1(b"blob %d\0" % git_size, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        self.num_bytes += len(data)
        self._sha256.update(data)
        if self._git is not None:
            self._git.update(data)

    def with_segment(self, file: FileIO, segment: Segment, *, has_crc: bool) -> BlobHashes | None:
        """The hashes with a file's next segment.

        Args:
            has_crc: whether the segment's checksum is compared.

        Returns:
            None where the segment is not whole, or not what was written.
        """
        ahead = self._copy()
        file.seek(segment.start)
        num_left, crc = segment.stop - segment.start, 0
        while num_left and (data := file.read(min(num_left, READ_BYTES))):
            ahead.update(data)
            num_left -= len(data)
            if has_crc:
                crc = zlib.crc32(data, crc)
        return ahead if num_left == 0 and (crc == segment.crc or not has_crc) else None

    @property
    def digest(self) -> Digest:
        return Digest(self._sha256.hexdigest())

    @property
    def git_hash(self) -> str:
        """In hexadecimal digits; "" where it was not wanted."""
        return "" if self._git is None else self._git.hexdigest()

    def _copy(self) -> BlobHashes:
        twin = BlobHashes()
        twin.num_bytes = self.num_bytes
        twin._sha256 = self._sha256.copy()
        twin._git = None if self._git is None else self._git.copy()
        return twin


def git_hash_of(path: Path, size: int) -> str:
    """The hash of a file as a git blob, for one whose size was not known when it began to come."""
    hashes = BlobHashes(size)
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            hashes.update(data)
    return hashes.git_hash
