"""Constrained output through a real daemon, asked for by Ollama's own client."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import ollama
import pydantic
import pytest

from tests.e2e.conftest import Daemon

pytestmark = pytest.mark.e2e


class Pet(pydantic.BaseModel):
    """One of its fields is another model, which makes a reference in the schema."""

    kind: Literal["fox", "owl"]
    age: int = pydantic.Field(ge=0, le=20)


class Person(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    name: str = pydantic.Field(max_length=6)
    pets: list[Pet] = pydantic.Field(max_length=1)
    home: str | None = pydantic.Field(max_length=4)


QUESTION = [{"role": "user", "content": "Tell me of somebody."}]
OPTIONS: dict[str, Any] = {"num_predict": 300, "temperature": 0.7, "seed": 7}


@pytest.fixture
def client(daemon: Daemon) -> ollama.Client:
    return daemon.client()


def test_a_pydantic_model(client: ollama.Client, model: str) -> None:
    """Streamed and not, in both protocols."""
    schema = Person.model_json_schema()
    whole = client.chat(model, QUESTION, format=schema, options=OPTIONS)
    assert whole.done_reason == "stop"
    assert whole.message.content
    Person.model_validate_json(whole.message.content)
    pieces = list(client.chat(model, QUESTION, format=schema, options=OPTIONS, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    told = client.generate(model, "Once", format=schema, options=OPTIONS, stream=True)
    Person.model_validate_json("".join(piece.response for piece in told))


def test_json_mode(client: ollama.Client, model: str) -> None:
    """A text that ends by itself is a JSON object, and one that is cut is the beginning of one."""
    for seed in range(3):
        options = {**OPTIONS, "seed": seed, "num_predict": 120}
        reply = client.generate(model, "Once upon a time", format="json", options=options)
        assert reply.response.startswith("{")
        if reply.done_reason == "stop":
            assert isinstance(json.loads(reply.response), dict)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"regex": "[a-f]{3}-[0-9]+!"}, r"[a-f]{3}-[0-9]+!"),
        ({"choice": ["a red fox", "an owl"]}, "a red fox|an owl"),
        ({"grammar": 'start: "<" WORD ">"\nWORD: /[a-z]{2,4}/'}, "<[a-z]{2,4}>"),
        ({"grammar": 'root ::= "(" [x-z]+ ")"'}, r"\([x-z]+\)"),
    ],
)
def test_options_of_our_own(client: ollama.Client, model: str, options: dict[str, Any], pattern: str) -> None:
    reply = client.chat(model, QUESTION, options={**OPTIONS, **options})
    text = reply.message.content or ""
    assert re.fullmatch(pattern, text) or reply.done_reason == "length", text


@pytest.mark.parametrize(
    ("format", "options", "words"),
    [
        ({"type": "array", "items": {}, "uniqueItems": True}, {}, 'uses "uniqueItems", which cannot be enforced'),
        ({"properties": {f"p{n}": {"type": "string"} for n in range(9_000)}}, {}, "too much time or memory"),
        (None, {"regex": "(?<=a)b"}, "look-around"),
        (None, {"grammar": "\n".join(f"r{n}: r{n + 1} r{n + 1}" for n in range(9_000))}, "the "),
    ],
)
def test_refusals_leave_the_daemon_alone(
    client: ollama.Client, model: str, format: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(model, QUESTION, format=format, options=options)
    assert caught.value.status_code == 400
    assert words in caught.value.error
    reply = client.chat(model, QUESTION, options={**OPTIONS, "choice": ["yes"]})
    assert reply.message.content == "yes"
