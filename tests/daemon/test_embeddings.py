"""Embeddings and rerank over HTTP: what reaches the engine, what comes back, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from daemon.creation import check_source
from daemon.embedding import MAX_INPUTS, SLICE_INPUTS, SLICE_TOKENS, slice_ends
from daemon.embedding_inputs import longest_first
from engine.errors import EngineDied, RequestFailed
from modelfiles.source import ModelSource
from registry.store import Store
from tests.daemon.conftest import RawClient, World
from tests.daemon.fake_engine import FakeEngine
from tests.daemon.tiny_model import write_tiny_model
from tests.engine.embedding.encoders import ENCODERS, RANKERS, make_encoder, write_unigram, write_word_piece
from tests.registry.models import create_from

pytestmark = pytest.mark.anyio

CLS, SEP = 2, 3
THE, CAT = 5, 6


@pytest.fixture(scope="session")
def filled_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedder with WordPiece, a cross-encoder with a unigram vocabulary, and a model that writes."""
    root = tmp_path_factory.mktemp("encoders")
    make_encoder(ENCODERS["bert"], root / "bert", "mean_tokens")
    write_word_piece(root / "bert")
    make_encoder(RANKERS["xlm-roberta"], root / "ranker", num_labels=1)
    write_unigram(root / "ranker")
    write_tiny_model(root / "tiny")
    store = Store(root / "models")
    for name in ("bert", "ranker", "tiny"):
        create_from(store, name, ModelSource.from_path(root / name).files, check_source)
    return root / "models"


async def embed(world: World, model: str = "bert", **body: Any) -> dict[str, Any]:
    response = await world.post("/api/embed", model=model, **body)
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


# ---- /api/embed


async def test_a_text_and_a_list_of_them(world: World) -> None:
    one = await embed(world, input="the cat")
    assert one["model"] == "bert"
    assert one["embeddings"] == [[4.0, CLS, 1.0]]
    assert one["prompt_eval_count"] == 4
    assert one["total_duration"] >= one["load_duration"] > 0
    assert "truncated" not in one
    assert world.engine.prompts == [[CLS, THE, CAT, SEP]]
    many = await embed(world, input=["the cat", "the", ""])
    assert [vector[0] for vector in many["embeddings"]] == [4.0, 3.0, 2.0]
    assert many["prompt_eval_count"] == 9
    assert world.engine.num_embed_calls == 2


@pytest.mark.parametrize("body", [{}, {"input": ""}, {"input": None}, {"input": []}])
async def test_no_input_loads_the_model(world: World, body: dict[str, Any]) -> None:
    reply = await embed(world, **body)
    assert reply["embeddings"] == []
    assert [row.stored.name.short for row in world.manager.running()] == ["bert:latest"]
    assert world.engine.num_embed_calls == 0


async def test_what_is_too_long_is_cut_unless_it_must_not_be(world: World) -> None:
    long = " ".join(["cat"] * 100)
    reply = await embed(world, input=["the", long])
    assert reply["truncated"] is True
    assert world.engine.prompts == [[CLS, THE, SEP], [CLS, *[CAT] * 58, SEP]]
    reply = await embed(world, input="the cat sat", options={"num_ctx": 3})
    assert world.engine.prompts[-1] == [CLS, THE, SEP]
    refused = await world.post("/api/embed", model="bert", input=["the", long], truncate=False)
    assert refused.status_code == 400
    assert refused.json()["error"].startswith(
        "the input length exceeds the context length: input 1 has 100 tokens, and there is room for 58;"
    )
    for num_ctx in (0, 1, 2):
        refused = await world.post("/api/embed", model="bert", input="the", options={"num_ctx": num_ctx})
        assert refused.status_code == 400
        assert refused.json()["error"].startswith("input after truncation exceeds maximum context length")


async def test_of_a_book_no_more_is_encoded_than_is_needed(world: World) -> None:
    book = "the cat " * 1_000_000  # encoding it whole takes seconds
    reply = await embed(world, input=[book, " " * 100_000 + book])
    assert world.engine.prompts == [[CLS, *[THE, CAT] * 29, SEP]] * 2
    assert reply["truncated"] is True
    refused = await world.post("/api/embed", model="bert", input=book, truncate=False)
    assert "input 0 has more than 1" in refused.json()["error"]


async def test_a_decoder_has_no_affixes_and_may_be_asked_for_nothing(world: World) -> None:
    assert (await embed(world, "tiny", input="ab"))["embeddings"] == [[2.0, 97.0, 1.0]]
    refused = await world.post("/api/embed", model="tiny", input=["a", ""])
    assert (refused.status_code, refused.json()["error"]) == (
        400, "input 1 has no tokens; there is nothing in it to embed",
    )  # fmt: skip


