"""Streamed text broken between words, checked on the screen that a terminal would show."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from cli.wordwrap import WordWrap, cells


def screen(written: str) -> list[str]:
    """What a terminal shows: only the two sequences that WordWrap may use, and newlines."""
    lines: list[str] = [""]
    for part in re.split(r"(\x1b\[\d+D|\x1b\[K|\n)", written):
        if part == "\n":
            lines.append("")
        elif match := re.fullmatch(r"\x1b\[(\d+)D", part):
            left = int(match.group(1))
            while left > 0:
                left -= cells(lines[-1][-1])
                lines[-1] = lines[-1][:-1]
        elif part != "\x1b[K":
            lines[-1] += part
    return lines


def wrap(text: str, columns: int, sizes: list[int] | None = None) -> list[str]:
    wrapper, written, at = WordWrap(columns), "", 0
    for size in sizes or []:
        written += wrapper.feed(text[at : at + size])
        at += size
    return screen(written + wrapper.feed(text[at:]))


def test_a_word_that_does_not_fit_moves_to_the_next_line() -> None:
    assert wrap("the quick brown fox", 12) == ["the quick ", "brown fox"]


def test_a_word_moves_although_its_start_was_shown() -> None:
    wrapper = WordWrap(12)
    shown = wrapper.feed("the quick b")
    assert screen(shown) == ["the quick b"]
    shown += wrapper.feed("r")
    assert screen(shown) == ["the quick ", "br"]
    assert screen(shown + wrapper.feed("own")) == ["the quick ", "brown"]


def test_the_space_at_a_break_is_not_carried_over() -> None:
    assert wrap("aaaa bbbb cccc", 10) == ["aaaa bbbb", "cccc"]


def test_a_word_longer_than_the_line_is_cut() -> None:
    assert wrap("x" * 25, 11) == ["x" * 10, "x" * 10, "x" * 5]


def test_text_without_spaces_breaks_between_wide_characters() -> None:
    assert wrap("狐狸在森林里跑", 9) == ["狐狸在森", "林里跑"]


def test_newlines_of_the_text_stay() -> None:
    assert wrap("one\n\ntwo", 20) == ["one", "", "two"]


@given(
    st.text(alphabet="ab c\n狐é́", max_size=80),
    st.integers(4, 30),
    st.lists(st.integers(1, 7), max_size=20),
)
def test_lines_fit_and_nothing_is_lost(text: str, columns: int, sizes: list[int]) -> None:
    lines = wrap(text, columns, sizes)
    assert all(cells(line) < columns for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace("\n", "").replace(" ", "")
    assert lines == wrap(text, columns)
