"""fsck: reads a whole store, names what is broken, and moves it out of the way.

`hob fsck` calls it through the daemon. What is broken goes to `.hob/quarantine/<number>/`, never further: a blob that
is gone from its place is fetched again by the next pull, a manifest that is gone stops nobody, and whoever needs the
old bytes still has them. Nothing is moved that somebody may just be writing: a blob is looked at again under the lock,
a manifest only after all blobs were read, since an Ollama beside us writes manifests in place and takes no lock.

    blob with other bytes than its digest says, or no file at all    quarantined, also where Ollama wrote it
    manifest that does not parse, or is no file                      quarantined; its blobs stay (see `collection`)
    sound manifest of a blob that is missing or has another size     reported: pull or create the model again
    file that nobody here knows, folder that cannot be read          reported
    files that an Ollama is downloading                              none of our business
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from registry.disk import open_regular
from registry.errors import (
    NO_RESOURCES,
    BrokenModel,
    InvalidDigest,
    InvalidName,
    ManifestError,
    ModelNotFound,
    StoreError,
    StoreLocked,
    unreadable,
)
from registry.linked_blobs import stamp_of
from registry.manifest import Digest, Manifest
from registry.manifest_tree import name_of
from registry.name import ModelName
from registry.store import Store
from registry.store_folder import entries, is_ollama_temporary

CHUNK_BYTES = 4 * 1024 * 1024
MAX_READINGS = 3
"""Of a blob that changes while it is read."""


@dataclass(frozen=True)
class FsckProgress:
    """How far the reading of blobs has come."""

    subject: str
    """The blob's file name."""
    completed: int
    """Bytes of all blobs."""
    total: int


@dataclass(frozen=True)
class Damage:
    """Something broken: a blob's file name, a model's name or a path under manifests/, and what is wrong with it."""

    subject: str
    reason: str
    models: tuple[str, ...] = ()
    """The models that cannot be used because of it."""
    is_quarantined: bool = False


@dataclass(frozen=True)
class _Verdict:
    """What reading a blob showed; no reason where nothing is wrong."""

    reason: str = ""
    is_certain: bool = False
    """That the bytes cannot be had from this file."""
    is_disk_error: bool = False


def fsck(store: Store, *, rehash: bool = True) -> Iterator[FsckProgress | Damage]:
    """Look at everything in the store, yielding progress and damage.

    Args:
        rehash: read every blob whole; without it only those whose size is not what a manifest says.

    Raises:
        StoreError: the folder cannot be read, or another process kept it busy.
    """
    return _Fsck(store).run(rehash=rehash)


