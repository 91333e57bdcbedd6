"""POST /api/tokenize and /api/detokenize."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.conftest import World, add_model

pytestmark = pytest.mark.anyio


async def tokenize(world: World, **body: Any) -> Any:
    response = await world.post("/api/tokenize", model="tiny", **body)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == "tiny"
    return response.json()["tokens"]


async def detokenize(world: World, tokens: list[int]) -> str:
    response = await world.post("/api/detokenize", model="tiny", tokens=tokens)
    assert response.status_code == 200, response.text
    content: str = response.json()["content"]
    return content


async def test_there_and_back_without_weights(world: World) -> None:
    text = "Hé 🦊 <|im_end|>\n"
    tokens = await tokenize(world, content=text)
    assert tokens[:2] == [ord("H"), 0xC3]
    assert 258 in tokens
    assert await detokenize(world, tokens) == text
    assert await tokenize(world, text=text) == tokens
    assert await tokenize(world, content="") == []
    assert await detokenize(world, []) == ""
    assert world.engines == []


async def test_special_tokens_as_plain_text(world: World) -> None:
    assert await tokenize(world, content="<|im_end|>") == [258]
    assert await tokenize(world, content="<|im_end|>", parse_special=False) == list(b"<|im_end|>")


async def test_pieces_are_text_or_bytes(world: World) -> None:
    assert await tokenize(world, content="aé", with_pieces=True) == [
        {"id": 97, "piece": "a"},
        {"id": 0xC3, "piece": [0xC3]},
        {"id": 0xA9, "piece": [0xA9]},
    ]
    assert await detokenize(world, [0xC3]) == "\ufffd"


async def test_a_sentencepiece_vocabulary(world: World, data_dir: Path) -> None:
    add_model(world.store, "stories", data_dir / "models" / "stories260K" / "hf")

    async def ids(text: str, **more: bool) -> list[int]:
        response = await world.post("/api/tokenize", model="stories", content=text, **more)
        tokens: list[int] = response.json()["tokens"]
        return tokens

    plain = await ids("Once upon a time")
    assert await ids("Once upon a time", add_special=True) == [1, *plain]
    for text in ("Once upon a time", " Once  upon\na time ", "é🦊"):
        response = await world.post("/api/detokenize", model="stories", tokens=await ids(text))
        assert response.json() == {"model": "stories", "content": text}


async def test_a_loaded_models_tokenizer_is_shared_and_concurrent_builds_are_one(world: World) -> None:
    await world.whole("/api/generate", model="tiny", prompt="Hi")
    stored = await world.services.library.find("tiny")
    shared = await world.services.texts.get(stored)
    assert shared.tokenizer is world.manager.loaded_tokenizer(stored)
    other = await world.services.library.find("thinker")
    assert world.manager.loaded_tokenizer(other) is None
    first, second = await asyncio.gather(world.services.texts.get(other), world.services.texts.get(other))
    assert first is second


async def test_a_build_that_failed_is_tried_again(world: World) -> None:
    stored = await world.services.library.find("tiny")
    path = stored.files["tokenizer.json"]
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(b"{" + data[1:].replace(b'"model"', b'"medal"'))
    assert (await world.post("/api/tokenize", model="tiny", content="x")).status_code >= 400
    path.write_bytes(data)
    assert await tokenize(world, content="x") == [ord("x")]


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("tokenize", {"model": "no-such", "content": "x"}, 404, "model 'no-such' not found"),
        ("tokenize", {"content": "x"}, 400, "model is required"),
        ("tokenize", {"model": "tiny"}, 400, "content is missing: give the text to tokenize"),
        ("tokenize", {"model": "tiny", "content": 7}, 400, "invalid request: field content: expected str, got int"),
        ("detokenize", {"model": "tiny"}, 400, "tokens is missing: give a list of token ids"),
        (
            "detokenize",
            {"model": "tiny", "tokens": [999]},
            400,
            "token id 999 lies outside the vocabulary of 259 tokens",
        ),
        ("detokenize", {"model": "tiny", "tokens": [-1]}, 400, "token id -1 lies outside the vocabulary of 259 tokens"),
        ("detokenize", {"model": "no-such", "tokens": []}, 404, "model 'no-such' not found"),
    ],
)
async def test_refusals(world: World, path: str, body: dict[str, Any], status: int, sentence: str) -> None:
    response = await world.post(f"/api/{path}", **body)
    assert (response.status_code, response.json()) == (status, {"error": sentence})
