"""Ollama's templates over conversations: the three ways of running, what tools look like, and capabilities."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from modelfiles.prompt import Message, TemplateError, ToolCall, go_prompt_template

NOW = datetime(2024, 7, 26)
CHATML = """{{- if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
WEATHER = {
    "type": "function",
    "function": {
        "parameters": {
            "properties": {
                "unit": {"enum": ["c", "f"], "type": "string"},
                "city": {"type": ["string", "null"], "description": "a <city>", "minLength": 1},
                "any": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "string"}}]},
            },
            "required": ["city"],
            "type": "object",
        },
        "description": "Weather & wind",
        "name": "get_weather",
        "strict": True,
    },
}


def render(text: str, *messages: Message, **options: Any) -> str:
    return go_prompt_template(text).render(messages, now=NOW, **options)


def system(text: str) -> Message:
    return Message("system", text)


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


# ---- one turn at a time


def test_the_last_turn_ends_where_the_response_begins() -> None:
    assert render(CHATML, system("S"), user("U")) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )


def test_turns_before_the_last_are_whole() -> None:
    assert render(CHATML, user("a"), assistant("b"), user("c")) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_last_message_of_the_assistant_is_continued() -> None:
    assert render(CHATML, user("a"), assistant("Once")) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nOnce"


def test_a_system_message_in_between_begins_a_turn() -> None:
    text = "[{{ .System }}|{{ .Prompt }}|{{ .Response }}]"
    assert render(text, system("s"), user("a"), system("t"), user("b")) == "[s|a|][t|b|"
    assert render(text, user("a"), assistant("b"), system("t")) == "[|a|b][t||"


def test_a_template_without_response_gets_one() -> None:
    assert render("{{ .Prompt }}", user("a"), assistant("b"), user("c")) == "abc"


def test_the_cut_is_inside_of_a_condition() -> None:
    text = "{{ if .Response }}A{{ end }}<{{ if .Prompt }}{{ .Prompt }}>{{ .Response }}</x>{{ else }}no{{ end }}tail"
    assert render(text, user("a")) == "<a>"
    assert render(text, user("a"), assistant("b"), user("c")) == "A<a>b</x>tail<c>"


def test_neighbours_of_one_role_are_joined() -> None:
    assert render("{{ .Prompt }}:", user("a"), user("b")) == "a\n\nb:"


# ---- the whole conversation


def test_messages() -> None:
    text = "{{ .System }};{{ range $i, $m := .Messages }}{{ $i }}{{ .Role }}={{ $m.Content }};{{ end }}{{ .Response }}"
    messages = [system("s"), system("t"), user("a"), user("b"), Message("tool", "1"), Message("tool", "2"), system("u")]
    assert render(text, *messages) == "s\n\nt\n\nu;0system=s\n\nt;1user=a\n\nb;2tool=1;3tool=2;4system=u;"


def test_fields_of_messages() -> None:
    text = (
        "{{ range .Messages }}{{ .Role }}:{{ .Thinking }}:{{ .ToolName }}:{{ .ToolCallID }}:{{ len .Images }}"
        "{{ range .ToolCalls }}[{{ .ID }} {{ .Function.Index }} {{ .Function.Name }} {{ .Function.Arguments }}"
        "{{ range $k, $v := .Function.Arguments }} {{ $k }}={{ $v }}{{ end }}]{{ json . }}{{ end }};{{ end }}"
    )
    call = ToolCall("c1", "f", {"b": 1, "a": "<x>"})
    rendered = render(
        text,
        Message("assistant", "", thinking="hm", tool_calls=(call,)),
        Message("tool", "r", tool_name="f", tool_call_id="c1"),
    )
    arguments = '{"b":1,"a":"\\u003cx\\u003e"}'
    assert rendered == (
        f"assistant:hm:::0[c1 0 f {arguments} b=1 a=<x>]"
        f'{{"id":"c1","function":{{"index":0,"name":"f","arguments":{arguments}}}}};tool::f:c1:0;'
    )


def test_an_unknown_field_of_a_message_is_an_error() -> None:
    with pytest.raises(TemplateError, match="can't evaluate field Nothing in type Message"):
        render("{{ range .Messages }}{{ .Nothing }}{{ end }}", user("a"))


