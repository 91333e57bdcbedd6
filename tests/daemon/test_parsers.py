"""Thinking tags and tool calls: what a text means does not depend on how it was cut into pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.parsers.json_calls import JSONCallParser
from daemon.parsers.partial import held_back
from daemon.parsers.thinking import ThinkingParser
from daemon.parsers.tool_calls import CallParser, ParsedCall, ToolCallParser, parse_call

# Fragments that meet in every wrong order: whole tags, halves of tags, white space, text, JSON.
THOUGHT_FRAGMENTS = ["<think>", "</think>", "<thi", "nk>", "</", "think>", " ", "\n", "a", "é🦊", "<", ">", "I think"]
CALL = '{"name": "f", "arguments": {"x": 1}}'
CALL_FRAGMENTS = ["<tool_call>", "</tool_call>", "<tool_", "call>", CALL, CALL[:9], CALL[9:], " ", "\n", "text", "<"]


def texts(fragments: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(fragments), max_size=12).map("".join)


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def split_thinking(pieces: list[str], *, inside: bool = False) -> tuple[str, str]:
    parser = ThinkingParser(inside=inside)
    splits = [*(parser.push(piece) for piece in pieces), parser.flush()]
    return "".join(split.thinking for split in splits), "".join(split.answer for split in splits)


def take_calls(pieces: list[str], make: type[CallParser] = ToolCallParser) -> tuple[str, list[ParsedCall]]:
    parser = make()
    outputs = [*(parser.push(piece) for piece in pieces), parser.flush()]
    return "".join(output.text for output in outputs), [call for output in outputs for call in output.calls]


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("", "", ""),
        ("plain", "", "plain"),
        ("<think>\nA fox.\n</think>\n\nYes.", "A fox.", "Yes."),
        (" \n<think>a</think>b", "a", "b"),
        ("<think></think>b", "", "b"),
        ("<think>\n\n</think>\n\nb", "", "b"),
        ("<think>never closed", "never closed", ""),
        ("<think>a </thin", "a </thin", ""),
        ("<think>a</think>", "a", ""),
        ("<thinking>b", "", "<thinking>b"),
        ("say <think>a</think>", "", "say <think>a</think>"),
        ("<think>a</think>b <think>c</think>", "a", "b <think>c</think>"),
        ("  indented", "", "  indented"),
        ("<thi", "", "<thi"),
        ("  ", "", "  "),
        ("<think>a  b</think>c", "a  b", "c"),
    ],
)
def test_thoughts_are_split_from_the_answer(text: str, thinking: str, answer: str) -> None:
    assert split_thinking([text]) == (thinking, answer)
    assert split_thinking(list(text)) == (thinking, answer)


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [("\na fox\n</think>\n\nb", "a fox", "b"), ("a", "a", ""), ("</think>b", "", "b"), ("  ", "", "")],
)
def test_a_prompt_that_opened_the_thought(text: str, thinking: str, answer: str) -> None:
    assert split_thinking(list(text), inside=True) == (thinking, answer)


@given(texts(THOUGHT_FRAGMENTS), st.lists(st.integers(0, 200), max_size=8), st.booleans())
def test_any_cut_gives_the_same_thoughts(text: str, places: list[int], inside: bool) -> None:
    assert split_thinking(cut(text, places), inside=inside) == split_thinking([text], inside=inside)


@given(texts(THOUGHT_FRAGMENTS))
def test_no_visible_character_of_an_answer_is_lost(text: str) -> None:
    thinking, answer = split_thinking([text])
    assert len((thinking + answer).split()) <= len(text.split())
    if not text.lstrip().startswith("<think>"):
        assert (thinking, answer) == ("", text)
    else:
        kept = "".join((thinking + answer).split())
        whole = "".join(text.split()).removeprefix("<think>")
        assert kept in (whole, whole.replace("</think>", "", 1))


def test_thoughts_are_handed_out_as_they_come() -> None:
    parser = ThinkingParser()
    assert parser.push("<think>one ") == ("one", "")
    assert parser.push("two<") == (" two", "")
    assert parser.push("/think>") == ("", "")
    assert parser.push("\n") == ("", "")
    assert parser.push("yes") == ("", "yes")


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("", "", []),
        ("no call", "no call", []),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", [("f", {"x": 1})]),
        (f"Let me look.\n<tool_call>{CALL}</tool_call>\n", "Let me look.", [("f", {"x": 1})]),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", [("f", {"x": 1})] * 2),
        (f"<tool_call>{CALL}", "", [("f", {"x": 1})]),
        ('<tool_call>{"name": "f", "arg', '<tool_call>{"name": "f", "arg', []),
        ("<tool_call>nonsense</tool_call> and on", "<tool_call>nonsense</tool_call> and on", []),
        (f"<tool_call>?</tool_call><tool_call>{CALL}</tool_call>", "<tool_call>?</tool_call>", [("f", {"x": 1})]),
        ("a <tool_c", "a <tool_c", []),
        ("trailing \n", "trailing \n", []),
    ],
)
def test_calls_are_taken_out_of_the_text(text: str, said: str, calls: list[tuple[str, dict[str, int]]]) -> None:
    assert take_calls([text]) == (said, calls)
    assert take_calls(list(text)) == (said, calls)


@given(texts(CALL_FRAGMENTS), st.lists(st.integers(0, 400), max_size=8))
def test_any_cut_gives_the_same_calls(text: str, places: list[int]) -> None:
    assert take_calls(cut(text, places)) == take_calls([text])


@given(texts(CALL_FRAGMENTS))
def test_text_without_a_call_comes_out_unchanged(text: str) -> None:
    said, calls = take_calls([text])
    if not calls:
        assert "".join(said.split()) == "".join(text.split())


def test_a_call_is_handed_out_at_its_closing_tag() -> None:
    parser = ToolCallParser()
    assert parser.push(f"<tool_call>{CALL}</tool_call>").calls == (ParsedCall("f", {"x": 1}),)
    assert parser.push("\n<tool_call>").calls == ()


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ('{"name": "f"}', ("f", {})),
        ('{"name": "f", "parameters": {"a": null}}', ("f", {"a": None})),
        ('{"name": "f", "arguments": "{\\"a\\": [1]}"}', ("f", {"a": [1]})),
        ('{"name": "f", "arguments": [1]}', None),
        ('{"name": "", "arguments": {}}', None),
        ('{"name": 1, "arguments": {}}', None),
        ('{"arguments": {}}', None),
        ("[]", None),
        ("null", None),
        ("", None),
        ('{"name": "f", "arguments": {"a": NaN}}', None),
        ("[" * 100_000, None),
    ],
)
def test_what_is_a_call(body: str, call: tuple[str, object] | None) -> None:
    assert parse_call(body) == call


JSON_FRAGMENTS = [
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "[TOOL",
    "_CALLS]",
    CALL,
    CALL[:9],
    CALL[9:],
    " ",
    "; ",
    "[",
    "]",
    '"',
]


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("", "", []),
        ("no call {}", "no call {}", []),
        (CALL, "", [("f", {"x": 1})]),
        (f" \n{CALL}\n", "", [("f", {"x": 1})]),
        (f"<|python_tag|>{CALL}; {CALL}", "", [("f", {"x": 1})] * 2),
        (f"[TOOL_CALLS] [{CALL}, {CALL}]", "", [("f", {"x": 1})] * 2),
        (f"[{CALL}]", "", [("f", {"x": 1})]),
        ('{"name": "f", "arguments": {"x": "}]\\\\\\""}}', "", [("f", {"x": '}]\\"'})]),
        (f"{CALL} and more", "and more", [("f", {"x": 1})]),
        ('{"city": "Paris"} is', '{"city": "Paris"} is', []),
        (f'[{CALL}, {{"a": 1}}]', f'[{CALL}, {{"a": 1}}]', []),
        (CALL[:20], CALL[:20], []),
        ("[TOOL", "[TOOL", []),
        ("[1, 2] are", "[1, 2] are", []),
    ],
)
def test_calls_in_bare_json(text: str, said: str, calls: list[tuple[str, dict[str, object]]]) -> None:
    assert take_calls([text], JSONCallParser) == (said, calls)
    assert take_calls(list(text), JSONCallParser) == (said, calls)


@given(texts(JSON_FRAGMENTS), st.lists(st.integers(0, 400), max_size=8))
def test_any_cut_gives_the_same_bare_calls(text: str, places: list[int]) -> None:
    assert take_calls(cut(text, places), JSONCallParser) == take_calls([text], JSONCallParser)


def test_held_back_is_the_longest_beginning_of_the_tag() -> None:
    assert [held_back(text, "<a<b>") for text in ("", "x", "<", "<a", "<a<", "<a<a<", "<a<b>")] == [0, 0, 1, 2, 3, 3, 0]
