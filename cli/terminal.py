"""What a terminal can show; and keys_kept(), its mode between two prompts, in which keys wait for the next one.

In the mode that a shell leaves behind, the terminal turns Enter (carriage return) into a line feed, which is Ctrl-J to
the prompt: lines typed while a model answers would arrive as one message of several lines.
"""

from __future__ import annotations

import os
import select
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

IFLAG, LFLAG = 0, 3
"""Places in the list of termios.tcgetattr."""


def has_cursor(out: TextIO) -> bool:
    """Whether `out` is a terminal that can move its cursor."""
    return out.isatty() and os.environ.get("TERM") != "dumb"


def has_styles(out: TextIO) -> bool:
    """Whether text may be bold, faint or coloured there. A variable that all programs share forbids it, by
    https://no-color.org.
    """
    return has_cursor(out) and not os.environ.get("NO_COLOR")


def keys_waiting(terminal: TextIO) -> bool:
    """Whether something was typed ahead."""
    return bool(select.select([terminal], [], [], 0)[0])


@contextmanager
def keys_kept(terminal: TextIO) -> Iterator[None]:
    """Until the end: Enter stays Enter, nothing waits for the end of a line, and keys are shown by the prompt that
    takes them instead of in the middle of an answer. Ctrl-C interrupts as ever.

    The prompt's own raw mode begins and ends within this one.
    """
    before = termios.tcgetattr(terminal)
    mode = termios.tcgetattr(terminal)
    mode[IFLAG] &= ~termios.ICRNL
    mode[LFLAG] &= ~(termios.ICANON | termios.ECHO)
    # TCSANOW: what was typed already stays.
    termios.tcsetattr(terminal, termios.TCSANOW, mode)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)
