"""/api/chat with models of several families: PARSER and TEMPLATE say how answers are read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.daemon.conftest import World, add_model
from tests.daemon.fake_engine import Answer
from tests.daemon.tiny_model import write_tiny_model

pytestmark = pytest.mark.anyio

USER = [{"role": "user", "content": "Hi"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "", "parameters": PARAMETERS}}
ARGUMENTS = {"city": "5", "days": 5}
MESSAGES = "{{ range .Messages }}{{ .Role }}: {{ .Content }}{{ .Thinking }}{{ end }}{{ .Tools }}"


async def ask(world: World, words: dict[str, Any], answer: str, **body: Any) -> dict[str, Any]:
    """What the model says, streamed, as one message."""
    await world.lines("/api/create", model="mine", **{"from": "tiny"}, **words)
    world.answers = [Answer(answer)]
    lines = await world.lines("/api/chat", model="mine", messages=USER, **body)
    messages = [line["message"] for line in lines]
    calls = [call["function"] for message in messages for call in message.get("tool_calls", ())]
    return {
        "thinking": "".join(message.get("thinking", "") for message in messages),
        "content": "".join(message["content"] for message in messages),
        "calls": [(call["index"], call["name"], call["arguments"]) for call in calls],
    }


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ({"parser": "ministral"}, f"[TOOL_CALLS]weather[ARGS]{json.dumps(ARGUMENTS)}"),
        (
            {"parser": "qwen3-coder"},
            "<tool_call>\n<function=weather>\n<parameter=city>\n5\n</parameter>\n<parameter=days>\n5\n</parameter>\n"
            "</function>\n</tool_call>",
        ),
        (
            {"parser": "harmony"},
            f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{json.dumps(ARGUMENTS)}",
        ),
        ({"template": f"<start_of_turn>{MESSAGES}"}, "```tool_code\nweather(city='5', days=5)\n```"),
        ({"template": f"<|python_tag|>{MESSAGES}"}, json.dumps({"name": "weather", "parameters": ARGUMENTS})),
    ],
    ids=["mistral", "qwen3-coder", "harmony", "gemma", "llama"],
)
async def test_calls_are_read_in_the_models_form(world: World, words: dict[str, Any], answer: str) -> None:
    assert await ask(world, words, answer, tools=[TOOL]) == {
        "thinking": "",
        "content": "",
        "calls": [(0, "weather", ARGUMENTS)],
    }


async def test_thoughts_are_read_in_the_models_form(world: World) -> None:
    template = "{{ if .Think }}!{{ end }}" + MESSAGES.replace("{{ .Thinking }}", "[THINK]{{ .Thinking }}[/THINK]")
    said = await ask(world, {"template": template}, "[THINK]Hm.[/THINK]Yes.")
    assert said == {"thinking": "Hm.", "content": "Yes.", "calls": []}


async def test_passthrough_leaves_all_in_the_text(world: World) -> None:
    answer = '<tool_call>{"name": "weather"}</tool_call>'
    assert (await ask(world, {"parser": "passthrough"}, answer, tools=[TOOL]))["content"] == answer


async def test_a_template_that_refuses_system_messages_gets_none(world: World, tmp_path: Any) -> None:
    refusing = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    write_tiny_model(tmp_path / "strict", chat_template=refusing, seed=5)
    add_model(world.store, "strict", tmp_path / "strict")
    system = {"role": "system", "content": "Be kind."}
    await world.whole("/api/chat", model="strict", messages=[system, *USER])
    assert world.prompts == ["<user>Be kind.\n\nHi"]
    response = await world.post("/api/chat", model="strict", messages=[system, {"role": "assistant", "content": "x"}])
    assert response.status_code == 400
    assert response.json() == {"error": "the chat template refuses the conversation: System role not supported"}


async def test_a_renderer_without_a_template_is_told_when_the_model_is_used(world: World, tmp_path: Any) -> None:
    write_tiny_model(tmp_path / "bare", chat_template="", seed=6)
    add_model(world.store, "bare", tmp_path / "bare", renderer="qwen3.5")
    response = await world.post("/api/chat", model="bare", messages=USER)
    assert response.status_code == 400
    assert response.json()["error"].startswith('the model names the renderer "qwen3.5", which Hob does not have')
