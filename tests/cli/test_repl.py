"""The prompt loop on a real terminal: what a person types, sees and can stop."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from cli.reader import is_open, message
from tests.cli.fake_daemon import FakeDaemon

ENTER, CTRL_C, CTRL_D, CTRL_J = "\r", "\x03", "\x04", "\n"
LOADED = {"model": "tale", "created_at": "t", "response": "", "done": True, "done_reason": "load"}


def answer(*texts: str) -> list[dict[str, Any]]:
    base = {"model": "tale", "created_at": "t"}
    pieces = [base | {"done": False, "message": {"role": "assistant", "content": text}} for text in texts]
    return [*pieces, base | {"done": True, "eval_count": 2, "message": {"role": "assistant", "content": ""}}]


@pytest.fixture
def loop(daemon: FakeDaemon, shown: dict[str, Any], tmp_path: Path) -> Iterator[Callable[..., pexpect.spawn]]:
    """Starts `hob run tale` on a terminal of 80 columns."""
    daemon.routes |= {
        ("POST", "/api/show"): shown,
        ("POST", "/api/generate"): LOADED,
        ("POST", "/api/chat"): answer("Once upon", " a time."),
    }
    children: list[pexpect.spawn] = []

    def start(*arguments: str) -> pexpect.spawn:
        # PROMPT_TOOLKIT_NO_CPR: a terminal would answer the question where its cursor is, and pexpect is none.
        environ = {"HOB_HOST": daemon.address, "HOB_HOME": str(tmp_path / "home"), "PROMPT_TOOLKIT_NO_CPR": "1"}
        child = pexpect.spawn(
            sys.executable,
            ["-c", "from cli.main import main; main()", "run", "tale", *arguments],
            env={"PATH": "/usr/bin:/bin", "TERM": "xterm", "LANG": "C.UTF-8", **environ},
            dimensions=(24, 80),
            encoding="utf-8",
            timeout=60,
        )
        children.append(child)
        child.expect_exact(">>> ")
        return child

    yield start
    for child in children:
        child.close(force=True)


def ended(child: pexpect.spawn) -> int | None:
    child.expect(pexpect.EOF)
    child.close()
    status: int | None = child.exitstatus
    return status


def test_a_conversation(loop: Callable[..., pexpect.spawn], daemon: FakeDaemon) -> None:
    child = loop("--verbose")
    child.expect_exact("Send a message (/? for help)")
    child.send("Tell me a story." + ENTER)
    child.expect_exact("Once upon a time.")
    child.expect_exact("eval count:           2 token(s)")
    child.expect_exact(">>> ")
    child.send("And then?" + ENTER)
    child.expect_exact("Once upon a time.")
    child.expect_exact(">>> ")
    child.send("/bye" + ENTER)
    assert ended(child) == 0
    said = [[message["content"] for message in body["messages"]] for body in daemon.bodies("/api/chat")]
    assert said == [["Tell me a story."], ["Tell me a story.", "Once upon a time.", "And then?"]]


def test_messages_of_several_lines(loop: Callable[..., pexpect.spawn], daemon: FakeDaemon) -> None:
    child = loop()
    child.send('"""first' + ENTER)
    child.expect_exact("...")
    child.send("second" + ENTER)
    child.expect_exact("...")
    child.send('third"""' + ENTER)
    child.expect_exact("a time.")
    child.expect_exact(">>> ")
    child.send("one" + CTRL_J + "two" + ENTER)
    child.expect_exact("a time.")
    child.expect_exact(">>> ")
    child.send("\x1b[200~pasted\nlines\x1b[201~" + ENTER)
    child.expect_exact("a time.")
    child.expect_exact(">>> ")
    child.send(CTRL_D)
    assert ended(child) == 0
    said = [body["messages"][-1]["content"] for body in daemon.bodies("/api/chat")]
    assert said == ["first\nsecond\nthird", "one\ntwo", "pasted\nlines"]


def test_ctrl_c_stops_an_answer_and_keeps_the_loop(loop: Callable[..., pexpect.spawn], daemon: FakeDaemon) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def hang(_: object) -> list[dict[str, Any]]:
        asked.set()
        go_on.wait(60)
        return answer("late")

    child = loop()
    daemon.routes["POST", "/api/chat"] = hang
    child.send("Hi" + ENTER)
    assert asked.wait(60)
    child.send(CTRL_C)
    child.expect_exact(">>> ")
    go_on.set()
    daemon.routes["POST", "/api/chat"] = answer("fine")
    child.send("Hello?" + ENTER)
    child.expect_exact("fine")
    child.expect_exact(">>> ")
    child.send(CTRL_C)
    child.expect_exact("Use Ctrl + d or /bye to exit.")
    child.expect_exact(">>> ")
    child.send("half a line" + CTRL_C + "/bye" + ENTER)
    assert ended(child) == 0
    assert [message["content"] for message in daemon.bodies("/api/chat")[1]["messages"]] == ["Hello?"]


