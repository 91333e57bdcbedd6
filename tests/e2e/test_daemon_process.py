"""The daemon as a process: how it starts, refuses to start, serves sockets, and ends. Its workers end with it."""

from __future__ import annotations

import json
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import ollama
import psutil
import pytest

from tests.e2e.conftest import Daemon, StartDaemon, create_tiny, launch

pytestmark = pytest.mark.e2e

TIMEOUT_S = 60.0
LONG = {"model": "tiny", "prompt": "Hi", "raw": True, "options": {"temperature": 0, "num_predict": -1}}


def run_to_its_end(home: Path, **variables: str) -> tuple[int, str]:
    """Exit status and last line of a daemon that shall not start."""
    daemon = launch(home, **variables)
    _, errors = daemon.process.communicate(timeout=TIMEOUT_S)
    return daemon.process.returncode, errors.splitlines()[-1]


def test_the_port_is_in_use(daemon: Daemon, tmp_path: Path) -> None:
    status, sentence = run_to_its_end(tmp_path, HOB_HOST=f"127.0.0.1:{daemon.port}")
    assert status == 1
    assert sentence.startswith(f"Error: cannot listen on 127.0.0.1:{daemon.port}: the port is in use")


def test_wrong_settings(tmp_path: Path) -> None:
    status, sentence = run_to_its_end(tmp_path, HOB_KEEP_ALIVE="soon")
    assert status == 1
    assert sentence.startswith('Error: HOB_KEEP_ALIVE is "soon"')


def test_other_machines_are_let_in_only_on_purpose(tmp_path: Path, start_daemon: StartDaemon) -> None:
    status, sentence = run_to_its_end(tmp_path, HOB_HOST="0.0.0.0:0")
    assert status == 1
    assert sentence.startswith("Error: 0.0.0.0 can be reached from other machines")
    assert "HOB_ALLOW_REMOTE=1" in sentence
    open_daemon = start_daemon(HOB_HOST="0.0.0.0:0", HOB_ALLOW_REMOTE="1")
    assert httpx.get(f"http://127.0.0.1:{open_daemon.port}/api/version").status_code == 200
    headers = {"host": "evil.com"}
    assert httpx.get(f"http://127.0.0.1:{open_daemon.port}/api/version", headers=headers).status_code == 403


def test_no_part_of_torch_is_imported() -> None:
    code = "import sys, daemon.main; print([name for name in sys.modules if name in ('torch', 'huggingface_hub')])"
    daemon_side = psutil.Popen([sys.executable, "-c", code], stdout=-1, text=True)
    assert daemon_side.communicate(timeout=TIMEOUT_S)[0].strip() == "[]"


def raw_reply(daemon: Daemon, request: bytes) -> bytes:
    """Everything that the daemon sends back until it closes the connection."""
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=TIMEOUT_S) as connection:
        reply = b""
        with suppress(OSError):  # it may close before it has read all that we send
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                reply += piece
        return reply


