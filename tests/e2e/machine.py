"""A machine as a person has one: `hob` in a folder of its own, whose first command starts the daemon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect

WAIT_S = 120  # a load on a busy machine; nothing here waits for it to pass


@dataclass
class Machine:
    """A folder and a port of its own: what a person's machine is to `hob`."""

    folder: Path
    environ: dict[str, str]

    def hob(self, *arguments: str, stdin: str = "", status: int = 0) -> str:
        """Run a command that must end with a status; its stdout, or its stderr where it must fail."""
        done = subprocess.run(
            [sys.executable, "-c", "from cli.main import main; main()", *arguments],
            input=stdin,
            env=self.environ,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        assert done.returncode == status, f"{done.stdout}\n{done.stderr}\n{self.log()}"
        return done.stderr if status else done.stdout

    def talk(self, *arguments: str) -> Any:
        """`hob run` on a terminal, at its first prompt."""
        child = pexpect.spawn(
            sys.executable,
            ["-c", "from cli.main import main; main()", "run", *arguments],
            env=self.environ | {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"},
            cwd=str(self.folder),
            dimensions=(24, 80),
            encoding="utf-8",
            timeout=WAIT_S,
        )
        child.expect_exact(">>> ")
        return child

    def log(self) -> str:
        path = self.folder / "home" / "state" / "hob.log"
        return path.read_text() if path.exists() else "no log"


@contextmanager
def new_machine(folder: Path, **variables: str) -> Iterator[Machine]:
    """A machine with a free port and these variables besides; its daemon is ended with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOB_", "OLLAMA_", "HF_"))}
    own = {"HOB_HOST": f"127.0.0.1:{port}", "HOB_HOME": str(folder / "home"), "LANG": "C.UTF-8"}
    machine = Machine(folder, inherited | own | variables)
    try:
        yield machine
    finally:
        subprocess.run(
            [sys.executable, "-c", "from cli.main import main; main()", "shutdown"],
            env=machine.environ,
            capture_output=True,
        )