def test_lines_typed_ahead_are_messages_of_their_own(loop: Callable[..., pexpect.spawn], daemon: FakeDaemon) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def hang(_: object) -> list[dict[str, Any]]:
        asked.set()
        go_on.wait(60)
        return answer("Yes.")

    child = loop()
    daemon.routes["POST", "/api/chat"] = hang
    child.send("one" + ENTER)
    assert asked.wait(60)
    child.send("two" + ENTER + "three" + CTRL_J + "lines" + ENTER)
    child.send("\x1b[200~pasted\rlines\x1b[201~" + ENTER + CTRL_D)
    go_on.set()
    assert ended(child) == 0
    said = [body["messages"][-1]["content"] for body in daemon.bodies("/api/chat")]
    assert said == ["one", "two", "three\nlines", "pasted\nlines"]


def test_errors_stay_in_the_loop(loop: Callable[..., pexpect.spawn], daemon: FakeDaemon) -> None:
    child = loop()
    daemon.routes["POST", "/api/chat"] = (503, {"error": "server busy"})
    child.send("Hi" + ENTER)
    child.expect_exact("Error: server busy")
    child.expect_exact(">>> ")
    child.expect_exact("Hi")
    daemon.routes["POST", "/api/chat"] = answer("Here I am.")
    child.send(" again" + ENTER)
    child.expect_exact("Here I am.")
    assert daemon.bodies("/api/chat")[-1]["messages"] == [{"role": "user", "content": "Hi again"}]
    child.expect_exact(">>> ")
    child.send("/set parameter top_k x" + ENTER)
    child.expect_exact("Couldn't set parameter")
    child.expect_exact(">>> ")
    child.send("/exit" + ENTER)
    assert ended(child) == 0


def test_what_was_typed_ahead_is_not_mixed_with_a_message_that_failed(
    loop: Callable[..., pexpect.spawn], daemon: FakeDaemon
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def fail(_: object) -> tuple[int, dict[str, str]]:
        asked.set()
        go_on.wait(60)
        daemon.routes["POST", "/api/chat"] = answer("Yes.")
        return 503, {"error": "server busy"}

    child = loop()
    daemon.routes["POST", "/api/chat"] = fail
    child.send("one" + ENTER)
    assert asked.wait(60)
    child.send("two" + ENTER + CTRL_D)
    go_on.set()
    assert ended(child) == 0
    assert [body["messages"][-1]["content"] for body in daemon.bodies("/api/chat")] == ["one", "two"]


def test_the_answer_is_wrapped_between_words(loop: Callable[..., pexpect.spawn], daemon: FakeDaemon) -> None:
    child = loop()
    daemon.routes["POST", "/api/chat"] = answer("word " * 15, "extraordinary finish")
    child.send("Hi" + ENTER)
    child.expect_exact("finish")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", child.before)
    assert any(line.startswith("extraordinary") for line in shown.splitlines())
    child.close(force=True)


def test_history_is_kept_unless_it_is_off(loop: Callable[..., pexpect.spawn], tmp_path: Path) -> None:
    child = loop()
    for line in ("remembered", "/set nohistory", "forgotten", "/bye"):
        child.send(line + ENTER)
        if line != "/bye":
            child.expect_exact(">>> ")
    assert ended(child) == 0
    lines = (tmp_path / "home" / "state" / "history").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ["remembered", "/set nohistory"]


@pytest.mark.parametrize(
    ("text", "unfinished", "said"),
    [
        ('"""a', True, "a"),
        ('"""a"""', False, "a"),
        ('"""\na\n b\n"""  ', False, "a\n b"),
        ('/set system """a\nb"""', False, "/set system a\nb"),
        ('/set  system  """', True, "/set  system  "),
        ('a """b', False, 'a """b'),
    ],
)
def test_where_quotes_open_a_message(text: str, unfinished: bool, said: str) -> None:
    assert (is_open(text), message(text)) == (unfinished, said)


def test_a_daemon_that_ended_is_looked_for_before_every_message(
    loop: Callable[..., pexpect.spawn], daemon: FakeDaemon
) -> None:
    child = loop()
    child.send("Hi" + ENTER)
    child.expect_exact("a time.")
    child.expect_exact(">>> ")
    version = daemon.routes["GET", "/api/version"]
    daemon.routes["GET", "/api/version"] = {"version": "0.9.1"}
    child.send("/list" + ENTER)
    child.expect_exact("Error: another server")
    child.expect_exact(">>> ")
    child.send("Lost" + ENTER)
    child.expect_exact("Error: another server")
    child.expect_exact(">>> ")
    child.expect_exact("Lost")  # is there to be sent again
    child.send(CTRL_C)
    daemon.routes["GET", "/api/version"] = version
    child.send("Again" + ENTER)
    child.expect_exact("a time.")
    child.expect_exact(">>> ")
    said = [[message["content"] for message in body["messages"]] for body in daemon.bodies("/api/chat")]
    assert said == [["Hi"], ["Hi", "Once upon a time.", "Again"]]