HOST = b"Host: localhost\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /api/version HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", b"200"),
        (b"GET http://evil.com/api/version HTTP/1.1\r\nHost: evil.com\r\nConnection: close\r\n\r\n", b"403"),
        (b"GET http://localhost/api/version HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", b"404"),
        (b"GET /api/version HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET /api/version HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /api/version HTTP/1.0\r\n\r\n", b"403"),
        (b"GET /api/version HTTP/1.1\r\nHost: evil.com\r\n\r\n", b"403"),
        (b"GET /api/version HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n", b"400"),
        (b"GET /api/version HTTP/1.1\r\n" + HOST + b"X-Y: z\r\n" * 20_000 + b"\r\n", b"400"),
        (
            b"POST /api/show HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
            b"400",
        ),
        (b"POST /api/show HTTP/1.1\r\n" + HOST + b"Content-Length: +2\r\n\r\n{}", b"400"),
        (b"POST /api/show HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n", b"400"),
        (b"GET /\x00 HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_requests_by_hand(daemon: Daemon, request_: bytes, status: bytes) -> None:
    reply = raw_reply(daemon, request_)
    assert reply == b"" or reply.split(b" ", 2)[1] == status


def test_a_daemon_in_the_foreground_is_not_shut_down_by_request(start_daemon: StartDaemon) -> None:
    foreground = start_daemon()
    reply = httpx.post(f"{foreground.base_url}/api/shutdown")
    assert reply.status_code == 409
    assert "not started in the background" in reply.json()["error"]


def test_shutdown_of_a_daemon_in_the_background(start_daemon: StartDaemon) -> None:
    background = start_daemon("--background")
    assert httpx.post(f"{background.base_url}/api/shutdown").status_code == 200
    assert background.wait() == 0


def test_two_daemons_share_a_models_folder(start_daemon: StartDaemon, tiny_folder: Path) -> None:
    first, second = start_daemon(), start_daemon()
    create_tiny(first.client(), tiny_folder)
    assert "tiny:latest" in [entry.model for entry in second.client().list().models]
    assert any("another daemon serves" in line for line in second.log)


class TestWithAModel:
    @pytest.fixture
    def own(self, start_daemon: StartDaemon, tiny_folder: Path) -> Daemon:
        own = start_daemon()
        create_tiny(own.client(), tiny_folder)
        own.client().generate("tiny")
        return own

    @staticmethod
    def worker(daemon: Daemon) -> psutil.Process:
        [worker] = psutil.Process(daemon.process.pid).children()
        return worker

    def test_a_signal_lets_answers_finish(self, own: Daemon) -> None:
        body = {**LONG, "options": {"temperature": 0, "num_predict": 300}}
        with httpx.stream("POST", f"{own.base_url}/api/generate", json=body, timeout=TIMEOUT_S) as reply:
            lines = reply.iter_lines()
            assert not json.loads(next(lines))["done"]
            own.process.send_signal(signal.SIGTERM)
            assert json.loads(list(lines)[-1])["done"]
        assert own.wait() == 0
        assert not any("Traceback" in line for line in own.log)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{own.base_url}/api/version")

    def test_a_second_signal_ends_at_once(self, own: Daemon) -> None:
        worker = self.worker(own)
        with httpx.stream("POST", f"{own.base_url}/api/generate", json=LONG, timeout=TIMEOUT_S) as reply:
            lines = reply.iter_lines()
            next(lines)
            own.process.send_signal(signal.SIGTERM)
            while not any("shutting down" in line for line in own.log):
                next(lines)
            own.process.send_signal(signal.SIGINT)
            assert own.wait() == 0
        worker.wait(TIMEOUT_S)

    def test_the_grace_time_ends_with_an_error_line(self, start_daemon: StartDaemon, tiny_folder: Path) -> None:
        hasty = start_daemon(HOB_DRAIN="0.1s")
        create_tiny(hasty.client(), tiny_folder)
        with httpx.stream("POST", f"{hasty.base_url}/api/generate", json=LONG, timeout=TIMEOUT_S) as reply:
            lines = reply.iter_lines()
            next(lines)
            hasty.process.send_signal(signal.SIGTERM)
            assert list(json.loads(list(lines)[-1])) == ["error"]
        assert hasty.wait() == 0

    def test_a_worker_that_is_killed_takes_nobody_along(self, own: Daemon) -> None:
        with httpx.stream("POST", f"{own.base_url}/api/generate", json=LONG, timeout=TIMEOUT_S) as reply:
            lines = reply.iter_lines()
            next(lines)
            self.worker(own).kill()
            assert "signal 9" in json.loads(list(lines)[-1])["error"]
        assert own.client().generate("tiny", "Hi", options={"num_predict": 3}).done

    def test_a_client_that_leaves_is_not_generated_for(self, own: Daemon) -> None:
        with httpx.stream("POST", f"{own.base_url}/api/generate", json=LONG, timeout=TIMEOUT_S) as reply:
            next(reply.iter_lines())
        own.process.send_signal(signal.SIGTERM)
        assert own.wait() == 0
        assert any("POST /api/generate 499" in line for line in own.log)

    def test_workers_end_with_a_daemon_that_is_killed(self, own: Daemon) -> None:
        worker = self.worker(own)
        own.process.kill()
        worker.wait(TIMEOUT_S)

    def test_prompts_are_not_in_the_log(self, own: Daemon) -> None:
        client = own.client()
        client.generate("tiny", "the-canary", options={"num_predict": 2})
        with pytest.raises(ollama.ResponseError):
            client.chat("tiny", [{"role": "user", "content": "the-canary"}], options={"top_p": 9})
        own.process.send_signal(signal.SIGTERM)
        own.wait()
        assert not any("canary" in line for line in own.log)
        assert any("POST /api/generate 200" in line for line in own.log)

    def test_log_lines_cannot_be_forged(self, own: Daemon) -> None:
        raw_reply(own, b"GET /%0aforged%1b[31m HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        own.process.send_signal(signal.SIGTERM)
        own.wait()
        [line] = [line for line in own.log if "forged" in line]
        assert "\\nforged\\x1b" in line
