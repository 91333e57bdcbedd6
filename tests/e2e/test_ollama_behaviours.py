"""What Ollama's own integration tests look at, as its Python client sees it: histories, windows, many users, tools."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import ollama
import pytest

from tests.e2e.conftest import Daemon, create_tiny

pytestmark = pytest.mark.e2e

STORY = "Tell me a story about a fox."
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": STORY}]
GREEDY: dict[str, Any] = {"temperature": 0, "num_predict": 16}
ANIMALS = ("fox", "bear", "cat", "dog")


@pytest.fixture
def client(daemon: Daemon) -> ollama.Client:
    return daemon.client()


def tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {key: {"type": "string", "description": text} for key, text in properties.items()},
        "required": list(properties),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = tool("get_weather", "Weather of a city", city="The city")


# ---- both modes


@pytest.mark.parametrize("stream", [True, False])
def test_every_object_of_a_chat_is_whole(client: ollama.Client, tale: str, stream: bool) -> None:
    reply = client.chat(tale, QUESTION, options=GREEDY, think=False, stream=stream)
    pieces = list(reply) if stream else [reply]
    for piece in pieces:
        assert piece.model == tale
        assert piece.created_at is not None
        assert piece.message.role == "assistant"
    last = pieces[-1]
    assert last.done_reason == "length"
    for count in (last.total_duration, last.load_duration, last.prompt_eval_count, last.prompt_eval_duration):
        assert count
    assert last.eval_count == 16
    assert last.eval_duration
    assert not any(piece.done_reason for piece in pieces[:-1])


def test_a_loaded_model_is_listed_whole(client: ollama.Client, tale: str) -> None:
    client.generate(tale, "Hi", options=GREEDY)
    [entry] = [entry for entry in client.ps().models if entry.model == f"{tale}:latest"]
    assert entry.details is not None
    for fact in (entry.size, entry.digest, entry.expires_at, entry.details.format, entry.details.family):
        assert fact
    assert entry.details.parameter_size
    assert entry.details.quantization_level
    assert entry.name == f"{tale}:latest"


@pytest.mark.parametrize("top", [None, 0, 5])
def test_logprobs_of_both_routes(client: ollama.Client, tale: str, top: int | None) -> None:
    words: dict[str, Any] = {} if top is None else {"logprobs": True, "top_logprobs": top}
    options = {**GREEDY, "num_predict": 10}
    generated = client.generate(tale, STORY, options=options, think=False, **words)
    answered = client.chat(tale, QUESTION, options=options, think=False, **words)
    for reply in (generated, answered):
        if top is None:
            assert not reply.logprobs
            continue
        assert reply.logprobs is not None
        assert len(reply.logprobs) == reply.eval_count == 10
        for entry in reply.logprobs:
            assert entry.token
            assert entry.logprob <= 0
            tops = [other.logprob for other in entry.top_logprobs or ()]
            assert len(tops) == top
            assert tops == sorted(tops, reverse=True)
            assert not tops or tops[0] == entry.logprob


def test_letters_of_many_bytes_are_never_cut(client: ollama.Client, tale: str) -> None:
    """Asked for bytes, a character comes in several tokens; pieces of a stream hold whole ones."""
    words = "狐と熊 🦊🐻 Füchse"
    question = [{"role": "user", "content": words}]
    options = {"num_predict": 60, "temperature": 4.0, "top_k": 0, "top_p": 1.0, "seed": 5}
    whole = client.chat(tale, question, options=options, think=False)
    pieces = [
        piece.message.content or "" for piece in client.chat(tale, question, options=options, think=False, stream=True)
    ]
    assert "".join(pieces) == whole.message.content
    assert whole.prompt_eval_count is not None
    assert whole.prompt_eval_count > len(words)


# ---- windows and histories


@pytest.fixture(scope="module")
def tiny(daemon: Daemon, tiny_folder: Any) -> str:
    """A model that never ends of its own accord."""
    create_tiny(daemon.client(), tiny_folder)
    return "tiny"


def test_a_prompt_longer_than_its_window_is_cut(client: ollama.Client, tale: str) -> None:
    long = [{"role": "user", "content": "A fox met a bear. " * 100}]
    reply = client.chat(tale, long, options={**GREEDY, "num_ctx": 128}, think=False)
    assert reply.message.content
    assert reply.prompt_eval_count is not None
    assert reply.prompt_eval_count < 128


def test_a_text_goes_on_past_its_window(client: ollama.Client, tiny: str) -> None:
    options = {"temperature": 0, "num_predict": 160, "num_ctx": 64}
    *pieces, last = client.generate(tiny, STORY, raw=True, options=options, stream=True)
    assert last.eval_count == 160
    assert pieces


def test_a_context_is_gone_on_from(client: ollama.Client, tale: str) -> None:
    first = client.generate(tale, STORY, options=GREEDY, think=False)
    assert first.context is not None
    second = client.generate(tale, "Tell me more.", context=first.context, options=GREEDY, think=False)
    assert second.context is not None
    assert list(second.context[: len(first.context)]) == list(first.context)
    assert second.prompt_eval_count is not None
    assert first.prompt_eval_count is not None
    assert second.prompt_eval_count > first.prompt_eval_count + (first.eval_count or 0)


def test_an_answer_goes_back_as_it_came(client: ollama.Client, tale: str) -> None:
    options = {**GREEDY, "num_predict": 100, "num_ctx": 4096}
    asked = {"role": "user", "content": "What is 2 + 3?"}
    first = client.chat(tale, [asked], options=options, think=True)
    messages = [asked, first.message, {"role": "user", "content": "And 3 + 4?"}]
    second = client.chat(tale, messages, options=options, think=True)
    assert second.message.content
    assert second.prompt_eval_count is not None
    assert second.prompt_eval_count > (first.prompt_eval_count or 0) + 10


# ---- many users


def test_parallel_conversations(daemon: Daemon, tale: str) -> None:
    async def converse(client: ollama.AsyncClient, animal: str) -> list[str]:
        messages: list[Any] = []
        answers = []
        for ask in (f"Tell me a story about a {animal}.", "Tell me another one."):
            messages.append({"role": "user", "content": ask})
            pieces = await client.chat(tale, messages, options=GREEDY, think=False, stream=True)
            text = "".join([piece.message.content or "" async for piece in pieces])
            messages.append({"role": "assistant", "content": text})
            answers.append(text)
        return answers

    async def run() -> tuple[list[list[str]], list[list[str]]]:
        async with ollama.AsyncClient(host=daemon.base_url) as client:
            together = await asyncio.gather(*(converse(client, animal) for animal in ANIMALS))
            return together, [await converse(client, animal) for animal in ANIMALS[:2]]

    together, alone = asyncio.run(run())
    assert all(all(answers) for answers in together)
    for one, other in zip(together, alone, strict=False):
        assert one[0][:10] == other[0][:10]


def test_several_models_at_once(daemon: Daemon, tale: str, tiny: str) -> None:
    async def run() -> list[Any]:
        async with ollama.AsyncClient(host=daemon.base_url) as client:
            return await asyncio.gather(
                *(client.generate(name, STORY, options=GREEDY) for name in (tale, tiny) * 3),
                client.ps(),
            )

    *replies, _ = asyncio.run(run())
    assert [reply.model for reply in replies] == [tale, tiny] * 3
    assert all(reply.eval_count == 16 for reply in replies)


# ---- tools

MANY_TOOLS = [
    WEATHER,
    tool("read_file", "Read a file", path="Its path"),
    tool("write_file", "Write a file", path="Its path", content="Its text"),
    tool("list_folder", "List a folder", path="Its path"),
    tool("run_command", "Run a command", command="The command line"),
    tool("search_web", "Search the web", query="What to look for"),
    tool("fetch_page", "Fetch a page", url="Its address"),
    tool("send_mail", "Send a mail", to="Whom to", text="What to say"),
    tool("get_time", "The time in a city", city="The city"),
]
AGENT = {"role": "system", "content": "You are an agent. Think before you act, and use your tools. " * 20}
TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "<|im_start|>", "<|im_end|>")


def test_an_agent_with_many_tools_leaks_no_tags(client: ollama.Client, tale: str) -> None:
    """First, out of the cache, another question, and the turns after a call."""
    options = {"temperature": 0, "num_predict": 60}
    asked = {"role": "user", "content": "What is the weather in Paris?"}
    other = {"role": "user", "content": "What is the weather in Rome?"}
    call = {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    history = [asked, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "sunny"}]
    texts, counts = [], []
    for messages in ([asked], [asked], [other], history, [*history, {"role": "assistant", "content": "Sunny."}, other]):
        reply = client.chat(tale, [AGENT, *messages], tools=MANY_TOOLS, options=options, think=False)
        texts.append(reply.message.content or "")
        counts.append(len(reply.message.tool_calls or ()))
        assert reply.message.content or reply.message.tool_calls
    assert not [tag for text in texts for tag in TAGS if tag in text]
    assert counts[0] == counts[1]
    assert texts[0] == texts[1]


def test_a_python_function_is_a_tool(daemon: Daemon, tale: str) -> None:
    """An async client and a Python function as the tool: its signature becomes the schema."""

    def get_weather(city: str) -> str:
        """Weather of a city

        Args:
            city: The city
        """
        return f"18 degrees and sunny in {city}"

    asked: dict[str, Any] = {"role": "user", "content": "What is the weather in Paris?"}

    async def run() -> ollama.ChatResponse:
        async with ollama.AsyncClient(host=daemon.base_url) as client:
            first = await client.chat(tale, [asked], tools=[get_weather], options={"temperature": 0}, think=False)
            [call] = first.message.tool_calls or ()
            assert call.function.name == "get_weather"
            result = {
                "role": "tool",
                "tool_name": call.function.name,
                "content": get_weather(**call.function.arguments),
            }
            return await client.chat(tale, [asked, first.message, result], options={"temperature": 0}, think=False)

    assert asyncio.run(run()).message.content


# ---- structured output and embeddings


def test_structured_output(daemon: Daemon, client: ollama.Client, tale: str) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "legs": {"enum": [2, 4]}},
        "required": ["name", "legs"],
        "additionalProperties": False,
    }
    question = [{"role": "user", "content": "Name an animal."}]
    options = {"temperature": 0, "num_predict": 100}
    for think in (False, True):
        reply = client.chat(tale, question, format=schema, options={**options, "num_predict": 400}, think=think)
        said = json.loads(reply.message.content or "")
        assert set(said) == {"name", "legs"}
        assert said["legs"] in (2, 4)
        assert bool(reply.message.thinking) is think
    pieces = client.generate(tale, "Name an animal.", format=schema, options=options, think=False, stream=True)
    assert json.loads("".join(piece.response for piece in pieces))["legs"] in (2, 4)

    async def run() -> ollama.ChatResponse:
        async with ollama.AsyncClient(host=daemon.base_url) as one:
            return await one.chat(tale, question, format="json", options=options, think=False)

    assert isinstance(json.loads(asyncio.run(run()).message.content or ""), dict)


def test_embeddings(daemon: Daemon, client: ollama.Client, tale: str) -> None:
    one = client.embed(tale, "a fox")
    [vector] = one.embeddings
    assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-5)
    assert one.prompt_eval_count
    batch = client.embed(tale, ["a fox", "a bear", "a fox"])
    assert len(batch.embeddings) == 3
    assert batch.embeddings[0] == pytest.approx(batch.embeddings[2], abs=1e-4)
    assert batch.embeddings[0] != pytest.approx(batch.embeddings[1], abs=1e-2)
    assert len(client.embed(tale, "a fox", dimensions=8).embeddings[0]) == 8
    assert client.embed(tale, []).embeddings == []
    long = ["a fox " * 100, "a bear " * 90]
    short = client.embed(tale, long, options={"num_ctx": 30})
    assert short.prompt_eval_count is not None
    assert short.prompt_eval_count <= 60
    with pytest.raises(ollama.ResponseError, match="exceeds") as refused:
        client.embed(tale, long, truncate=False, options={"num_ctx": 30})
    assert refused.value.status_code == 400
    assert len(client.embeddings(tale, "a fox").embedding) == len(vector)

    async def run() -> ollama.EmbedResponse:
        async with ollama.AsyncClient(host=daemon.base_url) as other:
            return await other.embed(tale, "a fox")

    assert asyncio.run(run()).embeddings[0] == pytest.approx(vector, abs=1e-4)
