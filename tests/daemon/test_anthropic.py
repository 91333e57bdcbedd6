"""POST /v1/messages and /v1/messages/count_tokens: prompts, blocks, events, counts and errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.anthropic import types
from daemon.anthropic.replies import BlockWriter, content_of
from daemon.api import FunctionCall, ToolCall
from daemon.output import Chunk
from engine.errors import RequestFailed
from tests.daemon.conftest import RawClient, World
from tests.daemon.fake_engine import Answer

pytestmark = pytest.mark.anyio

PATH = "/v1/messages"
HELLO = [{"role": "user", "content": "Hi"}]
TOOL = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
ASSISTANT = "<|im_start|>assistant\n"


def request(model: str = "tiny", **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 1000, "messages": HELLO, **more}


async def whole(world: World, **more: Any) -> dict[str, Any]:
    response = await world.post(PATH, **request(**more))
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


async def events(world: World, **more: Any) -> list[dict[str, Any]]:
    """The data of a stream's events, each of which has its type as its name."""
    response = await world.post(PATH, **request(stream=True, **more))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *records, rest = response.text.split("\n\n")
    assert rest == ""
    found = []
    for record in records:
        name, data = record.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


async def refusal(world: World, status: int, path: str = PATH, **body: Any) -> str:
    """The sentence of a refusal in this API's envelope."""
    response = await world.post(path, **body)
    assert response.status_code == status, response.text
    reply = response.json()
    assert reply["type"] == "error"
    kind = {400: "invalid_request_error", 404: "not_found_error", 403: "permission_error", 500: "api_error"}[status]
    assert reply["error"]["type"] == kind
    message: str = reply["error"]["message"]
    return message


# ---- replies


async def test_a_whole_message(world: World) -> None:
    world.answers = [Answer("Héllo 🦊!", num_cached_tokens=4)]
    reply = await whole(world)
    assert reply.pop("id").startswith("msg_")
    num_prompt_tokens = len(world.engine.prompts[0])
    assert reply == {
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": "Héllo 🦊!"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": num_prompt_tokens - 4,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
            "output_tokens": len("Héllo 🦊!".encode()) + 1,
            "output_tokens_details": {"thinking_tokens": 0},
        },
    }
    assert world.prompts == [f"<|im_start|>user\nHi<|im_end|>\n{ASSISTANT}"]


async def test_the_events_of_a_stream_and_their_order(world: World) -> None:
    world.answers = [Answer("Yes!", num_cached_tokens=4)]
    start, *deltas, stop, last, end = await events(world)
    num_prompt_tokens = len(world.engine.prompts[0])
    usage = {
        "input_tokens": num_prompt_tokens - 4,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 0,
        "output_tokens_details": {"thinking_tokens": 0},
    }
    message = start.pop("message")
    assert start == {"type": "message_start"}
    assert (message["content"], message["stop_reason"], message["usage"]) == ([], None, usage)
    begin, *deltas = deltas
    empty = {"type": "text", "text": ""}
    assert begin == {"type": "content_block_start", "index": 0, "content_block": empty}
    assert "".join(delta["delta"]["text"] for delta in deltas) == "Yes!"
    assert {(delta["type"], delta["index"]) for delta in deltas} == {("content_block_delta", 0)}
    assert len(deltas) > 1
    assert stop == {"type": "content_block_stop", "index": 0}
    reason = {"stop_reason": "end_turn", "stop_sequence": None}
    assert last == {"type": "message_delta", "delta": reason, "usage": {**usage, "output_tokens": 5}}
    assert end == {"type": "message_stop"}


