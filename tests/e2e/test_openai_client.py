"""OpenAI's own client, unchanged and with its validation of replies switched on, against a running daemon."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import pydantic_function_tool
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import FunctionToolParam, ResponseInputParam
from pydantic import BaseModel, Field

from tests.e2e.conftest import Daemon

pytestmark = pytest.mark.e2e

STORY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story about a fox."}]
RULE = "You are a kind teller of stories for children, and all that you say is short, true and friendly."
"""Long enough to fill blocks of the prefix cache."""
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather in Paris?"}]
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city", "parameters": SCHEMA},
}
WEATHER_FUNCTION: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": SCHEMA,
    "strict": True,
}
THOUGHTLESS: Any = {"temperature": 0, "reasoning_effort": "none"}


class Animal(BaseModel):
    """An animal of a story."""

    name: str = Field(max_length=20)
    legs: int = Field(ge=0, le=8)


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{daemon.base_url}/v1", api_key="any", max_retries=0, _strict_response_validation=True
    ) as one:
        yield one


# ---- models


def test_models(client: openai.OpenAI, tale: str) -> None:
    [entry] = [entry for entry in client.models.list() if entry.id == f"{tale}:latest"]
    assert (entry.object, entry.owned_by) == ("model", "library")
    assert client.models.retrieve(tale).created == entry.created
    with pytest.raises(openai.NotFoundError, match="model 'no-such' not found"):
        client.models.retrieve("no-such")


# ---- chats


def test_a_chat_and_its_stream_say_the_same(client: openai.OpenAI, tale: str) -> None:
    messages: Any = [{"role": "developer", "content": RULE}, *STORY]
    whole = client.chat.completions.create(model=tale, messages=messages, max_completion_tokens=300, temperature=0)
    message: Any = whole.choices[0].message
    assert "fox" in message.content.lower()
    assert message.reasoning
    assert message.reasoning == message.reasoning_content
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    assert 0 < (whole.usage.completion_tokens_details.reasoning_tokens or 0) < whole.usage.completion_tokens
    chunks = list(
        client.chat.completions.create(
            model=tale,
            messages=messages,
            max_tokens=300,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    deltas: list[Any] = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert "".join(getattr(delta, "reasoning", "") for delta in deltas) == message.reasoning
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == ["stop"]
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) > 0


def test_the_helper_for_streams(client: openai.OpenAI, tale: str) -> None:
    with client.chat.completions.stream(model=tale, messages=STORY, max_tokens=300, **THOUGHTLESS) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


def test_many_at_once(daemon: Daemon, tale: str) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{daemon.base_url}/v1", api_key="any", max_retries=0) as client:

            async def read() -> str:
                create = client.chat.completions.create
                stream = await create(model=tale, messages=STORY, max_tokens=30, stream=True, **THOUGHTLESS)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            texts = await asyncio.gather(*(read() for _ in range(6)))
            assert len(set(texts)) == 1
            assert texts[0]
            assert [model.id async for model in client.models.list()]

    asyncio.run(main())


def test_several_answers(client: openai.OpenAI, tale: str) -> None:
    def ask(seed: int) -> list[str | None]:
        reply = client.chat.completions.create(
            model=tale, messages=STORY, n=3, seed=seed, max_tokens=12, temperature=1.5, reasoning_effort="none"
        )
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        assert reply.usage is not None
        assert reply.usage.completion_tokens <= 36
        return [choice.message.content for choice in reply.choices]

    texts = ask(1)
    assert len(set(texts)) > 1
    assert ask(1) == texts
    assert ask(2) != texts


def test_stop_strings_biases_and_logprobs(client: openai.OpenAI, tale: str) -> None:
    create = client.chat.completions.create
    plain = create(model=tale, messages=STORY, max_tokens=30, logprobs=True, top_logprobs=3, **THOUGHTLESS)
    text = plain.choices[0].message.content or ""
    assert plain.choices[0].logprobs is not None
    entries = plain.choices[0].logprobs.content or []
    assert len(entries) == 30
    assert b"".join(bytes(entry.bytes or []) for entry in entries).decode().strip() == text.strip()
    for entry in entries:
        assert entry.logprob <= 0
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert math.isclose(tops[0], entry.logprob)  # greedy
    word = text.split()[3]
    for stop in (word, [word, "no such word"]):
        cut = create(model=tale, messages=STORY, max_tokens=30, stop=stop, **THOUGHTLESS)
        assert (cut.choices[0].message.content or "") == text.partition(word)[0]
        assert cut.choices[0].finish_reason == "stop"
    ids = client.post("/../api/tokenize", body={"model": tale, "content": text}, cast_to=object)
    assert isinstance(ids, dict)
    banned = create(
        model=tale,
        messages=STORY,
        max_tokens=30,
        logit_bias=dict.fromkeys(map(str, ids["tokens"]), -100),
        **THOUGHTLESS,
    )
    assert banned.choices[0].message.content != text


def test_hobs_own_options(client: openai.OpenAI, tale: str) -> None:
    create = client.chat.completions.create
    long: Any = [*STORY, {"role": "assistant", "content": "A story. " * 20}] * 3 + STORY
    reply: Any = create(
        model=tale, messages=long, max_tokens=5, extra_body={"options": {"num_ctx": 128}}, **THOUGHTLESS
    )
    assert reply.truncated
    assert reply.usage.prompt_tokens < 128
    with pytest.raises(openai.BadRequestError) as caught:
        create(model=tale, messages=long, extra_body={"options": {"num_ctx": 128, "truncate": False}}, **THOUGHTLESS)
    assert caught.value.code == "context_length_exceeded"


# ---- tools


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_read(client: openai.OpenAI, tale: str, stream: bool) -> None:
    if stream:
        with client.chat.completions.stream(model=tale, messages=QUESTION, tools=[WEATHER], **THOUGHTLESS) as events:
            kinds = [event.type for event in events]
            choice: Any = events.get_final_completion().choices[0]
        assert "tool_calls.function.arguments.done" in kinds
    else:
        choice = client.chat.completions.create(
            model=tale, messages=QUESTION, tools=[WEATHER], tool_choice="auto", **THOUGHTLESS
        ).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city":"Paris"}')
    answered: list[Any] = [
        *QUESTION,
        choice.message.to_dict(),
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"},
    ]
    reply = client.chat.completions.create(model=tale, messages=answered, tools=[WEATHER], **THOUGHTLESS)
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].message.content


def test_a_tool_that_may_not_be_called_is_not(client: openai.OpenAI, tale: str) -> None:
    reply = client.chat.completions.create(
        model=tale, messages=QUESTION, tools=[WEATHER], tool_choice="none", max_tokens=60, **THOUGHTLESS
    )
    assert reply.choices[0].message.tool_calls is None


class GetWeather(BaseModel):
    """Weather of a city"""

    city: str


def test_a_tool_made_of_a_class(client: openai.OpenAI, tale: str) -> None:
    tool = pydantic_function_tool(GetWeather, name="get_weather")
    reply = client.chat.completions.parse(model=tale, messages=QUESTION, tools=[tool], **THOUGHTLESS)
    [call] = reply.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == GetWeather(city="Paris")


def test_a_tool_that_must_be_called_is(client: openai.OpenAI, tale: str) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        reply: Any = client.chat.completions.create(
            model=tale, messages=STORY, tools=[WEATHER], tool_choice=choice, max_tokens=200, **THOUGHTLESS
        )
        assert reply.choices[0].finish_reason == "tool_calls"
        assert {call.function.name for call in reply.choices[0].message.tool_calls} == {"get_weather"}
    response = client.responses.create(
        model=tale,
        input="Tell me a story about a fox.",
        tools=[WEATHER_FUNCTION],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=200,
        temperature=0,
    )
    assert [item.type for item in response.output if item.type != "reasoning"] == ["function_call"]


def test_structured_output(client: openai.OpenAI, tale: str) -> None:
    parsed = client.chat.completions.parse(model=tale, messages=STORY, response_format=Animal, **THOUGHTLESS)
    assert isinstance(parsed.choices[0].message.parsed, Animal)
    response = client.responses.parse(
        model=tale, input="Name an animal.", text_format=Animal, temperature=0, reasoning={"effort": "none"}
    )
    assert isinstance(response.output_parsed, Animal)


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"choice": ["cat", "dog"]}, {"cat", "dog"}),
        ({"regex": "(cat|dog)"}, {"cat", "dog"}),
        ({"grammar": 'start: "cat" | "dog"'}, {"cat", "dog"}),
        ({"grammar": 'root ::= "cat" | "dog"'}, {"cat", "dog"}),
    ],
)
def test_hobs_own_constraints(client: openai.OpenAI, tale: str, options: dict[str, Any], texts: set[str]) -> None:
    create = client.chat.completions.create
    reply = create(model=tale, messages=STORY, extra_body={"options": options}, max_tokens=10, **THOUGHTLESS)
    assert reply.choices[0].message.content in texts


# ---- texts


def test_completions(client: openai.OpenAI, tale: str) -> None:
    create = client.completions.create
    whole = create(model=tale, prompt="Once upon a time", max_tokens=12, temperature=0, logprobs=2)
    text = whole.choices[0].text
    assert text
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == text
    assert [len(top) for top in logprobs.top_logprobs or []] == [2] * 12
    ids = client.post("/../api/tokenize", body={"model": tale, "content": "Once upon a time"}, cast_to=object)
    assert isinstance(ids, dict)
    several = create(
        model=tale, prompt=[ids["tokens"], ids["tokens"][:2]], max_tokens=12, temperature=0, echo=True, n=2
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == "Once upon a time" + text
    assert several.choices[2].text.startswith("Once upon")
    with openai.OpenAI(base_url=client.base_url, api_key="any", max_retries=0) as lenient:
        # This client's own type of a chunk demands a reason for the end in each, which OpenAI does not send either.
        chunks = lenient.completions.create(
            model=tale, prompt="Once upon a time", max_tokens=12, temperature=0, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in chunks) == text


# ---- responses


def test_a_response_and_its_stream_say_the_same(client: openai.OpenAI, tale: str) -> None:
    options: Any = {"model": tale, "temperature": 0, "instructions": RULE}
    story = "Tell me a story about a fox."
    whole = client.responses.create(input=story, **options)
    assert whole.status == "completed"
    assert "fox" in whole.output_text.lower()
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert whole.usage is not None
    assert 0 < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
    with client.responses.stream(input=story, **options) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text
    assert final.usage is not None
    assert final.usage.input_tokens_details.cached_tokens > 0
    items: Any = [{"role": "user", "content": story}, *whole.output, {"role": "user", "content": "Another one."}]
    assert client.responses.create(input=items, **options).output_text


def test_a_function_in_a_response(client: openai.OpenAI, tale: str) -> None:
    question: ResponseInputParam = [{"role": "user", "content": "What is the weather in Paris?"}]
    options: Any = {"model": tale, "temperature": 0, "tools": [WEATHER_FUNCTION], "reasoning": {"effort": "none"}}
    asked = client.responses.create(input=question, **options)
    [call] = [item for item in asked.output if item.type == "function_call"]
    assert (call.name, call.arguments) == ("get_weather", '{"city":"Paris"}')
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees and sunny"}
    items: Any = [*question, *asked.output, output]
    assert client.responses.create(input=items, **options).output_text
    cut = client.responses.create(input="Tell me a story.", max_output_tokens=5, **options)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


# ---- errors


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


def test_errors_are_of_the_right_class_and_say_why(client: openai.OpenAI, tale: str) -> None:
    create: Any = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="model 'gpt-9' not found") as missing:
        create(model="gpt-9", messages=STORY)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match='option "temperature" is -1') as wrong:
        create(model=tale, messages=STORY, temperature=-1)
    assert (wrong.value.param, wrong.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match='"tale" does not support images'):
        create(model=tale, messages=[{"role": "user", "content": [IMAGE]}], stream=True)
    with pytest.raises(openai.NotFoundError, match="responses are not kept here"):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.BadRequestError, match="nothing is kept between requests"):
        client.responses.create(model=tale, input="Hi", previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError, match="there is no POST /v1/images/generations"):
        client.images.generate(prompt="a fox")


def test_a_client_that_closes_its_stream_frees_the_model(client: openai.OpenAI, daemon: Daemon, tale: str) -> None:
    with client.chat.completions.create(model=tale, messages=STORY, stream=True, n=3, temperature=1) as stream:
        assert next(iter(stream)).choices
    native = daemon.client()
    assert native.generate(tale, keep_alive=0).done_reason == "unload"
