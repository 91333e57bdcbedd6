"""Answers on a pipe and on a terminal, and the table of timings."""

from __future__ import annotations

import io

import pytest

from cli.render import Answer, Display, timings
from daemon.api import GenerateResponse


@pytest.fixture(autouse=True)
def terminal_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_every_byte_as_it_came() -> None:
    out = io.StringIO()
    answer = Answer(out, Display())
    answer.content("long " * 60)
    answer.content("\x1b[31mred\x07")
    answer.end()
    assert out.getvalue() == "long " * 60 + "\x1b[31mred\x07" + "\n\n"


def test_thoughts_are_framed() -> None:
    out = io.StringIO()
    answer = Answer(out, Display())
    answer.thinking("Let me ")
    answer.thinking("see.")
    answer.content("Four.")
    answer.end()
    assert out.getvalue() == "Thinking...\nLet me see.\n...done thinking.\n\nFour.\n\n"


def test_thoughts_alone_are_closed_at_the_end() -> None:
    out = io.StringIO()
    answer = Answer(out, Display())
    answer.thinking("Hm")
    answer.end()
    assert out.getvalue() == "Thinking...\nHm\n...done thinking.\n\n\n\n"


def test_hidden_thoughts_leave_no_trace() -> None:
    out = io.StringIO()
    answer = Answer(out, Display(hide_thinking=True))
    answer.thinking("Let me see.")
    answer.content("Four.")
    answer.end()
    assert out.getvalue() == "Four.\n\n"


def test_a_terminal_is_safe_from_control_characters() -> None:
    for markdown, tab in ((False, "\t"), (True, "    ")):
        out = Terminal()
        answer = Answer(out, Display(markdown=markdown))
        answer.content("a\x1b]0;title\x07b\x9bc\r\x00\n\td")
        answer.end()
        assert out.getvalue() == f"a]0;titlebc\n{tab}d\n\n"


def test_thoughts_are_faint_on_a_terminal_and_only_there() -> None:
    out = Terminal()
    answer = Answer(out, Display())
    answer.thinking("Hm")
    answer.content("x ")
    assert out.getvalue() == "\x1b[2mThinking...\nHm\n...done thinking.\n\n\x1b[0mx"


def test_an_interrupted_thought_leaves_the_terminal_plain() -> None:
    out = Terminal()
    answer = Answer(out, Display())
    answer.thinking("Hm")
    answer.break_off()
    assert out.getvalue().endswith("\x1b[0m\n")


def test_markdown_is_rendered_on_a_terminal_and_only_there() -> None:
    out, pipe = Terminal(), io.StringIO()
    for stream in (out, pipe):
        answer = Answer(stream, Display())
        answer.content("**Now")
        answer.content("** or `never`.")
        answer.end()
    assert out.getvalue() == "\x1b[1mNow\x1b[0m or \x1b[36mnever\x1b[0m.\n\n"
    assert pipe.getvalue() == "**Now** or `never`.\n\n"


@pytest.mark.parametrize("reason", ["NO_COLOR", "TERM", "flag", "format"])
def test_markdown_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    if reason in ("NO_COLOR", "TERM"):
        monkeypatch.setenv(reason, "dumb")
    out = Terminal()
    answer = Answer(out, Display(markdown=reason != "flag"), markdown=reason != "format")
    answer.content("**Now**")
    answer.end()
    assert out.getvalue() == "**Now**\n\n"


def test_without_colours_thoughts_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    answer = Answer(out, Display())
    answer.thinking("Hm")
    answer.break_off()
    assert out.getvalue() == "Thinking...\nHm\n"


def test_what_markdown_holds_back_is_shown_when_the_answer_breaks_off() -> None:
    out = Terminal()
    answer = Answer(out, Display())
    answer.content("see **this")
    assert out.getvalue() == "see"
    answer.break_off()
    assert out.getvalue() == "see **this\n"


def test_there_is_one_blank_line_behind_an_answer_that_ends_with_a_newline() -> None:
    for text, rest in (("a\n", "\n"), ("a", "\n\n"), ("|a|\n|-|\n|b|\n", "\n"), ("", "\n\n")):
        out = Terminal()
        answer = Answer(out, Display())
        answer.content(text)
        before = len(out.getvalue())
        answer.end()
        assert out.getvalue()[before:].endswith(rest)
        assert not out.getvalue()[before:].endswith("\n" + rest)


def test_a_note_stands_on_a_line_of_its_own() -> None:
    out = io.StringIO()
    answer = Answer(out, Display())
    answer.content("Well.")
    answer.note("one")
    answer.note("two")
    answer.end()
    assert out.getvalue() == "Well.\none\ntwo\n\n"


def test_timings_align_and_leave_out_zeros() -> None:
    metrics = GenerateResponse(
        model="tale", created_at="", response="", done=True, total_duration=1_234_567_891, load_duration=45_600_000,
        prompt_eval_count=0, eval_count=10, eval_duration=500_000_000,
    )  # fmt: skip
    assert timings(metrics) == (
        "total duration:       1.234567891s\n"
        "load duration:        45.6ms\n"
        "eval count:           10 token(s)\n"
        "eval duration:        500ms\n"
        "eval rate:            20.00 tokens/s\n"
    )
