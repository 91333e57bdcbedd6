"""Calls of tools in the forms of all families: what is one, what is text, and that no cut changes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.parsers.call_bodies import tool_schemas, typed
from daemon.parsers.families import FAMILIES, PASSTHROUGH, PLAIN, family_of
from daemon.parsers.harmony import HarmonyParser
from daemon.parsers.reading import Reading
from daemon.parsers.selection import call_parser, output_parser
from daemon.parsers.tool_calls import CallParser, ParsedCall, parse_call
from daemon.parsers.values import read_value
from modelfiles.prompt import Message, ToolCall, jinja_prompt_template
from tests.daemon.call_writers import WRITERS
from tests.daemon.parsing import PLACES, cut, random_pieces, read_output, take_calls

ROWS = {row.name: row for row in (*FAMILIES, PLAIN, PASSTHROUGH)}
CALL = '{"name": "f", "arguments": {"x": 1}}'
QUOTED = '"</tool_call>"'
F = ParsedCall("f", {"x": 1})


def parser(family: str, tools: Mapping[str, Mapping[str, Any]] | None = None) -> CallParser:
    return call_parser(ROWS[family], tools or {})


# ---- what real tools are called with, in the words of every family


def bfcl(data_dir: Path) -> Iterator[tuple[list[dict[str, Any]], list[ParsedCall]]]:
    """The tools of a case and the calls that answer it; of the values that are right, the first."""
    for name in ("BFCL_v4_simple_python.json", "BFCL_v4_multiple.json"):
        folder = data_dir / "toolcalls"
        questions = (folder / name).read_text().splitlines()
        answers = (folder / "possible_answer" / name).read_text().splitlines()
        for question, answer in zip(map(json.loads, questions), map(json.loads, answers), strict=True):
            tools = [{"type": "function", "function": function} for function in question["function"]]
            truth = answer["ground_truth"][0]
            yield tools, [ParsedCall(tool, _first(arguments)) for tool, arguments in truth.items()]


def _first(arguments: Mapping[str, list[Any]]) -> dict[str, Any]:
    """A value that may be left out is "" among those that are right."""
    return {key: _plain(values[0]) for key, values in arguments.items() if values and values[0] != ""}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return _first(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("form", WRITERS)
def test_what_a_family_writes_is_read_back(form: str, data_dir: Path) -> None:
    row, write = WRITERS[form]
    random = Random(1)
    cases = list(bfcl(data_dir))
    assert len(cases) == 600
    for (tools, calls), (more_tools, more_calls) in zip(cases, cases[1:] + cases[:1], strict=True):
        both = [*calls, *(more_calls if random.random() < 0.3 else [])]
        read = output_parser(ROWS[row], "", [*tools, *more_tools], parses_thinking=True, parses_tools=True)
        assert read_output(random_pieces(write(both), random), read) == ("", "", tuple(both))


NOT_READ = (
    "Apertus-8B-Instruct",  # {"f": {}}
    "Cohere", "Kimi", "MiniMax", "GigaChat", "DeepSeek-V4", "Solar",  # forms of models that Hob does not run
    "granite-3.3",  # leaves calls of earlier turns out
    "firefunction", "DeepSeek-R1", "deepseek-r1",  # fail on calls of earlier turns, in Transformers too
)  # fmt: skip


def test_what_a_template_writes_of_earlier_calls_is_read_back(data_dir: Path) -> None:
    call = ToolCall("abcdefghi", "get_weather", {"city": "Paris", "days": 3})
    properties = {"city": {"type": "string", "description": "c"}, "days": {"type": "integer", "description": "d"}}
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    tool = {"type": "function", "function": {"name": call.name, "description": "w", "parameters": parameters}}
    question, num_read = Message("user", "What is the weather?"), 0
    for path in sorted((data_dir / "templates/jinja").glob("*.jinja")):
        if any(name in path.stem for name in NOT_READ):
            continue
        template = jinja_prompt_template(path.read_text(), {"bos_token": "<BOS>", "eos_token": "<EOS>"})
        options: dict[str, Any] = {"tools": [tool], "now": datetime(2024, 7, 26), "add_generation_prompt": False}
        answer = template.render([question, Message("assistant", "", tool_calls=(call,))], **options)
        prompts = [template.render([question], **options | {"add_generation_prompt": is_open}) for is_open in (1, 0)]
        prompt = next(prompt for prompt in prompts if answer.startswith(prompt))
        read_calls = output_parser(family_of(template.text), "", [tool], parses_thinking=False, parses_tools=True)
        read = read_output([answer[len(prompt) :]], read_calls)
        assert read.calls == (ParsedCall(call.name, call.arguments),), path.stem
        num_read += 1
    assert num_read > 15


# ---- between tags


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("", "", []),
        ("no call", "no call", []),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", [F]),
        (f"Let me look.\n<tool_call>{CALL}</tool_call>\n", "Let me look.", [F]),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", [F, F]),
        (f"<tool_call>[{CALL}, {CALL}]</tool_call>", "", [F, F]),
        (f"<tool_call>{CALL}", "", [F]),
        ('<tool_call>{"name": "f", "arg', '<tool_call>{"name": "f", "arg', []),
        ("a <tool_call>nonsense</tool_call> and on", "a <tool_call>nonsense</tool_call> and on", []),
        (f"<tool_call>?</tool_call> <tool_call>{CALL}</tool_call>", "<tool_call>?</tool_call>", [F]),
        ("a <tool_c", "a <tool_c", []),
        ("trailing \n", "trailing \n", []),
        (f"<tool_call>{CALL.replace('1', QUOTED)}</tool_call>!", "!", [("f", {"x": "</tool_call>"})]),
        (
            f'<tool_call>{{"name": "f</tool_call> <tool_call>{CALL}</tool_call>',
            '<tool_call>{"name": "f</tool_call>',
            [F],
        ),
        ("<tool_call>{'name': 'f', 'arguments': {'x': True,}}</tool_call>", "", [("f", {"x": True})]),
    ],
)  # fmt: skip
def test_calls_between_tags(text: str, said: str, calls: list[ParsedCall]) -> None:
    assert take_calls([text], parser("hermes")) == (said, calls)
    assert take_calls(list(text), parser("hermes")) == (said, calls)


def test_a_call_is_handed_out_at_its_closing_tag() -> None:
    hermes = parser("hermes")
    assert hermes.push(f"<tool_call>{CALL}</tool_call>").calls == (F,)
    assert hermes.push("\n<tool_call>").calls == ()


def test_closing_tags_in_arguments_are_followed_only_so_far() -> None:
    text = '<tool_call>{"name": "' + "</tool_call>" * 100_000
    assert take_calls([text], parser("hermes")) == (text, [])


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ('{"name": "f"}', ("f", {})),
        ('{"name": "f", "parameters": {"a": null}}', ("f", {"a": None})),
        ('{"name": "f", "arguments": "{\\"a\\": [1]}"}', ("f", {"a": [1]})),
        ('{"type": "function", "function": {"name": "f", "arguments": {}}}', ("f", {})),
        ('{"name": "f", "arguments": [1]}', None),
        ('{"name": "", "arguments": {}}', None),
        ('{"name": 1, "arguments": {}}', None),
        ('{"arguments": {}}', None),
        ("[]", None),
        ("null", None),
        ("", None),
        ('{"name": "f", "arguments": {"a": NaN}}', None),
        ('{"name": "f", "arguments": {"a": 1e999}}', None),
        ('{"name": "f", "arguments": {"a": \'1\'} x', None),
        ("[" * 100_000, None),
        ("{'a':" * 100_000, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_a_call(body: str, call: tuple[str, object] | None) -> None:
    assert parse_call(body) == call


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("<function=f>\n<parameter=x>\n1\n</parameter>\n</function>", [F]),
        ("<function=f>\n</function>", [("f", {})]),
        ("<function=f>\n<parameter=x>\na\n\n</parameter>\n</function>", [("f", {"x": "a\n"})]),
        ("<function=f><parameter=x></tool_call></parameter></function>", [("f", {"x": "</tool_call>"})]),
        ("<function=f><parameter=x></parameter>.</parameter></function>", [("f", {"x": "</parameter>."})]),
        ("<function=f><parameter=x>1</function>", []),
        ("<function=f> and so on </function>", []),
        ("function f", []),
    ],
)  # fmt: skip
def test_qwen3_coders_calls(text: str, calls: list[ParsedCall]) -> None:
    whole = f"<tool_call>\n{text}\n</tool_call>"
    assert take_calls(list(whole), parser("qwen3-coder")) == ("" if calls else whole, calls)


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", {"type": "integer"}, 5),
        ("5.0", {"type": "integer"}, 5),
        ("5", {"type": "string"}, "5"),
        ("5", {}, 5),
        ("5", {"type": ["string", "integer"]}, 5),
        ("5", {"type": "array"}, "5"),
        ("five", {"type": "integer"}, "five"),
        ("True", {"type": "boolean"}, True),
        ("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ("none", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "none"),
        ('{"a": [1]}', {"type": "object"}, {"a": [1]}),
        ('"quoted"', {}, '"quoted"'),
        ("2", {"enum": ["1", "2"]}, "2"),
        ("1", {"type": "any"}, 1),
        ("1", "no schema", 1),
    ],
)
def test_texts_are_what_their_schema_says(text: str, schema: Any, value: object) -> None:
    assert typed(text, schema) == value
    assert type(typed(text, schema)) is type(value)


def test_tools_that_are_none_count_for_nothing() -> None:
    tools = [1, {}, {"function": 1}, {"function": {"name": 2}}, {"function": {"name": "f", "parameters": []}}]
    assert tool_schemas(tools) == {"f": {}}


# ---- one after another


@pytest.mark.parametrize(
    ("family", "text", "said", "calls"),
    [
        ("llama", "", "", []),
        ("llama", "no call {}", "no call {}", []),
        ("llama", f" \n{CALL}\n", "", [F]),
        ("llama", f"<|python_tag|>{CALL}; {CALL}", "", [F, F]),
        ("llama", f"[{CALL}]", "", [F]),
        ("llama", '{"name": "f", "arguments": {"x": "}]\\\\\\""}}', "", [("f", {"x": '}]\\"'})]),
        ("llama", f"{CALL} and more", "and more", [F]),
        ("llama", '{"city": "Paris"} is', '{"city": "Paris"} is', []),
        ("llama", f'[{CALL}, {{"a": 1}}]', '{"a": 1}]', [F]),
        ("llama", CALL[:20], CALL[:20], []),
        ("llama", "[1, 2] are", "[1, 2] are", []),
        ("llama", "[Note: f(x=1)]", "[Note: f(x=1)]", []),
        ("llama", "[f(1)](link)", "[f(1)](link)", []),
        ("llama", "[f(x=1), g.h(y='it\\'s', z=[None, -1.5])] ", "", [F, ("g.h", {"y": "it's", "z": [None, -1.5]})]),
        ("llama", 'Hm.\n<|python_tag|>search.call(query="x")', "Hm.", [("search", {"query": "x"})]),
        ("llama", "<|python_tag|>import os", "<|python_tag|>import os", []),
        ("mistral", "[TOOL", "[TOOL", []),
        ("mistral", f"a [TOOL_CALLS] [{CALL}, {CALL}]", "a", [F, F]),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]f{"x": 1} b', "b", [F, F]),
        ("mistral", "[TOOL_CALLS]oops [TOOL_CALLS]f[ARGS]{}", "[TOOL_CALLS]oops", [("f", {})]),
        ("mistral", "a [TOOL_CALLS] b", "a [TOOL_CALLS] b", []),
        ("mistral", "[TOOL_CALLS][]", "[TOOL_CALLS][]", []),
        ("mistral", CALL, CALL, []),
        ("phi-4", f"<|tool_call|>[{CALL}]<|/tool_call|> b", "b", [F]),
        ("phi-4", "<|tool_call|>[]<|/tool_call|>", "<|tool_call|>[]<|/tool_call|>", []),
        ("gemma", 'Look:\n```json\n{"a": 1}\n```\n', 'Look:\n```json\n{"a": 1}\n```\n', []),
        ("gemma", "```python\nf(x=1)\n```", "```python\nf(x=1)\n```", []),
    ],
)
def test_calls_one_after_another(family: str, text: str, said: str, calls: list[ParsedCall]) -> None:
    assert take_calls([text], parser(family)) == (said, calls)
    assert take_calls(list(text), parser(family)) == (said, calls)


def test_each_call_of_a_list_is_handed_out_at_its_end() -> None:
    mistral = parser("mistral-list")
    assert mistral.push(f"[TOOL_CALLS] [{CALL}").calls == (F,)
    assert mistral.push(f", {CALL[:-1]}").calls == ()
    assert mistral.push("}").calls == (F,)


def test_json_without_a_mark_is_a_call_only_of_a_tool_that_is_there() -> None:
    tools: dict[str, Mapping[str, Any]] = {"g": {}}
    assert take_calls([CALL], parser("llama", tools)) == (CALL, [])
    assert take_calls([f"<|python_tag|>{CALL}"], parser("llama", tools)) == ("", [F])
    assert take_calls(["[g()]"], parser("llama", tools)) == ("", [("g", {})])


FRAGMENTS = [
    "[TOOL_CALLS]", "[TOOL", "_CALLS]", "[ARGS]", "<tool_call>", "</tool_call>", "<|tool_call|>", "```json", "```",
    CALL, CALL[:9], CALL[9:], "f(", "x=1", ")", " ", "\n", "; ", "[", "]", '"', "'", "{", "}", "a", "<", "é🦊",
]  # fmt: skip


@given(
    st.sampled_from(sorted(ROWS.keys() - {"passthrough", "harmony"})),
    st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join),
    PLACES,
)
def test_any_cut_gives_the_same_and_text_without_calls_stays_as_it_is(
    family: str, text: str, places: list[int]
) -> None:
    said, calls = take_calls([text], parser(family))
    assert take_calls(cut(text, places), parser(family)) == (said, calls)
    if not calls:
        assert said == text


def test_long_arguments_cost_as_much_as_they_are_long() -> None:
    # Token by token; a scan that began anew with each would look at 10^10 characters.
    for family, begin, end in (
        ("llama", '{"name": "f", "parameters": {"x": "', '"}}'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "', '"}}</tool_call>'),
        ("qwen3-coder", "<tool_call><function=f><parameter=x>", "</parameter></function></tool_call>"),
    ):
        said, calls = take_calls([begin, *["word "] * 30_000, end], parser(family))
        assert not said
        assert len(calls[0].arguments["x"]) == 150_000


# ---- harmony

ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
COMMENTARY = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}'


@pytest.mark.parametrize(
    ("text", "thinking", "said", "calls"),
    [
        ("<|channel|>final<|message|>Hi.", "", "Hi.", []),
        (f"{ANALYSIS}<|channel|>final<|message|>Hi.<|return|>", "Hm.", "Hi.", []),
        (f"{ANALYSIS}{COMMENTARY}", "Hm.", "", [F]),
        (f"{ANALYSIS}{COMMENTARY}<|call|>", "Hm.", "", [F]),
        (' to=functions.f<|channel|>commentary json<|message|>{"x": 1}', "", "", [F]),
        (f"{COMMENTARY}<|end|><|start|>assistant{COMMENTARY}", "", "", [F, F]),
        ("<|channel|>commentary to=functions.f<|message|>", "", "", [("f", {})]),
        ("<|channel|>commentary to=functions.f<|message|>oops", "", "oops", []),
        ("<|channel|>analysis to=python<|message|>1 + 1<|call|>", "1 + 1", "", []),
        (f"{ANALYSIS.replace('analysis', 'commentary')}<|channel|>final<|message|>So.", "", "Hm.\nSo.", []),
        (f"{ANALYSIS}{ANALYSIS}<|channel|>final<|message|>So.", "Hm.\nHm.", "So.", []),
        ("Hello", "", "Hello", []),
        ("t", "", "t", []),
        ("<|channel|>fin", "", "", []),
        ("<|channel|>analysis<|message|>a < b <|e", "a < b <|e", "", []),
        ("<|channel|>" + "x " * 400, "", "<|channel|>" + "x " * 400, []),
        ("<|message|>Hi.", "", "Hi.", []),
        ("", "", "", []),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_harmony(text: str, thinking: str, said: str, calls: list[ParsedCall]) -> None:
    for pieces in ([text], list(text)):
        assert read_output(pieces, HarmonyParser("<|start|>assistant")) == (thinking, said, tuple(calls))


@pytest.mark.parametrize(
    ("prompt", "text", "read"),
    [
        ("", "<|start|>assistant<|channel|>final<|message|>Hi.", ("", "Hi.", ())),
        ("<|start|>assistant<|channel|>final<|message|>Once", " upon", ("", " upon", ())),
        ("<|start|>assistant<|channel|>analysis<|message|>", "Hm.<|end|>", ("Hm.", "", ())),
        ("<|start|>user<|message|>Hi<|end|>", "<|start|>assistant<|message|>So.", ("", "So.", ())),
    ],
)
def test_harmony_goes_on_where_the_prompt_ends(prompt: str, text: str, read: Reading) -> None:
    assert read_output(list(text), HarmonyParser(prompt)) == read


def test_harmony_without_tools_leaves_no_call() -> None:
    assert read_output([COMMENTARY], HarmonyParser(takes_calls=False)) == ("", '{"x": 1}', ())


# ---- values


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))
def test_json_and_python_are_read_back(value: Any) -> None:
    for text in (json.dumps(value), repr(value)):
        assert read_value(text) == value


@given(st.text(alphabet="{}[]()\"'\\,: a1.-eTrueNonx\ud800\n", max_size=30))
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    try:
        json.dumps(read_value(text)).encode()
    except ValueError:
        return


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'\\ud83e\\udd8a'", "🦊"),
        ("'\\ud83e'", "\ufffd"),
        ("'\\x41\\d\\n'", "A\\d\n"),
        ("(1, 2,)", [1, 2]),
        ("{a: 1, 'b': .5, \"c\": +1}", {"a": 1, "b": 0.5, "c": 1}),
    ],
)
def test_loose_values(text: str, value: object) -> None:
    assert read_value(text) == value
