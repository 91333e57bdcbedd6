"""Answer: writes a streamed answer to stdout; and the table of timings that --verbose writes to stderr.

On a terminal Markdown is rendered, lines break between words, thoughts are faint, and control characters are dropped,
because a model's output must not be able to move the cursor or set the window's title. Anywhere else every byte goes
out as it came.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

from cli.markdown import Markdown
from cli.terminal import has_cursor, has_styles
from cli.wordwrap import WordWrap
from modelfiles.durations import format_duration

FAINT, PLAIN = "\x1b[2m", "\x1b[0m"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
LABEL_COLUMNS = 22


class Metrics(Protocol):
    """What the last chunk of an answer tells; durations in nanoseconds, 0 where unknown."""

    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int


@dataclass
class Display:
    """How answers are shown, as the command line or /set says."""

    wordwrap: bool = True
    """Break lines between words, on a terminal."""
    markdown: bool = True
    """Render Markdown, on a terminal."""
    hide_thinking: bool = False
    verbose: bool = False
    """Timings after each answer."""


class Answer:
    """One answer on its way to the reader.

    Args:
        markdown: whether the answer may be Markdown; JSON is not, whatever the display says.
    """

    def __init__(self, out: TextIO, display: Display, *, markdown: bool = True) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._styles = has_styles(out)
        columns = shutil.get_terminal_size().columns if display.wordwrap and has_cursor(out) else None
        self._wrap = WordWrap(columns) if columns else None
        self._markdown = Markdown(columns) if self._styles and display.markdown and markdown else None
        self._hide_thinking = display.hide_thinking
        self._thinking = False
        self._begun = False
        self._mid_line = False

    def thinking(self, text: str) -> None:
        """The next piece of the model's thoughts."""
        if not text or self._hide_thinking:
            return
        if not self._thinking:
            self._thinking = True
            self._write((FAINT if self._styles else "") + "Thinking...\n")
        self._write(self._wrapped(text))

    def content(self, text: str) -> None:
        """The next piece of the answer."""
        if text:
            self._end_thinking()
            self._mid_line = not text.endswith("\n")
            self._write(self._markdown.feed(self._safe(text)) if self._markdown else self._wrapped(text))

    def note(self, text: str) -> None:
        """Something of ours in the middle of it, on a line of its own."""
        self._end_thinking()
        self._write(self._close() + self._wrapped("\n" * self._mid_line + text))
        self._mid_line = True

    def end(self) -> None:
        """Two newlines: the last line's end, and a blank line before whatever comes next. Rendered Markdown has its own
        where it ends a block of code or a table.
        """
        self._end_thinking()
        is_open = self._mid_line or not self._markdown or not self._begun
        self._write(self._close() + "\n" + "\n" * is_open)

    def break_off(self) -> None:
        """It ends before its end: leave the terminal as it should be, at the start of a line."""
        if self._begun:
            self._write(self._close() + (PLAIN if self._thinking and self._styles else "") + "\n")

    def _end_thinking(self) -> None:
        if self._thinking:
            self._thinking = False
            self._write(self._wrapped("\n...done thinking.\n\n") + (PLAIN if self._styles else ""))

    def _close(self) -> str:
        return self._markdown.close() if self._markdown else ""

    def _wrapped(self, text: str) -> str:
        return self._wrap.feed(self._safe(text)) if self._wrap else self._safe(text)

    def _safe(self, text: str) -> str:
        return CONTROL.sub("", text) if self._terminal else text

    def _write(self, text: str) -> None:
        self._begun = True
        self._out.write(text)
        self._out.flush()


def tool_call(name: str, arguments: object) -> str:
    """What to show where a model calls a function although it was given none."""
    return f"Model called a non-existent function '{name}()' with arguments: {arguments}"


def timings(metrics: Metrics) -> str:
    """The table of --verbose: one line a figure, those that are zero left out."""
    rows = [
        ("total duration", _duration(metrics.total_duration)),
        ("load duration", _duration(metrics.load_duration)),
        ("prompt eval count", _count(metrics.prompt_eval_count)),
        ("prompt eval duration", _duration(metrics.prompt_eval_duration)),
        ("prompt eval rate", _rate(metrics.prompt_eval_count, metrics.prompt_eval_duration)),
        ("eval count", _count(metrics.eval_count)),
        ("eval duration", _duration(metrics.eval_duration)),
        ("eval rate", _rate(metrics.eval_count, metrics.eval_duration)),
    ]
    return "".join(f"{label + ':':<{LABEL_COLUMNS}}{value}\n" for label, value in rows if value)


@contextmanager
def waiting(text: str = "") -> Iterator[None]:
    """A spinner on stderr while nothing can be shown yet; nothing at all where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    # Imported here because rich's live display costs 40 to 60 ms, which only somebody who watches should pay.
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def _duration(ns: int) -> str:
    return format_duration(ns) if ns > 0 else ""


def _count(tokens: int) -> str:
    return f"{tokens} token(s)" if tokens > 0 else ""


def _rate(tokens: int, ns: int) -> str:
    return f"{tokens / ns * 1e9:.2f} tokens/s" if tokens > 0 and ns > 0 else ""
