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
because `collect_garbage` runs once, at the start of the one daemon, before it serves; blobs of an interrupted pull are
named to it by the journals of their downloads (`registry.partials`).

*What a damaged manifest does*: `list` leaves it out, `broken` reports it, `get` says what is wrong; all else goes on.

All methods may be called from several threads, and from several processes but for `collect_garbage`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock

from registry.blob_store import BlobStore
from registry.blob_writer import hash_file
from registry.disk import Disk, read_regular
from registry.errors import (
    BrokenModel,
    InvalidDigest,
    InvalidName,
    ModelNotFound,
    StoreLocked,
    as_store_error,
)
from registry.manifest import Digest, Manifest
from registry.manifest_tree import name_of
from registry.model_list import ModelList
from registry.name import ModelName
from registry.store_folder import entries, is_ollama_temporary
from registry.stored_model import StoredModel, load_model

MAX_NOTE_BYTES = 1024 * 1024
MAX_PID_BYTES = 20


@dataclass(frozen=True)
class Finding:
    """Something wrong in the store: what it concerns (a model's name, a blob's file name) and a sentence."""

    subject: str
    reason: str


Findings = list[Finding]  # named here, since inside Store `list` is a method


class Store(BlobStore):
    """The models in one folder. Nothing is created before the first write.

    Args:
        root: the models folder.
        disk: how files are changed; tests pass one that fails.
        lock_timeout_s: how long a change waits for another process's change.
    """

    def __init__(self, root: Path, *, disk: Disk | None = None, lock_timeout_s: float = 60) -> None:
        super().__init__(root, disk=disk, lock_timeout_s=lock_timeout_s)
        self.manifests = self.folder.manifests
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

    # ---- writing

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
                is_changed = self.links.is_changed(digest, os.lstat(f"{self.blobs}/{digest.file_name}"))
            except OSError as error:
                raise BrokenModel(model.name.short, f"its blob {digest} is missing") from error
            if is_changed:
                reason = f"its blob {digest} shares its bytes with a file that was written to; hob fsck reads it again"
                raise BrokenModel(model.name.short, reason)
        return model


def _pid_in(file: Path) -> str:
    try:
        text = read_regular(file, MAX_PID_BYTES)[0].decode("ascii")
    except (OSError, ValueError):
        return "unknown"
    return text if text.isdecimal() else "unknown"
