"""CodeBlock: the lines of a fenced block of code, coloured by its language one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.syntax import Syntax

WINDOW = 50
"""Lines before a line that are read again to colour it. Lexers begin at a text's start and take about 0.2 ms a line."""
THEME = "ansi_dark"
"""The terminal's own sixteen colours, which a person has chosen to be readable."""


class CodeBlock:
    """One block.

    Args:
        language: the word behind the opening fence; code of a language that nobody knows stays plain.
    """

    def __init__(self, language: str) -> None:
        self._syntax = _syntax(language)
        self._lines: list[str] = []

    def line(self, text: str) -> str:
        """The line in colours. It is not broken: the terminal does that, so that who copies it gets one line."""
        self._lines = [*self._lines[-WINDOW:], text]
        return _coloured(self._syntax, self._lines) if self._syntax and text.strip() else text


def _syntax(language: str) -> Syntax | None:
    if not language:
        return None
    # Imported here because it costs 60 to 90 ms, which only an answer with code should pay.
    from rich.syntax import Syntax

    syntax = Syntax("", language, theme=THEME, tab_size=0)  # 0 leaves tabs alone: a Makefile needs them
    return syntax if syntax.lexer else None


def _coloured(syntax: Syntax, lines: list[str]) -> str:
    """The last of the lines."""
    from rich.color import ColorSystem  # `_syntax` has paid for these
    from rich.console import Console

    *_, last = syntax.highlight("\n".join(lines)).split("\n")
    return "".join(
        segment.style.render(segment.text, color_system=ColorSystem.STANDARD) if segment.style else segment.text
        for segment in last.render(Console(), end="")
    )
