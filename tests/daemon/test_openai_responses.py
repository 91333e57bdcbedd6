"""POST /v1/responses: items in and out, the order of events, and that a stream says what the whole says."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from engine.errors import RequestFailed
from tests.daemon.conftest import World
from tests.daemon.fake_engine import Answer
from tests.daemon.openai_calls import error_of, events_of, whole

pytestmark = pytest.mark.anyio

PATH = "/v1/responses"
TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": False}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)


async def respond(world: World, **body: Any) -> dict[str, Any]:
    reply = await whole(world, PATH, **{"input": "Hi", **body})
    Response.model_validate(reply)
    return reply


async def events(world: World, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, all of which OpenAI's own types can read."""
    sent = await events_of(world, PATH, **{"input": "Hi", **body})
    objects = [json.loads(event.data) for event in sent]
    assert [event.name for event in sent] == [event["type"] for event in objects]
    assert [event["sequence_number"] for event in objects] == list(range(len(objects)))
    for event in objects:
        EVENT.validate_python(event)
    return objects


async def test_a_whole_response(world: World) -> None:
    world.answers = [Answer("Yes!", num_cached_tokens=3)]
    reply = await respond(world, instructions="Be brief.", metadata={"a": "b"}, temperature=0.5)
    assert world.prompts == [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ]
    assert reply["id"].startswith("resp_")
    assert (reply["status"], reply["error"], reply["incomplete_details"]) == ("completed", None, None)
    assert (reply["store"], reply["previous_response_id"], reply["truncation"]) == (False, None, "disabled")
    assert (reply["temperature"], reply["top_p"], reply["metadata"]) == (0.5, 1.0, {"a": "b"})
    assert (reply["text"], reply["tool_choice"], reply["tools"]) == ({"format": {"type": "text"}}, "auto", [])
    [message] = reply["output"]
    assert message["content"] == [{"type": "output_text", "text": "Yes!", "annotations": [], "logprobs": []}]
    assert (message["type"], message["role"], message["status"]) == ("message", "assistant", "completed")
    num_input = len(world.engine.prompts[0])
    assert reply["usage"] == {
        "input_tokens": num_input,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_input + 5,
    }


async def test_the_order_of_events(world: World) -> None:
    world.answers = [Answer(f"<think>Hm.</think>Well.{CALL}", tokens_per_step=1000)]
    sent = await events(world, model="thinker", tools=[TOOL])
    assert [event["type"].removeprefix("response.") for event in sent] == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event["output_index"] for event in sent if "output_index" in event] == [0] * 6 + [1] * 6 + [2] * 4
    added = [event["item"] for event in sent if event["type"].endswith("item.added")]
    done = [event["item"] for event in sent if event["type"].endswith("item.done")]
    assert [item["status"] for item in added] == ["in_progress"] * 3
    assert [item["id"] for item in added] == [item["id"] for item in done]
    assert len({item["id"] for item in done}) == 3
    assert done[0]["summary"] == [{"type": "summary_text", "text": "Hm."}]
    assert (added[2]["arguments"], done[2]["arguments"]) == ("", '{"city":"Paris"}')
    assert done[2]["call_id"] == "call_00000001"
    assert sent[0]["response"]["output"] == []
    assert sent[0]["response"]["status"] == "in_progress"
    assert sent[-1]["response"]["output"] == done


@pytest.mark.parametrize("step", [1, 2, 5, 1000])
async def test_a_stream_says_what_the_whole_says(world: World, step: int) -> None:
    text = f"<think>\nHm, 世界.\n</think>\nWell 🦊.\n{CALL}\n{CALL}"
    world.answers = [Answer(text, tokens_per_step=step), Answer(text)]
    sent = await events(world, model="thinker", tools=[TOOL], include=["message.output_text.logprobs"])
    final = sent[-1]["response"]
    reply = await respond(world, model="thinker", tools=[TOOL], include=["message.output_text.logprobs"])
    kinds = ["reasoning", "message", "function_call", "function_call"]
    assert [item["type"] for item in reply["output"]] == kinds
    for response in (final, reply):
        response["id"] = response["created_at"] = ""
        del response["usage"]["output_tokens_details"]  # as exact as the steps are small
        for item in response["output"]:
            item["id"] = item["call_id"] = ""
            for part in item.get("content", ()):
                part["logprobs"] = []  # which tokens stand with which text depends on the steps
    assert final == reply
    said = "".join(event["delta"] for event in sent if event["type"] == "response.output_text.delta")
    assert said == "".join(part["text"] for item in reply["output"] for part in item.get("content", ()))


