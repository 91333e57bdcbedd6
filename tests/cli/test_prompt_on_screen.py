"""The prompt on a real terminal (tmux): what a person sees after each key. Skipped where there is no tmux."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake_daemon import DETAILS, FakeDaemon
from tests.cli.screen import ENTER, ESCAPE, TAB, TMUX, Screen, control

pytestmark = pytest.mark.skipif(TMUX is None, reason="no tmux; install.sh --test installs it as root on Debian")

HINT = ">>> Send a message (/? for help)"
Open = Callable[..., Screen]


def answer(*texts: str, thinking: str = "") -> list[dict[str, Any]]:
    base = {"model": "tale", "created_at": "t"}
    pieces = [{"role": "assistant", "content": "", "thinking": thinking}] if thinking else []
    pieces += [{"role": "assistant", "content": text} for text in texts]
    end = base | {"done": True, "message": {"role": "assistant", "content": ""}}
    return [*(base | {"done": False, "message": piece} for piece in pieces), end]


@pytest.fixture
def prompt(daemon: FakeDaemon, shown: dict[str, Any], tmp_path: Path, root: Path) -> Iterator[Open]:
    """Opens `hob run tale` and waits for its prompt."""
    names = ("tale:latest", "talent:7b", "qwen:7b")
    listed = {"modified_at": "", "size": 1, "digest": "ab" * 32, "details": DETAILS, "capabilities": []}
    daemon.routes |= {
        ("POST", "/api/show"): shown,
        ("POST", "/api/generate"): {"model": "tale", "created_at": "t", "response": "", "done": True},
        ("POST", "/api/chat"): answer("Once upon", " a time."),
        ("GET", "/api/tags"): {"models": [{"name": name, "model": name, **listed} for name in names]},
    }
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "%s\\nedited\\n" "$(cat "$1")" > "$1"\n')
    editor.chmod(0o700)
    environ = {
        "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(root), "HOB_HOST": daemon.address,
        "HOB_HOME": str(tmp_path / "home"), "HOB_EDITOR": str(editor),
    }  # fmt: skip
    with ExitStack() as screens:

        def start(*flags: str, columns: int = 80, **variables: str) -> Screen:
            command = [sys.executable, "-c", "from cli.main import main; main()", "run", "tale", *flags]
            screen = screens.enter_context(Screen(tmp_path, command, environ | variables, columns=columns))
            screen.wait_for("", ">>> Send a message")
            return screen

        yield start


def said(daemon: FakeDaemon) -> list[str]:
    return [body["messages"][-1]["content"] for body in daemon.bodies("/api/chat")]


def test_keys_of_a_line(prompt: Open, daemon: FakeDaemon) -> None:
    screen = prompt()
    screen.type("one two three" + ESCAPE + "b" + ESCAPE + "b" + control("k"))
    screen.type("2")
    screen.wait_for(">>> one 2")
    screen.type(control("w") + control("a") + "zero " + ESCAPE + "f" + "!")
    screen.wait_for(">>> zero one!")
    screen.type(control("u") + control("y") + control("e") + "?")
    screen.wait_for(">>> zero one! ?")
    screen.type(control("c"))
    screen.wait_for(HINT)
    screen.type(control("c"))
    screen.wait_for("Use Ctrl + d or /bye to exit.\n" + HINT)
    screen.type(control("l"))
    screen.type("x")
    assert screen.wait_for(">>> x").startswith(">>> x")
    screen.type("\x7f" + control("d"))
    screen.wait_for("[ended 0]")
    assert said(daemon) == []


def test_messages_of_many_lines(prompt: Open, daemon: FakeDaemon) -> None:
    screen = prompt()
    screen.type('"""first' + ENTER + " second" + ENTER)
    screen.wait_for('>>> """first\n...  second\n...')
    screen.type('third"""' + ENTER)
    screen.wait_for("Once upon a time.\n\n" + HINT)
    screen.paste("pasted\nin\n\nlines")
    screen.wait_for(">>> pasted\n... in\n...\n... lines")
    screen.type(" and more" + ENTER)
    screen.wait_for("... lines and more\nOnce upon a time.\n\n" + HINT)
    screen.type('/set system """Be' + ENTER + 'brief."""' + ENTER)
    screen.wait_for("Set system message.\n" + HINT)
    screen.type("typed" + control("g"))
    screen.wait_for(">>> typed\n... edited")
    screen.type(ENTER)
    screen.wait_for("... edited\nOnce upon a time.\n\n" + HINT)
    assert said(daemon) == ["first\n second\nthird", "pasted\nin\n\nlines and more", "typed\nedited"]
    assert daemon.bodies("/api/chat")[2]["messages"][-2] == {"role": "system", "content": "Be\nbrief."}