class _Fsck:
    """One run, and what it knows so far."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = store.folder
        self._manifests: dict[ModelName, Manifest] = {}
        self._torn: list[ModelName] = []
        self._users: dict[Digest, list[str]] = {}
        self._bad_blobs: set[Digest] = set()
        self._quarantine: Path | None = None
        self._is_read_only = False

    def run(self, *, rehash: bool) -> Iterator[FsckProgress | Damage]:
        yield from self._read_manifests()
        yield from self._check_blobs(rehash=rehash)
        for name in self._torn:
            yield from self._check_torn(name)
        for name, manifest in self._manifests.items():
            yield from self._check_model(name, manifest)

    # ---- manifests

    def _read_manifests(self) -> Iterator[Damage]:
        for parts in self._store.tree.walk():
            try:
                name = name_of(parts)
                manifest = Manifest.parse(self._store.tree.read(name)[0])
            except InvalidName as error:
                if self._store.tree.is_unreadable_directory(parts):
                    yield Damage("/".join(parts), "this folder cannot be read; what models are in it is not known")
                else:
                    yield Damage("/".join(parts), f"it is no manifest: {error}")
            except ModelNotFound:
                continue  # deleted since the walk began
            except (BrokenModel, ManifestError):
                self._torn.append(name)
            else:
                self._manifests[name] = manifest
                for digest in manifest.digests():
                    self._users.setdefault(digest, []).append(name.short)

    def _check_torn(self, name: ModelName) -> Iterator[Damage]:
        """Quarantine a manifest if it is still torn."""
        with self._exclusive():
            try:
                Manifest.parse(self._store.tree.read(name)[0])
                return
            except ModelNotFound:
                return
            except BrokenModel as error:
                reason, is_certain = error.reason, not isinstance(error.__cause__, PermissionError)
            except ManifestError as error:
                reason, is_certain = str(error), True
            moved = is_certain and self._move(self._store.tree.path(name), Path("manifests", *name.path_parts))
        yield Damage(name.short, reason, (name.short,), is_quarantined=moved)

    def _check_model(self, name: ModelName, manifest: Manifest) -> Iterator[Damage]:
        """What is wrong with a model beside the blobs that were reported."""
        for digest in sorted(manifest.digests() - self._bad_blobs):
            if not os.path.lexists(self._store.blobs / digest.file_name):
                self._bad_blobs.add(digest)
                yield Damage(digest.file_name, "it is missing", tuple(self._users[digest]))
        if manifest.digests() & self._bad_blobs:
            return
        try:
            self._store.get(name)
        except ModelNotFound:
            return
        except BrokenModel as error:
            yield Damage(name.short, error.reason, (name.short,))

    # ---- blobs

    def _check_blobs(self, *, rehash: bool) -> Iterator[FsckProgress | Damage]:
        sizes: dict[Digest, int] = {}
        for path in entries(self._store.blobs):
            try:
                digest = Digest.parse(path.name)
            except InvalidDigest:
                if not is_ollama_temporary(path.name):
                    yield Damage(path.name, "its name is no digest; Hob leaves it alone")
                continue
            status = _status(path)
            if status is not None:
                sizes[digest] = status.st_size if stat.S_ISREG(status.st_mode) else 0
        named = {layer.digest: layer.size for manifest in self._manifests.values() for layer in manifest.blobs()}
        chosen = [digest for digest in sizes if rehash or sizes[digest] != named.get(digest, sizes[digest])]
        total = sum(sizes[digest] for digest in chosen)
        completed = 0
        for digest in chosen:
            for event in self._check_blob(digest):
                if isinstance(event, Damage):
                    yield event
                else:
                    yield FsckProgress(digest.file_name, completed + min(event, sizes[digest]), total)
            completed += sizes[digest]

    def _check_blob(self, digest: Digest) -> Iterator[int | Damage]:
        """Read one blob, yielding how many of its bytes are done."""
        path = self._store.blobs / digest.file_name
        for reading in range(MAX_READINGS):
            before = _status(path)
            if before is None:
                return  # collected since
            verdict = yield from _read(path, digest)
            if not verdict.reason and not self._store.links.is_changed(digest, before):
                return
            if verdict.is_disk_error and reading == 0:
                continue  # it may pass
            with self._exclusive():
                if not _is_same(_status(path), before):
                    continue  # somebody put another in its place, perhaps the right one
                if not verdict.reason:
                    self._note_anew(digest, before)
                    return
                moved = verdict.is_certain and self._move(path, Path("blobs", path.name))
            break
        else:
            verdict, moved = _Verdict("somebody keeps writing to it"), False
        self._bad_blobs.add(digest)
        yield Damage(path.name, verdict.reason, tuple(self._users.get(digest, ())), is_quarantined=moved)

    # ---- changes, which a folder that cannot be written refuses

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """The folder's lock, as far as it can be had."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._folder.exclusive())
            except StoreLocked:
                raise
            except StoreError:
                self._is_read_only = True
            yield

    def _note_anew(self, digest: Digest, status: os.stat_result) -> None:
        if not self._is_read_only:
            self._store.links.note(digest, stamp_of(status))

    def _move(self, path: Path, place: Path) -> bool:
        """Put a file into this run's folder; False where the disk refuses."""
        if self._is_read_only:
            return False
        try:
            if self._quarantine is None:
                numbers = [int(entry.name) for entry in entries(self._folder.quarantine) if entry.name.isdecimal()]
                self._quarantine = self._folder.quarantine / str(max(numbers, default=0) + 1)
            target = self._quarantine / place
            self._folder.make_directories(target.parent)
            self._folder.publish(path, target)
            self._folder.disk.sync_directory(path.parent)
        except OSError:
            return not os.path.lexists(path)
        return True


def _read(path: Path, digest: Digest) -> Generator[int, None, _Verdict]:
    sha256 = hashlib.sha256()
    completed = 0
    try:
        with open_regular(path) as (fd, status):
            # No further than its size was: somebody may be appending to it faster than we read.
            while completed <= status.st_size and (chunk := os.read(fd, CHUNK_BYTES)):
                sha256.update(chunk)
                completed += len(chunk)
                yield completed
    except OSError as error:
        if error.errno in NO_RESOURCES:
            raise unreadable("a blob", error) from error
        if error.errno in (None, errno.ELOOP, errno.ENXIO):  # a folder or pipe, a link, a socket
            return _Verdict("it is no regular file", is_certain=True)
        is_disk_error = error.errno == errno.EIO
        return _Verdict(f"it cannot be read: {error.strerror}", is_certain=is_disk_error, is_disk_error=is_disk_error)
    if sha256.hexdigest() != digest.hex:
        return _Verdict("it does not hold the bytes that its digest names", is_certain=True)
    return _Verdict()


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable("the models folder", error) from error


def _is_same(first: os.stat_result | None, second: os.stat_result) -> bool:
    return first is not None and stamp_of(first) == stamp_of(second)
