"""A real daemon with real workers, in a home of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ollama
import pytest

from tests.daemon.tiny_model import write_tiny_model

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
LISTENING = re.compile(r"listening on (http://\S+:[0-9]+)")


@dataclass
class Daemon:
    """A daemon process. `environ` is for commands that shall find it and its folders."""

    process: subprocess.Popen[str]
    home: Path
    environ: dict[str, str]
    base_url: str = ""
    log: list[str] = field(default_factory=list)
    """Lines of its stderr so far."""
    clients: list[ollama.Client] = field(default_factory=list)
    reader: threading.Thread | None = None
    """Fills `log`."""

    @property
    def port(self) -> int:
        return int(self.base_url.rpartition(":")[2])

    def client(self) -> ollama.Client:
        """The official client of Ollama's API; closed with the daemon."""
        client = ollama.Client(host=self.base_url)
        self.clients.append(client)
        return client

    def wait(self) -> int:
        """Exit status, once it has ended and its log is whole."""
        status = self.process.wait(STOP_TIMEOUT_S)
        if self.reader is not None:
            self.reader.join(STOP_TIMEOUT_S)
        return status


StartDaemon = Callable[..., Daemon]


def launch(home: Path, *arguments: str, **variables: str) -> Daemon:
    """Start a daemon on a free port (unless HOB_HOST is among the variables), without waiting for it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOB_", "OLLAMA_"))}
    defaults = {"HOB_HOME": str(home), "HOB_HOST": "127.0.0.1:0", "HOB_NUM_THREADS": "1", "HOB_SPARE_WORKER": "0"}
    environ = {**inherited, **defaults, **variables}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "daemon.main", *arguments],
        env=environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Daemon(process, home, environ)


def follow(daemon: Daemon) -> None:
    """Read the daemon's log in the background; returns when it listens.

    Raises:
        RuntimeError: it ended, or did not listen in time.
    """
    listening = threading.Event()

    def read() -> None:
        assert daemon.process.stderr is not None
        with daemon.process.stderr as lines:
            for line in lines:
                daemon.log.append(line.rstrip("\n"))
                if found := LISTENING.search(line):
                    daemon.base_url = found[1]
                    daemon.environ["HOB_HOST"] = found[1]
                    listening.set()
        listening.set()

    daemon.reader = threading.Thread(target=read, daemon=True)
    daemon.reader.start()
    if not listening.wait(START_TIMEOUT_S) or not daemon.base_url:
        daemon.process.kill()
        raise RuntimeError("the daemon did not start:\n" + "\n".join(daemon.log))


def end(daemon: Daemon) -> None:
    """Stop a daemon that may still run."""
    for client in daemon.clients:
        client.close()
    daemon.process.terminate()
    try:
        daemon.wait()
    except subprocess.TimeoutExpired:
        daemon.process.kill()
        raise


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests that do not end it. It may be ended by POST /api/shutdown, as one that `hob` starts."""
    started = launch(tmp_path_factory.mktemp("home"), "--background")
    follow(started)
    yield started
    end(started)


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[StartDaemon]:
    """Start daemons of one's own; those that still run are stopped at the end."""
    started: list[Daemon] = []

    def start(*arguments: str, **variables: str) -> Daemon:
        one = launch(tmp_path / "home", *arguments, **variables)
        started.append(one)
        follow(one)
        return one

    yield start
    for one in started:
        end(one)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a model that loads in a moment and says nothing of interest, for ever."""
    folder = tmp_path_factory.mktemp("files") / "tiny"
    write_tiny_model(folder)
    return folder


def create_tiny(client: ollama.Client, folder: Path, name: str = "tiny") -> None:
    """Upload the tiny model and create it."""
    files = {path.name: client.create_blob(path) for path in folder.iterdir()}
    client.create(name, files=files)


@pytest.fixture(scope="session", params=["tiny", "tale"])
def model(request: pytest.FixtureRequest, daemon: Daemon, tiny_folder: Path) -> str:
    """Name of a model that the session's daemon has."""
    if request.param == "tale":
        tale: str = request.getfixturevalue("tale")
        return tale
    create_tiny(daemon.client(), tiny_folder)
    return "tiny"


@pytest.fixture(scope="session")
def tale(tale_dir: Path) -> str:
    """Name of the built-in model, where its weights are in the tree."""
    if not [*tale_dir.glob("*.safetensors"), *tale_dir.glob("*.gguf")]:
        pytest.skip("the weights of the built-in model are not there")
    return "tale"