def test_tools_print_as_ollama_prints_them() -> None:
    function = (
        '{"name":"get_weather","description":"Weather \\u0026 wind","parameters":'
        '{"type":"object","required":["city"],"properties":{"unit":{"type":"string","enum":["c","f"]},'
        '"city":{"type":["string","null"],"description":"a \\u003ccity\\u003e","minLength":1},'
        '"any":{"anyOf":[{"type":"integer"},{"type":"array","items":{"type":"string"}}]}}},"strict":true}'
    )
    text = "{{ .Tools }}|{{ range .Tools }}{{ . }}|{{ json .Function }}{{ end }}{{ range .Messages }}{{ end }}"
    rendered = render(text, user("a"), tools=[WEATHER])
    tool = f'{{"type":"function","function":{function}}}'
    assert rendered == f"[{tool}]|{tool}|{function}"


def test_tools_in_type_script() -> None:
    text = (
        "{{ range .Tools }}{{ .Type }} {{ .Function.Name }}({{ range $k, $v := .Function.Parameters.Properties }}"
        "{{ $k }}: {{ toTypeScriptType $v }} {{ $v.Type }}, {{ end }}){{ .Function.Parameters.Required }}{{ end }}"
        "{{ range .Messages }}{{ end }}"
    )
    assert render(text, user("a"), tools=[WEATHER]) == (
        "function get_weather(unit: string string, city: string | null [string null], any: number | any[] , )[city]"
    )


@pytest.mark.parametrize("tool", [{}, {"function": None}, {"function": {"parameters": {"properties": {"a": 1}}}}])
def test_tools_that_are_none(tool: dict[str, Any]) -> None:
    text = "{{ range .Tools }}{{ .Function.Name }}{{ json . }}{{ end }}{{ range .Messages }}{{ end }}"
    assert render(text, user("a"), tools=[tool]).startswith('{"type":""')


def test_no_tools_are_no_value() -> None:
    assert render("{{ if .Tools }}a{{ else }}b{{ end }}{{ range .Messages }}{{ end }}", user("a")) == "b"


@pytest.mark.parametrize(
    ("think", "expected"),
    [(None, "false  false"), (False, "false  true"), (True, "true  true"), ("high", "true high true")],
)
def test_thinking(think: bool | str | None, expected: str) -> None:
    text = "{{ .Think }} {{ .ThinkLevel }} {{ .IsThinkSet }}{{ range .Messages }}{{ end }}"
    assert render(text, user("a"), think=think) == expected


def test_the_date() -> None:
    assert render("{{ currentDate }} {{ yesterdayDate }}{{ range .Messages }}{{ end }}") == "2024-07-26 2024-07-25"


# ---- generate


def test_generate() -> None:
    template = go_prompt_template(CHATML)
    assert template.render_generate("a", system="s", now=NOW) == render(CHATML, system("s"), user("a"))
    with pytest.raises(TemplateError, match=r"it has no .Suffix"):
        template.render_generate("a", suffix="b", now=NOW)


def test_insert() -> None:
    template = go_prompt_template(
        "{{ if .Suffix }}<PRE> {{ .Prompt }} <SUF>{{ .Suffix }} <MID>{{ else }}{{ .Prompt }}{{ end }}"
    )
    assert template.render_generate("a", suffix="b", system="s", now=NOW) == "<PRE> a <SUF>b <MID>"
    assert template.render_generate("a", now=NOW) == "a"


@pytest.mark.parametrize(
    ("text", "extra"),
    [
        ("{{ .Prompt }}", set()),
        ("{{ if .Tools }}{{ end }}{{ range .Messages }}{{ end }}", {"tools"}),
        ("{{ range $.Tools }}{{ end }}", {"tools"}),
        ("{{ .Suffix }}", {"insert"}),
        ("{{ if and .Think true }}{{ end }}", {"thinking"}),
        ("{{ range .Messages }}{{ if (ne .Thinking ``) }}{{ end }}{{ end }}", {"thinking"}),
        ("{{ define `t` }}{{ .Tools }}{{ end }}", {"tools"}),
        ("{{/* .Tools */}}tools", set()),
    ],
)
def test_capabilities(text: str, extra: set[str]) -> None:
    assert go_prompt_template(text).capabilities == {"completion", *extra}
