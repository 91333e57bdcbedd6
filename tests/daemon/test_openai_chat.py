"""POST /v1/chat/completions: the request's translation, the reply whole and in chunks, several answers, refusals."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from daemon.openai import api
from daemon.openai.messages import read_messages
from engine.errors import RequestFailed
from tests.daemon.conftest import SEED, RawClient, World
from tests.daemon.fake_engine import Answer
from tests.daemon.openai_calls import TOOL, USER, chat, chunks_of, error_of, events_of

pytestmark = pytest.mark.anyio

TIMEOUT_S = 10.0
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'


async def test_a_whole_chat(world: World) -> None:
    world.answers = [Answer("Yes!", num_cached_tokens=3)]
    reply = await chat(world)
    assert reply["id"].startswith("chatcmpl-")
    assert reply["object"] == "chat.completion"
    assert reply["created"] == 1_767_225_600
    assert reply["model"] == "tiny"
    assert reply["system_fingerprint"].startswith("fp_")
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Yes!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    num_prompt = len(world.engine.prompts[0])
    assert reply["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": 5,
        "total_tokens": num_prompt + 5,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert "truncated" not in reply


async def test_a_streamed_chat(world: World) -> None:
    world.answers = [Answer("Héllo 🦊!")]
    chunks = await chunks_of(world, "/v1/chat/completions", messages=USER)
    *deltas, last = [chunk["choices"][0] for chunk in chunks]
    assert deltas[0]["delta"] == {"role": "assistant", "content": "H"}
    assert "".join(choice["delta"]["content"] for choice in deltas) == "Héllo 🦊!"
    assert not any("role" in choice["delta"] for choice in deltas[1:])
    assert all(choice["finish_reason"] is None for choice in deltas)
    assert last == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert not any("usage" in chunk for chunk in chunks)


async def test_a_stream_ends_with_the_usage_where_it_was_asked_for(world: World) -> None:
    world.answers = [Answer("ab", num_cached_tokens=2)]
    options = {"include_usage": True}
    *chunks, last = await chunks_of(world, "/v1/chat/completions", messages=USER, stream_options=options)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


async def test_an_answer_without_a_word_still_has_a_role(world: World) -> None:
    world.answers = [Answer(""), Answer("")]
    [chunk] = await chunks_of(world, "/v1/chat/completions", messages=USER)
    assert chunk["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunk["choices"][0]["finish_reason"] == "stop"
    assert (await chat(world))["choices"][0]["message"]["content"] == ""


# ---- what reaches the model


async def test_messages_of_all_roles_and_forms(world: World) -> None:
    arguments = {"name": "get_weather", "arguments": '{"x": 1}'}
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": arguments}]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": ""},
    ]
    await chat(world, messages=messages)
    assert world.prompts == [
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nOne\ntwo<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>{"name": "get_weather", "arguments": {"x": 1}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\nsunny<|im_end|>\n"
        "<|im_start|>assistant\nNo.<|im_end|>\n"
        "<|im_start|>user\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    ]


def test_thoughts_and_names_of_tools_are_read() -> None:
    call = {"id": "c1", "function": {"name": "f", "arguments": "{}"}}
    given = [
        {"role": "assistant", "content": "a", "reasoning": "one"},
        {"role": "assistant", "content": None, "reasoning_content": "two", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "b"},
        {"role": "function", "name": "g", "content": "c"},
    ]
    messages = read_messages(msgspec.convert(given, list[api.RequestMessage]), "tiny")
    assert [message.thinking for message in messages] == ["one", "two", "", ""]
    assert [(message.tool_name, message.tool_call_id) for message in messages[2:]] == [("f", "c1"), ("g", "")]


async def test_sampling_reaches_the_engine(world: World) -> None:
    await chat(world)
    params = world.engine.params[-1]
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (1.0, 1.0, 40, SEED)
    assert (params.logprobs, params.shift, params.logit_bias) == (None, False, {})
    await chat(
        world,
        temperature=0,
        top_p=0.5,
        frequency_penalty=0.25,
        presence_penalty=-1,
        seed=7,
        max_tokens=5,
        max_completion_tokens=4,
        logit_bias={"65": -100, "66": 2.5},
        options={"num_ctx": 64, "top_k": 3, "temperature": 0.7, "min_p": 0.1, "unknown": {}},
    )
    params = world.engine.params[-1]
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.seed) == (0.0, 0.5, 3, 0.1, 7)
    assert (params.frequency_penalty, params.presence_penalty) == (0.25, -1.0)
    assert (params.max_tokens, params.max_context) == (4, 64)
    assert params.logit_bias == {65: -100.0, 66: 2.5}
    await chat(world, options={"temperature": 0.7}, max_tokens=10**400)
    assert (world.engine.params[-1].temperature, world.engine.params[-1].max_tokens) == (0.7, 2560)


async def test_a_models_own_temperature_gives_way_and_its_stop_strings_stay(world: World) -> None:
    parameters = {"temperature": 0.2, "top_k": 5, "stop": ["END"]}
    await world.lines("/api/create", model="tutor", **{"from": "tiny"}, parameters=parameters)
    world.answers = [Answer("one END two"), Answer("one. END two"), Answer("one ! END two")]
    assert (await chat(world, model="tutor"))["choices"][0]["message"]["content"] == "one "
    assert (world.engine.params[-1].temperature, world.engine.params[-1].top_k) == (1.0, 5)
    assert (await chat(world, model="tutor", stop="."))["choices"][0]["message"]["content"] == "one"
    assert (await chat(world, model="tutor", stop=["?"]))["choices"][0]["message"]["content"] == "one ! "


async def test_max_tokens_and_finish_reason_length(world: World) -> None:
    world.answers = [Answer("a long answer")]
    choice = (await chat(world, max_completion_tokens=4))["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("a lo", "length")


async def test_keep_alive(world: World) -> None:
    await chat(world, options={"keep_alive": "0s"})
    assert (await world.http.get("/api/ps")).json() == {"models": []}
    await chat(world, keep_alive=-1)
    assert (await world.http.get("/api/ps")).json()["models"][0]["expires_at"].startswith("2255")


# ---- thoughts


@pytest.mark.parametrize("effort", [None, "minimal", "low", "medium", "high", "xhigh"])
async def test_thoughts_have_both_names(world: World, effort: str | None) -> None:
    world.answers = [Answer("<think>\nHm.\n</think>\n\nYes."), Answer("<think>Hm.</think>Yes.")]
    reply = await chat(world, model="thinker", reasoning_effort=effort)
    message = reply["choices"][0]["message"]
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("Yes.", "Hm.", "Hm.")
    assert 0 < reply["usage"]["completion_tokens_details"]["reasoning_tokens"] < reply["usage"]["completion_tokens"]
    chunks = await chunks_of(
        world, "/v1/chat/completions", model="thinker", messages=USER, reasoning={"effort": effort}
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    for name, text in (("reasoning", "Hm."), ("reasoning_content", "Hm."), ("content", "Yes.")):
        assert "".join(delta.get(name) or "" for delta in deltas) == text


async def test_no_effort_no_thought(world: World) -> None:
    world.answers = [Answer("Yes.")]
    message = (await chat(world, model="thinker", reasoning_effort="none"))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Yes.", "refusal": None}
    assert world.prompts[-1].endswith("<think>\n\n</think>\n\n")
    await chat(world, reasoning_effort="none")  # what cannot think can do that, too


# ---- tools


async def test_a_tool_call_is_one_delta_with_its_arguments_as_text(world: World) -> None:
    world.answers = [Answer(f"Let me see.\n{CALL}"), Answer(CALL)]
    chunks = await chunks_of(world, "/v1/chat/completions", messages=USER, tools=[TOOL])
    choices = [chunk["choices"][0] for chunk in chunks]
    [call] = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert call == {
        "id": "call_00000001",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city":"Köln"}'},
        "index": 0,
    }
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "Let me see."
    assert choices[-1]["finish_reason"] == "tool_calls"
    assert "get_weather" in world.prompts[0]
    choice = (await chat(world, tools=[TOOL]))["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert choice["message"]["tool_calls"] == [
        {"id": "call_00000002", "type": "function", "function": call["function"]}
    ]


async def test_parallel_calls_and_only_one(world: World) -> None:
    world.answers = [
        Answer(CALL + CALL),
        Answer(CALL + CALL + "more", pause_after=100),
        Answer(CALL + CALL, tokens_per_step=1000),
    ]
    calls = (await chat(world, tools=[TOOL]))["choices"][0]["message"]["tool_calls"]
    assert len({call["id"] for call in calls}) == 2
    for _ in range(2):
        message = (await chat(world, tools=[TOOL], parallel_tool_calls=False))["choices"][0]["message"]
        assert (len(message["tool_calls"]), message["content"]) == (1, None)
    assert world.engine.num_aborted == 1  # the text goes no further than the first call


OTHER = {"type": "function", "function": {"name": "get_time"}}
NAMED = {"type": "function", "function": {"name": "get_time"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ("auto", ["get_weather", "get_time"]),
        ("required", ["get_weather", "get_time"]),
        ("none", []),
        (NAMED, ["get_time"]),
        (ALLOWED, ["get_time"]),
    ],
)
async def test_a_model_is_told_only_of_tools_that_it_may_call(world: World, choice: Any, told: list[str]) -> None:
    await chat(world, tools=[TOOL, OTHER], tool_choice=choice)
    assert [name for name in ("get_weather", "get_time") if name in world.prompts[-1]] == told


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
async def test_a_stream_says_what_the_whole_says(world: World, step: int) -> None:
    text = f"<think>\nHm, 世界.\n</think>\nWell 🦊 <tool.\n{CALL}\n{CALL}"
    world.answers = [Answer(text, tokens_per_step=step), Answer(text)]
    body = {"model": "thinker", "messages": USER, "tools": [TOOL]}
    deltas = [chunk["choices"][0]["delta"] for chunk in await chunks_of(world, "/v1/chat/completions", **body)]
    message = (await chat(world, **body))["choices"][0]["message"]
    for name in ("content", "reasoning", "reasoning_content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == message[name]
    streamed = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    assert streamed == [call["function"] for call in message["tool_calls"]]
    assert len(streamed) == 2


# ---- log-probabilities


async def test_logprobs(world: World) -> None:
    world.answers = [Answer("é!"), Answer("é!")]
    entries = (await chat(world, logprobs=True, top_logprobs=2))["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in entries] == [[0xC3], [0xA9], [0x21]]
    assert entries[2]["token"] == "!"
    assert [top["logprob"] for top in entries[2]["top_logprobs"]] == [-0.5, -1.5]
    assert world.engine.params[-1].logprobs == 2
    chunks = await chunks_of(world, "/v1/chat/completions", messages=USER, logprobs=True)
    streamed = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [entry["bytes"] for entry in streamed] == [[0xC3], [0xA9], [0x21]]
    assert world.engine.params[-1].logprobs == 0


# ---- several answers


async def test_several_answers_with_seeds_of_their_own(world: World) -> None:
    world.answers = [Answer("one", num_cached_tokens=1), Answer("two", finish_reason="length"), Answer(CALL)]
    reply = await chat(world, n=3, seed=5, tools=[TOOL])
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    # Which of the others is first at the engine is chance.
    first, *others = [(choice["message"]["content"], choice["finish_reason"]) for choice in reply["choices"]]
    assert first == ("one", "stop")
    assert sorted(others, key=str) == [("two", "length"), (None, "tool_calls")]
    assert reply["usage"]["prompt_tokens"] == len(world.engine.prompts[0])
    assert reply["usage"]["completion_tokens"] == 4 + 3 + len(CALL.encode()) + 1
    assert reply["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert world.engine.params[0].seed == 5
    seeds = {params.seed for params in world.engine.params}
    assert len(seeds) == 3
    await chat(world, n=3, seed=5)
    assert {params.seed for params in world.engine.params[3:]} == seeds
    await chat(world, n=2, seed=6)
    assert not {params.seed for params in world.engine.params[6:]} & seeds


async def test_several_answers_in_one_stream(world: World) -> None:
    world.answers = [Answer("first"), Answer("second")]
    options = {"include_usage": True}
    *chunks, last = await chunks_of(world, "/v1/chat/completions", messages=USER, n=2, stream_options=options)
    texts = {0: "", 1: ""}
    ends = []
    for chunk in chunks:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        ends += [choice["index"]] if choice["finish_reason"] else []
    assert texts == {0: "first", 1: "second"}
    assert sorted(ends) == [0, 1]
    assert last["usage"]["completion_tokens"] == 6 + 7


async def test_the_first_answer_reads_the_prompt_for_all(world: World) -> None:
    first = Answer("one", pause_after=0)
    world.answers = [first, Answer("two"), Answer("three")]
    asked = asyncio.create_task(chat(world, n=3))
    async with asyncio.timeout(TIMEOUT_S):
        while not world.engines:
            await asyncio.sleep(0)
        await world.engine.paused.wait()
        assert len(world.engine.prompts) == 1
        first.go_on.set()
        await asked
    assert len(world.engine.prompts) == 3


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_aborts_all_answers(world: World, stream: bool) -> None:
    world.answers = [Answer("a long story", pause_after=3) for _ in range(3)]
    body = json.dumps({"model": "tiny", "messages": USER, "n": 3, "stream": stream}).encode()
    client = RawClient(world.app, "POST", "/v1/chat/completions", body)
    async with asyncio.timeout(TIMEOUT_S):
        while not world.engines or len(world.engine.prompts) < 3:
            await asyncio.sleep(0)
        client.leave()
        await client.task
    assert world.engine.num_aborted == 3
    assert world.manager.num_waiting == 0


async def test_an_answer_that_fails_ends_the_stream_and_the_others(world: World) -> None:
    world.answers = [Answer("so far", pause_after=3), Answer("no", error=RequestFailed("the model failed"))]
    *_, last = await events_of(world, "/v1/chat/completions", messages=USER, n=2)
    assert json.loads(last.data) == {
        "error": {"message": "the model failed", "type": "server_error", "param": None, "code": None}
    }
    assert world.engine.num_aborted == 1


async def test_a_first_answer_that_fails_starts_no_other(world: World) -> None:
    world.answers = [Answer("", finish_reason="length", error=RequestFailed("out of memory"))]
    assert (await error_of(world, 500, "/v1/chat/completions", messages=USER, n=3))["message"] == "out of memory"
    assert len(world.engine.prompts) == 1


# ---- a context that is full


async def test_old_messages_are_dropped_and_that_is_told(world: World) -> None:
    messages = [{"role": "user", "content": f"question {number} " + "x" * 40} for number in range(10)]
    reply = await chat(world, messages=messages)
    assert reply["truncated"] is True
    *_, last = await chunks_of(world, "/v1/chat/completions", messages=messages)
    assert last["truncated"] is True
    assert "question 9" in world.prompts[-1]
    assert "question 0" not in world.prompts[-1]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "x" * 500}]},
        {"messages": [*USER] * 30, "options": {"truncate": False}},
    ],
)
async def test_a_prompt_that_may_not_be_cut_is_too_long(world: World, body: dict[str, Any]) -> None:
    error = await error_of(world, 400, "/v1/chat/completions", **body)
    assert error["code"] == "context_length_exceeded"
    assert "256" in error["message"]


# ---- errors


async def test_an_error_before_the_first_chunk_has_a_status(world: World) -> None:
    world.answers = [Answer("", finish_reason="length", error=RequestFailed("out of memory", "memory"))]
    error = await error_of(world, 500, "/v1/chat/completions", messages=USER, stream=True)
    assert error == {"message": "out of memory", "type": "server_error", "param": None, "code": None}


async def test_an_error_after_it_is_an_event(world: World) -> None:
    world.answers = [Answer("so far", error=RequestFailed("the model failed while it computed"))]
    *events, last = await events_of(world, "/v1/chat/completions", messages=USER)
    assert "".join(json.loads(event.data)["choices"][0]["delta"]["content"] for event in events) == "so far"
    assert json.loads(last.data)["error"]["message"] == "the model failed while it computed"


# ---- constraints


async def test_constraints_reach_the_engine(world: World) -> None:
    await chat(world, response_format={"type": "text"})
    await chat(world, response_format={"type": "json_object"})
    await chat(world, options={"regex": "[ab]"})
    await chat(world, tools=[TOOL])
    await chat(world, tools=[TOOL], tool_choice="required")
    await chat(world, tools=[TOOL, OTHER], tool_choice=NAMED, n=2)
    told = [constraint and constraint.kind for constraint in world.engine.constraints]
    assert told == [None, "json", "regex", None, "lark", "lark", "lark"]
    required, named, _ = [constraint.value for constraint in world.engine.constraints[-3:] if constraint]
    assert "get_weather" in required
    assert "get_time" in named
    assert "get_weather" not in named


WRONG: dict[str, Any] = {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}}
STRICT = {"type": "function", "function": {"name": "f", "strict": True, "parameters": WRONG}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": WRONG}}},
            "response_format",
        ),
        ({"options": {"regex": "("}}, "options.regex"),
        ({"options": {"grammar": "start: ("}}, "options.grammar"),
        ({"options": {"grammar": "root ::= ("}}, "options.grammar"),
        ({"tools": [STRICT], "tool_choice": "required"}, "tools"),
    ],
)
async def test_what_cannot_be_enforced_is_refused(world: World, body: dict[str, Any], param: str) -> None:
    for count in (1, 2):
        error = await error_of(world, 400, "/v1/chat/completions", messages=USER, n=count, **body)
        assert (error["param"], error["type"]) == (param, "invalid_request_error")


async def test_a_schema_that_cannot_be_enforced_is_refused_and_named(world: World) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array", "uniqueItems": True}}}
    error = await error_of(world, 400, "/v1/chat/completions", messages=USER, response_format=schema)
    assert error["param"] == "response_format"
    assert 'uses "uniqueItems", which cannot be enforced' in error["message"]
    assert not world.engines
