"""The official client of Anthropic's API, unchanged, against a running daemon with the built-in model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import anthropic
import psutil
import pytest
from anthropic.types import MessageParam, ToolParam
from pydantic import BaseModel

from tests.e2e.conftest import Daemon, StartDaemon, create_tiny

pytestmark = pytest.mark.e2e

STORY: list[MessageParam] = [{"role": "user", "content": "Tell me a story about a fox."}]
SUM: list[MessageParam] = [{"role": "user", "content": "What is 2 + 3?"}]
QUESTION: MessageParam = {"role": "user", "content": "What is the weather in Paris?"}
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class Animal(BaseModel):
    """An animal of a story."""

    kind: Literal["fox", "bear", "hen"]
    legs: Literal[2, 4]


GREEDY = {"temperature": 0}
"""The client no longer has arguments for how to sample."""
THINKING: anthropic.types.ThinkingConfigEnabledParam = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture
def client(daemon: Daemon) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=daemon.base_url, api_key="any", max_retries=0) as one:
        yield one


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message(client: anthropic.Anthropic, tale: str) -> None:
    message = client.messages.create(model=tale, max_tokens=50, messages=SUM, extra_body=GREEDY)
    assert message.model == tale
    assert message.stop_reason == "end_turn"
    [block] = message.content
    assert block.type == "text"
    assert "5" in block.text
    assert message.usage.output_tokens > 5
    again = client.messages.create(model=tale, max_tokens=50, messages=SUM, extra_body=GREEDY)
    assert text_of(again) == block.text
    assert again.usage.cache_read_input_tokens
    total = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    assert again.usage.input_tokens + again.usage.cache_read_input_tokens == total
    assert client.messages.count_tokens(model=tale, messages=SUM).input_tokens == total
    assert client.beta.messages.count_tokens(model=tale, messages=[*SUM]).input_tokens == total
    assert tale in [model.id.partition(":")[0] for model in client.models.list()]


def test_a_stream_says_the_same(client: anthropic.Anthropic, tale: str) -> None:
    message = client.messages.create(model=tale, max_tokens=40, messages=STORY, extra_body=GREEDY)
    with client.messages.stream(model=tale, max_tokens=40, messages=STORY, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(final) == text_of(message)
    assert final.stop_reason == message.stop_reason == "max_tokens"
    assert final.usage.output_tokens == message.usage.output_tokens == 40
    with client.messages.create(model=tale, max_tokens=40, messages=STORY, extra_body=GREEDY, stream=True) as events:
        kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_thoughts(client: anthropic.Anthropic, tale: str) -> None:
    with client.messages.stream(
        model=tale, max_tokens=100, messages=SUM, extra_body=GREEDY, thinking=THINKING
    ) as stream:
        message = stream.get_final_message()
    thought, answer = message.content
    assert thought.type == "thinking"
    assert thought.thinking
    assert thought.signature
    assert answer.type == "text"
    assert "<think>" not in answer.text
    more = client.messages.create(
        model=tale,
        max_tokens=10,
        messages=[*SUM, message.to_param(), {"role": "user", "content": "And 3 + 4?"}],
        thinking=THINKING,
    )
    assert more.content


def test_a_tool_is_called_and_answered(client: anthropic.Anthropic, tale: str) -> None:
    with client.messages.stream(
        model=tale, max_tokens=200, messages=[QUESTION], tools=[WEATHER], extra_body=GREEDY
    ) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "tool_use"
    call = message.content[-1]
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    result: MessageParam = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees and sunny"}],
    }
    answer = client.messages.create(
        model=tale,
        max_tokens=200,
        messages=[QUESTION, message.to_param(), result],
        tools=[WEATHER],
        extra_body=GREEDY,
    )
    assert answer.stop_reason == "end_turn"
    assert text_of(answer)


def test_stop_sequences_and_system(client: anthropic.Anthropic, tale: str) -> None:
    options = {"model": tale, "max_tokens": 20, "messages": STORY, "extra_body": GREEDY, "system": "Be brief."}
    whole = text_of(client.messages.create(**options))  # type: ignore[call-overload]
    word = whole.split()[5]
    message = client.messages.create(**options, stop_sequences=[word])  # type: ignore[call-overload]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", word)
    assert text_of(message) == whole.partition(word)[0]


def test_no_tokens_warm_the_cache(client: anthropic.Anthropic, tale: str) -> None:
    messages: list[MessageParam] = [{"role": "user", "content": "Tell me a story about a bear, a boat and a bridge."}]
    message = client.messages.create(model=tale, max_tokens=0, messages=messages)
    assert (message.content, message.usage.output_tokens) == ([], 0)
    warm = client.messages.create(model=tale, max_tokens=1, messages=messages)
    assert (warm.usage.cache_read_input_tokens or 0) > (message.usage.cache_read_input_tokens or 0)


def test_structured_output(client: anthropic.Anthropic, tale: str) -> None:
    message = client.messages.parse(
        model=tale,
        max_tokens=100,
        messages=[{"role": "user", "content": "Name an animal."}],
        output_format=Animal,
        extra_body=GREEDY,
    )
    assert isinstance(message.parsed_output, Animal)


def test_a_tool_that_must_be_called(client: anthropic.Anthropic, tale: str) -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        message = client.messages.create(
            model=tale, max_tokens=100, messages=STORY, tools=[WEATHER], tool_choice=choice, extra_body=GREEDY
        )
        assert [block.type for block in message.content] == ["tool_use"]
        assert message.stop_reason == "tool_use"


def test_many_at_once(daemon: Daemon, tale: str) -> None:
    async def run() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=daemon.base_url, auth_token="any", max_retries=0) as client:

            async def one(animal: str) -> str:
                messages: list[MessageParam] = [{"role": "user", "content": f"Tell me a story about a {animal}."}]
                async with client.messages.stream(
                    model=tale, max_tokens=10, messages=messages, extra_body=GREEDY
                ) as stream:
                    return "".join([text async for text in stream.text_stream])

            return await asyncio.gather(*(one(animal) for animal in ("fox", "bear", "cat", "dog")))

    texts = asyncio.run(run())
    assert all(texts)


def test_a_stream_that_fails_raises(start_daemon: StartDaemon, tiny_folder: Path) -> None:
    daemon = start_daemon()
    create_tiny(daemon.client(), tiny_folder)
    long = {"temperature": 0, "options": {"truncate": True}}  # the model never ends of its own accord
    with anthropic.Anthropic(base_url=daemon.base_url, api_key="any", max_retries=0) as client:
        with client.messages.stream(model="tiny", max_tokens=5000, messages=STORY, extra_body=long) as stream:
            next(stream)
            [worker] = psutil.Process(daemon.process.pid).children()
            worker.kill()
            with pytest.raises(anthropic.APIStatusError, match="signal 9") as failed:
                stream.until_done()
        assert failed.value.type == "api_error"
        assert client.messages.create(model="tiny", max_tokens=1, messages=STORY).usage.output_tokens == 1


def test_errors_have_their_classes(client: anthropic.Anthropic, tale: str) -> None:
    with pytest.raises(anthropic.NotFoundError, match="model 'no-such' not found") as unknown:
        client.messages.create(model="no-such", max_tokens=1, messages=STORY)
    assert unknown.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="messages is empty") as empty:
        client.messages.create(model=tale, max_tokens=1, messages=[])
    assert empty.value.type == "invalid_request_error"
    long: list[MessageParam] = [{"role": "user", "content": "a fox " * 9000}]
    with pytest.raises(anthropic.BadRequestError, match="the prompt is too long"):
        client.messages.create(model=tale, max_tokens=1, messages=long)
    with (
        pytest.raises(anthropic.NotFoundError),
        client.messages.stream(model="no-such", max_tokens=1, messages=STORY) as stream,
    ):
        stream.until_done()
    picture: anthropic.types.ImageBlockParam = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"},
    }
    with pytest.raises(anthropic.BadRequestError, match="is an image"):
        client.messages.create(model=tale, max_tokens=1, messages=[{"role": "user", "content": [picture]}])
