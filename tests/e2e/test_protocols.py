"""The same conversation over the APIs of Ollama, OpenAI and Anthropic, each with its own client: the same answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import anthropic
import openai
import pytest

from tests.e2e.conftest import Daemon

pytestmark = pytest.mark.e2e

QUESTION = "What is the weather in Paris?"
RESULT = "18 degrees and sunny"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "Weather of a city", "parameters": SCHEMA}
MAX_TOKENS = 60


class Talk(NamedTuple):
    """What a protocol made of a question, a call and its result."""

    name: str
    arguments: Any
    answer: str


Converse = Callable[[Daemon, str, bool], Talk]


def native(daemon: Daemon, model: str, stream: bool) -> Talk:
    client = daemon.client()
    options = {"temperature": 0, "num_predict": MAX_TOKENS}
    tools = [{"type": "function", "function": FUNCTION}]

    def ask(messages: list[Any]) -> tuple[str, list[Any]]:
        reply = client.chat(model, messages, tools=tools, options=options, think=False, stream=stream)
        pieces = list(reply) if stream else [reply]
        calls = [call for piece in pieces for call in piece.message.tool_calls or ()]
        return "".join(piece.message.content or "" for piece in pieces), calls

    asked = [{"role": "user", "content": QUESTION}]
    text, [call] = ask(asked)
    turn = {"role": "assistant", "content": text, "tool_calls": [call]}
    answer, _ = ask([*asked, turn, {"role": "tool", "content": RESULT, "tool_name": call.function.name}])
    return Talk(call.function.name, dict(call.function.arguments), answer)


def chat_completions(daemon: Daemon, model: str, stream: bool) -> Talk:
    asked: list[Any] = [{"role": "user", "content": QUESTION}]
    options: Any = {
        "model": model,
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "tools": [{"type": "function", "function": FUNCTION}],
        "reasoning_effort": "none",
    }
    with openai.OpenAI(base_url=f"{daemon.base_url}/v1", api_key="any", max_retries=0) as client:

        def ask(messages: list[Any]) -> Any:
            if not stream:
                return client.chat.completions.create(messages=messages, **options).choices[0].message
            with client.chat.completions.stream(messages=messages, **options) as events:
                return events.get_final_completion().choices[0].message

        message = ask(asked)
        [call] = message.tool_calls
        turn = {
            "role": "assistant",
            "content": message.content,
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.arguments},
                }
            ],
        }
        answer = ask([*asked, turn, {"role": "tool", "tool_call_id": call.id, "content": RESULT}])
    return Talk(call.function.name, json.loads(call.function.arguments), answer.content)


def responses(daemon: Daemon, model: str, stream: bool) -> Talk:
    asked: list[Any] = [{"role": "user", "content": QUESTION}]
    options: Any = {
        "model": model,
        "max_output_tokens": MAX_TOKENS,
        "temperature": 0,
        "tools": [{"type": "function", **FUNCTION}],
        "reasoning": {"effort": "none"},
    }
    with openai.OpenAI(base_url=f"{daemon.base_url}/v1", api_key="any", max_retries=0) as client:

        def ask(items: list[Any]) -> Any:
            if not stream:
                return client.responses.create(input=items, **options)
            with client.responses.stream(input=items, **options) as events:
                return events.get_final_response()

        [call] = [item for item in ask(asked).output if item.type == "function_call"]
        turn = {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
        answer = ask([*asked, turn, {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}])
    return Talk(call.name, json.loads(call.arguments), answer.output_text)


def messages(daemon: Daemon, model: str, stream: bool) -> Talk:
    asked: list[Any] = [{"role": "user", "content": QUESTION}]
    tool = {"name": FUNCTION["name"], "description": FUNCTION["description"], "input_schema": SCHEMA}
    options: Any = {"model": model, "max_tokens": MAX_TOKENS, "tools": [tool], "extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=daemon.base_url, api_key="any", max_retries=0) as client:

        def ask(turns: list[Any]) -> anthropic.types.Message:
            if not stream:
                return client.messages.create(messages=turns, **options)
            with client.messages.stream(messages=turns, **options) as events:
                return events.get_final_message()

        message = ask(asked)
        [call] = [block for block in message.content if block.type == "tool_use"]
        result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
        answer = ask([*asked, message.to_param(), {"role": "user", "content": [result]}])
    return Talk(call.name, call.input, "".join(block.text for block in answer.content if block.type == "text"))


@pytest.fixture(scope="module")
def natively(daemon: Daemon, tale: str) -> Talk:
    """What the others are compared with."""
    return native(daemon, tale, False)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("converse", [native, chat_completions, responses, messages])
def test_all_protocols_say_the_same(
    daemon: Daemon, tale: str, natively: Talk, converse: Converse, stream: bool
) -> None:
    assert natively.name == "get_weather"
    assert natively.arguments == {"city": "Paris"}
    assert natively.answer
    assert converse(daemon, tale, stream) == natively
