"""Thinking tags: what a text means does not depend on how it was cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.parsers.partial import held_back
from daemon.parsers.thinking import ThinkingParser
from tests.daemon.parsing import cut

# Fragments that meet in every wrong order: whole tags, halves of tags, white space, text, JSON.
THOUGHT_FRAGMENTS = ["<think>", "</think>", "<thi", "nk>", "</", "think>", " ", "\n", "a", "é🦊", "<", ">", "I think"]


def texts(fragments: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(fragments), max_size=12).map("".join)


def split_thinking(pieces: list[str], *, inside: bool = False) -> tuple[str, str]:
    parser = ThinkingParser(inside=inside)
    splits = [*(parser.push(piece) for piece in pieces), parser.flush()]
    return "".join(split.thinking for split in splits), "".join(split.answer for split in splits)


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


def test_held_back_is_the_longest_beginning_of_the_tag() -> None:
    assert [held_back(text, "<a<b>") for text in ("", "x", "<", "<a", "<a<", "<a<a<", "<a<b>")] == [0, 0, 1, 2, 3, 3, 0]
