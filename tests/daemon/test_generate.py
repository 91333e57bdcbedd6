"""POST /api/generate and /api/chat: replies, metrics, shortcuts, refusals and their wordings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.errors import LoadFailed, RequestFailed
from tests.daemon.conftest import SEED, World
from tests.daemon.fake_engine import Answer

pytestmark = pytest.mark.anyio

USER = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "", "parameters": {"type": "object"}}}
METRICS = (
    "total_duration",
    "load_duration",
    "prompt_eval_duration",
    "eval_duration",
    "eval_count",
    "prompt_eval_count",
)


async def test_a_streamed_generation(world: World) -> None:
    world.answers = [Answer("Héllo 🦊!")]
    lines = await world.lines("/api/generate", model="tiny", prompt="Hi")
    *chunks, last = lines
    assert "".join(line["response"] for line in chunks) == "Héllo 🦊!"
    assert len(chunks) > 3
    for line in chunks:
        assert set(line) == {"model", "created_at", "response", "done"}
        assert line["done"] is False
        assert line["model"] == "tiny"
    assert last["response"] == ""
    assert last["done"] is True
    assert last["done_reason"] == "stop"
    assert all(last[name] > 0 for name in METRICS)
    assert last["eval_count"] == len("Héllo 🦊!".encode()) + 1
    assert last["prompt_eval_count"] == len(world.engine.prompts[0])
    assert last["context"][: last["prompt_eval_count"]] == world.engine.prompts[0]
    assert len(last["context"]) == last["prompt_eval_count"] + last["eval_count"]
    assert "truncated" not in last


async def test_a_whole_generation_says_the_same(world: World) -> None:
    reply = await world.whole("/api/generate", model="TINY:latest", prompt="Hi")
    assert reply["model"] == "TINY:latest"
    assert (reply["response"], reply["done"], reply["done_reason"]) == ("Once.", True, "stop")
    assert all(reply[name] > 0 for name in METRICS)
    assert reply["created_at"].startswith("2026-01-01T00:00:00.0000000")
    assert reply["created_at"].endswith("Z")


async def test_the_prompt_is_rendered_with_system_and_template(world: World) -> None:
    await world.whole("/api/generate", model="tiny", prompt="Hi", system="Be kind.")
    assert world.prompts == [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ]


async def test_raw_mode_sends_the_prompt_as_it_is_and_gives_no_context(world: World) -> None:
    reply = await world.whole("/api/generate", model="tiny", prompt="Hi", raw=True)
    assert world.prompts == ["Hi"]
    assert "context" not in reply


async def test_context_comes_before_the_prompt(world: World) -> None:
    await world.whole("/api/generate", model="tiny", prompt="B", context=[65, 66])
    assert world.engine.prompts[0][:2] == [65, 66]


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_load_and_unload_are_one_object(world: World, path: str) -> None:
    response = await world.post(path, model="tiny")
    assert response.json()["done_reason"] == "load"
    assert response.json()["done"] is True
    assert len((await world.http.get("/api/ps")).json()["models"]) == 1
    response = await world.post(path, model="tiny", keep_alive=0)
    assert response.json()["done_reason"] == "unload"
    assert "total_duration" not in response.json()
    assert (await world.http.get("/api/ps")).json() == {"models": []}
    assert world.engine.closed.is_set()


async def test_unload_of_what_is_not_loaded(world: World) -> None:
    assert (await world.post("/api/generate", model="tiny", keep_alive="0s")).json()["done_reason"] == "unload"
    assert world.engines == []


async def test_chat_replies(world: World) -> None:
    world.answers = [Answer("Yes!", num_cached_tokens=3), Answer("Yes!")]
    *chunks, last = await world.lines("/api/chat", model="tiny", messages=USER)
    assert "".join(line["message"]["content"] for line in chunks) == "Yes!"
    assert all(line["message"]["role"] == "assistant" for line in [*chunks, last])
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last["prompt_cached_count"] == 3
    assert "context" not in last
    reply = await world.whole("/api/chat", model="tiny", messages=USER)
    assert reply["message"] == {"role": "assistant", "content": "Yes!"}
    assert all(reply[name] > 0 for name in METRICS)


async def test_roles_are_read_without_regard_to_case(world: World) -> None:
    await world.whole("/api/chat", model="tiny", messages=[{"role": "User", "content": "Hi"}])
    assert "<|im_start|>user" in world.prompts[0]


async def test_tool_calls_are_objects_in_chunks_of_their_own(world: World) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    world.answers = [Answer(f"Let me see.\n{call}"), Answer(call)]
    *chunks, last = await world.lines("/api/chat", model="tiny", messages=USER, tools=[TOOL])
    assert "".join(line["message"]["content"] for line in chunks) == "Let me see."
    [calling] = [line for line in chunks if "tool_calls" in line["message"]]
    assert calling["message"]["content"] == ""
    assert calling["message"]["tool_calls"] == [
        {"id": "call_00000001", "function": {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}}}
    ]
    assert last["done_reason"] == "stop"
    assert "get_weather" in world.prompts[0]
    reply = await world.whole("/api/chat", model="tiny", messages=USER, tools=[TOOL])
    assert reply["message"]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}


async def test_without_tools_the_tags_are_text(world: World) -> None:
    world.answers = [Answer("<tool_call>x")]
    reply = await world.whole("/api/chat", model="tiny", messages=USER)
    assert reply["message"]["content"] == "<tool_call>x"


async def test_earlier_tool_calls_are_rendered(world: World) -> None:
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages = [*USER, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "7"}]
    await world.whole("/api/chat", model="tiny", messages=messages)
    assert '"name": "f"' in world.prompts[0]
    assert "<|im_start|>tool\n7<|im_end|>" in world.prompts[0]


async def test_a_thinking_model_thinks_unless_told_not_to(world: World) -> None:
    world.answers = [Answer("<think>\nHm.\n</think>\n\nYes."), Answer("<think>Hm.</think>Yes."), Answer("Yes.")]
    lines = await world.lines("/api/chat", model="thinker", messages=USER)
    assert "".join(line["message"].get("thinking", "") for line in lines) == "Hm."
    assert "".join(line["message"]["content"] for line in lines) == "Yes."
    reply = await world.whole("/api/generate", model="thinker", prompt="Hi", think=True)
    assert (reply["thinking"], reply["response"]) == ("Hm.", "Yes.")
    reply = await world.whole("/api/chat", model="thinker", messages=USER, think=False)
    assert reply["message"] == {"role": "assistant", "content": "Yes."}
    assert world.prompts[-1].endswith("<think>\n\n</think>\n\n")


async def test_the_models_own_messages_and_system_come_first(world: World, model_folders: dict[str, Any]) -> None:
    body = {
        "model": "tutor",
        "from": "tiny",
        "system": "Teach.",
        "messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}],
        "parameters": {"temperature": 0.5, "stop": ["END"]},
    }
    assert (await world.lines("/api/create", **body))[-1] == {"status": "success"}
    await world.whole("/api/chat", model="tutor", messages=USER)
    turns = [turn.split("\n")[0] for turn in world.prompts[-1].split("<|im_start|>")[1:]]
    assert turns == ["system", "user", "assistant", "user", "assistant"]
    assert world.prompts[-1].startswith("<|im_start|>system\nTeach.<|im_end|>")
    await world.whole("/api/chat", model="tutor", messages=[{"role": "system", "content": "Be brief."}, *USER])
    assert "Teach." not in world.prompts[-1]
    await world.whole("/api/generate", model="tutor", prompt="Hi", system="Other.")
    assert "Teach." not in world.prompts[-1]
    assert world.engine.params[-1].temperature == 0.5


async def test_two_names_over_one_base_share_a_worker(world: World) -> None:
    await world.lines("/api/create", model="tutor", **{"from": "tiny"}, system="Teach.")
    await world.whole("/api/generate", model="tiny", prompt="Hi")
    await world.whole("/api/generate", model="tutor", prompt="Hi")
    assert len(world.engines) == 1
    assert {row["name"] for row in (await world.http.get("/api/ps")).json()["models"]} == {
        "tiny:latest",
        "tutor:latest",
    }
    await world.post("/api/generate", model="tutor", keep_alive=0)
    assert world.engine.alive
    await world.post("/api/generate", model="tiny", keep_alive=0)
    assert not world.engine.alive


async def test_stop_strings_end_the_text_and_the_sequence(world: World) -> None:
    world.answers = [Answer("one END two", finish_reason="length"), Answer("a. b")]
    reply = await world.whole("/api/generate", model="tiny", prompt="Hi", options={"stop": ["END"]})
    assert (reply["response"], reply["done_reason"]) == ("one ", "stop")
    assert world.engine.num_aborted == 1
    reply = await world.whole("/api/generate", model="tiny", prompt="Hi", options={"stop": ["."]})
    assert reply["response"] == "a"


async def test_num_predict_and_done_reason_length(world: World) -> None:
    world.answers = [Answer("a long answer")]
    body = {"model": "tiny", "prompt": "Hi", "options": {"num_predict": 4}, "logprobs": True, "top_logprobs": 2}
    reply = await world.whole("/api/generate", **body)
    assert (reply["response"], reply["done_reason"], reply["eval_count"]) == ("a lo", "length", 4)
    assert len(reply["logprobs"]) == 4
    first = reply["logprobs"][0]
    assert first["token"] == "a"
    assert first["bytes"] == [97]
    assert first["logprob"] <= 0
    assert [entry["logprob"] for entry in first["top_logprobs"]] == [-0.5, -1.5]


async def test_logprobs_come_with_their_chunks(world: World) -> None:
    world.answers = [Answer("é"), Answer("é")]
    lines = await world.lines("/api/generate", model="tiny", prompt="Hi", logprobs=True)
    assert [len(line.get("logprobs", [])) for line in lines] == [2, 0]
    assert [entry["bytes"] for entry in lines[0]["logprobs"]] == [[0xC3], [0xA9]]
    assert world.engine.params[0].logprobs == 0
    await world.whole("/api/generate", model="tiny", prompt="Hi")
    assert world.engine.params[1].logprobs is None


async def test_options_reach_the_engine(world: World) -> None:
    await world.whole("/api/generate", model="tiny", prompt="Hi")
    params = world.engine.params[-1]
    assert (params.temperature, params.top_k, params.top_p, params.repeat_penalty) == (0.8, 40, 0.9, 1.0)
    assert (params.seed, params.max_context, params.max_tokens) == (SEED, 256, 2560)
    assert params.stop_token_ids == (256, 258)
    assert params.shift
    options = {"seed": 7, "temperature": 0, "top_k": -1, "num_ctx": 64, "num_predict": 5, "unknown": {}, "top_p": None}
    await world.whole("/api/generate", model="tiny", prompt="Hi", options=options, shift=False)
    params = world.engine.params[-1]
    assert (params.seed, params.temperature, params.top_k, params.top_p) == (7, 0.0, 0, 0.9)
    assert (params.max_context, params.max_tokens, params.shift) == (64, 5, False)
    await world.whole("/api/generate", model="tiny", prompt="Hi", options={"seed": -2, "num_ctx": 10**9})
    assert world.engine.params[-1].seed == 2**32 - 2
    assert world.engine.params[-1].max_context == 256


async def test_old_messages_are_dropped_when_the_context_is_full(world: World) -> None:
    messages = [{"role": "system", "content": "Rule."}]
    for number in range(10):
        messages.append({"role": "user", "content": f"question {number}"})
        messages.append({"role": "assistant", "content": f"answer {number}"})
    messages.append({"role": "user", "content": "the last"})
    *_, last = await world.lines("/api/chat", model="tiny", messages=messages)
    prompt = world.prompts[-1]
    assert last["truncated"] is True
    assert prompt.startswith("<|im_start|>system\nRule.")
    assert "question 0" not in prompt
    assert "the last" in prompt
    assert "answer 9" in prompt
    assert 200 < len(world.engine.prompts[-1]) < 256  # no more is dropped than must be


async def test_a_prompt_that_is_too_long_loses_its_middle(world: World) -> None:
    body = {"model": "tiny", "prompt": "0123" + "x" * 500 + "END", "raw": True}
    reply = await world.whole("/api/generate", **body)
    assert reply["truncated"] is True
    ids = world.engine.prompts[-1]
    assert bytes(ids[:4]) == b"0123"
    assert bytes(ids[-3:]) == b"END"
    assert 128 <= len(ids) < 256
    response = await world.post("/api/generate", **body, truncate=False)
    assert response.status_code == 400
    assert "507 tokens exceed the context length of 256" in response.json()["error"]
    response = await world.post("/api/generate", **body, shift=False)
    assert response.status_code == 400
    assert response.json()["error"].startswith("the prompt is longer than the context length currently available")


async def test_a_shift_while_generating_is_told(world: World) -> None:
    world.answers = [Answer(truncated=True)]
    assert (await world.whole("/api/generate", model="tiny", prompt="Hi"))["truncated"] is True


async def test_debug_render_only(world: World) -> None:
    reply = await world.whole("/api/chat", model="tiny", messages=USER, _debug_render_only=True)
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert reply["_debug_info"] == {"rendered_template": expected}
    assert (await world.whole("/api/generate", model="tiny", prompt="Hi", _debug_render_only=True))["_debug_info"] == {
        "rendered_template": expected
    }
    assert world.engine.prompts == []


REFUSALS: list[tuple[str, dict[str, Any], int, str]] = [
    ("/api/generate", {}, 404, "model '' not found"),
    ("/api/generate", {"model": "nope"}, 404, "model 'nope' not found"),
    ("/api/generate", {"model": "../x"}, 404, "model '../x' not found: this is no model name: the namespace starts"),
    ("/api/generate", {"model": "a b!"}, 404, "model 'a b!' not found: this is no model name: the model contains ' '"),
    ("/api/generate", {"model": "/etc/passwd"}, 404, "model '/etc/passwd' not found: this is no model name: the host"),
    ("/api/generate", {"model": "é" * 101}, 404, f"model '{'é' * 100}...' not found: this is no model name"),
    ("/api/chat", {}, 400, "model is required"),
    ("/api/chat", {"model": ""}, 400, "model is required"),
    ("/api/show", {}, 400, "model is required"),
    ("/api/chat", {"model": "../x"}, 400, "'../x' is no model name: the namespace starts with '.'"),
    ("/api/chat", {"model": "bad name!"}, 400, "'bad name!' is no model name: the model contains ' '"),
    ("/api/show", {"model": "/etc/passwd"}, 400, "'/etc/passwd' is no model name: the host is empty"),
    ("/api/chat", {"model": "nope"}, 404, "model 'nope' not found"),
    ("/api/generate", {"model": "nope", "top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    ("/api/chat", {"model": "tiny", "top_logprobs": -1}, 400, "top_logprobs must be between 0 and 20"),
    (
        "/api/generate",
        {"model": "tiny", "prompt": "x", "raw": True, "system": "y"},
        400,
        "raw mode does not support template, system, or context",
    ),
    ("/api/generate", {"model": "tiny", "prompt": "x", "think": True}, 400, '"tiny" does not support thinking'),
    ("/api/chat", {"model": "tiny", "think": "high"}, 400, '"tiny" does not support thinking'),
    ("/api/chat", {"model": "thinker", "think": "very"}, 400, 'invalid think value: "very"'),
    ("/api/generate", {"model": "tiny", "prompt": "x", "suffix": "y"}, 400, '"tiny" does not support insert'),
    (
        "/api/chat",
        {"model": "plain", "messages": USER, "tools": [TOOL]},
        400,
        "registry.ollama.ai/library/plain:latest does not support tools",
    ),
    ("/api/chat", {"model": "tiny", "messages": USER, "tools": [{}]}, 400, "tools[0] has no function with a name"),
    (
        "/api/chat",
        {
            "model": "tiny",
            "messages": USER,
            "tools": [{"function": {"name": "f", "parameters": [1]}}],
            "format": "json",
        },
        400,
        "tools[0].function.parameters must be a JSON schema",
    ),
    ("/api/generate", {"model": "tiny", "prompt": "x", "format": "yaml"}, 400, "invalid format: 'yaml'; expected"),
    ("/api/generate", {"model": "tiny", "prompt": "x", "format": 1}, 400, "invalid format: 1; expected"),
    ("/api/generate", {"model": "tiny", "prompt": "x", "images": ["aGk="]}, 400, '"tiny" does not support images'),
    ("/api/generate", {"model": "tiny", "prompt": "x", "options": {"temperature": "hot"}}, 400, 'option "temperature"'),
    ("/api/generate", {"model": "tiny", "prompt": "x", "options": {"top_k": True}}, 400, 'option "top_k"'),
    (
        "/api/generate",
        {"model": "tiny", "prompt": "x", "keep_alive": "300"},
        400,
        'keep_alive cannot be read: time: missing unit in duration "300"; give a number of seconds, or a duration such '
        'as "5m"',
    ),
    ("/api/chat", {"model": "tiny", "keep_alive": "soon"}, 400, "keep_alive cannot be read: time: invalid duration"),
    ("/api/generate", {"model": "tiny", "prompt": "x", "context": [-1]}, 400, "context holds -1"),
    ("/api/generate", {"model": "tiny", "prompt": "x", "context": [259]}, 400, "context holds 259"),
    ("/api/chat", {"model": "tiny", "messages": [{"role": "boss", "content": "x"}]}, 400, 'the role "boss"'),
    ("/api/generate", {"model": 1}, 400, "invalid request: field model: expected str, got int"),
    ("/api/embeddings", {"model": "nope", "prompt": "x"}, 404, "model 'nope' not found"),
]


@pytest.mark.parametrize(("path", "body", "status", "error"), REFUSALS)
async def test_refusals(world: World, path: str, body: dict[str, Any], status: int, error: str) -> None:
    response = await world.post(path, **body)
    assert (response.status_code, response.json()["error"][: len(error)]) == (status, error)
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize("value", ["", None])
async def test_an_empty_format_is_none(world: World, value: str | None) -> None:
    assert (await world.whole("/api/generate", model="tiny", prompt="Hi", format=value))["response"] == "Once."


async def test_an_error_after_the_first_chunk_is_the_last_line(world: World) -> None:
    world.answers = [Answer("so far", error=RequestFailed("the model failed while it computed")), Answer()]
    lines = await world.lines("/api/generate", model="tiny", prompt="Hi")
    assert "".join(line.get("response", "") for line in lines) == "so far"
    assert lines[-1] == {"error": "the model failed while it computed"}
    assert not any(line.get("done") for line in lines)
    assert (await world.whole("/api/generate", model="tiny", prompt="Hi"))["done"]


async def test_an_error_before_the_first_chunk_has_a_status(world: World) -> None:
    world.answers = [Answer("", finish_reason="length", error=RequestFailed("out of memory", "memory"))]
    response = await world.post("/api/generate", model="tiny", prompt="Hi")
    assert (response.status_code, response.json()) == (500, {"error": "out of memory"})


async def test_a_load_that_fails(world: World) -> None:
    world.prepare = lambda engine: setattr(
        engine, "load_error", LoadFailed("the weights need 9 GB, 4 are free", "memory")
    )
    response = await world.post("/api/generate", model="tiny", prompt="Hi")
    assert (response.status_code, response.json()) == (500, {"error": "the weights need 9 GB, 4 are free"})
    assert world.engine.closed.is_set()
    world.prepare = lambda engine: None
    assert (await world.whole("/api/generate", model="tiny", prompt="Hi"))["response"] == "Once."


async def test_slow_readers_get_several_tokens_in_a_chunk(world: World) -> None:
    world.answers = [Answer("abcdefgh", tokens_per_step=4)]
    lines = await world.lines("/api/generate", model="tiny", prompt="Hi")
    assert [line["response"] for line in lines] == ["abcd", "efgh", ""]


async def test_ollamas_curl_examples_work(world: World) -> None:
    """curl -d announces a form and sends JSON."""
    body = json.dumps({"model": "tiny", "prompt": "Hi", "stream": False})
    headers = {"content-type": "application/x-www-form-urlencoded"}
    response = await world.http.post("/api/generate", content=body, headers=headers)
    assert response.json()["response"] == "Once."
