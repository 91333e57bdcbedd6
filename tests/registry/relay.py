"""A relay before a server that cuts its clients' connections after so many bytes."""

from __future__ import annotations

import socket
import socketserver
import threading
from contextlib import suppress
from types import TracebackType


class Relay:
    """The relay; use it as a context.

    Args:
        target: "host:port".
        cuts: for each connection in turn, after how many bytes of the client it ends; None, and past the list, never.
    """

    def __init__(self, target: str, cuts: list[int | None]) -> None:
        host, _, port = target.partition(":")
        self.target = (host, int(port))
        self.cuts = cuts
        self.num_cut = 0
        self._server = _Server(("127.0.0.1", 0), _Connection)
        self._server.relay = self
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()  # joins the threads of connections; the client has closed them


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = False
    relay: Relay


class _Connection(socketserver.BaseRequestHandler):
    request: socket.socket
    server: _Server

    def handle(self) -> None:
        relay = self.server.relay
        cut = relay.cuts.pop(0) if relay.cuts else None
        with socket.create_connection(relay.target) as target:
            back = threading.Thread(target=copy, args=(target, self.request))
            back.start()
            if copy(self.request, target, cut):
                relay.num_cut += 1
            with suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)
            back.join()


def copy(source: socket.socket, destination: socket.socket, cut: int | None = None) -> bool:
    """Send on what comes, to its end or to the cut; whether it was cut."""
    num_bytes = 0
    is_cut = False
    with suppress(OSError):
        while not is_cut and (data := source.recv(65536)):
            num_bytes += len(data)
            is_cut = cut is not None and num_bytes >= cut
            if not is_cut:
                destination.sendall(data)
    for end in (source, destination) if is_cut else (destination,):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR if is_cut else socket.SHUT_WR)
    return is_cut
