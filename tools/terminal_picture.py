"""Runs commands in a real terminal and draws what it showed as an SVG.

    python tools/terminal_picture.py docs/pictures/run.svg 'hob run tale "Tell me a story about a fox."' 'hob ps'

Each command runs in a pseudo-terminal of WIDTH columns, so programs behave as before a person; nothing is edited.
Used for the pictures in the README.
"""

from __future__ import annotations

import argparse
import os
import re
from io import StringIO
from pathlib import Path

import pexpect
from rich.console import Console
from rich.text import Text

WIDTH = 96
# Cursor movement, line clearing, cursor visibility, bracketed paste: everything of ECMA-48 but colours.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]")


def show(output: str) -> str:
    """What stays on the screen: a carriage return lets later text overwrite the line, `\\x1b[K` clears it."""
    lines = []
    for line in output.replace("\r\n", "\n").split("\n"):
        kept = ""
        for part in line.split("\r"):
            part = re.sub(r"^.*\x1b\[[02]?K", "", part)
            kept = part or kept
        lines.append(CONTROL.sub("", kept))
    return "\n".join(lines)


def run(command: str) -> str:
    """Output of one shell command in a pseudo-terminal."""
    environ = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(WIDTH)}
    child = pexpect.spawn(
        "/bin/sh", ["-c", command], env=environ, dimensions=(40, WIDTH), timeout=300, encoding="utf-8"
    )
    child.expect(pexpect.EOF)
    child.close()
    return show(str(child.before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("commands", nargs="+")
    parser.add_argument("--title", default="hob")
    args = parser.parse_args()

    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="truecolor")
    for command in args.commands:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text.from_ansi(run(command).rstrip("\n")), "")
    args.target.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(args.target), title=args.title)


if __name__ == "__main__":
    main()
