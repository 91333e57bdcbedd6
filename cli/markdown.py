"""Markdown: an answer's Markdown as a person reads it, line by line while it arrives.

What has been written is never changed, so it does not matter how much of it has scrolled away: a word is written when
it is whole, a mark when its end is known (cli/markdown_inline.py), a line of code when it is complete, and a table
when it is over; until then one line says that a table is coming. Line breaks of the source stay, and without marks
text is what cli/wordwrap.py makes of it.

Called by cli/render.py, for terminals only. Pure: pieces of text in, text with SGR sequences out.
Source: CommonMark 0.31 and GitHub's tables, as models write them; less headings underlined with "===", links by
reference, and HTML.
"""

from __future__ import annotations

import re

from cli.flow import Flow, Span, sgr
from cli.markdown_code import CodeBlock
from cli.markdown_inline import FAINT, Inline, spans_of
from cli.markdown_lines import FENCE, quote_length, read_line, undecided
from cli.markdown_table import is_table, table_text

TABLE_ROWS = 100
"""A table that is longer is shown in parts."""
ERASE_LINE = "\r\x1b[K"


class Markdown:
    """The state of one answer.

    Args:
        columns: the terminal's width; None breaks no lines.
    """

    def __init__(self, columns: int | None) -> None:
        self._columns = columns
        self._flow = Flow(columns)
        self._line = ""
        """The current line, until it is known what it is."""
        self._inline: Inline | None = None
        """The marks of the current line, once it is known."""
        self._fence = ""
        """What opened the block of code that we are in."""
        self._code = CodeBlock("")
        self._table: list[str] = []
        self._in_list = False

    def feed(self, text: str) -> str:
        """What to write for the next piece."""
        return "".join(
            self._end_line() if part == "\n" else self._more(part) for part in re.split("(\n)", text) if part
        )

    def close(self) -> str:
        """What was held back, at the end of the answer, whose last line stays open."""
        rest = self._end_line().removesuffix("\n") if self._line or self._inline else ""
        return rest + self._end_table().removesuffix("\n")

    def _more(self, text: str) -> str:
        if self._inline:
            return self._flow.add(self._inline.feed(text))
        self._line += text
        if self._fence or self._is_row() or self._may_be_fence() or undecided(self._line):
            return ""
        return self._end_table() + self._begin()

    def _end_line(self) -> str:
        line, written = self._line, ""
        if self._inline is None:
            if self._fence:
                self._line = ""
                return self._code_line(line) + "\n"
            if self._is_row():
                self._line = ""
                return self._row(line)
            written = self._end_table()
            if self._may_be_fence() and (found := FENCE.fullmatch(line, quote_length(line))):
                self._line = ""
                self._fence, self._code = found.group(1), CodeBlock(found.group(2))
                return written + _faint(line) + "\n"
            written += self._begin()
        assert self._inline is not None
        written += self._flow.add(self._inline.end()) + self._flow.end()
        self._inline = None
        return written + "\n"

    def _begin(self) -> str:
        """It is known what the current line is: start it, and show what there is of it."""
        line = read_line(self._line, in_list=self._in_list)
        if line.text.strip() or line.item:  # an empty line does not end a list, nor does one that is indented
            self._in_list = line.item or (self._in_list and self._line[0].isspace())
        self._line = ""
        self._inline = Inline(line.style, literal=line.literal)
        return self._flow.begin(line.first, line.hanging) + self._flow.add(self._inline.feed(line.text))

    # ---- blocks

    def _may_be_fence(self) -> bool:
        return self._line[quote_length(self._line) :].lstrip().startswith(("```", "~~~"))

    def _code_line(self, line: str) -> str:
        bare = line[quote_length(line) :].strip()
        if bare.startswith(self._fence) and not bare.strip(self._fence[0]):
            self._fence = ""
            return _faint(line)
        return self._code.line(line)

    def _is_row(self) -> bool:
        return self._line.lstrip().startswith("|")

    def _row(self, line: str) -> str:
        self._table.append(line)
        if len(self._table) == TABLE_ROWS:
            head = self._table[:2]
            written = self._end_table()
            self._table = head if is_table(head) else []
            return written
        return ERASE_LINE + _faint(f"table, line {len(self._table)}"[: self._columns])

    def _end_table(self) -> str:
        """The table, with a newline at its end; lines with bars that are none are text."""
        lines, self._table = self._table, []
        if not lines:
            return ""
        if is_table(lines):
            return ERASE_LINE + table_text(lines, self._columns) + "\n"
        return ERASE_LINE + "".join(self._text_line(line) for line in lines)

    def _text_line(self, text: str) -> str:
        line = Flow(self._columns)
        return line.add(spans_of(text)) + line.end() + "\n"


def _faint(text: str) -> str:
    return sgr([Span(text, FAINT)])
