"""The Modelfile that /api/show gives: whatever made the model is in it, so that it makes the model again."""

from __future__ import annotations

import pytest

from modelfiles.parser import parse
from registry.manifest import PROJECTOR, Layer, Manifest
from registry.name import ModelName
from tests.daemon.conftest import World

pytestmark = pytest.mark.anyio


async def test_renderer_parser_and_requires_are_in_the_modelfile(world: World) -> None:
    words = {"renderer": "qwen3-coder", "parser": "qwen3", "requires": "0.1.0"}
    made = await world.post("/api/create", model="tutor", **{"from": "tiny"}, **words, stream=False)
    assert made.status_code == 200, made.text
    modelfile = parse((await world.post("/api/show", model="tutor")).json()["modelfile"])
    assert {name: modelfile.values(name) for name in words} == {name: (text,) for name, text in words.items()}
    plain = parse((await world.post("/api/show", model="tiny")).json()["modelfile"])
    assert not any(plain.values(name) for name in words)


async def test_a_projector_is_in_the_modelfile(world: World) -> None:
    tiny = world.store.get(ModelName("tiny"))
    digest = world.store.write_blob([b"projector"])
    manifest = Manifest(tiny.manifest.config, (*tiny.manifest.layers, Layer(PROJECTOR, digest, 9)))
    world.store.write_manifest(ModelName("seer"), manifest)
    modelfile = parse((await world.post("/api/show", model="seer")).json()["modelfile"])
    assert str(world.store.blob_path(digest)) in modelfile.values("from")
