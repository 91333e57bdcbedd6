"""What a shell completes: the candidates, and the scripts in the shells that are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.completion import SCRIPTS
from tests.cli.fake_daemon import DETAILS, FakeDaemon, Outcome

Hob = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def models(daemon: FakeDaemon) -> None:
    listed = {"modified_at": "", "size": 1, "digest": "ab" * 32, "details": DETAILS, "capabilities": []}
    named = [{"name": name, "model": name, **listed} for name in ("tale:latest", "talent:7b", "qwen:7b")]
    loaded = {"name": "qwen:7b", "model": "qwen:7b", "size": 1, "size_vram": 0, "digest": "ab" * 32}
    catalog = {"name": "qwen", "description": "", "tags": [{"tag": "7b", "size": 1}, {"tag": "14b", "size": 2}]}
    daemon.routes |= {
        ("GET", "/api/tags"): {"models": named},
        ("GET", "/api/ps"): {"models": [loaded]},
        ("POST", "/api/search"): {"models": [catalog]},
    }


def found(hob: Hob, line: str) -> list[str]:
    outcome = hob("complete", "--", line)
    assert (outcome.status, outcome.err) == (0, "")
    return [candidate.split("\t")[0] for candidate in outcome.out.splitlines()]


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("hob sh", ["show", "shutdown"]),
        ("hob --v", ["--version"]),
        ("hob run ta", ["tale", "talent:7b"]),
        ("hob run tale:", ["tale:latest"]),
        ("hob run --verbose q", ["qwen:7b"]),
        ("hob run tale what ", []),
        ("hob run --keep", ["--keepalive"]),
        ("hob run --keepalive ", []),
        ("hob run tale --think h", ["high"]),
        ("hob run --no", ["--nowordwrap", "--nomarkdown", "--no-truncate"]),
        ("hob rm tale tal", ["tale", "talent:7b"]),
        ("hob stop ", ["qwen:7b"]),
        ("hob pull q", ["qwen"]),
        ("hob pull qwen:1", ["qwen:14b"]),
        ("hob import o", ["ollama"]),
        ("hob completion ", ["bash", "zsh", "fish"]),
        ("hob ls t", ["tale", "talent:7b"]),
        ("hob create mine -f ", []),
        ("hob nothing ", []),
        ("hob comple", ["completion"]),
    ],
)
def test_candidates(hob: Hob, line: str, candidates: list[str]) -> None:
    assert found(hob, line) == candidates


def test_commands_and_options_come_with_their_help(hob: Hob) -> None:
    assert hob("complete", "--", "hob serv").out == "serve\tRun the daemon in the foreground until Ctrl-C.\n"
    assert hob("complete", "--", "hob run --verb").out == "--verbose\tPrint timings after the answer.\n"


@pytest.mark.parametrize("answer", [(500, {"error": "no"}), {"models": 7}, ["no"], {}])
def test_a_daemon_that_does_not_help_is_no_error(hob: Hob, daemon: FakeDaemon, answer: object) -> None:
    daemon.routes["GET", "/api/tags"] = answer
    assert found(hob, "hob run ") == []


def test_no_daemon_is_started(hob: Hob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOB_HOST", "127.0.0.1:1")
    assert found(hob, "hob run ") == []
    monkeypatch.setenv("HOB_HOST", "127.0.0.1:wrong")
    assert found(hob, "hob run ") == []
    assert not (tmp_path / "home").exists()


def test_completing_needs_no_http_client_and_no_prompt(root: Path) -> None:
    program = (
        "import sys, cli.main\n"
        "assert cli.main.run_app(['complete', '--', 'hob run t']) == 0\n"
        "late = {'httpx', 'prompt_toolkit', 'rich'}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "tale\t\ntalent:7b\t\n"), done.stderr


def test_an_unknown_shell(hob: Hob) -> None:
    outcome = hob("completion", "tcsh")
    assert outcome.status == 2
    assert outcome.err == 'Error: there is no completion for "tcsh"; there is one for bash, zsh, fish\n'


@pytest.fixture
def shell(hob: Hob, tmp_path: Path, root: Path) -> Callable[..., str]:
    """Runs a program in a shell, which finds `hob` and the script."""
    program = tmp_path / "hob"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from cli.main import main; main()" "$@"\n')
    program.chmod(0o700)

    def run(name: str, text: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"no {name}")
        script = tmp_path / "script"
        script.write_text(hob("completion", name).out)
        environ = os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(root), "HOME": str(tmp_path)}
        options = ["--norc"] if name == "bash" else []
        before = "compdef() { : }\n" if name == "zsh" else ""  # a part of zsh's completion, which is not loaded here
        done = subprocess.run(
            [path, *options, "-c", f"{before}source {script}\n{text}"],
            env=environ,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def test_bash(shell: Callable[..., str]) -> None:
    asked = """
    for line in "hob run ta" "hob run talent:" "hob completion " "hob run tale x"; do
        COMP_LINE=$line COMP_POINT=${#line}
        _hob hob
        echo "${COMPREPLY[*]}"
    done
    """
    assert shell("bash", asked).splitlines() == ["tale talent:7b", "7b", "bash zsh fish", ""]


def test_fish(shell: Callable[..., str]) -> None:
    assert shell("fish", "complete -C 'hob run ta'; complete -C 'hob cat'; complete -C 'hob create x -f scr'") == (
        "tale\ntalent:7b\nscript\n"
    )


def test_zsh(shell: Callable[..., str]) -> None:
    """zsh completes only before a keyboard; what it would offer is seen in the place of its own function."""
    asked = """
    words=(hob run ta) CURRENT=3
    _describe() { print -rl -- $found }
    _files() { print files }
    _hob
    words=(hob serv) CURRENT=2
    _hob
    words=(hob run tale '') CURRENT=4
    _hob
    """
    assert shell("zsh", asked).splitlines() == [
        "tale", r"talent\:7b", "serve:Run the daemon in the foreground until Ctrl-C.", "files",
    ]  # fmt: skip


def test_every_script_asks_the_hidden_command() -> None:
    assert all(" complete -- " in script for script in SCRIPTS.values())
