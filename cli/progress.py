"""show_progress(): the status lines of pull, push and create: bars and spinners on a terminal, plain lines elsewhere.

A status with a digest becomes a bar, one without becomes a spinner that ends when the next status comes. Several bars
get one more below them, for all together. What was there before the first event, because an earlier pull got so far, is
named on the bar and does not count for the rate. Everything goes to stderr, so stdout stays free for results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from cli.human import human_bytes
from daemon.api import ProgressResponse

BAR_COLUMNS = 18
BLOCKS = " ▏▎▍▌▋▊▉█"
"""Eighths of a column."""
TOTAL = "total"
STEP_PERCENT = 20
"""Between two lines about one file, where the output is no terminal."""


Show = Callable[[ProgressResponse], None]


def show_progress(events: Iterable[ProgressResponse]) -> None:
    """Show events until they end. Errors that the events raise pass through, with the terminal in order."""
    with progress_display() as show:
        for event in events:
            show(event)


@contextmanager
def progress_display() -> Iterator[Show]:
    """A display that lasts for the block; what it gives is called with each event."""
    if not sys.stderr.isatty():
        yield Lines().show
        return
    columns = (SpinnerColumn(finished_text=""), StatusColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars = Bars(progress)
        yield bars.show
        bars.end_spinner()


class Lines:
    """Each status once, and of a file that takes long a line every fifth of it: a log has no use for hundreds."""

    def __init__(self) -> None:
        self._status = ""
        self._shown: dict[str, int] = {}
        """Digest -> percent at its last line."""

    def show(self, event: ProgressResponse) -> None:
        if event.digest and event.total:
            self._show_share(event)
        elif event.status != self._status:
            self._write(event.status)
        self._status = event.status

    def _show_share(self, event: ProgressResponse) -> None:
        percent = 100 * event.completed // event.total
        size = human_bytes(event.total)
        if event.digest not in self._shown:
            resumed = f", resumed at {percent}%" if 0 < percent < 100 and _is_download(event) else ""
            self._write(f"{event.status}: {size}{resumed}")
        elif percent // STEP_PERCENT > self._shown[event.digest] // STEP_PERCENT:
            self._write(f"{event.status}: {percent}% of {size}")
        self._shown[event.digest] = max(percent, self._shown.get(event.digest, 0))

    def _write(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


class Bars:
    """A bar for each digest, one for all of them, and one spinner for the status that has none."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}
        self._all: TaskID | None = None
        self._spinner: TaskID | None = None
        self._spinning = ""

    def show(self, event: ProgressResponse) -> None:
        if event.digest:
            self._show_bar(event)
        elif event.status != self._spinning:
            self.end_spinner()
            self._remove_sum()
            self._spinner, self._spinning = self._progress.add_task(event.status, total=None), event.status

    def end_spinner(self) -> None:
        """The status is done: its line stays, and no longer turns."""
        if self._spinner is not None:
            self._progress.update(self._spinner, total=1, completed=1)

    def _show_bar(self, event: ProgressResponse) -> None:
        if event.digest not in self._bars:
            self._remove_sum()  # so that it comes below the new one
            self._bars[event.digest] = self._progress.add_task(
                event.status,
                total=event.total or None,
                completed=event.completed,
                before=event.completed if _is_download(event) else 0,
            )
        self._progress.update(self._bars[event.digest], completed=event.completed, total=event.total or None)
        self._show_sum()

    def _show_sum(self) -> None:
        tasks = [task for task in self._progress.tasks if task.id in self._bars.values() and task.total]
        completed, total = int(sum(task.completed for task in tasks)), sum(task.total or 0 for task in tasks)
        if len(tasks) < 2 or completed == total:
            self._remove_sum()
        elif self._all is None:
            before = sum(task.fields["before"] for task in tasks)
            self._all = self._progress.add_task(TOTAL, total=total, completed=completed, before=before)
        else:
            self._progress.update(self._all, completed=completed, total=total)

    def _remove_sum(self) -> None:
        if self._all is not None:
            self._progress.remove_task(self._all)
            self._all = None


def _is_download(event: ProgressResponse) -> bool:
    """Whether it goes on from where an earlier command ended; other work starts anew."""
    return event.status.startswith("pulling ")


class StatusColumn(ProgressColumn):
    """`label: 42% ▕███▌   ▏ 1.2 GB/2.8 GB  35 MB/s  45s`, or the label alone for a status without a size.

    A file of which a part was there before has `(resumed at 1 GB)` behind it.
    """

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)

    def render(self, task: Task) -> Text:
        if task.total is None or task.total <= 1:
            return Text(task.description)
        line = f"{task.description}: {task.percentage:3.0f}% ▕{bar(task.completed / task.total)}▏ "
        line += f"{human_bytes(int(task.completed))}/{human_bytes(int(task.total))}"
        if not task.finished and task.speed:
            line += f"  {human_bytes(int(task.speed))}/s  {remaining(task.time_remaining)}"
        before = task.fields.get("before", 0)
        if 0 < before < task.total and not task.finished and task.description != TOTAL:
            line += f"  (resumed at {human_bytes(int(before))})"
        return Text(line)


def bar(share: float) -> str:
    """A share of 0 to 1 as a bar whose end is exact to an eighth of a column."""
    eighths = int(min(max(share, 0.0), 1.0) * BAR_COLUMNS * 8)
    full, part = divmod(eighths, 8)
    return (BLOCKS[8] * full + (BLOCKS[part] if part else "")).ljust(BAR_COLUMNS)


def remaining(seconds: float | None) -> str:
    """Time left: "45s", "3m20s", "2h5m"."""
    if seconds is None:
        return ""
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60}m"
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
