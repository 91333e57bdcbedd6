"""BlobStore: the store's half that knows bytes and digests, and no names of models.

    with store.blob_writer(digest) as writer     bytes that come in pieces
    store.adopt, store.publish_blob              a file that Hob has written, by moving it
    store.link_blob, store.take_from_inbox       a file of somebody else's, by a hard link

Whatever way a blob comes, it gets its name under the lock, after its bytes were hashed and synced, and stays until a
manifest names it, it is discarded, or the process ends. `registry.store` has the theory of operation.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from registry.blob_writer import BlobWriter, check_digest, hash_descriptor, hash_file
from registry.collection import Collector
from registry.disk import Disk, open_regular
from registry.errors import BlobNotFound, as_store_error
from registry.linked_blobs import LinkedBlobs, Stamp, stamp_of
from registry.manifest import Digest
from registry.manifest_tree import ManifestTree
from registry.store_folder import StoreFolder

NO_LINK = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
)
"""What the system says where a file cannot have a hard link in the models folder."""


class BlobStore:
    """The blobs in one models folder, and what else Store shares with them.

    Args:
        root: the models folder.
        disk: how files are changed; tests pass one that fails.
        lock_timeout_s: how long a change waits for another process's change.
    """

    def __init__(self, root: Path, *, disk: Disk | None = None, lock_timeout_s: float = 60) -> None:
        self.folder = StoreFolder(root, disk or Disk(), lock_timeout_s)
        self.root = root
        self.blobs = self.folder.blobs
        self.private = self.folder.private
        self.disk = self.folder.disk
        self.tree = ManifestTree(self.folder.manifests)
        self.links = LinkedBlobs(self.folder)
        self._collector = Collector(self.folder, self.tree, self.links)

    # ---- reading

    def has_blob(self, digest: Digest) -> bool:
        """Whether a blob is here and nobody has written to it, as far as can be told without reading it."""
        try:
            status = os.lstat(self.blobs / digest.file_name)
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and not self.links.is_changed(digest, status)

    def blob_path(self, digest: Digest) -> Path:
        """Where a blob's bytes are.

        Raises:
            BlobNotFound: there is none, or something else than a file stands there.
        """
        if not self.has_blob(digest):
            raise BlobNotFound(str(digest))
        return self.blobs / digest.file_name

    # ---- writing

    def blob_writer(self, expected: Digest | None = None, size: int | None = None) -> BlobWriter:
        """A context in which one blob is written piece by piece; nothing is left unless `commit` was reached."""
        return BlobWriter(self.disk, self.folder.temporary(), self._publish_blob, expected, size)

    def write_blob(self, chunks: Iterable[bytes], expected: Digest | None = None, size: int | None = None) -> Digest:
        """Store bytes under their digest; what is there already is replaced by the same, so damage is repaired.

        Raises:
            DigestMismatch: the bytes are others than `expected`, or more or fewer than `size`; nothing is left.
            OutOfSpace, StoreError: the disk refused; nothing is left.
        """
        with self.blob_writer(expected, size) as writer:
            for chunk in chunks:
                writer.write(chunk)
            return writer.commit()

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder on the blobs' disk for files that another process writes; whatever is in it at the end goes.

        Raises:
            OutOfSpace, StoreError: the disk refused.
        """
        folder = self.folder.temporary()
        with as_store_error("write into the models folder"):
            self.disk.make_directory(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the next start cleans up what cannot be removed

    def adopt(self, path: Path, expected: Digest | None = None) -> Digest:
        """Make a blob of a file in a workspace by moving it; its bytes must have been synced to the disk.

        Raises:
            DigestMismatch: its bytes are others than `expected`; the file is where it was.
            OutOfSpace, StoreError: the disk refused; the file is where it was.
        """
        with as_store_error("write into the models folder"):
            digest = hash_file(path)
            check_digest(expected, digest)
            self._publish_blob(path, digest)
        return digest

    def link_blob(self, path: Path, expected: Digest | None = None) -> Digest | None:
        """Make a blob of somebody's file by a hard link, after reading it whole.

        Returns:
            None where there can be no link, such as from another disk; then the bytes must be copied.

        Raises:
            DigestMismatch: its bytes are others than `expected`; nothing is left.
            OutOfSpace, StoreError: the disk refused, or it is no regular file; nothing is left.
        """
        temporary = self.folder.temporary()
        with as_store_error("link a file into the models folder"):
            try:
                self.disk.link(path, temporary)
            except OSError as error:
                if error.errno in NO_LINK:
                    return None
                raise
            return self._adopt_linked(temporary, expected)

    def take_from_inbox(self, key: str, expected: Digest) -> bool:
        """Make a blob of a file that somebody who may write here has put into the inbox under a name of 32 hex digits.

        Returns:
            False where there is none; then its bytes must be sent.

        Raises:
            DigestMismatch: its bytes are others; it is gone from the inbox.
            OutOfSpace, StoreError: the disk refused, or it is no file that this process may read; it is gone, too.
        """
        if not re.fullmatch("[0-9a-f]{32}", key) or not os.path.lexists(self.folder.inbox / key):
            return False
        temporary = self.folder.temporary()
        with as_store_error("write into the models folder"):
            try:
                self.disk.rename(self.folder.inbox / key, temporary)  # from here on nobody else knows it
            except FileNotFoundError:
                return False
            self._adopt_linked(temporary, expected)
        return True

    def publish_blob(self, path: Path, digest: Digest) -> None:
        """Make a blob of a file by moving it; its bytes are known to hash to `digest` and were synced to the disk.

        Raises:
            OutOfSpace, StoreError: the disk refused; the file is where it was or in its place.
        """
        with as_store_error("write into the models folder"):
            self._publish_blob(path, digest)

    def private_folder(self, *parts: str) -> Path:
        """A folder for Hob alone, on the blobs' disk; made where it is missing.

        Raises:
            OutOfSpace, StoreError: the disk refused.
        """
        folder = self.private.joinpath(*parts)
        with as_store_error("write into the models folder"):
            self.folder.make_directories(folder)
        return folder

    # ---- keeping

    def keep_blob(self, digest: Digest, size: int | None = None) -> bool:
        """Whether a blob is here, with this many bytes; if so it stays until a manifest has named it."""
        with self.folder.lock:
            try:
                status = os.lstat(self.blobs / digest.file_name)
            except OSError:
                return False
            if size not in (None, status.st_size) or not self.has_blob(digest):
                return False
            self._collector.expect_name(digest)
            return True

    def lease(self, digests: Iterable[Digest] = ()) -> AbstractContextManager[None]:
        """Protect blobs from deletion inside the block, for whoever is about to name them in a manifest.

        What was to be deleted meanwhile and is still not named goes at the end of the block.
        """
        return self._collector.lease(digests)

    def discard(self, digests: Iterable[Digest]) -> None:
        """Give up blobs that were written for a model that is not going to be; others' stay."""
        with self.folder.exclusive():
            self._collector.give_up(digests)
            self._collector.collect_quietly(frozenset(digests))

    # ---- inside

    def _adopt_linked(self, temporary: Path, expected: Digest | None) -> Digest:
        """Publish a file in .hob/tmp that may have other names elsewhere; it is gone from there in any case."""
        try:
            with open_regular(temporary) as (fd, status):
                digest = hash_descriptor(fd)
                check_digest(expected, digest)
                self.disk.sync(fd)  # its owner need not have done so
            self._publish_blob(temporary, digest, stamp_of(status))
        finally:
            # After a failure, or where the blob is this same file, since a rename does nothing then.
            if os.path.lexists(temporary):
                with suppress(OSError):
                    self.disk.unlink(temporary)
        return digest

    def _publish_blob(self, temporary: Path, digest: Digest, linked: Stamp | None = None) -> None:
        with self.folder.exclusive():
            self.folder.make_directories(self.blobs)
            if not self.has_blob(digest):
                # Before the rename: a crash in between leaves a mark without a blob, which harms nobody.
                self._collector.mark(digest)
            if linked:
                self.links.note(digest, linked)
            self.folder.publish(temporary, self.blobs / digest.file_name)
            if not linked:
                self.links.forget(digest)
            self._collector.expect_name(digest)
