"""What servers that claim to speak Ollama's API get wrong, by raw HTTP. What is not here has its test elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from daemon.model_manager import ManagerConfig
from registry.manifest import Digest
from registry.name import ModelName
from tests.daemon.conftest import World
from tests.daemon.fake_engine import Answer

pytestmark = pytest.mark.anyio

USER = [{"role": "user", "content": "Hi"}]
GO_TURNS = "{{ if .System }}S:{{ .System }} {{ end }}{{ if .Prompt }}U:{{ .Prompt }} {{ end }}A:{{ .Response }};"
GO_THINKING = "{{ range .Messages }}[{{ .Role }}] {{ .Content }} {{ end }}{{ .ThinkLevel }}{{ if .Think }}!{{ end }}"


async def create(world: World, model: str, **body: Any) -> None:
    assert (await world.whole("/api/create", model=model, **{"from": "tiny"}, **body)) == {"status": "success"}


# 1
async def test_replies_are_streams_unless_asked_otherwise(world: World) -> None:
    for path, body in (
        ("/api/generate", {"model": "tiny", "prompt": "Hi"}),
        ("/api/chat", {"model": "tiny", "messages": USER}),
        ("/api/create", {"model": "child", "from": "tiny"}),
        ("/api/pull", {"model": "tale"}),
        ("/api/push", {"model": "tiny"}),
    ):
        for stream in ({}, {"stream": None}, {"stream": True}):
            assert len(await world.lines(path, **body, **stream)) > 1
        response = await world.post(path, **body, stream=False)
        assert response.headers["content-type"] == "application/json; charset=utf-8"
        assert len(response.text.splitlines()) == 1


# 4
async def test_keep_alive(world: World) -> None:
    for keep_alive, expires in (
        (None, "2026-01-01T00:04:59"),
        (90, "2026-01-01T00:01:29"),
        (1.5, "2026-01-01T00:00:01"),
        ("2m", "2026-01-01T00:01:59"),
        (-1, "2255-"),
        ("-1s", "2255-"),
    ):
        await world.whole("/api/generate", model="tiny", prompt="Hi", keep_alive=keep_alive)
        [row] = (await world.http.get("/api/ps")).json()["models"]
        assert row["expires_at"].startswith(expires), keep_alive


# 5
async def test_metrics_of_a_warm_model(world: World) -> None:
    world.answers = [Answer("One."), Answer("Two.", num_cached_tokens=30)]
    cold, warm = [await world.whole("/api/chat", model="tiny", messages=USER) for _ in range(2)]
    assert "prompt_cached_count" not in cold  # what is zero is left out
    assert warm["prompt_cached_count"] == 30
    assert warm["prompt_eval_count"] == cold["prompt_eval_count"] == len(world.engine.prompts[0])
    for reply in (cold, warm):
        assert reply["load_duration"] > 0
        assert all(type(value) is int for key, value in reply.items() if key.endswith(("_duration", "_count")))
        durations = ("load_duration", "prompt_eval_duration", "eval_duration")
        assert reply["total_duration"] >= sum(reply[name] for name in durations)


# 6
async def test_think_reaches_the_template(world: World) -> None:
    await create(world, "thinking", template=GO_THINKING)
    for think, end in (({}, "!"), ({"think": None}, "!"), ({"think": True}, "!"), ({"think": False}, "")):
        await world.whole("/api/chat", model="thinking", messages=USER, **think)
        assert world.prompts[-1] == f"[user] Hi {end}"
    for level in ("low", "medium", "high", "max"):
        await world.whole("/api/generate", model="thinking", prompt="Hi", think=level)
        assert world.prompts[-1] == f"[user] Hi {level}!"
    response = await world.post("/api/chat", model="tiny", messages=USER, think="low")
    assert (response.status_code, response.json()) == (400, {"error": '"tiny" does not support thinking'})


async def test_thoughts_of_turns_before_the_last_question_are_dropped(world: World) -> None:
    """Of clients that send back what they got from a server that left the tags in the content."""
    await create(world, "thinking", template=GO_THINKING)
    old, new = "<think>\nOne?\n</think>\n\nOne.", "<think>Two?</think>Two"
    messages = [*USER, {"role": "assistant", "content": old}, *USER, {"role": "assistant", "content": new}]
    await world.whole("/api/chat", model="thinking", messages=messages, think=False)
    assert world.prompts[-1] == f"[user] Hi [assistant] One. [user] Hi [assistant] {new} "
    await create(world, "plain-turns", template=GO_TURNS)
    await world.whole("/api/chat", model="plain-turns", messages=messages[:3])
    assert old in world.prompts[-1]


async def test_a_template_may_open_the_thought_itself(world: World) -> None:
    await create(world, "opener", template="{{ .Prompt }}{{ if .Think }}<think>\n{{ end }}{{ .Response }}")
    world.answers = [Answer("Hm.\n</think>\nYes."), Answer("Yes.")]
    reply = await world.whole("/api/chat", model="opener", messages=USER)
    assert reply["message"] == {"role": "assistant", "content": "Yes.", "thinking": "Hm."}
    reply = await world.whole("/api/chat", model="opener", messages=USER, think=False)
    assert reply["message"] == {"role": "assistant", "content": "Yes."}


# 8
class TestContextLength:
    """The request's, else the Modelfile's, else the setting, else Hob's own; never more than the model knows."""

    @pytest.fixture
    def manager_config(self) -> ManagerConfig:
        return replace(ManagerConfig(), context_length=100)

    async def test_who_decides(self, world: World) -> None:
        world.prepare = lambda engine: setattr(engine, "max_context", 10_000)
        await create(world, "short", parameters={"num_ctx": 50})
        for model, options, expected in (
            ("tiny", {}, 100),
            ("short", {}, 50),
            ("short", {"num_ctx": 70}, 70),
            ("tiny", {"num_ctx": 70.0}, 70),
            ("tiny", {"num_ctx": None}, 100),
            ("tiny", {"num_ctx": 100_000}, 512),  # max_position_embeddings
            ("tiny", {"num_ctx": 1}, 4),
        ):
            await world.whole("/api/generate", model=model, prompt="x", raw=True, options=options)
            assert world.engine.params[-1].max_context == expected, (model, options)
        rows = (await world.http.get("/api/ps")).json()["models"]
        assert {row["context_length"] for row in rows} == {100}


