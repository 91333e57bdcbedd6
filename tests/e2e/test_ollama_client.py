"""Ollama's own Python client against a real daemon: it must not notice the difference."""

from __future__ import annotations

from typing import Any

import ollama
import pytest

from tests.e2e.conftest import Daemon

pytestmark = pytest.mark.e2e

QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "Tell me a story about a fox."}]
SHORT = {"num_predict": 12, "temperature": 0}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def client(daemon: Daemon) -> ollama.Client:
    return daemon.client()


def test_list(client: ollama.Client, model: str) -> None:
    entry = next(entry for entry in client.list().models if entry.model == f"{model}:latest")
    assert entry.digest is not None
    assert len(entry.digest) == 64
    assert entry.size
    assert entry.modified_at is not None
    assert entry.details is not None
    assert entry.details.family == "llama"
    assert entry.details.format in ("gguf", "safetensors")
    assert entry.details.parameter_size
    assert entry.details.quantization_level


def test_show(client: ollama.Client, model: str) -> None:
    reply = client.show(model)
    assert reply.modelinfo is not None
    assert reply.modelinfo["general.architecture"] == "llama"
    assert reply.capabilities is not None
    assert "completion" in reply.capabilities
    assert reply.template
    assert reply.modelfile
    assert reply.details is not None
    assert reply.modified_at is not None


def test_generate(client: ollama.Client, model: str) -> None:
    whole = client.generate(model, "Once upon a time", options=SHORT)
    pieces = list(client.generate(model, "Once upon a time", options=SHORT, stream=True))
    assert "".join(piece.response for piece in pieces) == whole.response
    assert "".join(piece.thinking or "" for piece in pieces) == (whole.thinking or "")
    assert whole.response or whole.thinking
    for reply in (whole, pieces[-1]):
        assert reply.model == model
        assert reply.done
        assert reply.done_reason in ("stop", "length")
        assert reply.total_duration
        assert reply.load_duration
        assert reply.prompt_eval_count
        assert reply.prompt_eval_duration
        assert reply.eval_count
        assert reply.eval_duration
        assert reply.context
    assert not any(piece.done for piece in pieces[:-1])


def test_chat(client: ollama.Client, model: str) -> None:
    whole = client.chat(model, QUESTION, options=SHORT)
    pieces = list(client.chat(model, QUESTION, options=SHORT, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == (whole.message.content or "")
    assert whole.message.role == "assistant"
    assert pieces[-1].done
    assert pieces[-1].prompt_eval_count == whole.prompt_eval_count


def test_a_seed_says_what_is_sampled(client: ollama.Client, model: str) -> None:
    options = {"num_predict": 16, "temperature": 1.5, "seed": 7}
    texts = {client.generate(model, "A fox", options=options, raw=True).response for _ in range(3)}
    assert len(texts) == 1
    for seed in range(5):
        texts.add(client.generate(model, "A fox", options={**options, "seed": seed}, raw=True).response)
    assert len(texts) > 1


def test_logprobs(client: ollama.Client, model: str) -> None:
    reply = client.generate(model, "A fox", options=SHORT, logprobs=True, top_logprobs=3, raw=True)
    assert reply.logprobs
    for entry in reply.logprobs:
        assert entry.logprob <= 0
        assert entry.top_logprobs
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)


def test_ps_and_unload(client: ollama.Client, model: str) -> None:
    client.generate(model, "Hi", options=SHORT, keep_alive="10m")
    [entry] = [entry for entry in client.ps().models if entry.model == f"{model}:latest"]
    assert entry.size
    assert entry.digest
    assert entry.expires_at is not None
    assert entry.context_length
    assert entry.details is not None
    assert client.generate(model, keep_alive=0).done_reason == "unload"
    assert f"{model}:latest" not in [entry.model for entry in client.ps().models]
    assert client.generate(model).done_reason == "load"


def test_create_copy_delete(client: ollama.Client, model: str) -> None:
    statuses = [event.status for event in client.create("child", from_=model, system="Be brief.", stream=True)]
    assert statuses[-1] == "success"
    assert client.copy("child", "twin").status == "success"
    assert "SYSTEM Be brief." in (client.show("twin").modelfile or "")
    for name in ("child", "twin"):
        assert client.delete(name).status == "success"
    with pytest.raises(ollama.ResponseError) as caught:
        client.show("twin")
    assert (caught.value.status_code, caught.value.error) == (404, "model 'twin' not found")


def test_refusals(client: ollama.Client, model: str) -> None:
    with pytest.raises(ollama.ResponseError, match='uses "not", which cannot be enforced') as caught:
        client.chat(model, QUESTION, format={"not": {}})
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="model 'no-such' not found"):
        client.chat("no-such", QUESTION)
    with pytest.raises(ollama.ResponseError, match=r"cannot reach 127\.0\.0\.1:1: connection refused"):
        client.pull("127.0.0.1:1/no/such")


def test_pull_brings_tale_back(client: ollama.Client, tale: str) -> None:
    client.delete(tale)
    assert f"{tale}:latest" not in [entry.model for entry in client.list().models]
    assert client.pull(tale).status == "success"
    assert client.generate(tale, "Hi", options=SHORT).done


def test_tale_tells_a_story_and_thinks_when_asked(client: ollama.Client, tale: str) -> None:
    for think in (True, False):
        message = client.chat(tale, QUESTION, options={"temperature": 0}, think=think).message
        assert "fox" in (message.content or "").lower()
        assert "<think>" not in (message.content or "")
        assert bool(message.thinking) is think


def test_tale_calls_a_tool(client: ollama.Client, tale: str) -> None:
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    pieces = list(client.chat(tale, question, tools=[WEATHER], options={"temperature": 0}, stream=True))
    [call] = [call for piece in pieces for call in piece.message.tool_calls or ()]
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})
    assert "<tool_call>" not in "".join(piece.message.content or "" for piece in pieces)
