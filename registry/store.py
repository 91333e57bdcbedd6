"""Store: manifests and content-addressed blobs on disk, in Ollama's layout.

    manifests/<host>/<namespace>/<model>/<tag>   JSON; its presence is what makes a model exist
    blobs/sha256-<hex>                           bytes whose sha256 is their name
    .hob/tmp/                                    files being written
    .hob/collectable/sha256-<hex>                empty; Hob may delete this blob once nothing refers to it
    .hob/partials/                               blobs that are being downloaded: see `registry.partials`
    .hob/linked/sha256-<hex>                     what a blob was that is somebody's file, too: see `linked_blobs`
    .hob/inbox/<32 hex digits>                   files that the CLI links here for the daemon to adopt
    .hob/quarantine/                             what `fsck` found broken; people delete it
    .hob/notes/                                  what Hob remembers between two starts, such as `builtin_models`
    .hob/lock                                    held while manifests or names of blobs change
    .hob/daemon.lock                             held by the one daemon that serves from this store

Theory of operation.

*Writing.* A file is written under a fresh name in .hob/tmp, hashed on the way, fsynced, compared with the size and
digest that it should have, renamed to its place, and the directory fsynced. Blobs come first and the manifest last,
under the lock and after a look at every blob it names. So a crash, a full disk or a pulled plug leaves the old model or
the new one, and no file under a digest's name that holds something else.

*Reading* takes no lock. A reader that finds a blob missing looks whether the manifest has changed meanwhile, and if so
reads again.

*Deleting* removes the manifest first, then the blobs that it named, as far as
(1) no other manifest names them, (2) no lease protects them, (3) they are marked collectable: Hob wrote them, or
somebody asked Hob to delete the last model made of them, so a blob that an Ollama beside us is just writing stays; and
(4) every manifest parses, since one that does not may name anything. What stays for these reasons goes at the next
`collect_garbage`.

*Leases* live in memory: whoever builds a model leases the blobs it relies on, before it looks whether they are there,
and a blob that was just written is as good as leased until a manifest names it. They need not outlive the process,
because `collect_garbage` runs once, at the start of the one daemon, before it serves.

*What a damaged manifest does*: `list` leaves it out, `broken` reports it, `get` says what is wrong; all else goes on.

All methods may be called from several threads, and from several processes but for `collect_garbage`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock

from registry.blob_writer import BlobWriter, check_digest, hash_descriptor, hash_file
from registry.collection import Collector
from registry.disk import Disk, open_regular, read_regular
from registry.errors import (
    BlobNotFound,
    BrokenModel,
    InvalidDigest,
    InvalidName,
    ModelNotFound,
    StoreLocked,
    as_store_error,
)
from registry.linked_blobs import LinkedBlobs, Stamp, stamp_of
from registry.manifest import Digest, Manifest
from registry.manifest_tree import ManifestTree, name_of
from registry.model_list import ModelList
from registry.name import ModelName
from registry.store_folder import StoreFolder, entries, is_ollama_temporary
from registry.stored_model import StoredModel, load_model

MAX_NOTE_BYTES = 1024 * 1024
MAX_PID_BYTES = 20
NO_LINK = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
)
"""What the system says where a file cannot have a hard link in the models folder."""


@dataclass(frozen=True)
class Finding:
    """Something wrong in the store: what it concerns (a model's name, a blob's file name) and a sentence."""

    subject: str
    reason: str


Findings = list[Finding]  # named here, since inside Store `list` is a method


class Store:
    """The models in one folder. Nothing is created before the first write.

    Args:
        root: the models folder.
        disk: how files are changed; tests pass one that fails.
        lock_timeout_s: how long a change waits for another process's change.
    """

    def __init__(self, root: Path, *, disk: Disk | None = None, lock_timeout_s: float = 60) -> None:
        self.folder = StoreFolder(root, disk or Disk(), lock_timeout_s)
        self.root = root
        self.manifests = self.folder.manifests
        self.blobs = self.folder.blobs
        self.private = self.folder.private
        self.disk = self.folder.disk
        self.tree = ManifestTree(self.manifests)
        self.links = LinkedBlobs(self.folder)
        self._collector = Collector(self.folder, self.tree, self.links)
        self._list = ModelList(self.manifests, self.blobs, self.tree, self._load)

    # ---- reading

    def list(self) -> list[StoredModel]:
        """Every sound model, the one changed last first."""
        models = self._list.read()
        return sorted(models, key=lambda model: (-model.modified_at.timestamp(), model.name.full))

    def broken(self) -> Findings:
        """What under manifests/ is no sound model, and why."""
        findings = []
        for parts in self.tree.walk():
            try:
                self._load(name_of(parts))
            except BrokenModel as error:
                findings.append(Finding(error.name, error.reason))
            except InvalidName as error:
                unread = self.tree.is_unreadable_directory(parts)
                reason = "this folder cannot be read" if unread else f"it is no manifest: {error}"
                findings.append(Finding("/".join(parts), reason))
            except ModelNotFound:
                continue  # deleted since the walk began
        return findings

    def get(self, name: ModelName) -> StoredModel:
        """The model of this name, in whatever case it is stored.

        Raises:
            ModelNotFound: there is none.
            BrokenModel: it is damaged.
        """
        return self._load(self.resolve(name))

    def resolve(self, name: ModelName) -> ModelName:
        """The stored spelling of a name.

        Raises:
            ModelNotFound: nothing is stored under it in any case.
        """
        return self.tree.resolve(name)

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

    def private_folder(self, *parts: str) -> Path:
        """A folder for Hob alone, on the blobs' disk; made where it is missing.

        Raises:
            OutOfSpace, StoreError: the disk refused.
        """
        folder = self.private.joinpath(*parts)
        with as_store_error("write into the models folder"):
            self.folder.make_directories(folder)
        return folder

    def write_manifest(self, name: ModelName, manifest: Manifest | bytes) -> StoredModel:
        """Make `name` mean `manifest`, at once, and delete what only its predecessor needed.

        Args:
            manifest: bytes are kept as they are, so that a pulled model keeps its digest.

        Raises:
            BrokenModel: the manifest does not parse or a blob that it names is not here; nothing was changed.
            OutOfSpace, StoreError: the disk refused; the old or the new model is there whole.
        """
        data = manifest if isinstance(manifest, bytes) else manifest.encode()
        with self.folder.exclusive():
            model = self._check_links(load_model(name, data, datetime.now(UTC), self.blobs))
            with suppress(ModelNotFound):
                name = self.resolve(name)
            replaced = self.tree.digests_named(name)
            self.folder.write_small(self.tree.path(name), data)
            self._collector.give_up(model.manifest.digests())
            self._collector.collect_quietly(replaced - model.manifest.digests())
            return self._load(name)

    def copy(self, source: ModelName, destination: ModelName) -> StoredModel:
        """Give a model a second name; both have the same digest.

        Raises:
            ModelNotFound, BrokenModel: the source is not there or damaged.
        """
        with self.folder.exclusive():
            source = self.resolve(source)
            data, _ = self.tree.read(source)
            if source == destination:
                return self._load(source)
            return self.write_manifest(destination, data)

    def delete(self, name: ModelName) -> None:
        """Remove a model, sound or not, and the blobs that only it needed.

        Raises:
            ModelNotFound: there is none.
            StoreError: the disk refused; the model is still there, or gone while some of its blobs stay.
        """
        with self.folder.exclusive():
            name = self.resolve(name)
            digests = self.tree.digests_named(name)
            path = self.tree.path(name)
            with as_store_error(f"remove {name}"):
                new_marks = frozenset(digest for digest in digests if self._collector.mark(digest))
                self.disk.unlink(path)
                self.disk.sync_directory(path.parent)
                self.folder.remove_empty_directories(path.parent)
            self._collector.collect_quietly(digests, new_marks)

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

    # ---- notes

    def read_note(self, key: str) -> bytes:
        """What was last noted under a key, b"" where nothing was."""
        try:
            return read_regular(self.folder.notes / key, MAX_NOTE_BYTES)[0]
        except FileNotFoundError:
            return b""

    def write_note(self, key: str, data: bytes) -> None:
        """Keep a few bytes beside the models, for Hob alone; `key` is a file name that the caller made up.

        Raises:
            OutOfSpace, StoreError: the disk refused; the old note is still there.
        """
        with self.folder.exclusive():
            self.folder.write_small(self.folder.notes / key, data)

    # ---- looking after the store

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Be the one daemon of this store inside the block.

        Raises:
            StoreLocked: another process is.
        """
        with as_store_error("write into the models folder"):
            self.folder.make_directories(self.private)
            lock = filelock.FileLock(self.private / "daemon.lock", timeout=0)
            pid = self.private / "daemon.pid"
            try:
                lock.acquire()
            except filelock.Timeout as error:
                raise StoreLocked(f"another daemon serves from this models folder (process {_pid_in(pid)})") from error
            # Only for the message above; the lock alone decides.
            self.folder.write_small(pid, b"%d" % os.getpid())
        try:
            yield
        finally:
            lock.release()

    def collect_garbage(self, keep: frozenset[Digest] = frozenset()) -> None:
        """Delete temporary files, what was left in the inbox, and collectable blobs that no manifest names.

        For the start of a daemon that holds the claim: it takes every temporary file for a dead process's. What lies in
        quarantine stays; people delete it.

        Args:
            keep: blobs that stay though no manifest names them, such as those of an interrupted pull.
        """
        with self.folder.exclusive(), as_store_error("clean up the models folder"):
            places = [place for place in (self.folder.tmp, self.folder.inbox) if not place.is_symlink()]
            for path in [path for place in places for path in entries(place)]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)  # a workspace
                else:
                    self.disk.unlink(path)
            self._collector.collect(self._collector.marked() - keep)

    def check(self, *, rehash: bool = True) -> Findings:
        """All that is wrong: damaged manifests, and files under a digest's name that are something else.

        Args:
            rehash: read every blob whole; without it only names and sizes are looked at.
        """
        findings = self.broken()
        for path in entries(self.blobs):
            try:
                digest = Digest.parse(path.name)
            except InvalidDigest:
                if not is_ollama_temporary(path.name):
                    findings.append(Finding(path.name, "its name is no digest"))
                continue
            if not self.has_blob(digest):
                findings.append(Finding(path.name, "it is no regular file"))
            elif rehash and hash_file(path) != digest:
                findings.append(Finding(path.name, "it does not hold the bytes that its digest names"))
        return findings

    # ---- inside

    def _load(self, name: ModelName) -> StoredModel:
        while True:
            data, status = self.tree.read(name)
            try:
                modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
                return self._check_links(load_model(name, data, modified_at, self.blobs))
            except BrokenModel:
                # The blobs may be gone because the model was replaced since its manifest was read.
                _, now = self.tree.read(name)
                if (now.st_ino, now.st_mtime_ns) == (status.st_ino, status.st_mtime_ns):
                    raise

    def _check_links(self, model: StoredModel) -> StoredModel:
        """The model, unless a blob of its that was whole a moment ago cannot be relied on."""
        for digest in model.manifest.digests():
            try:
                is_changed = self.links.is_changed(digest, os.lstat(self.blobs / digest.file_name))
            except OSError as error:
                raise BrokenModel(model.name.short, f"its blob {digest} is missing") from error
            if is_changed:
                reason = f"its blob {digest} shares its bytes with a file that was written to; hob fsck reads it again"
                raise BrokenModel(model.name.short, reason)
        return model

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


def _pid_in(file: Path) -> str:
    try:
        text = read_regular(file, MAX_PID_BYTES)[0].decode("ascii")
    except (OSError, ValueError):
        return "unknown"
    return text if text.isdecimal() else "unknown"
