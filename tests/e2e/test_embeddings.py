"""Vectors and scores through a real daemon and its workers: Ollama's own client, OpenAI's shape, and Transformers."""

from __future__ import annotations

import base64
import json
import math
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer

from cli.source_files import local_files
from tests.e2e.conftest import Daemon
from tests.engine.embedding.encoders import (
    ENCODERS,
    RANKERS,
    hidden_states,
    make_encoder,
    write_unigram,
    write_word_piece,
)

pytestmark = pytest.mark.e2e

TEXTS = ["the cat sat on a mat", "A fox", "zebra, zoo! the red story of the fox and the dog", "the", ""]
DOCUMENTS = ["the cat sat on the mat", "a fox runs", "the dog and the fox and the cat", "red"]


def upload(client: ollama.Client, folder: Path, name: str) -> None:
    """Create a model as `hob create` does of a folder."""
    files = local_files(str(folder), Path())
    assert files is not None
    client.create(name, files={path_name: client.create_blob(path) for path_name, path in files.paths.items()})


@pytest.fixture(scope="session")
def bert(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[list[float]], list[int]]:
    """Name of an embedder, and what Transformers says of TEXTS: vectors of length 1, and numbers of tokens."""
    folder = tmp_path_factory.mktemp("e2e") / "bert"
    model = make_encoder(ENCODERS["bert"], folder, "cls_token")
    write_word_piece(folder)
    upload(daemon.client(), folder, "bert")
    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    states = torch.stack([hidden_states(model, one)[0] for one in ids])
    return "bert", torch.nn.functional.normalize(states).tolist(), [len(one) for one in ids]


@pytest.fixture(scope="session")
def ranker(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[float]]:
    """Name of a cross-encoder, and what Transformers says of DOCUMENTS for the first of TEXTS."""
    folder = tmp_path_factory.mktemp("e2e") / "ranker"
    model = make_encoder(RANKERS["xlm-roberta"], folder, num_labels=1)
    write_unigram(folder)
    upload(daemon.client(), folder, "ranker")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pairs = [tokenizer.encode(TEXTS[0], document).ids for document in DOCUMENTS]
    with torch.inference_mode():
        return "ranker", [torch.sigmoid(model(torch.tensor([pair])).logits).item() for pair in pairs]


def similarity(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def post(daemon: Daemon, path: str, **body: Any) -> dict[str, Any]:
    response = httpx.post(daemon.base_url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


def test_ollama_s_client_gets_the_vectors_of_transformers(
    daemon: Daemon, bert: tuple[str, list[list[float]], list[int]]
) -> None:
    name, expected, num_tokens = bert
    client = daemon.client()
    batch = client.embed(name, TEXTS)
    for vector, wanted in zip(batch.embeddings, expected, strict=True):
        assert list(vector) == pytest.approx(wanted, abs=1e-5)
    assert batch.prompt_eval_count == sum(num_tokens)
    assert batch.total_duration
    assert batch.load_duration
    single = client.embed(name, TEXTS[0])
    assert list(single.embeddings[0]) == pytest.approx(expected[0], abs=1e-5)
    assert single.prompt_eval_count == num_tokens[0]
    cut = client.embed(name, TEXTS[0], dimensions=8).embeddings[0]
    length = math.hypot(*expected[0][:8])
    assert list(cut) == pytest.approx([element / length for element in expected[0][:8]], abs=1e-5)
    old = client.embeddings(name, TEXTS[0]).embedding
    assert similarity(list(old), expected[0]) / math.hypot(*old) == pytest.approx(1.0, abs=1e-5)
    assert math.hypot(*old) != pytest.approx(1.0, abs=1e-2)
    with pytest.raises(ollama.ResponseError, match="the input length exceeds the context length"):
        client.embed(name, "the " * 100, truncate=False)
    long = client.embed(name, "the " * 100)
    assert long.prompt_eval_count == 60


def test_a_context_of_three_tokens_gives_the_first_word(daemon: Daemon, bert: tuple[str, Any, Any]) -> None:
    client, name = daemon.client(), bert[0]
    whole = client.embed(name, TEXTS[3]).embeddings[0]  # "the"
    cut = client.embed(name, TEXTS[0], options={"num_ctx": 3})
    assert list(cut.embeddings[0]) == pytest.approx(list(whole), abs=1e-6)
    assert cut.prompt_eval_count == 3


def test_many_clients_at_once_get_what_each_gets_alone(
    daemon: Daemon, bert: tuple[str, list[list[float]], Any]
) -> None:
    name, expected, _ = bert
    client = daemon.client()
    with ThreadPoolExecutor(16) as threads:
        replies = list(threads.map(lambda index: client.embed(name, [TEXTS[index % len(TEXTS)]]), range(64)))
    for index, reply in enumerate(replies):
        assert list(reply.embeddings[0]) == pytest.approx(expected[index % len(TEXTS)], abs=1e-5)


def test_tale_embeds_beside_its_stories(daemon: Daemon, tale: str) -> None:
    client = daemon.client()
    story = {"temperature": 0, "num_predict": 60}
    alone = client.generate(tale, "Once upon a time", options=story).response
    texts = ["The fox ran into the forest.", "A fox went to the woods.", "One plus one is two."]
    stream = client.generate(tale, "Once upon a time", options=story, stream=True)
    pieces = [next(stream).response]
    vectors = client.embed(tale, texts).embeddings
    pieces += [piece.response for piece in stream]
    assert "".join(pieces) == alone, "who generates beside it gets the same"
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1.0] * 3)
    near, far = (similarity(list(vectors[0]), list(vectors[index])) for index in (1, 2))
    assert near > far
    again = client.embed(tale, texts[1]).embeddings[0]
    assert similarity(list(again), list(vectors[1])) > 0.999
    assert "embedding" not in (client.show(tale).capabilities or [])


