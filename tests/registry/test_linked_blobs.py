"""Blobs that are hard links to files of somebody else's: how they come, and what happens when their owner writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from registry.disk import Disk
from registry.errors import BrokenModel, DigestMismatch, StoreError
from registry.fsck import Damage, fsck
from registry.manifest import Digest
from registry.name import ModelName
from registry.store import Store
from tests.registry.small_models import blob_names, contents, names_in, put_model

KEY = "0123456789abcdef" * 2
DIGEST = Digest.of(b"weights")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def linked(store: Store, file: Path) -> Store:
    """A store with the model "tale", whose weights are the file."""
    with store.lease([DIGEST]):
        store.link_blob(file)
        (store.blobs / DIGEST.file_name).chmod(0o644)
        put_model(store, "other")
        store.copy(ModelName("other"), ModelName("tale"))
        store.delete(ModelName("other"))
    # put_model wrote the same bytes anew; make the blob a link again.
    store.link_blob(file)
    return store


def write_later(file: Path, data: bytes) -> None:
    """Write into the file as its owner, at another time than it was made."""
    status = file.stat()
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_a_link_is_no_second_copy_and_needs_no_name_of_its_own(store: Store, file: Path) -> None:
    assert store.link_blob(file, DIGEST) == DIGEST
    assert (store.blobs / DIGEST.file_name).samefile(file)
    assert store.link_blob(file) == DIGEST, "linking the same file again changes nothing"
    assert names_in(store.folder.tmp) == set()
    store.discard([DIGEST])
    assert file.read_bytes() == b"weights", "the owner's file outlives the blob"
    assert blob_names(store) == names_in(store.folder.linked) == names_in(store.folder.collectable) == set()


def test_a_file_that_is_no_file_or_another_one_is_not_linked(store: Store, file: Path, tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch):
        store.link_blob(file, Digest.of(b"others"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(file)
    for path in (pipe, link):
        with pytest.raises(StoreError, match="cannot link a file into the models folder: "):
            store.link_blob(path)
    assert blob_names(store) == names_in(store.folder.tmp) == set()


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_there_can_be_no_link_the_caller_copies(tmp_path: Path, file: Path, error: int) -> None:
    class Unlinkable(Disk):
        def link(self, source: Path, target: Path) -> None:
            raise OSError(error, os.strerror(error))

    store = Store(tmp_path / "models", disk=Unlinkable())
    assert store.link_blob(file) is None
    assert names_in(store.folder.tmp) == set()


def test_a_blob_whose_owner_wrote_to_it_is_not_relied_on(linked: Store, file: Path) -> None:
    assert contents(linked)
    write_later(file, b"WEIGHTS")
    assert linked.list() == []
    assert not linked.has_blob(DIGEST)
    with pytest.raises(BrokenModel, match=f"{DIGEST} shares its bytes with a file that was written to; hob fsck"):
        linked.get(ModelName("tale"))
    manifest = linked.manifests.joinpath(*ModelName("tale").path_parts).read_bytes()
    with pytest.raises(BrokenModel, match="was written to"):
        linked.write_manifest(ModelName("new"), manifest)
    linked.write_blob([b"weights"], DIGEST)  # what a pull or a create does next
    assert contents(linked)["tale:latest"][1] == b"weights"
    assert file.read_bytes() == b"WEIGHTS"
    write_later(file, b"weights!")
    assert contents(linked), "the blob is no link any more"


def test_a_file_that_was_only_touched_is_read_once_more(linked: Store, file: Path) -> None:
    write_later(file, b"weights")
    assert linked.list() == []
    assert [event for event in fsck(linked) if isinstance(event, Damage)] == []
    assert contents(linked)["tale:latest"][1] == b"weights"
    assert (linked.blobs / DIGEST.file_name).samefile(file)


def test_fsck_finds_what_was_written_with_the_time_set_back(linked: Store, file: Path) -> None:
    status = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    [damage] = [event for event in fsck(linked) if isinstance(event, Damage)]
    assert damage.subject == DIGEST.file_name
    assert damage.is_quarantined
    assert file.read_bytes() == b"WEIGHTS"
    assert not linked.has_blob(DIGEST)


@pytest.mark.parametrize("note", [b"", b"[1,2", b'{"a":1}', b"[1,2,3,4]", b" " * 1000])
def test_a_note_that_cannot_be_read_is_no_reason_to_trust(linked: Store, note: bytes) -> None:
    (linked.folder.linked / DIGEST.file_name).write_bytes(note)
    assert not linked.has_blob(DIGEST)
    assert list(fsck(linked))
    assert linked.has_blob(DIGEST), "fsck read the blob and noted it anew"


# ---- the inbox


def leave_in_inbox(store: Store, file: Path, key: str = KEY) -> Path:
    store.folder.inbox.mkdir(parents=True, exist_ok=True)
    path = store.folder.inbox / key
    os.link(file, path)
    return path


def test_a_file_in_the_inbox_becomes_a_blob(store: Store, file: Path) -> None:
    leave_in_inbox(store, file)
    assert store.take_from_inbox(KEY, DIGEST)
    assert (store.blobs / DIGEST.file_name).samefile(file)
    assert names_in(store.folder.inbox) == names_in(store.folder.tmp) == set()
    assert not store.take_from_inbox(KEY, DIGEST), "it is gone"


def test_other_bytes_than_announced_are_refused_and_taken_away(store: Store, file: Path) -> None:
    leave_in_inbox(store, file)
    with pytest.raises(DigestMismatch):
        store.take_from_inbox(KEY, Digest.of(b"others"))
    assert names_in(store.folder.inbox) == names_in(store.folder.tmp) == blob_names(store) == set()
    assert file.exists()


@pytest.mark.parametrize(
    "key", ["", "..", "../../canary", "/etc/passwd", KEY[:-1], KEY + "0", KEY.upper(), KEY + "\n", "a/" + KEY[2:]]
)
def test_only_random_names_of_the_inbox_are_taken(store: Store, tmp_path: Path, file: Path, key: str) -> None:
    store.folder.inbox.mkdir(parents=True)
    (tmp_path / "canary").write_bytes(b"weights")
    assert not store.take_from_inbox(key, DIGEST)
    assert (tmp_path / "canary").exists()
    assert blob_names(store) == set()


def test_what_is_no_file_is_not_taken_from_the_inbox(store: Store, file: Path) -> None:
    store.folder.inbox.mkdir(parents=True)
    (store.folder.inbox / KEY).symlink_to(file)
    with pytest.raises(StoreError):
        store.take_from_inbox(KEY, DIGEST)
    os.mkfifo(store.folder.inbox / KEY)
    with pytest.raises(StoreError, match="it is no regular file"):
        store.take_from_inbox(KEY, DIGEST)
    (store.folder.inbox / KEY).mkdir()
    with pytest.raises(StoreError, match="it is no regular file"):
        store.take_from_inbox(KEY, DIGEST)
    assert blob_names(store) == set()
    assert file.exists()


def test_leftovers_in_the_inbox_go_at_the_next_start(store: Store, file: Path) -> None:
    leave_in_inbox(store, file)
    (store.folder.inbox / "folder").mkdir()
    store.collect_garbage()
    assert names_in(store.folder.inbox) == set()
    assert file.exists()
