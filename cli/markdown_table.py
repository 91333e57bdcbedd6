"""Tables of Markdown: which lines are one, and the lines that a terminal shows for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from cli.flow import Span
from cli.markdown_inline import BOLD, spans_of

if TYPE_CHECKING:
    from rich.text import Text

DELIMITER = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*")
CELL_END = re.compile(r"(?<!\\)\|")
BREAK = re.compile(r"<br ?/?>")
STYLES = {"1": "bold", "2": "dim", "3": "italic", "4": "underline", "9": "strike", "36": "cyan"}
"""SGR parameters in rich's words."""


def is_table(lines: Sequence[str]) -> bool:
    """Whether the second line is the rule under a header of as many cells."""
    return (
        len(lines) > 1
        and DELIMITER.fullmatch(lines[1]) is not None
        and len(cells_of(lines[0])) == len(cells_of(lines[1]))
    )


def cells_of(line: str) -> list[str]:
    """The texts between the bars of a line."""
    inner = line.strip().removeprefix("|")
    if inner.endswith("|") and not inner.endswith("\\|"):
        inner = inner[:-1]
    return [cell.strip().replace("\\|", "|") for cell in CELL_END.split(inner)]


def table_text(lines: Sequence[str], columns: int | None) -> str:
    """A whole table, its columns as wide as their texts or as the terminal lets them be. No newline at its end."""
    # Imported here because they cost 50 to 70 ms, which only an answer with a table should pay.
    from rich import box
    from rich.console import Console
    from rich.table import Table

    header, rule, *rows = (cells_of(line) for line in lines)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, form in zip(header, rule, strict=True):
        table.add_column(_text(name, BOLD), justify=alignment(form), overflow="fold")
    for row in rows:
        table.add_row(*(_text(cell) for cell in [*row, *[""] * len(header)][: len(header)]))
    console = Console(
        width=columns or 1000, force_terminal=True, color_system="standard", legacy_windows=False, highlight=False
    )
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n"))


def alignment(rule: str) -> Literal["left", "center", "right"]:
    """What the colons of a cell of the rule say."""
    if rule.endswith(":"):
        return "center" if rule.startswith(":") else "right"
    return "left"


def _text(cell: str, style: str = "") -> Text:
    from rich.text import Text  # as above

    spans: list[Span] = spans_of(BREAK.sub("\n", cell), style)
    return Text.assemble(
        *((text, " ".join(STYLES[code] for code in style.split(";") if code)) for text, style in spans)
    )
