"""Starting the daemon: a process of its own, its readiness, and its last words where it does not get that far."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from cli.background import last_line, start_daemon
from cli.client import Client
from cli.connection import connected, on_this_machine
from cli.errors import DaemonSilent, DaemonUnreachable
from modelfiles.host import HostAddress
from modelfiles.settings import Settings

SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"version": "0.32.15", "hob_version": "%d"}' % os.getpid())
    def log_message(self, *_):
        pass
print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Settings.load({"HOB_HOST": f"127.0.0.1:{port}", "HOB_HOME": str(tmp_path)})


# The daemon outlives the command that started it, so nobody waits for it: that is the point, not a leak.
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_the_daemon_gets_a_session_of_its_own_and_is_waited_for(settings: Settings) -> None:
    with Client.connect(settings.base_url) as client:
        answer = start_daemon(settings, client, [sys.executable, "-c", SERVER, str(settings.port)])
    pid = int(answer.hob_version)
    try:
        assert os.getsid(pid) == pid != os.getsid(0)
        assert Path(f"/proc/{pid}/cwd").resolve() == Path("/")
        assert settings.log_file.read_text() == "listening\n"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_daemon_that_ends_leaves_its_last_words(settings: Settings) -> None:
    settings.state_dir.mkdir(parents=True)
    settings.log_file.write_text("words of an earlier daemon\n")
    program = "import sys; sys.exit('starting\\nthe port is taken\\n')"
    with Client.connect(settings.base_url) as client, pytest.raises(DaemonUnreachable) as caught:
        start_daemon(settings, client, [sys.executable, "-c", program])
    assert "could not start: the port is taken (its log is " in str(caught.value)


def test_a_silent_end_is_said_too(settings: Settings) -> None:
    with Client.connect(settings.base_url) as client, pytest.raises(DaemonUnreachable) as caught:
        start_daemon(settings, client, [sys.executable, "-c", "raise SystemExit(7)"])
    assert "it ended with status 7 and said nothing" in str(caught.value)


def test_a_state_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = Settings.load({"HOB_HOST": "127.0.0.1:1", "HOB_STATE": str(tmp_path / "file" / "state")})
    with Client.connect(settings.base_url) as client, pytest.raises(DaemonUnreachable, match="could not be started"):
        start_daemon(settings, client, [sys.executable, "-c", ""])


def test_last_line_reads_only_what_is_new(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"old\nnew\n\xff\n\n")
    assert last_line(log, 0) == "�"
    assert last_line(log, 9) == ""
    assert last_line(tmp_path / "none", 0) == ""


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("127.0.0.1:1", True), ("0.0.0.0", True), ("localhost", True), ("192.0.2.1", False),
        ("https://127.0.0.1", False), ("http://127.0.0.1/behind/a/proxy", False), ("no-such-host.invalid", False),
    ],
)  # fmt: skip
def test_where_a_daemon_could_listen(address: str, here: bool) -> None:
    assert on_this_machine(HostAddress.parse(address)) is here


def test_what_listens_and_never_answers_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cli.client.VERSION_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings = Settings.load({"HOB_HOST": f"127.0.0.1:{port}", "HOB_HOME": str(tmp_path)})
        with pytest.raises(DaemonSilent, match="did not answer within"), connected(settings):
            pass
    assert not settings.log_file.exists()  # no daemon was started on a port that is taken