def test_openai_s_shape(daemon: Daemon, bert: tuple[str, list[list[float]], list[int]]) -> None:
    name, expected, num_tokens = bert
    reply = post(daemon, "/v1/embeddings", model=name, input=TEXTS[:2], encoding_format="base64")
    assert (reply["object"], reply["model"]) == ("list", name)
    assert reply["usage"] == {"prompt_tokens": sum(num_tokens[:2]), "total_tokens": sum(num_tokens[:2])}
    for index, entry in enumerate(reply["data"]):
        assert (entry["object"], entry["index"]) == ("embedding", index)
        vector = struct.unpack("<32f", base64.b64decode(entry["embedding"]))
        assert list(vector) == pytest.approx(expected[index], abs=1e-5)
    plain = post(daemon, "/v1/embeddings", model=name, input=TEXTS[0])["data"][0]["embedding"]
    assert plain == pytest.approx(expected[0], abs=1e-5)


def test_openai_s_client_reads_both_encodings(daemon: Daemon, bert: tuple[str, list[list[float]], list[int]]) -> None:
    name, expected, num_tokens = bert
    with openai.OpenAI(base_url=f"{daemon.base_url}/v1", api_key="any", max_retries=0) as client:
        default = client.embeddings.create(model=name, input=TEXTS)  # the client asks for base64 by itself
        plain = client.embeddings.create(model=name, input=TEXTS, encoding_format="float")
        cut = client.embeddings.create(model=name, input=TEXTS[0], dimensions=8)
        with pytest.raises(openai.BadRequestError, match="invalid input"):
            client.embeddings.create(model=name, input=[])
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="nope", input="x")
    for reply in (default, plain):
        assert reply.usage.total_tokens == sum(num_tokens)
        for entry, wanted in zip(reply.data, expected, strict=True):
            assert entry.embedding == pytest.approx(wanted, abs=1e-5)
    assert len(cut.data[0].embedding) == 8


def test_hob_run_prints_a_vector(daemon: Daemon, bert: tuple[str, list[list[float]], Any]) -> None:
    name, expected, _ = bert
    words = [sys.executable, "-c", "from cli.main import main; main()", "run", name, TEXTS[0]]
    done = subprocess.run(words, env=daemon.environ, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx(expected[0], abs=1e-5)


def test_documents_are_ranked_as_transformers_ranks_them(daemon: Daemon, ranker: tuple[str, list[float]]) -> None:
    name, expected = ranker
    body = {"model": name, "query": TEXTS[0], "documents": DOCUMENTS, "return_documents": True}
    results = post(daemon, "/v1/rerank", **body)["results"]
    assert [result["index"] for result in results] == sorted(range(4), key=lambda index: -expected[index])
    for result in results:
        assert result["relevance_score"] == pytest.approx(expected[result["index"]], abs=1e-5)
        assert result["document"]["text"] == DOCUMENTS[result["index"]]
    assert post(daemon, "/api/rerank", **body, top_n=1)["results"] == results[:1]


def test_what_models_that_read_say(daemon: Daemon, bert: tuple[str, Any, Any], ranker: tuple[str, Any]) -> None:
    client = daemon.client()
    assert client.show(bert[0]).capabilities == ["embedding"]
    assert client.show(ranker[0]).capabilities == ["rerank"]
    with pytest.raises(ollama.ResponseError, match='"bert" does not support generate'):
        client.generate(bert[0], "x")
    with pytest.raises(ollama.ResponseError, match='"bert" does not support chat'):
        client.chat(bert[0], [{"role": "user", "content": "x"}])
    running = {row.model: row for row in client.ps().models}
    assert running["bert:latest"].context_length == 60
    assert running["bert:latest"].size
