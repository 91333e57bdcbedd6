"""POST /api/create with `quantize`: what the client sees, what is stored, and what is left when it ends early."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.quantizing import ZERO_DIGEST
from engine.config import ModelConfig
from engine.errors import EngineDied, LoadFailed
from registry.manifest import FILE, MODEL
from registry.name import ModelName
from tests.daemon.conftest import RawClient, World
from tests.daemon.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


def stored_files(world: World) -> dict[str, set[str]]:
    """Names in the store's folders of blobs and temporary files."""
    folders = {"blobs": world.store.blobs, "tmp": world.store.private / "tmp"}
    return {name: {path.name for path in folder.iterdir()} for name, folder in folders.items() if folder.exists()}


async def test_a_stored_model_becomes_one_gguf_file(world: World) -> None:
    lines = await world.lines("/api/create", model="small", **{"from": "tiny"}, quantize="q8_0", system="Be brief.")
    quantizing = [line for line in lines if line["status"] == "quantizing F32 model to Q8_0"]
    assert {line["digest"] for line in quantizing} == {ZERO_DIGEST}
    assert quantizing[-1]["completed"] == quantizing[-1]["total"] > 0
    others = [line["status"].split(" sha256")[0] for line in lines if line not in quantizing]
    assert others == ["creating new layer"] * 3 + ["writing manifest", "success"]
    stored = world.store.get(ModelName.parse("small"))
    assert [layer.media_type for layer in stored.manifest.layers if layer.media_type in (MODEL, FILE)] == [MODEL]
    assert (stored.system, stored.config["parent_model"]) == ("Be brief.", "tiny:latest")
    details = (await world.whole("/api/show", model="small"))["details"]
    assert (details["format"], details["family"], details["quantization_level"]) == ("gguf", "llama", "Q8_0")
    config = ModelConfig.from_source(stored.source)
    assert (config.quantization, config.hidden_size) == ("Q8_0", 8)
    assert stored_files(world)["tmp"] == set()
    answer = await world.whole("/api/generate", model="small", prompt="x")  # its tokenizer and template are there
    assert answer["done"] is True


async def test_the_old_field_s_name_and_a_reply_in_one_piece(world: World) -> None:
    assert await world.whole("/api/create", model="q", **{"from": "tiny"}, quantization="Q4_K") == {"status": "success"}
    tags = (await world.http.get("/api/tags")).json()["models"]
    level = next(model for model in tags if model["name"] == "q:latest")["details"]["quantization_level"]
    assert level == "Q4_K_M"


async def test_safetensors_keep_their_other_files(world: World) -> None:
    for file_type, method in (("fp8", "fp8"), ("int8", "compressed-tensors")):
        await world.lines("/api/create", model="eight", **{"from": "tiny"}, quantize=file_type)
        stored = world.store.get(ModelName.parse("eight"))
        names = {layer.name for layer in stored.manifest.layers if layer.media_type == FILE}
        assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
        config = json.loads(stored.files["config.json"].read_text())
        assert config["quantization_config"]["quant_method"] == method
        assert (stored.config["file_type"], stored.config["model_type"]) == (file_type.upper(), "3K")


async def test_uploaded_gguf_files_are_quantized_too(world: World) -> None:
    await world.lines("/api/create", model="half", **{"from": "tiny"}, quantize="f16")
    blob = next(
        layer for layer in world.store.get(ModelName.parse("half")).manifest.layers if layer.media_type == MODEL
    )
    body: dict[str, Any] = {"files": {"half.gguf": str(blob.digest)}, "quantize": "q4_0"}
    lines = await world.lines("/api/create", model="quarter", **body)
    assert lines[0]["status"] == "parsing GGUF"
    assert lines[1]["status"] == "quantizing F16 model to Q4_0"
    layers = world.store.get(ModelName.parse("quarter")).manifest.layers
    assert blob.digest not in {layer.digest for layer in layers}


async def test_what_is_quantized_is_not_quantized_again(world: World) -> None:
    await world.lines("/api/create", model="small", **{"from": "tiny"}, quantize="q8_0")
    reply = await world.post("/api/create", model="smaller", **{"from": "small"}, quantize="q4_0")
    assert reply.status_code == 400
    assert reply.json()["error"].startswith(
        "quantization is only supported for F16, BF16 and F32 models, and the weights are Q8_0; leave 'quantize' out"
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [(LoadFailed("the weights are damaged", "invalid"), 400), (EngineDied("the engine worker was killed"), 500)],
)
async def test_a_failure_leaves_nothing_behind(world: World, error: Exception, status: int) -> None:
    def prepare(engine: FakeEngine) -> None:
        engine.load_error = error

    world.prepare = prepare
    before = stored_files(world)
    body = {"model": "x", "from": "tiny", "quantize": "q8_0"}
    assert (await world.lines("/api/create", **body))[-1] == {"error": str(error)}
    reply = await world.post("/api/create", stream=False, **body)
    assert (reply.status_code, reply.json()) == (status, {"error": str(error)})
    assert stored_files(world) == {**before, "tmp": set()}


async def test_a_client_that_leaves_ends_the_worker(world: World) -> None:
    def prepare(engine: FakeEngine) -> None:
        engine.load_gate.clear()

    world.prepare = prepare
    before = stored_files(world)
    body = json.dumps({"model": "x", "from": "tiny", "quantize": "q8_0"}).encode()
    client = RawClient(world.app, "POST", "/api/create", body)
    while "total" not in (line := await client.next_line()):
        assert line["status"] == "quantizing F32 model to Q8_0"
    client.leave()
    await client.task
    assert world.engine.closed.is_set()
    assert stored_files(world) == {**before, "tmp": set()}
