"""Screen: a program on a real terminal, tmux, which a test types into and looks at.

tmux runs in its control mode and tells when something was written to the terminal, so that a test that waits for a text
looks again exactly then, and sleeps in between.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

TMUX = shutil.which("tmux")
TIMEOUT_S = 60.0
"""A generous limit for a busy machine; nothing waits for it."""

ENTER, TAB, ESCAPE = "\r", "\t", "\x1b"


def control(letter: str) -> str:
    """Ctrl and a letter."""
    return chr(ord(letter) - ord("a") + 1)


class Screen:
    """One terminal. When the program ends, `[ended STATUS]` stands on it."""

    def __init__(
        self, folder: Path, command: Sequence[str], environ: Mapping[str, str], *, columns: int = 80, rows: int = 24
    ) -> None:
        self._folder = folder
        self._changed = False
        self._buffer = b""
        assert TMUX is not None
        program = shlex.join(command) + '; echo "[ended $?]"; read line'
        self._tmux = subprocess.Popen(
            [TMUX, "-u", "-S", str(folder / "tmux"), "-f", "/dev/null", "-C",
             "new-session", "-x", str(columns), "-y", str(rows), "/bin/sh", "-c", program],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**environ, "TERM": "xterm-256color"}, bufsize=0,
        )  # fmt: skip
        self._reply()  # to new-session
        self._ask(f"refresh-client -C {columns}x{rows}")

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._tmux.stdin is not None
        assert self._tmux.stdout is not None
        self._tmux.stdin.write(b"kill-server\n")
        self._tmux.stdin.close()
        self._tmux.wait(TIMEOUT_S)
        self._tmux.stdout.close()

    def type(self, text: str) -> None:
        """Press keys."""
        self._ask("send-keys -H " + " ".join(f"{byte:x}" for byte in text.encode()))

    def paste(self, text: str) -> None:
        """Paste, between brackets where the program asked for them, as terminals do."""
        file = self._folder / "pasted"
        file.write_text(text, "utf-8")
        self._ask(f"load-buffer {shlex.quote(str(file))}")
        self._ask("paste-buffer -p")

    def text(self, *, styles: bool = False) -> str:
        """What stands on the screen, without spaces at the ends of lines nor empty lines below."""
        lines = self._ask("capture-pane -p" + " -e" * styles)
        return "\n".join(line.rstrip() for line in lines).rstrip("\n")

    def wait_for(self, end: str, *texts: str) -> str:
        """The screen as soon as it ends with one text, and the others stand on it."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            self._changed = False
            shown = self.text()
            if shown.endswith(end) and all(text in shown for text in texts):
                return shown
            while not self._changed:
                if self._line(deadline) is None:
                    raise AssertionError(f"{(end, *texts)} did not come; the screen is:\n{shown}")

    def _ask(self, command: str) -> list[str]:
        assert self._tmux.stdin is not None
        self._tmux.stdin.write(command.encode() + b"\n")
        return self._reply()

    def _reply(self) -> list[str]:
        """The lines of tmux's next answer."""
        lines: list[str] | None = None
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            line = self._line(deadline)
            if line is None:
                raise AssertionError("tmux does not answer")
            if line.startswith("%begin "):
                lines = []
            elif line.startswith("%error "):
                raise AssertionError(f"tmux: {lines}")
            elif line.startswith("%end "):
                return lines or []
            elif lines is not None:
                lines.append(line)

    def _line(self, deadline: float) -> str | None:
        """tmux's next line; None when the time is over or tmux is gone."""
        assert self._tmux.stdout is not None
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._tmux.stdout], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(self._tmux.stdout.fileno(), 65536) if ready else b""
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        self._changed = self._changed or line.startswith(b"%output ")
        return line.decode("utf-8", "replace")
