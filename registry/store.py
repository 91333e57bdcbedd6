"""Store: manifests and content-addressed blobs on disk, in Ollama's layout.

    manifests/<host>/<namespace>/<model>/<tag>   JSON; its presence is what makes a model exist
    blobs/sha256-<hex>                           bytes whose sha256 is their name
    .hob/tmp/                                    files being written
    .hob/collectable/sha256-<hex>                empty; Hob may delete this blob once nothing refers to it
    .hob/partials/                               blobs that are being downloaded: see `registry.partials`
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
somebody asked Hob to delete a model made of them, so a blob that an Ollama beside us is just writing stays; and
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

import logging
import os
import re
import secrets
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock

from registry.blob_writer import BlobWriter, hash_file
from registry.disk import Disk, read_regular
from registry.errors import (
    BlobNotFound,
    BrokenModel,
    InvalidDigest,
    InvalidName,
    ManifestError,
    ModelNotFound,
    StoreError,
    StoreLocked,
    as_store_error,
)
from registry.manifest import DIGEST_TEXT, MAX_MANIFEST_BYTES, Digest, Manifest
from registry.name import ModelName
from registry.stored_model import StoredModel, load_model

LOG = logging.getLogger(__name__)

PRIVATE = ".hob"
NUM_NAME_PARTS = 4
MAX_NOTE_BYTES = 1024 * 1024


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
        self.root = root
        self.manifests = root / "manifests"
        self.blobs = root / "blobs"
        self.private = root / PRIVATE
        self.disk = disk or Disk()
        self._collectable = self.private / "collectable"
        self._thread_lock = threading.RLock()
        self._process_lock = filelock.FileLock(self.private / "lock", timeout=lock_timeout_s)
        self._leases: Counter[Digest] = Counter()  # guarded by _thread_lock
        self._postponed: set[Digest] = set()  # to collect when their leases end; guarded by _thread_lock
        self._unnamed: set[Digest] = set()  # written here, in no manifest yet; guarded by _thread_lock

    # ---- reading

    def list(self) -> list[StoredModel]:
        """Every sound model, the one changed last first."""
        models = []
        for parts in self._walk():
            with suppress(BrokenModel, ModelNotFound, InvalidName):  # broken() reports these
                models.append(self._load(_name_of(parts)))
        return sorted(models, key=lambda model: (-model.modified_at.timestamp(), model.name.full))

    def broken(self) -> Findings:
        """What under manifests/ is no sound model, and why."""
        findings = []
        for parts in self._walk():
            try:
                self._load(_name_of(parts))
            except BrokenModel as error:
                findings.append(Finding(error.name, error.reason))
            except InvalidName as error:
                findings.append(Finding("/".join(parts), f"it is no manifest: {error}"))
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
        if os.path.lexists(self._manifest_path(name)):
            return name
        for parts in self._walk(name.path_parts):
            if len(parts) == NUM_NAME_PARTS:
                return _name_of(parts)
        raise ModelNotFound(name.short)

    def has_blob(self, digest: Digest) -> bool:
        try:
            return stat.S_ISREG(os.lstat(self.blobs / digest.file_name).st_mode)
        except OSError:
            return False

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
        return BlobWriter(self.disk, self._temporary(), self._publish_blob, expected, size)

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
        folder = self._temporary()
        with as_store_error("write into the models folder"):
            self.disk.make_directory(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the next start cleans up what cannot be removed

    def adopt(self, path: Path) -> Digest:
        """Make a blob of a file in a workspace by moving it; its bytes must have been synced to the disk.

        Raises:
            OutOfSpace, StoreError: the disk refused; the file is where it was.
        """
        with as_store_error("write into the models folder"):
            digest = hash_file(path)
            self._publish_blob(path, digest)
        return digest

    def publish_blob(self, path: Path, digest: Digest) -> None:
        """Make a blob of a file by moving it; its bytes are known to hash to `digest` and were synced to the disk.

        Raises:
            OutOfSpace, StoreError: the disk refused; the file is where it was or in its place.
        """
        with as_store_error("write into the models folder"):
            self._publish_blob(path, digest)

    def keep_blob(self, digest: Digest, size: int | None = None) -> bool:
        """Whether a blob is here, with this many bytes; if so it stays until a manifest has named it."""
        with self._thread_lock:
            try:
                status = os.lstat(self.blobs / digest.file_name)
            except OSError:
                return False
            if not stat.S_ISREG(status.st_mode) or size not in (None, status.st_size):
                return False
            self._unnamed.add(digest)
            return True

    def private_folder(self, *parts: str) -> Path:
        """A folder for Hob alone, on the blobs' disk; made where it is missing.

        Raises:
            OutOfSpace, StoreError: the disk refused.
        """
        folder = self.private.joinpath(*parts)
        with as_store_error("write into the models folder"):
            self._make_directories(folder)
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
        with self._exclusive():
            model = load_model(name, data, datetime.now(UTC), self.blobs)
            with suppress(ModelNotFound):
                name = self.resolve(name)
            replaced = self._digests_named(name)
            self._write_small(self._manifest_path(name), data)
            self._unnamed -= model.manifest.digests()
            self._collect_quietly(replaced - model.manifest.digests())
            return self._load(name)

    def copy(self, source: ModelName, destination: ModelName) -> StoredModel:
        """Give a model a second name; both have the same digest.

        Raises:
            ModelNotFound, BrokenModel: the source is not there or damaged.
        """
        with self._exclusive():
            source = self.resolve(source)
            data, _ = self._read_manifest(source)
            if source == destination:
                return self._load(source)
            return self.write_manifest(destination, data)

    def delete(self, name: ModelName) -> None:
        """Remove a model, sound or not, and the blobs that only it needed.

        Raises:
            ModelNotFound: there is none.
            StoreError: the disk refused; the model is still there, or gone while some of its blobs stay.
        """
        with self._exclusive():
            name = self.resolve(name)
            digests = self._digests_named(name)
            path = self._manifest_path(name)
            with as_store_error(f"remove {name}"):
                for digest in digests:
                    self._mark_collectable(digest)
                self.disk.unlink(path)
                self.disk.sync_directory(path.parent)
                self._remove_empty_directories(path.parent)
            self._collect_quietly(digests)

    @contextmanager
    def lease(self, digests: Iterable[Digest] = ()) -> Iterator[None]:
        """Protect blobs from deletion inside the block, for whoever is about to name them in a manifest.

        What was to be deleted meanwhile and is still not named goes at the end of the block.
        """
        held = Counter(digests)
        with self._thread_lock:
            self._leases.update(held)
        try:
            yield
        finally:
            with self._thread_lock:
                self._leases.subtract(held)
                self._leases += Counter()  # drops what is down to zero
                due = frozenset(self._postponed - self._leases.keys())
                self._postponed -= due
                if due:
                    self._collect_quietly(due)

    def discard(self, digests: Iterable[Digest]) -> None:
        """Give up blobs that were written for a model that is not going to be; others' stay."""
        with self._exclusive():
            self._unnamed.difference_update(digests)
            self._collect_quietly(frozenset(digests))

    # ---- notes

    def read_note(self, key: str) -> bytes:
        """What was last noted under a key, b"" where nothing was."""
        try:
            return read_regular(self.private / "notes" / key, MAX_NOTE_BYTES)[0]
        except FileNotFoundError:
            return b""

    def write_note(self, key: str, data: bytes) -> None:
        """Keep a few bytes beside the models, for Hob alone; `key` is a file name that the caller made up.

        Raises:
            OutOfSpace, StoreError: the disk refused; the old note is still there.
        """
        with self._exclusive():
            self._write_small(self.private / "notes" / key, data)

    # ---- looking after the store

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Be the one daemon of this store inside the block.

        Raises:
            StoreLocked: another process is.
        """
        with as_store_error("write into the models folder"):
            self._make_directories(self.private)
            lock = filelock.FileLock(self.private / "daemon.lock", timeout=0)
            pid = self.private / "daemon.pid"
            try:
                lock.acquire()
            except filelock.Timeout as error:
                owner = pid.read_text("ascii") if pid.exists() else "unknown"
                raise StoreLocked(f"another daemon serves from this models folder (process {owner})") from error
            # Only for the message above; the lock alone decides.
            pid.write_text(str(os.getpid()), "ascii")
        try:
            yield
        finally:
            lock.release()

    def collect_garbage(self, keep: frozenset[Digest] = frozenset()) -> None:
        """Delete temporary files and collectable blobs that no manifest names.

        For the start of a daemon that holds the claim: it takes every temporary file for a dead process's.

        Args:
            keep: blobs that stay though no manifest names them, such as those of an interrupted pull.
        """
        with self._exclusive(), as_store_error("clean up the models folder"):
            for path in _entries(self.private / "tmp"):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)  # a workspace
                else:
                    self.disk.unlink(path)
            marks = [Digest.parse(path.name) for path in _entries(self._collectable)]
            self._collect(frozenset(marks) - keep)

    def check(self, *, rehash: bool = True) -> Findings:
        """All that is wrong: damaged manifests, and files under a digest's name that are something else.

        Args:
            rehash: read every blob whole; without it only names and sizes are looked at.
        """
        findings = self.broken()
        for path in _entries(self.blobs):
            try:
                digest = Digest.parse(path.name)
            except InvalidDigest:
                findings.append(Finding(path.name, "its name is no digest"))
                continue
            if not self.has_blob(digest):
                findings.append(Finding(path.name, "it is no regular file"))
            elif rehash and hash_file(path) != digest:
                findings.append(Finding(path.name, "it does not hold the bytes that its digest names"))
        return findings

    # ---- inside

    def _manifest_path(self, name: ModelName) -> Path:
        return self.manifests.joinpath(*name.path_parts)

    def _walk(self, wanted: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        """Paths under manifests/ in parts: four for what may be a model, fewer for a stray file on the way.

        Links to directories are not followed. `wanted` leaves out what differs from it by more than case.
        """
        pending: list[tuple[str, ...]] = [()]
        while pending:
            parent = pending.pop()
            for path in reversed(_entries(self.manifests.joinpath(*parent))):
                parts = (*parent, path.name)
                if path.name.startswith(".") or (wanted and path.name.lower() != wanted[len(parent)].lower()):
                    continue
                if len(parts) < NUM_NAME_PARTS and path.is_dir() and not path.is_symlink():
                    pending.append(parts)
                else:
                    yield parts

    def _read_manifest(self, name: ModelName) -> tuple[bytes, os.stat_result]:
        try:
            return read_regular(self._manifest_path(name), MAX_MANIFEST_BYTES)
        except FileNotFoundError as error:
            raise ModelNotFound(name.short) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BrokenModel(name.short, f"its manifest cannot be read: {reason}") from error

    def _load(self, name: ModelName) -> StoredModel:
        while True:
            data, status = self._read_manifest(name)
            try:
                return load_model(name, data, datetime.fromtimestamp(status.st_mtime, UTC), self.blobs)
            except BrokenModel:
                # The blobs may be gone because the model was replaced since its manifest was read.
                _, now = self._read_manifest(name)
                if (now.st_ino, now.st_mtime_ns) == (status.st_ino, status.st_mtime_ns):
                    raise

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the store's lock against other threads and processes. Reentrant in a thread."""
        with self._thread_lock:
            with as_store_error("write into the models folder"):
                self._make_directories(self.private)
                try:
                    self._process_lock.acquire()
                except filelock.Timeout as error:
                    waited = self._process_lock.timeout
                    raise StoreLocked(f"another process kept the models folder busy for {waited} s") from error
            try:
                yield
            finally:
                self._process_lock.release()

    def _make_directories(self, path: Path) -> None:
        """Create a directory and its parents, durably."""
        if path.is_dir():
            return
        self._make_directories(path.parent)
        with suppress(FileExistsError):  # another thread was faster
            self.disk.make_directory(path)
        self.disk.sync_directory(path.parent)

    def _remove_empty_directories(self, path: Path) -> None:
        while path != self.manifests and not any(path.iterdir()):
            self.disk.remove_directory(path)
            path = path.parent

    def _temporary(self) -> Path:
        """A path for a file that is about to be written."""
        with as_store_error("write into the models folder"):
            self._make_directories(self.private / "tmp")
        return self.private / "tmp" / f"{os.getpid()}-{secrets.token_hex(8)}"

    def _write_small(self, path: Path, data: bytes) -> None:
        with as_store_error("write into the models folder"):
            self._make_directories(path.parent)
        with BlobWriter(self.disk, self._temporary(), lambda source, _: self._publish(source, path)) as writer:
            writer.write(data)
            writer.commit()

    def _publish(self, temporary: Path, path: Path) -> None:
        self.disk.rename(temporary, path)
        self.disk.sync_directory(path.parent)

    def _publish_blob(self, temporary: Path, digest: Digest) -> None:
        with self._exclusive():
            self._make_directories(self.blobs)
            if not self.has_blob(digest):
                # Before the rename: a crash in between leaves a mark without a blob, which harms nobody.
                self._mark_collectable(digest)
            self._publish(temporary, self.blobs / digest.file_name)
            self._unnamed.add(digest)

    def _mark_collectable(self, digest: Digest) -> None:
        self._make_directories(self._collectable)
        with suppress(FileExistsError):
            os.close(self.disk.create(self._collectable / digest.file_name))

    def _digests_named(self, name: ModelName) -> frozenset[Digest]:
        """The blobs that the manifest of `name` names; of a damaged one those that can be made out."""
        try:
            data, _ = self._read_manifest(name)
        except (ModelNotFound, BrokenModel):
            return frozenset()
        try:
            return Manifest.parse(data).digests()
        except ManifestError:
            return frozenset(map(Digest, re.findall(DIGEST_TEXT.pattern, data.decode("ascii", "replace"))))

    def _collect_quietly(self, digests: frozenset[Digest]) -> None:
        """Collect after a change that has already succeeded: a refusal of the disk is for the log only."""
        try:
            with self._exclusive():
                self._collect(digests)
        except (OSError, StoreError) as error:
            LOG.warning("some unused blobs stay until the next start: %s", error)

    def _collect(self, digests: frozenset[Digest]) -> None:
        if not digests:
            return
        named: set[Digest] = set()
        for parts in self._walk():
            try:
                name = _name_of(parts)
                named |= Manifest.parse(self._read_manifest(name)[0]).digests()
            except (InvalidName, ModelNotFound):
                continue  # nothing that Hob or Ollama would have written, or deleted by an Ollama beside us
            except (BrokenModel, ManifestError):
                LOG.warning("unused blobs stay, because %s is damaged and may need them", name)
                return
        self._postponed |= digests & self._leases.keys()
        for digest in sorted(digests - named - self._unnamed - self._leases.keys()):
            mark = self._collectable / digest.file_name
            if not mark.exists():
                continue
            with suppress(FileNotFoundError):
                self.disk.unlink(self.blobs / digest.file_name)
            self.disk.unlink(mark)


def _entries(directory: Path) -> list[Path]:
    """What is in a directory, sorted; nothing where it is missing or is none."""
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _name_of(parts: tuple[str, ...]) -> ModelName:
    """The name stored at manifests/<parts>.

    Raises:
        InvalidName: no name can be stored there.
    """
    if len(parts) != NUM_NAME_PARTS:
        raise InvalidName("a manifest lies at host/namespace/model/tag")
    host, namespace, model, tag = parts
    return ModelName(model, tag, namespace, host)
