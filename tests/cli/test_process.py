"""`hob` as a process: how it ends when it is interrupted, when its reader goes away, and when it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake_daemon import FakeDaemon

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(daemon: FakeDaemon, root: Path) -> Start:
    def run(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-c", "from cli.main import main; main()", *arguments]
        return subprocess.Popen(
            program, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, cwd=root, env=dict(os.environ)
        )

    return run


def test_ctrl_c_ends_quietly_with_130(daemon: FakeDaemon, start: Start, shown: dict[str, Any]) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def hang(_: object) -> list[object]:
        asked.set()
        go_on.wait(60)
        return []

    daemon.routes |= {("POST", "/api/show"): shown, ("POST", "/api/generate"): hang}
    process = start("run", "tale", "Hi")
    assert asked.wait(60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    go_on.set()
    assert (process.returncode, out, err.strip()) == (130, b"", b"")


def test_a_reader_that_went_away_is_no_error_to_talk_about(daemon: FakeDaemon, start: Start) -> None:
    daemon.routes["GET", "/api/tags"] = {"models": []}
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = start("list", stdout=write_end)
    os.close(write_end)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, b"")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [([], 0), (["--help"], 0), (["-h"], 0), (["list", "--help"], 0), (["bogus"], 2), (["show", "x"], 1)],
)
def test_exit_statuses(daemon: FakeDaemon, start: Start, arguments: list[str], status: int) -> None:
    daemon.routes["POST", "/api/show"] = (404, {"error": "model 'x' not found"})
    process = start(*arguments)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert b"Traceback" not in err
    if arguments == ["show", "x"]:
        assert err == b"Error: model 'x' not found; `hob list` shows the models that are here\n"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        ([b"run", b"tale", b"Hello"], b"\xff\xfe", b"Error: the prompt is not UTF-8 text;"),
        ([b"run", b"tale", b"caf\xe9"], b"", b"Error: the prompt is not UTF-8 text;"),
        ([b"show", b"caf\xe9"], b"", b'Error: "caf?" is not UTF-8 text'),
    ],
)
def test_bytes_that_are_no_text(
    daemon: FakeDaemon, root: Path, locale: str, arguments: list[bytes], stdin: bytes, said: bytes
) -> None:
    program = [sys.executable, "-c", "from cli.main import main; main()", *arguments]
    done = subprocess.run(
        program, input=stdin, capture_output=True, cwd=root, env=dict(os.environ) | {"LC_ALL": locale}, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(said)
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_an_empty_one(daemon: FakeDaemon, root: Path, shown: dict[str, Any], closed: str) -> None:
    piece = {"model": "tale", "created_at": "t", "response": "Hi.", "done": True}
    daemon.routes |= {("POST", "/api/show"): shown, ("POST", "/api/generate"): [piece]}
    program = f'"{sys.executable}" -c "from cli.main import main; main()" run tale Hello {closed}'
    done = subprocess.run(["/bin/sh", "-c", program], capture_output=True, cwd=root, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (b"" if ">&-" in closed.split() else b"Hi.\n\n")
    assert daemon.bodies("/api/generate")[0]["prompt"] == "Hello"
