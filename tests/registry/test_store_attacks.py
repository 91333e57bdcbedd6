"""Published flaws of model managers, tried on the store on disk. The letter and number is the flaw's in our list:

    S01 S03  CVE-2024-37032, CVE-2026-7020   a digest that is a path
    S02      CVE-2025-44779                  deletion outside of the folder
    S04      CVE-2024-39722                  a name that is a path
    S05      CVE-2024-39719                  a path in a request
    S06      CVE-2024-39721                  devices in the place of files
    S19      CVE-2025-1975                   manifests of nonsense
    S29 S30                                  file names that are paths
    F18 F20                                  links in the store, names that fold to one

Somebody who can write into the models folder can do all this there; Hob must not be the tool for going further.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from registry.create import CreateRequest, create_model
from registry.errors import BlobNotFound, BrokenModel, CreateError, InvalidDigest, InvalidName, RegistryError
from registry.fsck import fsck
from registry.manifest import CONFIG_MEDIA_TYPE, FILE, MODEL, Digest
from registry.name import ModelName
from registry.ollama_models import OllamaModels
from registry.store import Store
from tests.registry.small_models import contents, put_model
from tests.registry.test_manifest import BAD_DIGESTS

CANARY = b"do not touch"
PATHS_AS_NAMES = [
    "../../etc/passwd", "/etc/passwd", "a/../../b", "%2e%2e/x", "..", ".", "a/..", "../a", "a/b/../c", "~/x",
    "a\\..\\b", "a\x00b", "a\n", "file:///etc/passwd", "http://127.0.0.1/../x", "$(touch x)", "a;b", "`a`", "-rf",
    "a/b/c/d/e",
]  # fmt: skip


@pytest.fixture
def canaries(store: Store) -> Iterator[dict[Path, bytes]]:
    """Files beside and above the models folder, which must be as they were at the end."""
    put_model(store, "good", b"good")
    outside = store.root.parent
    paths = [outside / "canary", outside / "blobs" / "canary", store.root / "canary", outside.parent / "canary"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(CANARY)
    before = {path: (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}
    yield dict.fromkeys(paths, CANARY)
    assert {path: (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) for path in paths} == before
    paths[-1].unlink()
    assert contents(store)["good:latest"][1] == b"good"


def put_manifest(store: Store, text: str, data: bytes) -> ModelName:
    name = ModelName.parse(text)
    path = store.manifests.joinpath(*name.path_parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def manifest_naming(digest: str, **more: Any) -> bytes:
    layer = {"mediaType": MODEL, "digest": digest, "size": len(CANARY)} | more
    config = {"mediaType": CONFIG_MEDIA_TYPE, "digest": digest, "size": len(CANARY)}
    return json.dumps({"schemaVersion": 2, "config": config, "layers": [layer]}).encode()


def use_everywhere(store: Store, name: ModelName) -> None:
    """Every way in which the store can be asked to do something with a model that is there."""
    other = Store(store.root.parent / "other")
    ways = [
        lambda: store.get(name),
        lambda: store.list(),
        lambda: store.broken(),
        lambda: store.check(),
        lambda: store.copy(name, ModelName("copied")),
        lambda: list(create_model(store, CreateRequest(ModelName("child"), from_name=name, system="x"))),
        lambda: list(OllamaModels((store.root,)).adopt(other, name)),
        lambda: store.write_manifest(ModelName("again"), store.tree.read(name)[0]),
        lambda: store.collect_garbage(),
        lambda: list(fsck(store)),
        lambda: store.delete(name),
    ]
    for way in ways:
        with suppress(RegistryError):
            way()


@pytest.mark.parametrize("digest", [text for text in BAD_DIGESTS if "\x00" not in text])
@pytest.mark.usefixtures("canaries")
def test_s01_s02_s03_a_digest_that_is_a_path(store: Store, digest: str) -> None:
    name = put_manifest(store, "bad", manifest_naming(digest))
    with pytest.raises(BrokenModel, match="invalid digest"):
        store.get(name)
    use_everywhere(store, name)
    assert set(contents(store)) == {"good:latest"}


@pytest.mark.parametrize("target", ["../../canary", "../canary", "canary", "/etc/passwd"])
def test_s03_no_text_becomes_a_path_but_through_digest(store: Store, target: str) -> None:
    with pytest.raises(InvalidDigest):
        Digest(target)
    with pytest.raises(InvalidDigest):
        Digest.parse(f"sha256:{target}")
    with pytest.raises(CreateError, match="invalid digest"):
        list(create_model(store, CreateRequest(ModelName("x"), files={"a.gguf": f"sha256:{target}"})))
    assert not store.root.exists()


@pytest.mark.parametrize("text", PATHS_AS_NAMES)
def test_s04_a_name_that_is_a_path(store: Store, text: str) -> None:
    with pytest.raises(InvalidName) as refusal:
        ModelName.parse(text)
    assert str(refusal.value).startswith("invalid model name: ")
    assert "passwd" not in str(refusal.value)
    assert not store.root.exists()


def test_s05_a_path_in_a_request_says_nothing_about_the_disk(store: Store, tmp_path: Path) -> None:
    there = tmp_path / "there.gguf"
    there.write_bytes(CANARY)
    said = set()
    for path in (there, tmp_path / "not-there.gguf"):
        for files in ({"a.gguf": str(path)}, {"a.gguf": f"file://{path}"}):
            with pytest.raises(CreateError) as refusal:
                list(create_model(store, CreateRequest(ModelName("x"), files=files)))
            said.add(str(refusal.value))
    assert len(said) == 1
    with pytest.raises(CreateError, match="file path must be relative"):
        list(create_model(store, CreateRequest(ModelName("x"), files={str(there): str(Digest.of(CANARY))})))


@pytest.mark.usefixtures("canaries")
@pytest.mark.parametrize("kind", ["pipe", "socket", "zero", "random"])
@pytest.mark.parametrize("place", ["blob", "manifest", "note", "inbox"])
def test_s06_devices_in_the_store(store: Store, monkeypatch: pytest.MonkeyPatch, kind: str, place: str) -> None:
    model = put_model(store, "bad", b"device")
    blob = store.blobs / Digest.of(b"device").file_name
    path = {
        "blob": blob,
        "manifest": store.manifests.joinpath(*model.name.path_parts),
        "note": store.private_folder("notes") / "note",
        "inbox": store.private_folder("inbox") / ("0" * 32),
    }[place]
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            monkeypatch.chdir(path.parent)  # a socket's path has 107 bytes at most
            listener.bind(path.name)
        else:
            try:
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5 if kind == "zero" else 8))
            except PermissionError:
                pytest.skip("only root makes devices")
        with suppress(RegistryError, OSError):
            store.read_note("note")
        with suppress(RegistryError):
            store.take_from_inbox("0" * 32, Digest.of(b"device"))
        use_everywhere(store, model.name)


@pytest.mark.parametrize(
    "data",
    [
        b'{"schemaVersion":2,"config":null,"layers":null}',
        b'{"schemaVersion":2,"layers":[]}',
        manifest_naming(""),
        manifest_naming("sha256:" + "0" * 64, size=-1),
        manifest_naming("sha256:" + "0" * 64, size=1.5),
        manifest_naming("sha256:" + "0" * 64, size=2**63),
        manifest_naming("sha256:" + "0" * 64, size="12"),
        b'{"schemaVersion":2,"config":{},"manifests":[{"schemaVersion":2}]}',
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b'{"schemaVersion":2,"layers":[' + b"{}," * 1_000_000 + b"{}]}",
    ],
    ids=range(11),
)
@pytest.mark.usefixtures("canaries")
def test_s19_manifests_of_nonsense(store: Store, data: bytes) -> None:
    name = put_manifest(store, "bad", data)
    with pytest.raises(BrokenModel):
        store.get(name)
    use_everywhere(store, name)


def test_s19_a_manifest_without_end_is_not_read(store: Store) -> None:
    put_model(store, "good", b"good")
    name = put_manifest(store, "bad", b"")
    os.truncate(store.manifests.joinpath(*name.path_parts), 1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(BrokenModel, match="longer than"):
            store.get(name)
        assert set(contents(store)) == {"good:latest"}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * 1024 * 1024
    store.delete(name)


@pytest.mark.parametrize(
    "file_name", ["../x", "/etc/passwd", "a/../../x", "..", "a\\x", "C:x", "a//b", "x" * 300, "a\n"]
)
@pytest.mark.usefixtures("canaries")
def test_s29_s30_a_file_name_that_is_a_path(store: Store, file_name: str) -> None:
    digest = str(store.write_blob([CANARY]))
    name = put_manifest(store, "bad", manifest_naming(digest, mediaType=FILE, name=file_name))
    with pytest.raises(BrokenModel, match="no clean relative path"):
        store.get(name)
    use_everywhere(store, name)


# ---- links


def test_f18_a_link_in_the_place_of_a_blob(store: Store, canaries: dict[Path, bytes]) -> None:
    for path in canaries:
        digest = Digest.of(CANARY)
        link = store.blobs / digest.file_name
        for make in (link.symlink_to, link.hardlink_to):
            link.unlink(missing_ok=True)
            make(path)
            name = put_manifest(store, "bad", manifest_naming(str(digest)))
            with suppress(BlobNotFound):
                assert store.blob_path(digest).samefile(path)
                assert not link.is_symlink()
            use_everywhere(store, name)
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        store.write_blob([CANARY])  # replaces the link, not what it leads to
        assert not link.is_symlink()
        link.unlink()


@pytest.mark.parametrize("place", ["tmp", "inbox", "collectable", "notes", "linked", "quarantine"])
def test_f18_a_link_in_the_place_of_a_private_folder(store: Store, canaries: dict[Path, bytes], place: str) -> None:
    folder = store.private_folder(place)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.symlink_to(store.root.parent)
    use_everywhere(store, put_model(store, "bad", b"bad").name)


@pytest.mark.parametrize("file_name", ["lock", "daemon.lock", "daemon.pid", "notes/note"])
def test_f18_a_link_in_the_place_of_a_private_file(store: Store, canaries: dict[Path, bytes], file_name: str) -> None:
    store.private_folder("notes")
    path = store.private / file_name
    path.unlink(missing_ok=True)
    path.symlink_to(next(iter(canaries)))
    with suppress(RegistryError, OSError):
        store.write_note("note", b"x")
    with suppress(RegistryError), store.claim(), suppress(RegistryError), Store(store.root).claim():
        pass
    path.unlink(missing_ok=True)


def test_f18_what_lies_deep_is_not_searched(store: Store) -> None:
    put_model(store, "good", b"good")
    deep = store.manifests / "a" / "b" / "c" / "d"
    path = deep.joinpath(*["x"] * 200)
    path.mkdir(parents=True)
    (store.manifests / "loop").symlink_to(store.manifests)
    assert set(contents(store)) == {"good:latest"}
    assert {finding.subject for finding in store.broken()} == {"a/b/c:d", "loop"}


def test_f18_a_strange_mark_is_nobodys(store: Store) -> None:
    put_model(store, "good", b"good")
    (store.folder.collectable / "..notes").touch()
    (store.folder.collectable / "sha256-xyz").mkdir()
    store.collect_garbage()
    assert contents(store)


def test_f20_names_that_fold_to_one(store: Store) -> None:
    """Two spellings of a name, as another program or a file system may leave them, stay two models and harm none."""
    put_model(store, "tale", b"lower")
    other = store.manifests.joinpath(*ModelName("TALE").path_parts)
    other.parent.mkdir()
    other.write_bytes(store.manifests.joinpath(*ModelName("tale").path_parts).read_bytes())
    store.delete(ModelName("TALE"))
    assert contents(store)["tale:latest"][1] == b"lower"
    for text in ("tale\u0301", "ta\u200dle", "\uff54ale", "TALE\u0130"):
        with pytest.raises(InvalidName):
            ModelName.parse(text)
