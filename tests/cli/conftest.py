"""Fixtures of the command line's tests."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cli.main import run_app
from tests.cli.fake_daemon import DETAILS, FakeDaemon, Outcome, handler_of


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeDaemon]:
    """A running double, with the environment pointing at it."""
    fake = FakeDaemon("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(fake))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.address = f"127.0.0.1:{server.server_address[1]}"
    fake.routes["GET", "/api/version"] = {"version": "0.32.15", "hob_version": "0.1.0"}
    monkeypatch.setenv("HOB_HOST", fake.address)
    monkeypatch.setenv("HOB_HOME", str(tmp_path / "home"))
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hob(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Run one command line in this process."""

    def run(*arguments: str, stdin: str = "") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        status = run_app(arguments)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture
def shown() -> dict[str, Any]:
    """A reply of /api/show."""
    return {
        "modelfile": "FROM tale\n",
        "parameters": 'stop                           "<|im_end|>"\ntemperature                    0.7',
        "template": "{{ .Prompt }}",
        "system": "You tell stories.",
        "license": "Apache License\nVersion 2.0\n\nMore of it",
        "details": DETAILS,
        "model_info": {"general.architecture": "llama", "llama.context_length": 2048, "llama.embedding_length": 256},
        "capabilities": ["completion", "tools", "thinking"],
        "modified_at": "2026-01-01T00:00:00Z",
    }
