"""A daemon's double behind a real socket: it answers what a test told it to, and remembers what it was asked."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

Reply = Any  # an object, a list of objects (NDJSON), an int (a status), (status, object), or a function of the request


@dataclass
class FakeDaemon:
    """Routes and a record. `asked` holds (method, path, body) in the order of arrival."""

    address: str
    routes: dict[tuple[str, str], Reply] = field(default_factory=dict)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of what was asked."""

    def bodies(self, path: str) -> list[Any]:
        return [body for _, asked, body in self.asked if asked == path]


def handler_of(daemon: FakeDaemon) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.body()
            with suppress(ValueError):  # a blob stays as it is
                body = json.loads(body) if body else None
            daemon.headers.append(dict(self.headers))
            daemon.asked.append((self.command, self.path, body))
            reply = daemon.routes.get((self.command, self.path), (404, {"error": f"no route {self.path}"}))
            if callable(reply):
                reply = reply(body)
            status = 200
            if isinstance(reply, int):
                status, reply = reply, None
            elif isinstance(reply, tuple):
                status, reply = reply
            lines = reply if isinstance(reply, list) else [] if reply is None else [reply]
            data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        do_GET = do_POST = do_DELETE = do_HEAD = answer

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    return Handler


class Outcome(NamedTuple):
    """What one command line came to."""

    status: int
    out: str
    err: str


DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "3.4M",
    "quantization_level": "F16",
}