async def test_no_option_reloads_a_model(world: World) -> None:
    """In Ollama each of these starts a new runner, so that two clients with different ones undo each other's work."""
    for options in (
        {"num_ctx": 64}, {"num_ctx": 128}, {"num_batch": 8}, {"num_gpu": 0}, {"num_gpu": 99}, {"main_gpu": 0},
        {"use_mmap": False}, {"num_thread": 3}, {"draft_num_predict": 1},
    ):  # fmt: skip
        await world.whole("/api/generate", model="tiny", prompt="Hi", options=options)
    await world.whole("/api/generate", model="tiny", prompt="Hi", shift=False)
    [engine] = world.engines
    assert len(engine.loads) == 1
    assert len(engine.prompts) == 10


# 9
async def test_ids_are_of_manifests_and_blobs_are_named_with_a_dash(world: World) -> None:
    await create(world, "hot", parameters={"temperature": 1.5})
    await world.post("/api/copy", source="tiny", destination="twin")
    await world.whole("/api/generate", model="hot", prompt="Hi")
    rows = {row["name"]: row for row in (await world.http.get("/api/tags")).json()["models"]}
    assert rows["hot:latest"]["digest"] != rows["tiny:latest"]["digest"] == rows["twin:latest"]["digest"]
    [running] = (await world.http.get("/api/ps")).json()["models"]
    assert running["digest"] == rows["hot:latest"]["digest"]
    path = world.store.manifests.joinpath(*ModelName("hot").path_parts)
    assert Digest.of(path.read_bytes()).hex == running["digest"]
    assert all(file.name.startswith("sha256-") for file in world.store.blobs.iterdir())


# 10
async def test_names_are_echoed_as_written_and_listed_in_full(world: World) -> None:
    for name in ("TINY", "tiny:LATEST", "library/tiny", "registry.ollama.ai/library/tiny:latest"):
        for path, body in (("/api/generate", {"prompt": "Hi"}), ("/api/chat", {"messages": USER}), ("/api/chat", {})):
            reply = await world.post(path, model=name, **body)
            assert {json.loads(line)["model"] for line in reply.text.splitlines()} == {name}
    [row] = (await world.http.get("/api/ps")).json()["models"]
    assert (row["name"], row["model"]) == ("tiny:latest", "tiny:latest")
    for name in ("No-Such", "no/such:1b"):
        for path, error in (("/api/generate", "model '{}' not found"), ("/api/show", "model '{}' not found")):
            response = await world.post(path, model=name)
            assert (response.status_code, response.json()) == (404, {"error": error.format(name)})
        response = await world.http.request("DELETE", "/api/delete", json={"model": name})
        assert response.json() == {"error": f"model '{name}' not found"}
        response = await world.post("/api/copy", source=name, destination="x")
        assert response.json() == {"error": f'model "{name}" not found'}


