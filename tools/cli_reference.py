"""Writes docs/cli.md from the commands themselves: `python tools/cli_reference.py`.

A test compares the page with what this would write, so the page cannot drift.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from cli.main import app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
COLUMNS = 100
INTRODUCTION = """\
# The commands

Written by `tools/cli_reference.py` from the commands themselves; change those, not this page.

Errors are one sentence on stderr. Exit status: 0 done, 1 an error, 2 a command line that makes no sense, 130 stopped by
Ctrl-C.
"""


def reference() -> str:
    """The page's text."""
    root: Any = get_command(app)  # typer's own group; its type is private to typer
    settings = {**root.context_settings, "terminal_width": COLUMNS, "max_content_width": COLUMNS}
    with typer.Context(root, info_name="hob", **settings) as context:
        sections = [INTRODUCTION, section("hob", root.get_help(context))]
        for name, command in visible(root):
            with typer.Context(command, info_name=name, parent=context, **settings) as inner:
                sections.append(section(f"hob {name}", command.get_help(inner)))
    return "\n".join(sections)


def visible(root: Any) -> Iterator[tuple[str, Any]]:
    """The commands that help shows, in its order."""
    yield from ((name, command) for name, command in root.commands.items() if not command.hidden)


def section(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), "utf-8")