async def test_dimensions_go_to_the_engine_where_they_cut_anything(world: World) -> None:
    assert (await embed(world, input="the", dimensions=2))["embeddings"] == [[3.0, CLS]]
    for dimensions in (0, 32, 4096):
        assert (await embed(world, input="the", dimensions=dimensions))["embeddings"] == [[3.0, CLS, 1.0]]
    assert world.engine.embeds == [(True, 2), (True, 0), (True, 0), (True, 0)]


async def test_many_inputs_go_in_slices_and_come_back_in_their_order(world: World) -> None:
    inputs = [" ".join(["cat"] * (1 + number % 7)) for number in range(3 * SLICE_INPUTS + 5)]
    reply = await embed(world, input=inputs)
    assert [vector[0] for vector in reply["embeddings"]] == [3.0 + number % 7 for number in range(len(inputs))]
    assert world.engine.num_embed_calls == 4


def test_a_slice_has_neither_too_many_texts_nor_too_many_tokens() -> None:
    assert slice_ends([]) == []
    assert slice_ends([1] * SLICE_INPUTS) == [(0, SLICE_INPUTS)]
    assert slice_ends([1] * (SLICE_INPUTS + 1)) == [(0, SLICE_INPUTS), (SLICE_INPUTS, SLICE_INPUTS + 1)]
    half = SLICE_TOKENS // 2
    assert slice_ends([half, half, 1, 3 * half, 1, half]) == [(0, 2), (2, 3), (3, 4), (4, 6)]


async def test_the_old_route_gives_the_vector_as_the_model_makes_it(world: World) -> None:
    response = await world.post("/api/embeddings", model="bert", prompt="the cat")
    assert response.json() == {"embedding": [4.0, CLS, 0.0]}
    response = await world.post("/api/embeddings", model="bert", prompt="")
    assert response.json() == {"embedding": []}


async def test_a_client_that_leaves_is_forgotten(world: World) -> None:
    started: asyncio.Future[FakeEngine] = asyncio.get_running_loop().create_future()

    def prepare(engine: FakeEngine) -> None:
        engine.embed_gate.clear()
        started.set_result(engine)

    world.prepare = prepare
    client = RawClient(world.app, "POST", "/api/embed", json.dumps({"model": "bert", "input": "the"}).encode())
    await (await started).paused.wait()
    client.leave()
    await world.engine.aborted.wait()
    await client.task
    assert client.sent.empty()


async def test_a_worker_that_died_unseen_is_replaced(world: World) -> None:
    await embed(world, input="the")
    world.engine.embed_error = EngineDied("the engine worker was killed by signal 9 (Killed)")
    world.engine.die()
    assert (await embed(world, input="the"))["embeddings"] == [[3.0, CLS, 1.0]]
    assert len(world.engines) == 2


async def test_a_vector_that_is_not_finite_is_an_error_with_a_sentence(world: World) -> None:
    await embed(world, input="the")
    world.engine.embed_error = RequestFailed("the model computed an embedding that is not finite")
    response = await world.post("/api/embed", model="bert", input="the")
    assert (response.status_code, response.json()["error"]) == (
        500, "the model computed an embedding that is not finite",
    )  # fmt: skip


# ---- what such models are


async def test_what_show_says_of_them(world: World) -> None:
    shown = (await world.post("/api/show", model="bert")).json()
    assert shown["capabilities"] == ["embedding"]
    assert shown["details"]["family"] == "bert"
    assert (shown["details"]["context_length"], shown["details"]["embedding_length"]) == (60, 32)
    info = shown["model_info"]
    assert (info["general.architecture"], info["bert.pooling_type"], info["bert.attention.causal"]) == (
        "bert",
        1,
        False,
    )
    assert (await world.post("/api/show", model="ranker")).json()["capabilities"] == ["rerank"]
    assert "embedding" not in (await world.post("/api/show", model="tiny")).json()["capabilities"]


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/api/generate", {"model": "bert", "prompt": "x"}, '"bert" does not support generate'),
        ("/api/generate", {"model": "bert"}, '"bert" does not support generate'),
        ("/api/chat", {"model": "ranker", "messages": [{"role": "user", "content": "x"}]}, '"ranker" does not support'),
        ("/api/embed", {"model": "ranker", "input": "x"}, '"ranker" does not support embeddings: it is a model for'),
        ("/v1/embeddings", {"model": "ranker", "input": "x"}, '"ranker" does not support embeddings'),
        ("/api/rerank", {"model": "tiny", "query": "x", "documents": ["y"]}, '"tiny" does not support rerank'),
    ],
)
async def test_what_they_cannot_do(world: World, path: str, body: dict[str, Any], error: str) -> None:
    response = await world.post(path, **body)
    assert response.status_code == 400
    assert error in response.text.replace('\\"', '"')
    assert not world.engines, "this is told before a model is loaded"


