"""The models that come with Hob: installed once, brought up to date, and left alone once the user has said so."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from registry.builtin_models import builtin_names, install, package_folder, restore
from registry.errors import ModelNotFound, StoreError
from registry.manifest import Digest
from registry.name import ModelName
from registry.store import Store
from tests.registry.faulty_disk import FaultyDisk
from tests.registry.small_models import blob_names, live_blob_names, put_model
from tests.registry.weights import CONFIG, safetensors_bytes

FAIRY = ModelName("fairy")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package folder with one model, and a folder that is none."""
    fairy = tmp_path / "builtin" / "fairy"
    fairy.mkdir(parents=True)
    (fairy / "model.safetensors").write_bytes(safetensors_bytes())
    (fairy / "config.json").write_text(json.dumps(CONFIG))
    (fairy / "system").write_text("You tell tales.")
    (fairy / "params").write_text('{"temperature": 0.5}')
    (fairy / "template").write_text("{{ .Prompt }}")
    (fairy / "LICENSE").write_text("MIT")
    (fairy.parent / "unfinished").mkdir()
    (fairy.parent / "__init__.py").touch()
    return fairy.parent


def change(folder: Path) -> None:
    (folder / "fairy" / "system").write_text("You tell long tales.")


class Unchanging(FaultyDisk):
    """A disk on which nothing may be changed."""

    def __init__(self) -> None:
        super().__init__(fault_at=0, error=errno.EROFS)


def test_installs_what_is_a_model(store: Store, folder: Path) -> None:
    assert builtin_names(folder) == (FAIRY,)
    assert ModelName.parse("Fairy") in builtin_names(folder)
    assert ModelName.parse("fairy:big") not in builtin_names(folder)
    assert ModelName.parse("unfinished") not in builtin_names(folder)
    assert install(store, folder) == [FAIRY]
    model = store.get(FAIRY)
    assert model.source.read_text("config.json") == json.dumps(CONFIG)
    assert (model.system, model.template, model.params) == ("You tell tales.", "{{ .Prompt }}", {"temperature": 0.5})
    assert model.licenses == ("MIT",)
    assert sorted(model.files) == ["config.json", "model.safetensors"]


def test_a_model_may_have_no_words(store: Store, folder: Path) -> None:
    for file in ("system", "params", "template", "LICENSE"):
        (folder / "fairy" / file).unlink()
    install(store, folder)
    model = store.get(FAIRY)
    assert (model.system, model.template, model.params, model.licenses) == ("", "", {}, ())


def test_an_unchanged_model_is_neither_read_nor_written(store: Store, folder: Path) -> None:
    install(store, folder)
    weights = folder / "fairy" / "model.safetensors"
    times = weights.stat()
    weights.write_bytes(bytes(times.st_size))  # it would not pass the reader, were it read
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert install(Store(store.root, disk=Unchanging()), folder) == []


def test_a_changed_model_is_brought_up_to_date(store: Store, folder: Path) -> None:
    install(store, folder)
    change(folder)
    assert install(store, folder) == [FAIRY]
    assert store.get(FAIRY).system == "You tell long tales."
    assert blob_names(store) == live_blob_names(store)
    assert install(store, folder) == []


def test_a_removed_model_stays_away_until_it_is_restored(store: Store, folder: Path) -> None:
    install(store, folder)
    store.delete(FAIRY)
    change(folder)
    assert install(Store(store.root), folder) == []
    with pytest.raises(ModelNotFound):
        store.get(FAIRY)
    restore(store, ModelName.parse("FAIRY"), folder)
    assert store.get(FAIRY).system == "You tell long tales."
    assert install(store, folder) == []
    with pytest.raises(ModelNotFound, match='"nobody:latest"'):
        restore(store, ModelName("nobody"), folder)


@pytest.mark.parametrize("was_installed", [False, True])
def test_the_users_own_model_of_that_name_is_left_alone(store: Store, folder: Path, was_installed: bool) -> None:
    if was_installed:
        install(store, folder)
    own = put_model(store, "fairy", b"mine")
    change(folder)
    assert install(store, folder) == []
    assert store.get(FAIRY).digest == own.digest


def test_a_damaged_one_is_repaired(store: Store, folder: Path) -> None:
    install(store, folder)
    store.blob_path(Digest.of(b"You tell tales.")).write_bytes(b"You sell tales.")
    assert install(store, folder) == [FAIRY]
    assert store.get(FAIRY).system == "You tell tales."


def test_somebody_elses_damaged_one_is_left_alone(store: Store, folder: Path) -> None:
    path = store.manifests.joinpath(*FAIRY.path_parts)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert install(store, folder) == []


def test_a_note_that_cannot_be_read_changes_nothing(store: Store, folder: Path) -> None:
    install(store, folder)
    store.write_note("builtin-fairy.json", b"{")
    change(folder)
    assert install(store, folder) == []


def test_an_installation_that_was_cut_short_is_taken_up(store: Store, folder: Path) -> None:
    for k in range(200):
        disk = FaultyDisk(fault_at=k, error=errno.ENOSPC)
        root = store.root / str(k)
        try:
            install(Store(root, disk=disk), folder)
        except StoreError:
            install(Store(root, disk=FaultyDisk()), folder)
        assert Store(root).get(FAIRY).system == "You tell tales."
        if not disk.has_struck:
            break
    assert 20 < k < 199


def test_the_package_has_a_folder_for_them() -> None:
    assert (package_folder() / "__init__.py").is_file()
    assert ModelName("surely-not-built-in") not in builtin_names(package_folder())
