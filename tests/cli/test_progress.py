"""Progress on a terminal: one bar a digest, one spinner a status, in Ollama's form."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from rich.progress import Progress, ProgressSample

from cli.progress import BAR_COLUMNS, Bars, StatusColumn, bar, remaining, show_progress
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


def test_several_files_have_a_sum_below_them(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    aa = {"status": "pulling aa", "digest": "sha256:aa", "total": 1_000_000}
    bb = {"status": "pulling bb", "digest": "sha256:bb", "total": 3_000_000}

    def stop() -> Iterator[ProgressResponse]:
        yield ProgressResponse(**aa)
        yield ProgressResponse(**bb, completed=1_500_000)
        yield ProgressResponse(**aa, completed=500_000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show_progress(stop())
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    last = [line.strip(" ⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏") for line in plain.replace("\r", "\n").splitlines() if line.strip()][-3:]
    assert [line.partition("▕")[0].strip() for line in last] == ["pulling aa:  50%", "pulling bb:  50%", "total:  50%"]
    assert "2 MB/4 MB" in last[2]


def test_what_an_earlier_pull_brought_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(StatusColumn())
    bars = Bars(progress)
    bars.show(ProgressResponse(status="pulling aa", digest="sha256:aa", total=4_000_000, completed=1_000_000))
    task = progress.tasks[0]
    task.start_time, task.stop_time = 0.0, None
    monkeypatch.setattr(task, "get_time", lambda: 10.0)
    task._progress.extend([ProgressSample(1.0, 0), ProgressSample(2.0, 500_000)])
    assert StatusColumn().render(task).plain.endswith("500 KB/s  6s  (resumed at 1 MB)")