# 11
async def test_a_call_that_is_none_ends_as_text_and_wedges_nothing(world: World) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    world.answers = [Answer('Well <tool_call>{"name": </tool_call> so', tokens_per_step=3), Answer("<tool_call>{")]
    for expected in ('Well <tool_call>{"name": </tool_call> so', "<tool_call>{"):
        *chunks, last = await world.lines("/api/chat", model="tiny", messages=USER, tools=[tool])
        assert "".join(line["message"]["content"] for line in chunks) == expected
        assert (last["done"], last["done_reason"]) == (True, "stop")


async def test_properties_of_tools_reach_the_template_in_their_order(world: World) -> None:
    properties = {name: {"type": ["string", "null"]} for name in ("zebra", "apple", "mango")}
    function = {"name": "f", "description": "", "parameters": {"type": "object", "properties": properties}}
    body = {"model": "tiny", "messages": USER, "tools": [{"type": "function", "function": function}]}
    rendered = (await world.whole("/api/chat", **body, _debug_render_only=True))["_debug_info"]["rendered_template"]
    places = [rendered.index(name) for name in properties]
    assert places == sorted(places)


# 14
async def test_legacy_templates_run_once_a_turn_and_end_where_the_answer_begins(world: World) -> None:
    await create(world, "legacy", template=GO_TURNS, system="Be kind.", messages=[
        {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"},
    ])  # fmt: skip
    await world.whole("/api/chat", model="legacy", messages=USER)
    assert world.prompts[-1] == "S:Be kind. U:1+1? A:2;U:Hi A:"
    await world.whole("/api/chat", model="legacy", messages=[{"role": "system", "content": "Be brief."}, *USER])
    assert world.prompts[-1] == "U:1+1? A:2;S:Be brief. U:Hi A:"
    await world.whole("/api/generate", model="legacy", prompt="Hi")
    assert world.prompts[-1] == "S:Be kind. U:1+1? A:2;U:Hi A:"
    await world.whole("/api/generate", model="legacy", prompt="Hi", context=[65])
    assert world.prompts[-1] == "AS:Be kind. U:Hi A:"  # what went before holds the messages already


# 15
async def test_the_content_type_says_nothing(world: World) -> None:
    for content_type in ("", "text/plain", "application/xml", "application/x-www-form-urlencoded"):
        headers = {"content-type": content_type} if content_type else {}
        response = await world.http.post("/api/show", content=b'{"model":"tiny","x":[]}', headers=headers)
        assert response.status_code == 200
        for path in ("/api/generate", "/api/chat", "/api/show", "/api/create", "/api/pull", "/api/copy"):
            response = await world.http.post(path, content=b"", headers=headers)
            assert (response.status_code, response.json()) == (400, {"error": "missing request body"})


# ---- routes for accounts and the cloud


async def test_there_is_no_cloud(world: World) -> None:
    status = await world.http.get("/api/status")
    assert status.json() == {"cloud": {"disabled": True, "source": "config"}}
    for method, path in (
        ("POST", "/api/me"),
        ("POST", "/api/signout"),
        ("DELETE", "/api/user/keys/abc"),
        ("POST", "/api/experimental/web_search"),
        ("POST", "/api/experimental/web_fetch"),
        ("GET", "/api/experimental/model-recommendations"),
    ):
        response = await world.http.request(method, path)
        assert response.status_code == 403
        assert "Hob has no cloud" in response.json()["error"]


async def test_a_model_that_another_machine_serves_is_refused(world: World) -> None:
    response = await world.post("/api/create", model="far", **{"from": "tiny"}, remote_host="https://ollama.com")
    assert response.status_code == 400
    assert response.json()["error"].startswith("remote_host is set")


async def test_info_says_what_files_do_not(world: World) -> None:
    await create(world, "seer", info={"capabilities": ["vision"], "parameter_size": "9T", "unknown": 1})
    reply = (await world.post("/api/show", model="seer")).json()
    assert reply["capabilities"] == ["completion", "tools", "vision"]
    assert reply["details"]["parameter_size"] == "9T"
    for info in ({"context_length": -1}, {"capabilities": [1]}, {"model_family": 7}):
        response = await world.post("/api/create", model="seer", **{"from": "tiny"}, info=info)
        assert (response.status_code, response.json()["error"][:6]) == (400, "info '")
