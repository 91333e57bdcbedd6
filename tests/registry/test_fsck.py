"""fsck: all damage is found and named, what is broken is moved aside, and nothing that is whole or being written."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from registry.disk import Disk
from registry.errors import BrokenModel
from registry.fsck import Damage, FsckProgress, fsck
from registry.manifest import CONFIG_MEDIA_TYPE, MODEL, Digest, Layer, Manifest
from registry.name import ModelName
from registry.store import Store
from tests.registry.faulty_disk import FaultyDisk, Killed
from tests.registry.small_models import blob_names, contents, live_blob_names, put_model
from tests.registry.test_manifest import BAD_MANIFESTS


def damage_in(store: Store, *, rehash: bool = True) -> list[Damage]:
    return [event for event in fsck(store, rehash=rehash) if isinstance(event, Damage)]


def manifest_path(store: Store, text: str) -> Path:
    return store.manifests.joinpath(*ModelName.parse(text).path_parts)


def rewrite(store: Store, old: bytes, new: bytes) -> Digest:
    """Damage a blob at rest."""
    digest = Digest.of(old)
    (store.blobs / digest.file_name).write_bytes(new)
    return digest


def test_a_sound_store_is_read_whole_and_left_as_it_is(store: Store) -> None:
    put_model(store, "a", b"x" * 5000, system="kind")
    put_model(store, "b", b"y" * 3000)
    before = contents(store)
    events = list(fsck(store))
    assert all(isinstance(event, FsckProgress) for event in events)
    last = events[-1]
    assert isinstance(last, FsckProgress)
    assert last.completed == last.total == sum(path.stat().st_size for path in store.blobs.iterdir())
    assert contents(store) == before
    assert not store.folder.quarantine.exists()
    assert list(fsck(store, rehash=False)) == []


def test_an_empty_store_is_sound(store: Store) -> None:
    assert list(fsck(store)) == []
    assert not store.root.exists()


def test_every_flipped_bit_is_found_and_only_that_blob_has_to_come_again(store: Store) -> None:
    rng = random.Random(7)
    put_model(store, "good", b"good")
    for turn in range(60):
        weights = rng.randbytes(200)
        put_model(store, "bad", weights, system="of bad")
        put_model(store, "twin", weights)
        position = rng.randrange(len(weights))
        flipped = bytearray(weights)
        flipped[position] ^= 1 << rng.randrange(8)
        digest = rewrite(store, weights, bytes(flipped))
        [damage] = damage_in(store)
        assert damage == Damage(
            digest.file_name,
            "it does not hold the bytes that its digest names",
            ("bad:latest", "twin:latest"),
            is_quarantined=True,
        )
        assert (store.folder.quarantine / f"{turn + 1}/blobs/{digest.file_name}").read_bytes() == flipped
        with pytest.raises(BrokenModel, match=f"its blob {digest} is missing"):
            store.get(ModelName("bad"))
        assert list(contents(store)) == ["good:latest"]
        store.write_blob([weights], digest)
        assert damage_in(store) == []
        assert len(contents(store)) == 3


@pytest.mark.parametrize("new", [b"", b"weight", b"weights!", bytes(7)], ids=["empty", "short", "long", "zeroed"])
def test_a_blob_of_another_length_or_content(store: Store, new: bytes) -> None:
    put_model(store, "a", b"weights")
    rewrite(store, b"weights", new)
    is_seen_by_size = len(new) != len(b"weights")
    assert [damage.models for damage in damage_in(store, rehash=False)] == [("a:latest",)] * is_seen_by_size
    reason = "it is missing" if is_seen_by_size else "it does not hold the bytes that its digest names"
    assert [damage.reason for damage in damage_in(store)] == [reason]


def test_what_is_no_file_is_moved_and_not_followed(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"linked")
    for text in ("linked", "piped", "folder"):
        put_model(store, text, text.encode())
        (store.blobs / Digest.of(text.encode()).file_name).unlink()
    (store.blobs / Digest.of(b"linked").file_name).symlink_to(outside)
    os.mkfifo(store.blobs / Digest.of(b"piped").file_name)
    (store.blobs / Digest.of(b"folder").file_name).mkdir()
    found = damage_in(store)
    assert {damage.models for damage in found} == {("linked:latest",), ("piped:latest",), ("folder:latest",)}
    assert {(damage.reason, damage.is_quarantined) for damage in found} == {("it is no regular file", True)}
    assert outside.read_bytes() == b"linked"
    assert blob_names(store) == {
        Digest.of(b'{"model_format":"gguf","model_family":"llama","model_type":"15M","file_type":"F16"}').file_name
    }


@pytest.mark.parametrize("data", BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys())
def test_a_torn_manifest_stops_nobody_and_its_blobs_wait(store: Store, data: tuple[bytes, str]) -> None:
    put_model(store, "good", b"good")
    put_model(store, "doomed", b"doomed")
    model = put_model(store, "torn", b"weights")
    manifest_path(store, "torn").write_bytes(data[0])
    [damage] = damage_in(store)
    assert (damage.subject, damage.models, damage.is_quarantined) == ("torn:latest", ("torn:latest",), True)
    assert damage.reason
    moved = store.folder.quarantine / "1/manifests/registry.ollama.ai/library/torn/latest"
    assert moved.read_bytes() == data[0]
    assert store.broken() == []
    store.delete(ModelName("doomed"))
    Store(store.root).collect_garbage()
    assert model.manifest.digests() <= {Digest.parse(name) for name in blob_names(store)}, "they can be named again"
    store.write_manifest(ModelName("TORN"), model.manifest)
    Store(store.root).collect_garbage()
    assert blob_names(store) == live_blob_names(store)


def test_deleting_the_quarantine_ends_the_waiting(store: Store) -> None:
    put_model(store, "torn", b"weights")
    manifest_path(store, "torn").write_bytes(b"")
    assert damage_in(store)
    for path in sorted(store.folder.quarantine.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    Store(store.root).collect_garbage()
    assert blob_names(store) == set()


def test_strays_are_named_and_stay(store: Store) -> None:
    put_model(store, "a")
    (store.blobs / "notes.txt").touch()
    (store.manifests / "registry.ollama.ai" / "stray").touch()
    partial = "sha256-" + "0" * 64 + "-partial"
    for name in (partial, partial + "-12", "sha256-123456789"):
        (store.blobs / name).touch()
    assert [(damage.subject, damage.is_quarantined) for damage in damage_in(store)] == [
        ("registry.ollama.ai/stray", False),
        ("notes.txt", False),
    ]
    assert {"notes.txt", partial, partial + "-12", "sha256-123456789"} < blob_names(store)
    assert [finding.subject for finding in store.check()] == ["registry.ollama.ai/stray", "notes.txt"]


def test_a_missing_blob_and_a_wrong_size_are_named(store: Store) -> None:
    put_model(store, "a", b"weights")
    (store.blobs / Digest.of(b"weights").file_name).unlink()
    config = Layer(CONFIG_MEDIA_TYPE, store.write_blob([b"{}"]), 2)
    layer = Layer(MODEL, store.write_blob([b"1234"]), 5)
    path = manifest_path(store, "wrong")
    path.parent.mkdir()
    path.write_bytes(Manifest(config, (layer,)).encode())
    found = damage_in(store)
    assert found == [
        Damage(Digest.of(b"weights").file_name, "it is missing", ("a:latest",)),
        Damage("wrong:latest", f"its blob {layer.digest} has 4 bytes where the manifest says 5", ("wrong:latest",)),
    ]


def test_a_writer_that_repairs_a_blob_meanwhile_is_not_undone(store: Store) -> None:
    put_model(store, "a", b"weights")
    digest = rewrite(store, b"weights", b"rotten!")
    events: Iterator[object] = fsck(store)
    for event in events:
        if isinstance(event, FsckProgress) and event.subject == digest.file_name:
            break
    store.write_blob([b"weights"], digest)  # after fsck has read the rotten bytes, before it moves them
    assert not [event for event in events if isinstance(event, Damage)]
    assert contents(store)["a:latest"][1] == b"weights"


def test_a_manifest_that_is_written_meanwhile_is_not_moved(store: Store) -> None:
    model = put_model(store, "a", b"weights")
    manifest_path(store, "a").write_bytes(b"")  # as an Ollama beside us does, for a moment
    events = fsck(store)
    next(events)
    manifest_path(store, "a").write_bytes(model.manifest.encode())
    assert not [event for event in events if isinstance(event, Damage)]
    assert contents(store)


def test_a_blob_that_somebody_keeps_writing_to_is_left(store: Store) -> None:
    put_model(store, "a", b"weights")
    path = store.blobs / Digest.of(b"weights").file_name
    found = []
    for turn, event in enumerate(fsck(store)):
        if isinstance(event, Damage):
            found.append(event)
        elif event.subject == path.name:
            path.write_bytes(b"x" * (turn + 10))
    assert [(damage.reason, damage.is_quarantined) for damage in found] == [("somebody keeps writing to it", False)]


def test_a_folder_that_cannot_be_written_is_only_reported(store: Store, tmp_path: Path) -> None:
    put_model(store, "a", b"weights")
    put_model(store, "torn", b"torn")
    rewrite(store, b"weights", b"rotten!")
    manifest_path(store, "torn").write_bytes(b"")

    class ReadOnly(Disk):
        def rename(self, source: Path, target: Path) -> None:
            raise OSError(30, "Read-only file system")

    found = damage_in(Store(store.root, disk=ReadOnly()))
    assert [damage.is_quarantined for damage in found] == [False, False]
    assert store.has_blob(Digest.of(b"weights"))


@pytest.mark.parametrize("loses_power", [False, True], ids=["killed", "power lost"])
def test_a_death_at_every_step_leaves_the_bytes_in_one_place(store: Store, loses_power: bool) -> None:
    put_model(store, "a", b"weights")
    for k in itertools.count():
        digest = rewrite(store, b"weights", b"rotten!")
        disk = FaultyDisk(fault_at=k)
        with suppress(Killed):
            list(fsck(Store(store.root, disk=disk)))
        if loses_power and disk.has_struck:
            disk.lose_power()
        places = [path.parent for path in store.root.rglob(digest.file_name) if path.parent.name == "blobs"]
        assert len([path for path in places if (path / digest.file_name).read_bytes() == b"rotten!"]) == 1
        list(fsck(store))
        assert not store.has_blob(digest)
        shutil.rmtree(store.folder.quarantine)
        if not disk.has_struck:
            break
    assert k >= 4
