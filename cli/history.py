"""LineHistory: what was typed at the prompt, kept between runs; the last hundred messages and no more.

One message a line, as a JSON string, so that a message of several lines is one entry. The file can be read only by
its owner.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import History

LIMIT = 100


class LineHistory(History):
    """History in a file. While `enabled` is off nothing new is written, and nothing old is lost."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.enabled = True

    def load_history_strings(self) -> Iterable[str]:
        """Messages, the newest first."""
        return reversed(self._read())

    def store_string(self, string: str) -> None:
        """Remember one more message, and forget the oldest beyond the limit."""
        if not self.enabled:
            return
        try:
            self._write([*self._read(), string][-LIMIT:])
        except OSError:  # a full disk or a folder that is not ours must not cost the message that was typed
            self.enabled = False

    def _write(self, lines: list[str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A temporary file and a rename: two loops that write at once must not leave half a line. mkstemp makes it 0600.
        handle, temporary = tempfile.mkstemp(prefix=self.path.name, dir=self.path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        os.replace(temporary, self.path)

    def _read(self) -> list[str]:
        try:
            text = self.path.read_text("utf-8", "replace")
        except OSError:  # none yet, or none that we may read
            return []
        return [entry for line in text.splitlines() if isinstance(entry := _entry(line), str)]


def _entry(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:  # a line that somebody edited: the rest of the history is still good
        return None