async def test_calls_are_blocks_of_their_own(world: World) -> None:
    world.answers = [Answer(f"Let me see.\n{CALL}{CALL}"), Answer(f"Let me see.\n{CALL}{CALL}")]
    reply = await whole(world, tools=[TOOL])
    text, first, second = reply["content"]
    assert text == {"type": "text", "text": "Let me see."}
    for call in (first, second):
        assert call.pop("id").startswith("toolu_")
        assert call == {"type": "tool_use", "name": "get_weather", "input": {"city": "Paris"}}
    assert reply["stop_reason"] == "tool_use"
    stream = await events(world, tools=[TOOL])
    starts = [event["content_block"] for event in stream if event["type"] == "content_block_start"]
    assert [block["type"] for block in starts] == ["text", "tool_use", "tool_use"]
    assert starts[1]["input"] == {}
    jsons = [event["delta"] for event in stream if event.get("index") == 2 and "delta" in event]
    assert jsons == [{"type": "input_json_delta", "partial_json": '{"city":"Paris"}'}]
    assert stream[-2]["delta"]["stop_reason"] == "tool_use"


async def test_one_call_at_most(world: World) -> None:
    world.answers = [Answer(f"{CALL}{CALL} and so on")]
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    reply = await whole(world, tools=[TOOL], tool_choice=choice)
    assert [block["type"] for block in reply["content"]] == ["tool_use"]
    assert reply["stop_reason"] == "tool_use"
    assert world.engine.num_aborted == 1


THOUGHTFUL = "<think>\nHm.\n</think>\n\nYes."


async def test_who_asks_for_thoughts_gets_them_signed(world: World) -> None:
    world.answers = [Answer(THOUGHTFUL), Answer(THOUGHTFUL)]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    reply = await whole(world, model="thinker", thinking=thinking)
    assert 0 < reply["usage"]["output_tokens_details"]["thinking_tokens"] < reply["usage"]["output_tokens"]
    thought, text = reply["content"]
    assert thought.pop("signature")
    assert thought == {"type": "thinking", "thinking": "Hm."}
    assert text == {"type": "text", "text": "Yes."}
    stream = await events(world, model="thinker", thinking={"type": "adaptive"})
    kinds = [event["delta"]["type"] for event in stream if event["type"] == "content_block_delta"]
    assert list(dict.fromkeys(kinds)) == ["thinking_delta", "signature_delta", "text_delta"]
    assert kinds.count("signature_delta") == 1
    starts = [event["content_block"] for event in stream if event["type"] == "content_block_start"]
    assert starts == [{"type": "thinking", "thinking": "", "signature": ""}, {"type": "text", "text": ""}]


@pytest.mark.parametrize(
    "more", [{}, {"thinking": {"type": "disabled"}}, {"thinking": {"type": "enabled", "display": "omitted"}}]
)
async def test_who_does_not_ask_for_thoughts_gets_none(world: World, more: dict[str, Any]) -> None:
    world.answers = [Answer(THOUGHTFUL)]
    assert (await whole(world, model="thinker", **more))["content"] == [{"type": "text", "text": "Yes."}]
    told_not_to = world.prompts[0].endswith("<think>\n\n</think>\n\n")
    assert told_not_to is ("display" not in more.get("thinking", {}))


async def test_a_model_that_cannot_think_answers_without(world: World) -> None:
    reply = await whole(world, thinking={"type": "enabled", "budget_tokens": 1024})
    assert reply["content"] == [{"type": "text", "text": "Once."}]


# ---- ends


@pytest.mark.parametrize(
    ("answer", "more", "reason", "stop_sequence", "text"),
    [
        (Answer("one two three"), {"stop_sequences": ["two", "x"]}, "stop_sequence", "two", "one "),
        (Answer("one two three"), {"stop_sequences": ["four"]}, "end_turn", None, "one two three"),
        (Answer("one two three"), {"max_tokens": 3}, "max_tokens", None, "one"),
        (Answer("one", finish_reason="length"), {}, "model_context_window_exceeded", None, "one"),
        (Answer(""), {}, "end_turn", None, ""),
    ],
)
async def test_why_a_message_ends(
    world: World, answer: Answer, more: dict[str, Any], reason: str, stop_sequence: str | None, text: str
) -> None:
    world.answers = [answer]
    reply = await whole(world, **more)
    assert (reply["stop_reason"], reply["stop_sequence"]) == (reason, stop_sequence)
    assert "".join(block["text"] for block in reply["content"]) == text


