"""Listing reads a model again when a file of it has changed, and only then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry import model_list
from registry.errors import StoreError
from registry.manifest import Digest
from registry.name import ModelName
from registry.store import Store
from tests.registry.small_models import contents, put_model


def overwrite_unseen(path: Path, data: bytes) -> None:
    """Put other bytes into a file so that it looks as before."""
    status = path.stat()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


def test_what_has_not_changed_is_not_read_again(store: Store) -> None:
    for text in ("a", "b"):
        put_model(store, text, text.encode(), system=f"of {text}")
    first = store.list()
    for path in store.manifests.rglob("latest"):
        overwrite_unseen(path, b"x" * path.stat().st_size)
    overwrite_unseen(store.blob_path(Digest.of(b"of a")), b"OF A")
    again = store.list()
    assert [id(model) for model in again] == [id(model) for model in first]
    assert Store(store.root).list() == [], "the files are broken, for whoever reads them"


def test_every_change_is_seen(store: Store) -> None:
    put_model(store, "a", b"one", system="of a")
    put_model(store, "b", b"two")
    assert set(contents(store)) == {"a:latest", "b:latest"}
    put_model(store, "a", b"three", system="of a")
    assert contents(store)["a:latest"][1] == b"three"
    store.delete(ModelName("b"))
    assert set(contents(store)) == {"a:latest"}
    put_model(Store(store.root), "c", b"by another process")
    assert set(contents(store)) == {"a:latest", "c:latest"}
    system = store.blob_path(Digest.of(b"of a"))
    system.write_bytes(b"OF A")
    os.utime(system, ns=(1, 1))
    assert set(contents(store)) == {"c:latest"}
    weights = store.blob_path(Digest.of(b"by another process"))
    weights.unlink()
    assert contents(store) == {}
    weights.mkdir()
    assert contents(store) == {}


def test_texts_beyond_a_limit_are_read_each_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_list, "MAX_KEPT_BYTES", 400)
    put_model(store, "a", b"one", system="x" * 250)
    put_model(store, "b", b"two", system="y" * 250)
    first, again = ({model.name.model: model for model in store.list()} for _ in range(2))
    assert [first[name] is again[name] for name in ("a", "b")] == [True, False]
    assert first["b"] == again["b"]


def test_a_folder_that_cannot_be_read_is_an_error_and_no_empty_list(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(store, "a")
    real = os.scandir

    def scandir(path: Path | str) -> object:
        if Path(path) == store.manifests / "registry.ollama.ai":
            raise OSError(error, os.strerror(error))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    error = 24
    with pytest.raises(StoreError, match="cannot read the models folder: Too many open files"):
        store.list()
    error = 13
    assert store.list() == []
    [finding] = store.broken()
    assert (finding.subject, finding.reason) == ("registry.ollama.ai", "this folder cannot be read")
    store.write_blob([b"orphan"])
    Store(store.root).collect_garbage()
    assert store.has_blob(Digest.of(b"orphan")), "a manifest that cannot be read may name it"
