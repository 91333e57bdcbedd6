"""The log of a run of benchmarks/gpu.py, through which its processes tell each other what they know, and its table.

Lines of JSON: a case begins, a figure (as report.py writes it), a case ends, a case failed. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_plan import BY_NAME, PEERS_NOTE


class RunLog:
    """The log's file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def begin(self, name: str) -> None:
        self._append({"begin": name})

    def end(self, name: str) -> None:
        self._append({"end": name})

    def fail(self, name: str, error: str) -> None:
        self._append({"failed": name, "error": error})

    def _lines(self, key: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]
        return [line for line in lines if key in line]

    @property
    def begun(self) -> list[str]:
        """Names of the cases that have been begun, in their order."""
        return [line["begin"] for line in self._lines("begin")]

    @property
    def open_case(self) -> str | None:
        """The case that has begun and neither ended nor failed."""
        closed = {line["end"] for line in self._lines("end")} | self.failures.keys()
        return next((name for name in reversed(self.begun) if name not in closed), None)

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """The line of each case that was measured."""
        return {line["case"]: line for line in self._lines("case")}

    @property
    def failures(self) -> dict[str, str]:
        """A sentence for each case that failed."""
        return {line["failed"]: line["error"] for line in self._lines("failed")}


# ---- the table


def table(log: RunLog, *, compares: bool) -> str:
    """A line for each case that was begun, and the failures behind them.

    Args:
        compares: whether peers' figures and targets are of this model and this kind of device.
    """
    head = ("case", "value", "unit", "ceiling", "share", "peer", "target", "")
    rows = [head]
    figures = log.figures
    # A peer's command may have given a case several figures of its own.
    for name in [*(name for name in log.begun if name in BY_NAME), *(name for name in figures if name not in BY_NAME)]:
        rows.append(_row(name, figures.get(name), compares))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(map(_padded, row, widths, range(len(head)))).rstrip() for row in rows]
    lines += [f"{name} failed: {error}" for name, error in log.failures.items()]
    if compares:
        lines.append(PEERS_NOTE)
    return "\n".join(lines) + "\n"


def _row(name: str, line: dict[str, Any] | None, compares: bool) -> tuple[str, ...]:
    unit = BY_NAME[name].unit if name in BY_NAME else ""
    case = BY_NAME.get(name) if compares else None
    peer = "" if case is None or case.peer is None else _number(case.peer)
    if case is not None and case.other_peers:
        peer = f"{peer} ({case.other_peers})"
    target = ""
    if case is not None and case.target is not None:
        target = ("<= " if case.smaller_is_better else ">= ") + _number(case.target)
    if line is None:
        return (name, "failed", unit, "", "", peer, target, "")
    reached = None if case is None else case.reaches(line["value"])
    word = "" if reached is None else "yes" if reached else "no"
    share = "" if line.get("share") is None else f"{line['share']:.3f}"
    ceiling = "" if line.get("ceiling") is None else _number(line["ceiling"])
    return (name, _number(line["value"]), str(line["unit"]), ceiling, share, peer, target, word)


def _number(value: float) -> str:
    """As many digits as the eye wants."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _padded(cell: str, width: int, column: int) -> str:
    """Numbers to the right, words to the left."""
    return cell.rjust(width) if column in (1, 3, 4) else cell.ljust(width)