async def test_the_models_own_stops_stay_and_are_not_told(world: World) -> None:
    parameters = {"stop": ["<end>"]}
    await world.post("/api/create", model="stopper", from_="tiny", **{"from": "tiny"}, parameters=parameters)
    world.answers = [Answer("one <end> two")]
    reply = await whole(world, model="stopper", stop_sequences=["two"])
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("end_turn", None)
    assert reply["content"][0]["text"] == "one "


async def test_no_tokens_read_the_prompt_only(world: World) -> None:
    reply = await whole(world, max_tokens=0)
    assert (reply["content"], reply["stop_reason"]) == ([], "max_tokens")
    assert world.engine.params[0].max_tokens == 0
    assert reply["usage"]["input_tokens"] == len(world.engine.prompts[0])
    kinds = [event["type"] for event in await events(world, max_tokens=0)]
    assert kinds == ["message_start", "message_delta", "message_stop"]


# ---- requests


async def test_options_reach_the_engine(world: World) -> None:
    await whole(world, temperature=0.5, top_p=0.25, top_k=7, max_tokens=10**12, options={"num_ctx": 64, "seed": 3})
    params = world.engine.params[0]
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.5, 0.25, 7, 3)
    assert (params.max_context, params.shift) == (64, False)


async def test_keep_alive_is_an_option(world: World) -> None:
    await whole(world, options={"keep_alive": 0})
    assert (await world.http.get("/api/ps")).json() == {"models": []}
    assert "keep_alive" in await refusal(world, 400, **request(options={"keep_alive": "soon"}))


async def test_what_this_server_has_no_use_for_is_ignored(world: World) -> None:
    headers = {"x-api-key": "sk-ant-x", "anthropic-version": "1999-01-01", "anthropic-beta": "everything"}
    body = request(
        metadata={"user_id": "u"},
        service_tier="auto",
        container=None,
        cache_control={"type": "ephemeral"},
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    )
    assert (await world.http.post(PATH, json=body, headers=headers)).status_code == 200


async def test_a_conversation_becomes_a_prompt(world: World) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Weather"}, {"type": "text", "text": "in Paris?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I should ask.", "signature": "abc"},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "text", "text": "And?"},
            ],
        },
        {"role": "user", "content": "Well?"},
    ]
    system = [{"type": "text", "text": "Be kind."}, {"type": "text", "text": "Be brief."}]
    await whole(world, messages=messages, system=system)
    assert world.prompts == [
        "<|im_start|>system\nBe kind.\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWeather\nin Paris?<|im_end|>\n"
        "<|im_start|>assistant\nLet me see."
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\nsunny<|im_end|>\n"
        f"<|im_start|>user\nAnd?\nWell?<|im_end|>\n{ASSISTANT}"
    ]


async def test_results_that_are_errors_documents_and_finds(world: World) -> None:
    def result(content: Any, **more: Any) -> dict[str, Any]:
        return {"type": "tool_result", "tool_use_id": "t", "content": content, **more}

    source = {"type": "text", "media_type": "text/plain", "data": "A fox."}
    found = {
        "type": "search_result",
        "source": "zoo.example",
        "title": "Foxes",
        "content": [{"type": "text", "text": "Red."}],
    }
    content = {"type": "content", "content": [{"type": "text", "text": "A bear."}]}
    blocks = [
        result("no such city", is_error=True),
        result("Error: no", is_error=True),
        result(None),
        result([{"type": "document", "source": content}]),
        {"type": "document", "title": "Animals", "context": "from the zoo", "source": source},
        found,
    ]
    await whole(world, messages=[{"role": "user", "content": blocks}])
    said = [part.partition("\n")[2].strip() for part in world.prompts[0].split("<|im_start|>")[1:-1]]
    assert [part.removesuffix("<|im_end|>") for part in said] == [
        "Error: no such city",
        "Error: no",
        "",
        "A bear.",
        "Animals\nfrom the zoo\nA fox.\nFoxes\nzoo.example\nRed.",
    ]