# ---- /v1/embeddings


@pytest.mark.parametrize(
    ("input_", "prompts"),
    [
        ("the cat", [[CLS, THE, CAT, SEP]]),
        (["the", "cat"], [[CLS, THE, SEP], [CLS, CAT, SEP]]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
)
async def test_openai_s_forms_of_input(world: World, input_: Any, prompts: list[list[int]]) -> None:
    response = await world.post("/v1/embeddings", model="bert", input=input_)
    num_tokens = sum(map(len, prompts))
    assert response.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "embedding": [len(prompt), prompt[0], 1.0], "index": index}
            for index, prompt in enumerate(prompts)
        ],
        "model": "bert",
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
    assert world.engine.prompts == prompts


async def test_base64_is_of_little_endian_float32(world: World) -> None:
    body = {"model": "bert", "input": ["the"], "encoding_format": "base64", "dimensions": 2, "user": "me"}
    (entry,) = (await world.post("/v1/embeddings", **body)).json()["data"]
    assert struct.unpack("<2f", base64.b64decode(entry["embedding"])) == (3.0, CLS)


BAD_INPUT = [
    ("/api/embed", {"model": "bert", "input": 7}, 400, "invalid input type"),
    ("/api/embed", {"model": "bert", "input": ["a", 7]}, 400, "invalid input type"),
    ("/api/embed", {"model": "bert", "input": [["a"]]}, 400, "invalid input type"),
    ("/api/embed", {"model": "bert", "input": {"a": "b"}}, 400, "invalid input type"),
    ("/api/embed", {"model": "bert", "input": "a", "dimensions": -1}, 400, "dimensions is -1"),
    ("/api/embed", {"model": "bert", "input": "a", "dimensions": "x"}, 400, "field dimensions: expected int, got str"),
    ("/api/embed", {"model": "bert", "input": "a", "options": {"num_ctx": "x"}}, 400, "num_ctx"),
    ("/api/embed", {"model": "bert", "input": "a", "keep_alive": "soon"}, 400, "keep_alive cannot be read"),
    ("/api/embed", {"model": "bert", "input": ["a"] * (MAX_INPUTS + 1)}, 400, f"the limit is {MAX_INPUTS}"),
    ("/api/embed", {"model": "nope", "input": "a"}, 404, "model 'nope' not found"),
    ("/api/embed", {"input": "a"}, 404, "not found"),
    ("/api/embeddings", {"prompt": "a"}, 400, "model is required"),
    ("/api/embeddings", {"model": "bert", "prompt": ["a"]}, 400, "field prompt: expected str, got array"),
    ("/v1/embeddings", {"model": "bert", "input": ""}, 400, "invalid input"),
    ("/v1/embeddings", {"model": "bert", "input": []}, 400, "invalid input"),
    ("/v1/embeddings", {"model": "bert"}, 400, "invalid input"),
    ("/v1/embeddings", {"model": "bert", "input": [1, "a"]}, 400, "input mixes texts"),
    ("/v1/embeddings", {"model": "bert", "input": [True]}, 400, "field input[0]"),
    ("/v1/embeddings", {"model": "bert", "input": [[]]}, 400, "input 0 has no tokens"),
    ("/v1/embeddings", {"model": "bert", "input": [1, 97]}, 400, "token id 97, but the model's ids are 0 to 96"),
    ("/v1/embeddings", {"model": "bert", "input": [-1]}, 400, "token id -1"),
    ("/v1/embeddings", {"model": "bert", "input": [2**70]}, 400, ""),
    ("/v1/embeddings", {"model": "bert", "input": "a", "encoding_format": "hex"}, 400, 'encoding_format is "hex"'),
    ("/v1/embeddings", {"input": "a"}, 400, "model is required"),
    ("/api/rerank", {"model": "ranker", "documents": ["a"]}, 400, "query is required"),
    ("/api/rerank", {"model": "ranker", "query": "a"}, 400, "documents is required"),
    ("/api/rerank", {"model": "ranker", "query": "a", "documents": []}, 400, "documents is required"),
    ("/api/rerank", {"model": "ranker", "query": "a", "documents": [7]}, 400, "field documents[0]"),
    ("/api/rerank", {"model": "ranker", "query": "a", "documents": [{"txt": "a"}]}, 400, "field documents[0]"),
    ("/api/rerank", {"model": "ranker", "query": "a", "documents": ["a"], "top_n": 0}, 400, "top_n is 0"),
    ("/api/rerank", {"model": "nope", "query": "a", "documents": ["a"]}, 404, "model 'nope' not found"),
    ("/v1/rerank", {"query": "a", "documents": ["a"]}, 400, "model is required"),
]


