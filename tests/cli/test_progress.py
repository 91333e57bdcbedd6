"""Progress on a terminal: one bar a digest, one spinner a status, in Ollama's form."""

from __future__ import annotations

import io
import re

import pytest

from cli.progress import BAR_COLUMNS, bar, remaining, show_progress
from daemon.api import ProgressResponse


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("share", "drawn"),
    [
        (0, ""), (1, "█" * BAR_COLUMNS), (0.5, "█" * (BAR_COLUMNS // 2)), (2, "█" * BAR_COLUMNS), (-1, ""),
        (1 / BAR_COLUMNS / 2, "▌"),
    ],
)  # fmt: skip
def test_bar(share: float, drawn: str) -> None:
    assert bar(share) == drawn.ljust(BAR_COLUMNS)


def test_remaining() -> None:
    assert [remaining(seconds) for seconds in (None, 0.4, 59, 200, 7500)] == ["", "0s", "59s", "3m20s", "2h5m"]


def test_bars_and_spinners(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    size = {"digest": "sha256:aa", "total": 2_000_000_000}
    show_progress(
        [
            ProgressResponse(status="pulling manifest"),
            ProgressResponse(status="pulling aa", **size),
            ProgressResponse(status="pulling aa", completed=500_000_000, **size),
            ProgressResponse(status="pulling aa", completed=2_000_000_000, **size),
            ProgressResponse(status="success"),
        ]
    )
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    last = [line.strip() for line in plain.replace("\r", "\n").splitlines() if line.strip()][-3:]
    assert last == [
        "pulling manifest",
        f"pulling aa: 100% ▕{'█' * BAR_COLUMNS}▏ 2 GB/2 GB",
        "success",
    ]