async def test_a_last_message_of_the_assistant_is_continued(world: World) -> None:
    await whole(world, messages=[*HELLO, {"role": "assistant", "content": "The best answer is ("}])
    assert world.prompts[0].endswith(f"{ASSISTANT}The best answer is (")


async def test_a_system_message_among_the_others(world: World) -> None:
    messages = [*HELLO, {"role": "system", "content": "Be kind."}, *HELLO]
    await whole(world, messages=messages)
    assert "<|im_start|>system\nBe kind.<|im_end|>" in world.prompts[0]


async def test_tools_are_described_unless_none_may_be_called(world: World) -> None:
    await whole(world, tools=[TOOL])
    assert '"function": {"name": "get_weather", "description": "Weather of a city", "parameters"' in world.prompts[0]
    world.answers = [Answer(), Answer(CALL)]
    await whole(world, tools=[{"name": "web_search", "type": "web_search_20250305"}])
    assert "web_search" not in world.prompts.pop()
    reply = await whole(world, tools=[TOOL], tool_choice={"type": "none"})
    assert "get_weather" not in world.prompts[1]
    assert reply["content"] == [{"type": "text", "text": CALL}]


# ---- refusals

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}


@pytest.mark.parametrize(
    ("more", "status", "sentence"),
    [
        ({"model": "no-such"}, 404, "model 'no-such' not found"),
        ({"model": ""}, 400, "model is required"),
        ({"max_tokens": -1}, 400, "max_tokens is -1 but must be at least 0"),
        ({"max_tokens": "many"}, 400, "field max_tokens: expected int, got str"),
        ({"max_tokens": None}, 400, "field max_tokens: expected int, got null"),
        ({"messages": []}, 400, "messages is empty"),
        ({"messages": HELLO * 50_001}, 400, "messages has 50001 messages; 50000 are allowed"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, 'messages[0]: the role "tool" is not one of'),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, 400, "messages[0].content[0] is an image"),
        ({"messages": [{"role": "user", "content": [PDF]}]}, 400, 'a document of the type "base64"'),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, 400, "invalid value 'video'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "i", "name": "n", "input": {}}]}]},
            400,
            'messages[0].content[0]: a block of the type "tool_use" has no place there',
        ),
        (
            {"tools": [{"name": "bash", "type": "bash_20250124"}]},
            400,
            'the tool "bash" of the type "bash_20250124" has no',
        ),
        ({"tools": [{"name": "w"}]}, 400, 'the tool "w" has no input_schema'),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}}, 400, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, 400, "tool_choice"),
        ({"tool_choice": {"type": "some"}}, 400, "invalid enum value 'some'"),
        ({"tools": [TOOL], "model": "plain"}, 400, '"plain" does not support tools'),
        ({"thinking": {"type": "hard"}}, 400, "invalid enum value 'hard'"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 7}, 400, "top_p"),
        ({"options": {"num_ctx": "big"}}, 400, "num_ctx"),
        ({"options": {"keep_alive": []}}, 400, "keep_alive"),
        ({"stop_sequences": "x"}, 400, "stop_sequences"),
        ({"options": {"regex": "a+", "choice": ["a"]}}, 400, "a text can have one constraint only"),
        ({"options": {"choice": []}}, 400, "options.choice must be a list of strings"),
    ],
)
async def test_refusals(world: World, more: dict[str, Any], status: int, sentence: str) -> None:
    assert sentence in await refusal(world, status, **request(**more))
    assert world.engines == []


async def test_a_prompt_that_is_too_long_is_never_cut(world: World) -> None:
    long = [{"role": "user", "content": "long " * 200}] * 3
    message = await refusal(world, 400, **request(messages=long))
    assert message.startswith("the prompt is too long: its ")
    assert world.engine.prompts == []
    reply = await whole(world, messages=long, options={"truncate": True})
    assert reply["truncated"] is True
    assert len(world.engine.prompts[0]) < world.engine.max_context
    assert world.engine.params[0].shift