@pytest.mark.parametrize(("path", "body", "status", "error"), BAD_INPUT)
async def test_bad_input_is_told(world: World, path: str, body: dict[str, Any], status: int, error: str) -> None:
    response = await world.post(path, **body)
    assert response.status_code == status, response.text
    assert error in response.text.replace('\\"', '"')


async def test_openai_s_errors_name_the_field(world: World) -> None:
    body = {"model": "bert", "input": "cat " * 100, "options": {"truncate": False, "keep_alive": "1m"}}
    error = (await world.post("/v1/embeddings", **body)).json()["error"]
    assert error["message"].startswith("the input length exceeds the context length: input 0 has 100 tokens")
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error", "input", "context_length_exceeded",
    )  # fmt: skip


# ---- rerank


@pytest.mark.parametrize("path", ["/api/rerank", "/v1/rerank"])
async def test_documents_come_in_the_order_of_their_scores(world: World, path: str) -> None:
    body = {"model": "ranker", "query": "the cat sat", "documents": ["fox", {"text": "cat"}, "cat dog", "the fox cat"]}
    reply = (await world.post(path, **body)).json()
    # The fake engine scores by common tokens, the end of the text included: 1/2, 2/2, 2/3, 3/4.
    assert [result["index"] for result in reply["results"]] == [1, 3, 2, 0]
    assert [result["relevance_score"] for result in reply["results"]] == pytest.approx([1, 0.75, 2 / 3, 0.5])
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] == 4 * (5 + 2) + 1 + 1 + 2 + 3
    assert reply["model"] == "ranker"
    assert all(list(result) == ["index", "relevance_score"] for result in reply["results"])
    start, end, *rest = world.engine.prompts[0][0], world.engine.prompts[0][-1], world.engine.prompts[0]
    assert (start, end) == (0, 2)
    assert rest[0][4:6] == [2, 2], "<s> query </s> </s> document </s>"
    assert world.engine.second_starts == [6, 6, 6, 6]
    best = (await world.post(path, **body, top_n=2, return_documents=True)).json()["results"]
    assert [(result["index"], result["document"]) for result in best] == [
        (1, {"text": "cat"}), (3, {"text": "the fox cat"}),
    ]  # fmt: skip


async def test_a_model_that_embeds_reranks_by_cosine(world: World) -> None:
    body = {"model": "bert", "query": "the cat", "documents": ["the", "the cat sat"]}
    reply = (await world.post("/api/rerank", **body)).json()
    # The fake engine's vectors: number of tokens, first token, 1.
    assert [result["relevance_score"] for result in reply["results"]] == [4 * 5 + CLS**2 + 1, 4 * 3 + CLS**2 + 1]
    assert [result["index"] for result in reply["results"]] == [1, 0]


async def test_pairs_that_are_too_long_are_cut_unless_they_must_not_be(world: World) -> None:
    long = " ".join(["cat"] * 100)
    body: dict[str, Any] = {"model": "ranker", "query": "the fox", "documents": ["cat", long]}
    reply = (await world.post("/api/rerank", **body)).json()
    assert reply["truncated"] is True
    assert [len(prompt) for prompt in world.engine.prompts] == [7, 58]
    assert world.engine.prompts[1][:5] == world.engine.prompts[0][:5], "the query is whole"
    refused = await world.post("/api/rerank", **body, truncate=False)
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("the input length exceeds the context length: input 1 has 102 tokens")
    refused = await world.post("/api/rerank", **body, options={"num_ctx": 5})
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("input after truncation exceeds maximum context length")


def test_the_longer_text_of_a_pair_gives_first_as_in_tokenizers() -> None:
    reference = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    reference.pre_tokenizer = pre_tokenizers.Whitespace()
    for room in range(2, 12):
        reference.enable_truncation(room, strategy="longest_first")
        for first in range(1, 12):
            for second in range(1, 12):
                if first + second > room:
                    expected = Counter(reference.encode("a " * first, "b " * second).tokens)
                    assert longest_first(first, second, room) == (expected["a"], expected["b"])
