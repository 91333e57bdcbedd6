"""fsck and import as clients of the API see them."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.name import ModelName
from registry.store import Store
from tests.daemon.conftest import World, add_model

pytestmark = pytest.mark.anyio


async def test_fsck_of_a_sound_store(world: World) -> None:
    lines = await world.lines("/api/fsck")
    assert lines[-1] == {"status": "success"}
    assert lines[-2]["completed"] == lines[-2]["total"] > 0
    assert not any("reason" in line for line in lines)


async def test_fsck_moves_what_is_broken_and_a_pull_brings_it_back(
    world: World, model_folders: dict[str, Path]
) -> None:
    add_model(world.shelf.store, "far:1b", model_folders["tiny"], system="Be far.")
    await world.whole("/api/pull", model="far:1b")
    weights = next(iter(world.store.get(ModelName.parse("far:1b")).files.values()))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (damage,) = [line for line in await world.lines("/api/fsck") if "reason" in line]
    assert damage["subject"] == weights.name
    assert damage["quarantined"]
    assert "far:1b" in damage["models"]
    lines = await world.lines("/api/pull", model="far:1b")
    again = {line["digest"] for line in lines if line.get("completed", 0) < line.get("total", 0)}
    assert again <= {weights.name.replace("-", ":")}
    assert not [line for line in await world.lines("/api/fsck") if "reason" in line]
    assert (await world.whole("/api/show", model="far:1b"))["system"] == "Be far."


async def test_import_from_ollama(
    world: World, model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model(Store(tmp_path / "theirs"), "theirs:7b", model_folders["tiny"], system="Be theirs.")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "theirs"))
    (model,) = (await world.post("/api/importable", source="ollama")).json()["models"]
    assert (model["name"], model["stored"]) == ("theirs:7b", False)
    assert await world.whole("/api/import", source="ollama", model="theirs:7b") == {"status": "success"}
    assert (await world.whole("/api/show", model="theirs:7b"))["system"] == "Be theirs."
    assert (await world.post("/api/importable", source="ollama")).json()["models"][0]["stored"]


async def test_import_refuses(world: World) -> None:
    response = await world.post("/api/import", source="/etc", model="a")
    assert (response.status_code, response.json()) == (
        400,
        {"error": "models can be imported from ollama and huggingface, not from '/etc'"},
    )
    assert (await world.post("/api/importable", source="x")).status_code == 400
    assert (await world.post("/api/import", source="ollama", model="../a")).status_code == 400