async def test_an_answer_without_a_word_has_a_message(world: World) -> None:
    world.answers = [Answer(""), Answer("")]
    assert (await respond(world))["output"][0]["content"][0]["text"] == ""
    assert [event["type"] for event in await events(world)][-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


async def test_a_response_that_is_cut_off_is_incomplete(world: World) -> None:
    world.answers = [Answer("a long answer"), Answer("a long answer")]
    reply = await respond(world, max_output_tokens=4)
    assert (reply["status"], reply["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (reply["output"][0]["status"], reply["output"][0]["content"][0]["text"]) == ("incomplete", "a lo")
    assert (await events(world, max_output_tokens=4))[-1]["type"] == "response.incomplete"


async def test_a_response_that_fails_says_so_in_its_last_event(world: World) -> None:
    world.answers = [Answer("so far", error=RequestFailed("the model failed"))]
    last = (await events(world))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "the model failed"}
    assert last["response"]["output"][0]["content"][0]["text"] == "so far"
    world.answers = [Answer("", finish_reason="length", error=RequestFailed("out of memory"))]
    assert (await error_of(world, 500, PATH, input="Hi", stream=True))["message"] == "out of memory"


async def test_items_of_one_answer_are_one_message(world: World) -> None:
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Look."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
        {"role": "assistant", "content": "Sunny."},
        {"role": "assistant", "content": "Wet."},
    ]
    await respond(world, input=items, instructions="First.", max_output_tokens=5)
    turns = world.prompts[0].removesuffix("<|im_start|>assistant\n").split("<|im_start|>")[1:]
    first = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    second = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert [turn.removesuffix("<|im_end|>\n") for turn in turns] == [
        "system\nFirst.",
        "user\nWeather?",
        f"assistant\nWait.{first}{second}",
        "tool\nsunny",
        "tool\nrain",
        "assistant\nSunny.",
        "assistant\nWet.",
    ]


async def test_tools_that_others_run_are_left_out(world: World) -> None:
    reply = await respond(
        world, tools=[TOOL, {"type": "web_search"}], tool_choice={"type": "function", "name": "get_weather"}
    )
    assert [tool["name"] for tool in reply["tools"]] == ["get_weather"]
    assert "get_weather" in world.prompts[0]
    assert "web_search" not in world.prompts[0]
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_time"}]}
    await respond(world, tools=[TOOL, {"type": "function", "name": "get_time"}], tool_choice=allowed)
    assert "get_weather" not in world.prompts[1]
    await respond(world, tools=[TOOL], tool_choice="none")
    assert "get_weather" not in world.prompts[2]


async def test_functions_of_a_namespace(world: World) -> None:
    world.answers = [Answer(CALL)]
    weather = {"type": "namespace", "name": "weather", "description": "", "tools": [TOOL]}
    reply = await respond(world, tools=[weather])
    [call] = reply["output"]
    assert (call["name"], call["namespace"]) == ("get_weather", "weather")
    assert reply["tools"] == [weather]
    assert "get_weather" in world.prompts[0]


async def test_one_call_where_no_more_are_wanted(world: World) -> None:
    world.answers = [Answer(CALL + CALL)]
    reply = await respond(world, tools=[TOOL], parallel_tool_calls=False)
    assert [item["type"] for item in reply["output"]] == ["function_call"]


async def test_a_prompt_that_is_too_long_is_cut_where_that_is_wanted(world: World) -> None:
    items = [{"role": "user", "content": f"question {number} " + "x" * 40} for number in range(10)]
    assert (await error_of(world, 400, PATH, input=items))["code"] == "context_length_exceeded"
    assert (await respond(world, input=items, truncation="auto"))["truncated"] is True


async def test_the_tokens_of_a_prompt_are_counted_without_loading_a_model(world: World) -> None:
    counted = await whole(world, f"{PATH}/input_tokens", input="Hi", instructions="Be brief.", tools=[TOOL])
    assert counted["object"] == "response.input_tokens"
    assert world.engines == []
    reply = await respond(world, instructions="Be brief.", tools=[TOOL])
    assert counted["input_tokens"] == reply["usage"]["input_tokens"]
    assert (await error_of(world, 400, f"{PATH}/input_tokens", input=[]))["param"] == "input"


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "input is missing"),
    ({"input": []}, "input", "input is missing"),
    ({"input": 1}, "input", "invalid request: field input: expected"),
    ({"input": [{"role": "boss", "content": "x"}]}, "input[0].role", 'input[0].role is "boss"'),
    ({"input": [{"role": "user"}]}, "input[0].content", "input[0].content is missing"),
    ({"input": [{"content": "x"}]}, "input[0].role", "input[0].role is missing"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "input[0] refers to an item"),
    ({"input": [{"type": "mcp_call"}]}, "input[0].type", 'input[0] is of the type "mcp_call"'),
    ({"input": [{"type": "function_call", "arguments": "{}"}]}, "input[0].name", "input[0].name is missing"),
    (
        {"input": [{"type": "function_call", "name": "f", "arguments": "["}]},
        "input[0].arguments",
        "input[0].arguments must be the JSON of an object",
    ),
    ({"input": [{"type": "function_call_output"}]}, "input[0].output", "input[0].output is missing"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
        "input[0].content[0]",
        '"tiny" does not support images',
    ),
    (
        {"previous_response_id": "resp_1"},
        "previous_response_id",
        "previous_response_id cannot be used: nothing is kept",
    ),
    (
        {"input": [{"role": "user", "content": "Hi"}] * 50_001},
        "input",
        "input has 50001 items; 50000 are allowed",
    ),
    ({"conversation": "c"}, "conversation", "conversation cannot be used"),
    ({"prompt": {"id": "p"}}, "prompt", "prompt cannot be used"),
    ({"background": True}, "background", "background cannot be used"),
    ({"truncation": "maybe"}, "truncation", "truncation must be"),
    ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens is 0, but it must be at least 1"),
    ({"top_logprobs": 21}, "top_logprobs", "top_logprobs is 21, but it must be from 0 to 20"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort", 'reasoning.effort is "huge"'),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort", '"tiny" does not support thinking'),
    ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type", 'tools[0] is of the type "custom"'),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "tools[0] has no function with a name"),
    ({"tools": [{"type": "namespace", "name": "n"}]}, "tools[0].tools", "tools[0].tools must be a list of functions"),
    ({"tools": [{"type": "namespace", "tools": [{}]}]}, "tools[0].tools[0].name", "tools[0].tools[0] has no function"),
    ({"tool_choice": "any"}, "tool_choice", 'tool_choice is "any"'),
    ({"tool_choice": "required"}, "tool_choice", "tool_choice wants a tool"),
    ({"tool_choice": {"type": "function", "name": "f"}, "tools": [TOOL]}, "tool_choice", 'tool_choice names "f"'),
    ({"tool_choice": {"type": "mcp"}}, "tool_choice", "tool_choice must be"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format.type", 'text.format.type is "yaml"'),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "text.format has no schema"),
    ({"temperature": -1}, "temperature", 'option "temperature" is -1'),
    ({"metadata": {"a": 1}}, "metadata[...]", "invalid request: field metadata[...]: expected str"),
]


@pytest.mark.parametrize(("body", "param", "message"), REFUSALS)
async def test_refusals_name_the_field(world: World, body: dict[str, Any], param: str, message: str) -> None:
    error = await error_of(world, 400, PATH, **{"input": "Hi", **body})
    assert (error["param"], error["message"][: len(message)]) == (param, message)
    assert world.engines == []


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")]
)
async def test_responses_are_not_kept(world: World, method: str, path: str) -> None:
    response = await world.http.request(method, f"/v1/responses/resp_1{path}")
    assert response.status_code == 404
    assert "responses are not kept here" in response.json()["error"]["message"]
