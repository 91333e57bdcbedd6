"""table(): rows as left-aligned columns with four spaces between them, the way `list` and `ps` print.

Plain text and no library: the output is read by scripts as often as by people, so it has no lines, no colours and is
never cut to a terminal's width.
"""

from __future__ import annotations

from collections.abc import Sequence

GAP = "    "


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lines, each with its newline and without spaces at its end. Rows may differ in length."""
    num_columns = max((len(row) for row in rows), default=0)
    widths = [max((len(row[i]) for row in rows if i < len(row)), default=0) for i in range(num_columns)]
    lines = (GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)