async def test_a_stream_that_fails_before_it_begins_has_a_status(world: World) -> None:
    world.answers = [Answer("", finish_reason="none", error=RequestFailed("out of blocks", "failed"))]
    response = await world.post(PATH, **request(stream=True))
    assert response.status_code == 500
    assert response.json() == {"type": "error", "error": {"type": "api_error", "message": "out of blocks"}}


async def test_a_stream_that_fails_later_ends_with_an_error(world: World) -> None:
    world.answers = [Answer("Once", finish_reason="none", error=RequestFailed("out of blocks", "failed"))]
    *_, last = await events(world)
    assert last == {"type": "error", "error": {"type": "api_error", "message": "out of blocks"}}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_aborts_its_sequence(world: World, stream: bool) -> None:
    world.answers = [Answer("a very long story", pause_after=3)]
    client = RawClient(world.app, "POST", PATH, json.dumps(request(stream=stream)).encode())
    async with asyncio.timeout(10):
        while not world.engines:
            await asyncio.sleep(0)
        await world.engine.paused.wait()
        client.leave()
        await world.engine.aborted.wait()
        await client.task
    assert world.manager.num_waiting == 0


async def test_errors_of_the_http_layer_have_the_envelope_too(world: World) -> None:
    response = await world.http.get(PATH)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"] == {"type": "invalid_request_error", "message": "Method Not Allowed"}
    response = await world.http.post(PATH, content=b"{")
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    response = await world.http.post(f"{PATH}/batches", content=b"{}")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")


# ---- counting


async def test_counted_are_the_tokens_of_the_prompt_and_nothing_is_loaded(world: World) -> None:
    body = {"messages": HELLO, "system": "Be kind.", "tools": [TOOL]}
    response = await world.post(f"{PATH}/count_tokens", model="tiny", **body)
    assert world.engines == []
    await whole(world, **body)
    assert response.json() == {"input_tokens": len(world.engine.prompts[0])}
    assert (await world.post(f"{PATH}/count_tokens", model="tiny", **body)).json() == response.json()


async def test_refusals_of_counting(world: World) -> None:
    path = f"{PATH}/count_tokens"
    assert "not found" in await refusal(world, 404, path, model="no-such", messages=HELLO)
    assert "messages is empty" in await refusal(world, 400, path, model="tiny", messages=[])


# ---- blocks

CHUNKS = st.builds(
    Chunk,
    text=st.text(max_size=3),
    thinking=st.text(max_size=3),
    tool_calls=st.lists(
        st.builds(
            lambda number: ToolCall(
                id=f"call_{number}", function=FunctionCall(index=0, name="f", arguments={"n": number})
            ),
            st.integers(0, 9),
        ),
        max_size=2,
    ).map(tuple),
)


@given(st.lists(CHUNKS, max_size=12))
def test_blocks_follow_each_other_and_lose_nothing(chunks: list[Chunk]) -> None:
    writer = BlockWriter()
    written = [event for chunk in chunks for event in writer.push(chunk)] + list(writer.close())
    open_index, next_index = None, 0
    for event in written:
        if isinstance(event, types.ContentBlockStart):
            assert (open_index, event.index) == (None, next_index)
            open_index, next_index = event.index, next_index + 1
        else:
            assert event.index == open_index
            open_index = None if isinstance(event, types.ContentBlockStop) else open_index
    assert open_index is None
    blocks = content_of(written)
    said = "".join(block.text for block in blocks if isinstance(block, types.TextBlock))
    thought = "".join(block.thinking for block in blocks if isinstance(block, types.ThinkingBlock))
    assert said == "".join(chunk.text for chunk in chunks)
    assert thought == "".join(chunk.thinking for chunk in chunks)
    assert all(block.signature for block in blocks if isinstance(block, types.ThinkingBlock))
    calls = [block.input for block in blocks if isinstance(block, types.ToolUseBlock)]
    assert calls == [call.function.arguments for chunk in chunks for call in chunk.tool_calls]
    assert writer.has_calls is bool(calls)
