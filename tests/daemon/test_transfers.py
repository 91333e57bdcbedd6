"""Pull, push, the variants of a model and the catalog, as clients of the API see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registry.name import ModelName
from tests.daemon.conftest import RawClient, World, add_model

pytestmark = pytest.mark.anyio


@pytest.fixture
def far(world: World, model_folders: dict[str, Path]) -> World:
    """The shelf has a model that the store has not; its largest blob is one that the store has."""
    add_model(world.shelf.store, "far:1b", model_folders["tiny"], system="Be far.")
    return world


async def test_pull(far: World) -> None:
    lines = await far.lines("/api/pull", model="far:1b")
    statuses = [line["status"] for line in lines]
    assert statuses[0] == "pulling manifest"
    assert statuses[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    pulled = far.shelf.store.get(ModelName.parse("far:1b"))
    bars = {line["digest"]: line for line in lines if "digest" in line}
    assert set(bars) == {str(digest) for digest in pulled.manifest.digests()}
    assert all(bar["completed"] == bar["total"] > 0 for bar in bars.values())
    assert {line["status"] for line in bars.values()} == {f"pulling {digest[7:19]}" for digest in bars}
    assert (await far.whole("/api/show", model="far:1b"))["system"] == "Be far."
    assert far.store.get(ModelName.parse("far:1b")).digest == pulled.digest
    assert far.store.check() == []
    assert await far.whole("/api/pull", model="far:1b") == {"status": "success"}


async def test_pull_of_what_nobody_has(world: World) -> None:
    assert await world.lines("/api/pull", model="nobody/has") == [
        {"status": "pulling manifest"},
        {"error": "the shelf has no nobody/has:latest"},
    ]
    response = await world.post("/api/pull", model="nobody/has", stream=False)
    assert (response.status_code, response.json()) == (404, {"error": "the shelf has no nobody/has:latest"})
    assert (await world.post("/api/pull", model="a b")).json() == {"error": "invalid model name"}


async def test_pull_brings_back_what_is_built_in(world: World) -> None:
    assert [line["status"] for line in await world.lines("/api/pull", model="tale")] == [
        "pulling manifest", "writing manifest", "success",
    ]  # fmt: skip


async def test_create_pulls_a_parent_that_is_not_here(far: World) -> None:
    lines = await far.lines("/api/create", model="child", **{"from": "far:1b", "system": "Be near."})
    statuses = [line["status"] for line in lines]
    assert statuses[0] == "pulling manifest"
    assert statuses.count("success") == 1
    assert statuses[-1] == "success"
    assert (await far.whole("/api/show", model="child"))["system"] == "Be near."
    response = await far.post("/api/create", model="child", stream=False, **{"from": "nobody/has"})
    assert response.status_code == 404


async def test_a_client_that_leaves_ends_its_pull(far: World) -> None:
    client = RawClient(far.app, "POST", "/api/pull", b'{"model": "far:1b"}')
    assert (await client.next_line())["status"] == "pulling manifest"
    client.reads.clear()  # the socket is full, and the pull waits with it
    client.leave()
    await client.task
    assert "far:1b" not in [model["name"] for model in (await far.http.get("/api/tags")).json()["models"]]
    assert (await far.whole("/api/pull", model="far:1b"))["status"] == "success"


async def test_variants(far: World) -> None:
    body = await far.post("/api/remote-tags", model="far:")
    size = far.shelf.store.get(ModelName.parse("far:1b")).size
    assert body.json() == {"tags": [{"tag": "1b", "size": size}]}
    response = await far.post("/api/remote-tags", model="nobody")
    assert (response.status_code, response.json()) == (404, {"error": "the shelf has no nobody"})


async def test_search(world: World) -> None:
    async def search(query: str) -> list[dict[str, Any]]:
        models: list[dict[str, Any]] = (await world.post("/api/search", query=query)).json()["models"]
        return models

    found = await search("qwen2.5")
    assert found[0]["name"] == "qwen2.5"
    assert "7b" in [tag["tag"] for tag in found[0]["tags"]]
    assert all(tag["size"] > 10**8 for tag in found[0]["tags"])
    assert len(await search("")) > len(await search("qwen"))
    assert await search("there is no such model at all") == []


async def test_push_of_what_is_not_here_and_what_has_no_registry(world: World) -> None:
    assert (await world.post("/api/push", model="absent")).status_code == 404
    response = await world.post("/api/push", model="tiny", stream=False)
    assert response.status_code == 403
    assert "you are not authorized to push to this namespace" in response.json()["error"]