def test_history_and_its_search(prompt: Open, daemon: FakeDaemon) -> None:
    screen = prompt()
    for line in ("the red fox", '"""two\nlines"""', "a grey owl"):
        screen.type(line.replace("\n", ENTER) + ENTER)
        screen.wait_for(line.replace("\n", "\n... ") + "\nOnce upon a time.\n\n" + HINT)
    screen.type(control("r") + "red")
    screen.wait_for("(reverse-i-search)`red': the red fox")
    screen.type(control("g"))
    screen.wait_for(HINT)
    screen.type(control("p") + control("p"))
    screen.wait_for('>>> """two\n... lines"""')
    screen.type(control("c"))
    screen.wait_for(HINT)
    screen.type(control("r") + "gre")
    screen.wait_for("(reverse-i-search)`gre': a grey owl")
    screen.type(ENTER + control("e") + "!")
    screen.wait_for(">>> a grey owl!")
    screen.type(ENTER)
    screen.wait_for("a grey owl!\nOnce upon a time.\n\n" + HINT)
    screen.type("/bye" + ENTER)
    screen.wait_for("[ended 0]")
    assert said(daemon) == ["the red fox", "two\nlines", "a grey owl", "a grey owl!"]


def test_tab_completes_commands_and_names(prompt: Open) -> None:
    screen = prompt()
    screen.type("/s" + TAB)
    screen.wait_for(">>> /s\n/set  /show /save\n>>> /s")
    screen.type("e" + TAB + "par" + TAB + "num_c" + TAB + "8")
    screen.wait_for(">>> /set parameter num_ctx 8")
    screen.type(control("c") + "/load ta" + TAB)
    screen.wait_for(">>> /load tale")
    screen.type(TAB)
    screen.wait_for("tale      talent:7b\n>>> /load tale")
    screen.type("nt" + TAB)
    screen.wait_for(">>> /load talent:7b")


STORY = """\
# A fox

It is **clever**, see `fox()`, 狐狸在森林里跑。

- one long item of a list
  1. nested

| Name | Count |
|---|--:|
| fox | 12 |

```python
def fox(): return 1
```
"""


def test_markdown_while_it_streams(prompt: Open, daemon: FakeDaemon) -> None:
    daemon.routes["POST", "/api/chat"] = answer(*STORY, thinking="Hm.")
    screen = prompt(columns=30)
    screen.type("Hi" + ENTER)
    screen.wait_for("return 1\n```\n\n>>> Send a message")
    assert screen.text().split("\n")[1:-2] == [
        "Thinking...", "Hm.", "...done thinking.", "", "A fox", "", "It is clever, see fox(), 狐狸",
        "在森林里跑。", "", "• one long item of a list", "  1. nested", "", "Name   Count", "────────────",
        "fox       12", "", "```python", "def fox(): return 1", "```",
    ]  # fmt: skip
    styles = screen.text(styles=True)
    assert "\x1b[2mThinking..." in styles
    assert "\x1b[1mclever\x1b[0m" in styles
    assert "\x1b[36mfox()\x1b[39m" in styles


@pytest.mark.parametrize(("flags", "variables"), [(["--nomarkdown"], {}), ([], {"HOB_MARKDOWN": "0"})])
def test_markdown_as_it_was_written(
    prompt: Open, daemon: FakeDaemon, flags: list[str], variables: dict[str, str]
) -> None:
    daemon.routes["POST", "/api/chat"] = answer("Is it **clever**?")
    screen = prompt(*flags, **variables)
    screen.type("Hi" + ENTER)
    screen.wait_for("Is it **clever**?\n\n" + HINT)
    screen.type("/set markdown" + ENTER)
    screen.wait_for("Set 'markdown' mode.\n" + HINT)
    screen.type("Hi" + ENTER)
    screen.wait_for("Is it clever?\n\n" + HINT)


def test_a_message_that_failed_stands_there_again(prompt: Open, daemon: FakeDaemon) -> None:
    screen = prompt()
    daemon.routes["POST", "/api/chat"] = [answer("Half of it")[0], {"error": "the engine died"}]
    screen.paste("a question\nof two lines")
    screen.type(ENTER)
    screen.wait_for("Half of it\nError: the engine died\n>>> a question\n... of two lines")
    daemon.routes["POST", "/api/chat"] = answer("Here.")
    screen.type(ENTER)
    screen.wait_for("Here.\n\n" + HINT)
    assert said(daemon) == ["a question\nof two lines"] * 2
    daemon.routes["POST", "/api/show"] = (500, {"error": "the disk is gone"})
    screen.type("/load other" + ENTER)
    screen.wait_for("Error: the disk is gone\n" + HINT)
