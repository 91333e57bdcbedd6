"""A models folder that an Ollama uses, too: what is Ollama's stays, and Ollama would find nothing strange.

What Ollama does there, from its source: it deletes files among the blobs whose name is no digest, and blobs that no
manifest names, once they are an hour old; it looks at nothing but manifests/ and blobs/; it writes manifests in place.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from registry.create import CreateRequest, create_model
from registry.disk import Disk
from registry.fsck import Damage, fsck
from registry.manifest import CONFIG_MEDIA_TYPE, MODEL, Digest
from registry.name import ModelName
from registry.store import Store
from tests.registry.small_models import blob_names, contents, names_in, put_model
from tests.registry.weights import gguf_bytes

CONFIG = (
    b'{"model_format":"gguf","model_family":"llama","model_type":"15M","file_type":"F16","rootfs":{"type":"layers"}}'
)


def ollama_writes(root: Path, name: str, weights: bytes) -> None:
    """A model as Ollama lays it out: its own spacing of JSON, its own modes, blobs by digest."""
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for data in (CONFIG, weights):
        path = root / "blobs" / Digest.of(data).file_name
        path.write_bytes(data)
        path.chmod(0o640)
    manifest = root.joinpath("manifests", *ModelName.parse(name).path_parts)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layer = {"mediaType": MODEL, "digest": str(Digest.of(weights)), "size": len(weights)}
    config = {"mediaType": CONFIG_MEDIA_TYPE, "digest": str(Digest.of(CONFIG)), "size": len(CONFIG)}
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": config, "layers": [layer]}, indent=1))


def ollama_removes(store: Store, name: str) -> None:
    store.manifests.joinpath(*ModelName.parse(name).path_parts).unlink()


@pytest.fixture
def shared(tmp_path: Path) -> Store:
    """A folder with Ollama's models "theirs" and "Mixed/Case:Q4", and one that it is just pulling."""
    root = tmp_path / "ollama"
    ollama_writes(root, "theirs", b"their weights")
    ollama_writes(root, "Mixed/Case:Q4", b"their weights")
    pulled = Digest.of(b"being pulled").file_name
    (root / "blobs" / pulled).write_bytes(b"being pulled")
    for suffix in ("-partial", "-partial-0", "-partial-15"):
        (root / "blobs" / (pulled + suffix)).write_bytes(b"half")
    return Store(root)


def tree(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything outside .hob: path -> mode, time of the last change, bytes."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and ".hob" not in path.parts:
            status = path.stat()
            found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, path.read_bytes())
    return found


def test_reading_changes_nothing_and_creates_nothing(shared: Store) -> None:
    before = tree(shared.root)
    assert set(contents(shared)) == {"theirs:latest", "Mixed/Case:Q4"}
    assert shared.get(ModelName.parse("mixed/CASE:q4")).name.short == "Mixed/Case:Q4"
    assert shared.check() == []
    assert not [event for event in fsck(shared) if isinstance(event, Damage)]
    assert tree(shared.root) == before
    assert names_in(shared.root) == {"manifests", "blobs"}


def test_only_what_hob_wrote_is_collected(shared: Store) -> None:
    before = tree(shared.root)
    put_model(shared, "ours", b"our weights")
    shared.write_blob([b"our orphan"])
    shared.write_blob([b"being pulled"])  # the same bytes come to us, too
    shared.delete(ModelName("ours"))
    Store(shared.root).collect_garbage()
    after = tree(shared.root)
    assert after.keys() == before.keys()
    assert {path: (entry[2]) for path, entry in after.items()} == {path: entry[2] for path, entry in before.items()}


def test_a_blob_of_ollamas_stays_ollamas_as_long_as_a_model_of_its_needs_it(shared: Store) -> None:
    shared.delete(ModelName("theirs"))
    weights = Digest.of(b"their weights")
    assert shared.has_blob(weights)
    ollama_removes(shared, "Mixed/Case:Q4")  # and pulls it again: no manifest names the blob for a while
    Store(shared.root).collect_garbage()
    assert shared.has_blob(weights)


def test_the_last_model_of_ollamas_goes_with_its_blobs(shared: Store) -> None:
    shared.delete(ModelName.parse("mixed/case:q4"))
    shared.delete(ModelName("theirs"))
    pulled = Digest.of(b"being pulled").file_name
    assert blob_names(shared) == {pulled, *(pulled + suffix for suffix in ("-partial", "-partial-0", "-partial-15"))}


def test_a_name_that_differs_in_case_is_ollamas_model(shared: Store) -> None:
    put_model(shared, "MIXED/case:q4", b"newer")
    assert contents(shared)["Mixed/Case:Q4"][1] == b"newer"
    assert names_in(shared.manifests / "registry.ollama.ai") == {"library", "Mixed"}


def test_a_rotten_blob_of_ollamas_is_quarantined(shared: Store) -> None:
    (shared.blobs / Digest.of(b"their weights").file_name).write_bytes(b"THEIR weights")
    [damage] = [event for event in fsck(shared) if isinstance(event, Damage)]
    assert damage.is_quarantined
    assert set(damage.models) == {"theirs:latest", "Mixed/Case:Q4"}


def test_nothing_but_digests_is_ever_named_among_the_blobs(tmp_path: Path) -> None:
    """Else Ollama would delete it after an hour, and a model with it."""
    named: list[Path] = []

    class Watching(Disk):
        def create(self, path: Path) -> int:
            named.append(path)
            return super().create(path)

        def rename(self, source: Path, target: Path) -> None:
            named.append(target)
            super().rename(source, target)

        def link(self, source: Path, target: Path) -> None:
            named.append(target)
            super().link(source, target)

        def make_directory(self, path: Path) -> None:
            named.append(path)
            super().make_directory(path)

    store = Store(tmp_path / "models", disk=Watching())
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf_bytes(tmp_path))
    digest = store.link_blob(file)
    request = CreateRequest(ModelName("made"), files={"model.gguf": str(digest)}, system="kind", licenses=["MIT"])
    for _ in create_model(store, request):
        pass
    store.copy(ModelName("made"), ModelName("twin"))
    (store.blobs / Digest.of(b"kind").file_name).write_bytes(b"KIND")
    list(fsck(store))
    store.delete(ModelName("twin"))
    store.delete(ModelName("made"))
    inside = [path.relative_to(store.root).parts for path in named if path != store.root]
    among = [parts[1] for parts in inside if parts[0] == "blobs" and len(parts) > 1]
    assert among
    assert all(re.fullmatch("sha256-[0-9a-f]{64}", name) for name in among)
    assert {parts[0] for parts in inside} == {"blobs", "manifests", ".hob"}
    assert all(len(parts) == 5 for parts in inside if parts[0] == "manifests" and parts[-1] == "latest")


def test_files_can_be_read_by_an_ollama_of_another_user(store: Store) -> None:
    mask = os.umask(0o022)
    try:
        put_model(store, "a")
    finally:
        os.umask(mask)
    for path in [*store.blobs.iterdir(), *store.manifests.rglob("latest")]:
        assert path.stat().st_mode & 0o777 == 0o644
