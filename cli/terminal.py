"""keys_kept(): the terminal's mode between two prompts, in which keys wait unchanged for the next one.

In the mode that a shell leaves behind, the terminal turns Enter (carriage return) into a line feed, which is Ctrl-J to
the prompt: lines typed while a model answers would arrive as one message of several lines.
"""

from __future__ import annotations

import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

IFLAG, LFLAG = 0, 3
"""Places in the list of termios.tcgetattr."""


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
