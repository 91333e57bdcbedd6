"""A server on this machine that answers what a test tells it to, and remembers what it was asked.

    with LocalServer(lambda request: Response(body=b"hello")) as server:
        ...  # server.url, server.requests

It listens on one of the addresses of the loopback network, 127.0.0.0/8; several servers on several of them stand for
several hosts. `far` makes a Transport for which 127.0.0.1 is a host of the internet and 127.0.0.2 this machine.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from registry.addresses import Reach
from registry.reply import Timeouts
from registry.transport import Transport

PUBLIC = "127.0.0.1"
PRIVATE = "127.0.0.2"
"""What `far` takes for an address of this machine."""

DEADLINE_S = 30
"""After which a test that waits for something gives up."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """With the query."""
    headers: Mapping[str, str]
    """By name in any case."""
    body: bytes


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes | Iterable[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    """Content-Length where it is not the body's."""
    has_length: bool = True
    """Without it the connection's end is the body's."""
    is_reset: bool = False
    """Whether the connection is reset after the body."""


Respond = Callable[[Request], Response]


class LocalServer:
    """A server; use it as a context.

    Args:
        respond: what is answered; it may be replaced at any time.
        tls: makes it an HTTPS server.
    """

    def __init__(self, respond: Respond, *, host: str = PUBLIC, tls: ssl.SSLContext | None = None) -> None:
        self.respond = respond
        self.requests: list[Request] = []
        self.stopping = threading.Event()
        """For bodies that wait: set when the server ends."""
        self._connections: set[socket.socket] = set()
        self._http = _Server((host, 0), self, tls)
        self.host = host
        self.port: int = self._http.server_address[1]
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def paths(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.requests]

    def __enter__(self) -> LocalServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._thread.join()
        for connection in list(self._connections):
            with suppress(OSError):  # ended by its own thread meanwhile
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        self._http.server_close()  # joins the threads of connections

    def wait(self) -> Iterable[bytes]:
        """A body, or its end, that does not come while the server runs."""
        assert self.stopping.wait(DEADLINE_S)
        return ()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, address: tuple[str, int], owner: LocalServer, tls: ssl.SSLContext | None) -> None:
        self.owner = owner
        self.tls = tls
        super().__init__(address, _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        # The handshake is made here, in the connection's thread, so that a client that never makes it holds up no one.
        if self.tls:
            try:
                request = self.tls.wrap_socket(request, server_side=True)
            except OSError:
                return  # the client does not like the certificate
        self.owner._connections.add(request)
        try:
            super().finish_request(request, client_address)
        except OSError:
            pass  # the client left
        finally:
            self.owner._connections.discard(request)
            request.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        owner = self.server.owner
        request = Request(self.command, self.path, self.headers, self._read_body())  # type: ignore[arg-type]
        owner.requests.append(request)
        response = owner.respond(request)
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if not response.has_length:
            self.close_connection = True
            self.send_header("Connection", "close")
        elif "Content-Length" not in response.headers:
            length = response.length
            if length is None:
                length = len(response.body) if isinstance(response.body, bytes) else 0
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = 0
        for chunk in [response.body] if isinstance(response.body, bytes) else response.body:
            self.wfile.write(chunk)
            sent += len(chunk)
        if response.length is not None and sent != response.length:
            self.close_connection = True
        if response.is_reset:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


def far(timeouts: Timeouts | None = None) -> Transport:
    """A Transport for which PUBLIC is on the internet, and PRIVATE this machine."""
    return Transport(timeouts, reach_of=_reach, use_environment=False)


def _reach(address: str) -> Reach:
    return Reach.INTERNET if address == PUBLIC else Reach.MACHINE
