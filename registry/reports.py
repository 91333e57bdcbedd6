"""Work that tells how far it is while it blocks: it runs in a thread, and the caller iterates over its numbers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Report = Callable[[int], None]


class Abandoned(Exception):
    """Raised inside the work when nobody listens any more."""


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def reported(work: Callable[[Report], None], step: int = 1024 * 1024, grace_s: float = 1) -> Iterator[int]:
    """The numbers that `work` reports, `step` apart at least; then its error, where it fails.

    A consumer that leaves makes the work's next report raise Abandoned, and is held up for `grace_s` at most: work that
    waits for a server may take longer to notice, and ends by itself.
    """
    numbers: queue.SimpleQueue[int | _End] = queue.SimpleQueue()
    is_abandoned = threading.Event()
    last = -step

    def report(number: int) -> None:
        nonlocal last
        if is_abandoned.is_set():
            raise Abandoned
        if abs(number - last) >= step:  # a number that falls is news, too
            last = number
            numbers.put(number)

    def run() -> None:
        try:
            work(report)
        except BaseException as error:
            numbers.put(_End(error))
        else:
            numbers.put(_End(None))

    thread = threading.Thread(target=run, name="hob-transfer", daemon=True)
    thread.start()
    try:
        while not isinstance(number := numbers.get(), _End):
            yield number
        if number.error is not None:
            raise number.error
    finally:
        is_abandoned.set()
        thread.join(grace_s)
