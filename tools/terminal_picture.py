"""Runs commands in a real terminal and draws what it showed as an SVG.

    python tools/terminal_picture.py docs/pictures/run.svg 'hob run tale "Tell me a story about a fox."' 'hob ps'
    python tools/terminal_picture.py docs/pictures/prompt.svg 'hob run notes' --keys '/bye'

Each command runs in a pseudo-terminal, so programs behave as before a person; pyte (`pip install pyte`) is the
terminal that understands what they print. Nothing is edited. Used for the pictures in the README.
"""

from __future__ import annotations

import argparse
import os
from io import StringIO
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.text import Text

WIDTH, HEIGHT = 92, 200


def run(command: str, keys: str = "") -> Text:
    """What stands on a terminal after one shell command.

    Args:
        keys: a line that is typed once the prompt of `hob run` is there.
    """
    environ = os.environ | {"TERM": "xterm-256color"}
    child = pexpect.spawn("/bin/sh", ["-c", command], env=environ, dimensions=(HEIGHT, WIDTH), timeout=300)
    shown = b""
    if keys:
        child.expect_exact("Send a message")
        shown = child.before + child.after
        child.send(keys + "\r")
    child.expect(pexpect.EOF)
    child.close()
    screen = pyte.Screen(WIDTH, HEIGHT)
    pyte.ByteStream(screen).feed(shown + child.before)
    lines = [_line(screen, number) for number in range(HEIGHT)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    return Text("\n").join(lines)


def _line(screen: pyte.Screen, number: int) -> Text:
    text = Text()
    for column in range(WIDTH):
        cell = screen.buffer[number][column]
        style = "bold " * cell.bold + "italic " * cell.italics + "underline " * cell.underscore
        # pyte does not keep "faint"; programs print it where they mean grey, which it keeps as a colour.
        style += "" if cell.fg == "default" else cell.fg.replace("bright", "bright_").replace("brown", "yellow")
        text.append(cell.data, style.strip() or None)
    text.rstrip()
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("commands", nargs="+")
    parser.add_argument("--title", default="hob")
    parser.add_argument("--keys", default="", help="a line to type at the prompt of each command")
    args = parser.parse_args()

    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="truecolor")
    for command in args.commands:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(run(command, args.keys), "", soft_wrap=True)
    args.target.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(args.target), title=args.title)


if __name__ == "__main__":
    main()
