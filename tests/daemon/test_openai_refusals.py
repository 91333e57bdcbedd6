"""POST /v1/chat/completions with every field wrong: 4xx, a sentence, the field's name, and no model is loaded."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from daemon.errors import BadRequest
from daemon.openai import api
from daemon.openai.requests import read_chat_format, read_settings, seeds
from daemon.openai.responses_api import TextConfig, TextFormat
from daemon.openai.responses_request import read_text_format
from engine.constraint import Constraint
from tests.daemon.conftest import World
from tests.daemon.openai_calls import TOOL, USER, error_of

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
HUGE = 10**400


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi", **fields}]}


def calling(arguments: str) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"messages": [*USER, {"role": "assistant", "tool_calls": [call]}]}


REFUSALS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"model": None}, "model", "model is required"),
    ({"model": 1}, "model", "invalid request: field model: expected str, got int"),
    ({"model": "../x"}, "model", "'../x' is no model name"),
    ({"messages": []}, "messages", "[] is too short - 'messages'"),
    ({"messages": None}, "messages", "[] is too short - 'messages'"),
    ({"messages": USER * 50_001}, "messages", "messages has 50001 messages; 50000 are allowed"),
    ({"messages": "Hi"}, "messages", "invalid request: field messages: expected array"),
    (message(role="boss"), "messages[0].role", 'messages[0].role is "boss", but it must be one of system, developer'),
    (message(role=None), "messages[0].role", "invalid request: field messages[0].role: expected str"),
    (message(content=None), "messages[0].content", "messages[0].content is missing"),
    (message(content=1), "messages[0].content", "invalid request: field messages[0].content: expected"),
    (message(content=[{"type": "text"}]), "messages[0].content[0]", "messages[0].content[0] is of the type"),
    (message(content=[{"text": "x"}]), "messages[0].content[0]", "invalid request: field messages[0].content[0]"),
    (message(content=[{"type": "image_url"}]), "messages[0].content[0]", '"tiny" does not support images'),
    (message(content=[{"type": "input_audio"}]), "messages[0].content[0]", '"tiny" does not support audio'),
    (calling("["), "messages[1].tool_calls[0].function.arguments", "messages[1].tool_calls[0].function.arguments must"),
    (calling("7"), "messages[1].tool_calls[0].function.arguments", "messages[1].tool_calls[0].function.arguments must"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]", "messages[0].tool_calls"),
    ({"stream": "yes"}, "stream", "invalid request: field stream: expected bool"),
    ({"stream_options": []}, "stream_options", "invalid request: field stream_options: expected object"),
    ({"n": 0}, "n", "n is 0, but it must be from 1 to 128"),
    ({"n": 129}, "n", "n is 129, but it must be from 1 to 128"),
    ({"n": 1.5}, "n", "invalid request: field n: expected int"),
    ({"max_tokens": 0}, "max_tokens", "max_tokens is 0, but it must be at least 1"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "max_completion_tokens is -1"),
    ({"temperature": -0.1}, "temperature", 'option "temperature" is -0.1'),
    ({"temperature": "hot"}, "temperature", "invalid request: field temperature: expected float"),
    ({"temperature": 1e300}, "temperature", 'option "temperature" is 1e+300'),
    ({"top_p": 1.1}, "top_p", 'option "top_p" is 1.1'),
    ({"frequency_penalty": 1e39}, "frequency_penalty", 'option "frequency_penalty" is 1e+39'),
    ({"presence_penalty": True}, "presence_penalty", "invalid request: field presence_penalty: expected float"),
    ({"seed": 2**63}, "seed", 'option "seed" is 9223372036854775808'),
    ({"seed": 1.5}, "seed", "invalid request: field seed: expected int"),
    ({"stop": 1}, "stop", "invalid request: field stop: expected"),
    ({"stop": ["a", 1]}, "stop[1]", "invalid request: field stop[1]: expected str"),
    ({"stop": ["a"] * 257}, "stop", '"stop" has 257 strings'),
    ({"stop": "a" * 4097}, "stop", '"stop" has 1 strings'),
    ({"logit_bias": {"fox": 1}}, "logit_bias", 'logit_bias has the key "fox"'),
    ({"logit_bias": {"-1": 1}}, "logit_bias", 'logit_bias has the key "-1"'),
    ({"logit_bias": {"1": 101}}, "logit_bias", "logit_bias of token 1 is 101"),
    ({"logit_bias": {"1": "x"}}, "logit_bias[...]", "invalid request: field logit_bias[...]: expected float"),
    ({"logit_bias": {str(number): 1 for number in range(1025)}}, "logit_bias", "logit_bias has 1025 entries"),
    ({"logit_bias": {"259": 1}}, "logit_bias", "logit_bias holds 259, which is no token"),
    ({"top_logprobs": 21}, "top_logprobs", "top_logprobs is 21, but it must be from 0 to 20"),
    ({"logprobs": 3}, "logprobs", "invalid request: field logprobs: expected bool"),
    (
        {"reasoning_effort": "huge"},
        "reasoning_effort",
        'reasoning_effort is "huge", but it must be one of none, minimal',
    ),
    ({"reasoning_effort": "high"}, "reasoning_effort", '"tiny" does not support thinking'),
    ({"reasoning": {"effort": 1}}, "reasoning.effort", "invalid request: field reasoning.effort: expected str"),
    ({"tools": [{}]}, "tools[0].function.name", "tools[0] has no function with a name"),
    ({"tools": [1]}, "tools[0]", "invalid request: field tools[0]: expected object"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", 'tools[0] is of the type "custom"'),
    (
        {"tools": [{"function": {"name": "f", "parameters": []}}]},
        "tools[0].function.parameters",
        "tools[0].function.parameters must be a JSON schema",
    ),
    ({"model": "plain", "tools": [TOOL]}, "tools", '"plain" does not support tools'),
    ({"tool_choice": "any"}, "tool_choice", 'tool_choice is "any", but it must be one of none, auto, required'),
    ({"tool_choice": "required"}, "tool_choice", "tool_choice wants a tool to be called, but tools is empty"),
    ({"tool_choice": {"type": "custom"}}, "tool_choice", "tool_choice must be"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tool_choice",
        'tool_choice names "f", which is none of the tools',
    ),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls", "invalid request: field parallel_tool_calls: expected bool"),
    ({"response_format": "json"}, "response_format", "invalid request: field response_format: expected object"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", 'response_format.type is "yaml"'),
    ({"response_format": {"type": "json_schema"}}, "response_format", "response_format has no schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}},
        "response_format.json_schema.schema",
        "invalid request: field response_format.json_schema.schema: expected",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": False}}},
        "response_format",
        "response_format has the schema false, which no text can match",
    ),
    ({"functions": []}, "functions", "functions is not taken any more; write tools"),
    ({"function_call": "auto"}, "function_call", "function_call is not taken any more; write tool_choice"),
    ({"audio": {}}, "audio", '"tiny" does not support audio'),
    ({"modalities": ["text", "audio"]}, "modalities", '"tiny" does not support audio'),
    ({"options": 1}, "options", "invalid request: field options: expected object"),
    ({"options": {"num_ctx": "big"}}, "options.num_ctx", 'option "num_ctx" must be of type integer'),
    ({"options": {"keep_alive": "soon"}}, "keep_alive", "keep_alive cannot be read"),
    ({"options": {"keep_alive": [1]}}, "keep_alive", "keep_alive cannot be read"),
    ({"options": {"truncate": 1}}, "options.truncate", "options.truncate must be true or false"),
    ({"options": {"regex": 1}}, "options.regex", "options.regex must be a string"),
    ({"options": {"grammar": ""}}, "options.grammar", "options.grammar must be a string"),
    ({"options": {"choice": []}}, "options.choice", "options.choice must be a list of strings"),
    ({"options": {"choice": ["a", 1]}}, "options.choice", "options.choice must be a list of strings"),
    ({"options": {"choice": ["a"], "regex": "b"}}, "options", "a text can have one constraint only"),
    (
        {"options": {"choice": ["a"]}, "response_format": {"type": "json_object"}},
        "options",
        "a text can have one constraint only, but there are several: options.choice, a format",
    ),
    ({"keep_alive": "300"}, "keep_alive", "keep_alive cannot be read"),
]


@pytest.mark.parametrize(("body", "param", "sentence"), REFUSALS)
async def test_refusals_name_the_field(world: World, body: dict[str, Any], param: str, sentence: str) -> None:
    error = await error_of(world, 400, PATH, **{"messages": USER, **body})
    assert (error["param"], error["message"][: len(sentence)]) == (param, sentence)
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    assert world.engines == []


@pytest.mark.parametrize("name", ["n", "seed", "temperature", "top_logprobs"])
async def test_numbers_of_hundreds_of_digits(world: World, name: str) -> None:
    body = f'{{"model": "tiny", "messages": [{{"role": "user", "content": "x"}}], "{name}": {HUGE}}}'
    response = await world.http.post(PATH, content=body)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert len(response.json()["error"]["message"]) < 200


async def test_every_route_knows_what_is_not_there(world: World) -> None:
    for path, body in (
        (PATH, {"messages": USER}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
    ):
        error = await error_of(world, 404, path, model="nope", **body)
        assert (error["code"], error["param"], error["message"]) == (
            "model_not_found",
            "model",
            "model 'nope' not found",
        )
        response = await world.http.post(path, content=b"{")
        assert response.json()["error"]["message"].startswith("the request body is not valid JSON")
        assert (await world.http.get(path)).status_code == 405


# ---- what a constraint is made of; that it holds is a matter of the engine


SCHEMA = {"type": "object", "properties": {"ä": {"type": "string"}}}


def test_response_formats_become_constraints() -> None:
    formats = [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
    ]
    read = [read_chat_format(msgspec.convert(given, api.ResponseFormat)) for given in formats]
    assert read[:2] == [None, Constraint(kind="json")]
    assert read[2] is not None
    assert (read[2].kind, msgspec.json.decode(read[2].value)) == ("json_schema", SCHEMA)
    assert read_text_format(None) is None
    form = TextConfig(format=TextFormat(type="json_schema", name="x", schema=SCHEMA))
    assert read_text_format(form) == read[2]
    anything = api.ResponseFormat(type="json_schema", json_schema=api.JSONSchema(schema=True))
    assert read_chat_format(anything) == Constraint(kind="json_schema", value="{}")


@pytest.mark.parametrize(
    ("options", "constraint"),
    [
        ({"regex": "[ab]+"}, Constraint(kind="regex", value="[ab]+")),
        ({"choice": ["yes", "nö"]}, Constraint(kind="choice", value='["yes","nö"]')),
        ({"grammar": 'root ::= "a" | "b"'}, Constraint(kind="gbnf", value='root ::= "a" | "b"')),
        ({"grammar": 'start: "a" | "b"'}, Constraint(kind="lark", value='start: "a" | "b"')),
    ],
)
def test_options_become_constraints(options: dict[str, Any], constraint: Constraint) -> None:
    settings = read_settings(api.ChatRequest(options=options), {}, "max_tokens")
    assert settings.constraint == constraint
    assert not settings.options.keys() & options.keys()
    with pytest.raises(BadRequest, match="one constraint only"):
        read_settings(api.ChatRequest(options=options), {}, "max_tokens", constraint=Constraint(kind="json"))


def test_seeds_of_several_answers() -> None:
    assert seeds(-1, 2) == [-1, -1]
    assert seeds(42, 1) == [42]
    four = seeds(42, 4)
    assert four == seeds(42, 4)
    assert four[:2] == seeds(42, 2)
    assert len({*four, *seeds(43, 4), *seeds(-2, 4)}) == 12
