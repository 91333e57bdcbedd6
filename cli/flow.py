"""Flow: styled words set into lines of a terminal, each word written once and when it is whole.

For cli/markdown.py, which knows what a word looks like before it is shown; plain text that is shown character by
character is cli/wordwrap.py. Pure: spans in, text with SGR sequences out.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from cli.wordwrap import MARGIN, TAB, cells

PLAIN = "\x1b[0m"
NEVER_FIRST = frozenset({"Pe", "Pf", "Po", "Mn", "Me", "Cf"})
"""Categories of characters that no line begins with: closing marks, and what belongs to the character before it."""


class Span(NamedTuple):
    """A piece of text in one style."""

    text: str
    style: str = ""
    """SGR parameters with semicolons, e.g. "1;3"; empty is plain."""


def sgr(spans: Iterable[Span]) -> str:
    """The spans with their styles as escape sequences, plain at the end."""
    return "".join(f"\x1b[{span.style}m{span.text}{PLAIN}" if span.style else span.text for span in spans)


class Flow:
    """One line of the source after another, each as many lines of the screen as it takes.

    Args:
        columns: the terminal's width; None never breaks a line.
    """

    def __init__(self, columns: int | None) -> None:
        self._limit = None if columns is None else max(columns - MARGIN, 1)
        self._column = 0
        self._hanging: list[Span] = []
        self._indent = 0
        self._word: list[Span] = []
        self._space: list[Span] = []

    def begin(self, first: list[Span], hanging: list[Span]) -> str:
        """Start a line: what stands before its text, and before the text of the lines that it is broken into."""
        self._column = sum(cells(span.text) for span in first)
        self._indent = sum(cells(span.text) for span in hanging)
        self._hanging = hanging
        if self._limit is not None and self._indent > self._limit // 2:  # a narrow terminal has no room for it
            self._hanging, self._indent = [], 0
        return sgr(first)

    def add(self, spans: Iterable[Span]) -> str:
        """What can be written of the next piece: all but its last word, which may go on."""
        written = []
        for text, style in spans:
            for character in text:
                if character in " \t":
                    written.append(self._place())
                    width = 1 if character == " " else TAB - (self._column + len(self._space)) % TAB
                    self._space += [Span(" ", style)] * width
                else:
                    if self._word and breaks_between(self._word[-1].text, character):
                        written.append(self._place())
                    self._word.append(Span(character, style))
        return "".join(written)

    def end(self) -> str:
        """The last word. Spaces at the end of a line are not shown."""
        written = self._place()
        self._space.clear()
        self._column = 0
        return written

    def _place(self) -> str:
        """The word, on this line or the next. One that is longer than a line is left to the terminal, which breaks it
        in a way that leaves it whole for who copies it.
        """
        if not self._word:
            return ""
        width = cells("".join(span.text for span in self._word))
        before = ""
        end = self._column + len(self._space) + width
        if self._limit is not None and self._column > self._indent and end > self._limit:
            before = "\n" + sgr(self._hanging)
            self._column = self._indent
            self._space.clear()
        self._column += len(self._space) + width
        if self._limit is not None and self._column > self._limit:
            self._column %= self._limit + MARGIN
        written = before + joined([*self._space, *self._word])
        self._word.clear()
        self._space.clear()
        return written


def breaks_between(before: str, after: str) -> bool:
    """Whether a line may end between two characters that are no spaces: beside a wide one, as Chinese and Japanese have
    no spaces, but not before what ends a sentence or a bracket, nor behind what opens one.
    """
    if after.isascii() and before.isascii():
        return False
    wide = cells(before) > 1 or cells(after) > 1
    return wide and unicodedata.category(after) not in NEVER_FIRST and unicodedata.category(before) != "Ps"


def joined(spans: Iterable[Span]) -> str:
    """Spans of single characters with one sequence for those that follow each other in one style."""
    runs: list[Span] = []
    for span in spans:
        if runs and runs[-1].style == span.style:
            runs[-1] = Span(runs[-1].text + span.text, span.style)
        else:
            runs.append(span)
    return sgr(runs)
