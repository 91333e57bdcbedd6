"""Answers on a pipe and on a terminal, and the table of timings."""

from __future__ import annotations

import io

from cli.render import Answer, timings
from daemon.api import GenerateResponse


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_every_byte_as_it_came() -> None:
    out = io.StringIO()
    answer = Answer(out)
    answer.content("long " * 60)
    answer.content("\x1b[31mred\x07")
    answer.end()
    assert out.getvalue() == "long " * 60 + "\x1b[31mred\x07" + "\n\n"


def test_thoughts_are_framed() -> None:
    out = io.StringIO()
    answer = Answer(out)
    answer.thinking("Let me ")
    answer.thinking("see.")
    answer.content("Four.")
    answer.end()
    assert out.getvalue() == "Thinking...\nLet me see.\n...done thinking.\n\nFour.\n\n"


def test_thoughts_alone_are_closed_at_the_end() -> None:
    out = io.StringIO()
    answer = Answer(out)
    answer.thinking("Hm")
    answer.end()
    assert out.getvalue() == "Thinking...\nHm\n...done thinking.\n\n\n\n"


def test_hidden_thoughts_leave_no_trace() -> None:
    out = io.StringIO()
    answer = Answer(out, hide_thinking=True)
    answer.thinking("Let me see.")
    answer.content("Four.")
    answer.end()
    assert out.getvalue() == "Four.\n\n"


def test_a_terminal_is_safe_from_control_characters() -> None:
    out = Terminal()
    answer = Answer(out)
    answer.content("a\x1b]0;title\x07b\x9bc\r\x00\n\td")
    answer.end()
    assert out.getvalue() == "a]0;titlebc\n\td\n\n"


def test_thoughts_are_faint_on_a_terminal_and_only_there() -> None:
    out = Terminal()
    answer = Answer(out)
    answer.thinking("Hm")
    answer.content("x")
    assert out.getvalue() == "\x1b[2mThinking...\nHm\n...done thinking.\n\n\x1b[0mx"


def test_an_interrupted_thought_leaves_the_terminal_plain() -> None:
    out = Terminal()
    answer = Answer(out)
    answer.thinking("Hm")
    answer.break_off()
    assert out.getvalue().endswith("\x1b[0m\n")


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
