"""A server of one blob that goes wrong in one of forty ways.

It speaks HTTP over bare sockets, since most of what it does no HTTP library would let it do. The kind says what goes
wrong, the seed which requests are hit and the details; requests that are not hit get a right answer. Every request is
in `log`.
"""

from __future__ import annotations

import random
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from types import TracebackType
from typing import Any

PIECE_BYTES = 4096
DEADLINE_S = 60
"""After which a stall ends even if nobody stops the server."""
GARBAGE = b"\0\1\2 this is no HTTP \xff\n\n"
PAGE = b"<!doctype html><title>Login</title><p>Please log in to the network."


@dataclass
class Exchange:
    """One request, and the means to answer it rightly or wrongly."""

    server: FaultServer
    connection: socket.socket
    path: str
    start: int
    stop: int
    has_range: bool
    number: int
    """Of the requests for the blob, from 0."""
    rng: random.Random
    closes: bool = False
    """Whether the connection ends after this answer."""

    @property
    def data(self) -> bytes:
        return self.server.data

    @property
    def body(self) -> bytes:
        return self.data[self.start : self.stop]

    def head(self, status: int, length: int | None, **headers: str) -> None:
        """Send status line and headers; underscores in names stand for hyphens."""
        lines = [
            f"HTTP/1.1 {status} Whatever",
            *(f"{name.replace('_', '-')}: {text}" for name, text in headers.items()),
        ]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        self.raw("\r\n".join([*lines, "", ""]).encode())

    def range_head(self, length: int | None = -1, status: int = 0, **headers: str) -> None:
        """The headers of a right answer, but for those that are given."""
        right = {"ETag": self.server.etag, "Accept_Ranges": "bytes", "Content_Type": "application/octet-stream"}
        if self.has_range:
            right["Content_Range"] = f"bytes {self.start}-{self.stop - 1}/{len(self.data)}"
        length = len(self.body) if length == -1 else length
        merged = {name: text for name, text in {**right, **headers}.items() if text}
        self.head(status or (206 if self.has_range else 200), length, **merged)

    def raw(self, data: bytes) -> None:
        if self.server.is_dead:
            raise ConnectionResetError
        self.connection.sendall(data)

    def send(self, data: bytes, *, chunked: bool = False) -> None:
        """Send body bytes that are wrong, or whose right place does not matter."""
        for at in range(0, len(data), PIECE_BYTES):
            piece = data[at : at + PIECE_BYTES]
            self.raw(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)

    def send_right(self, start: int, stop: int, *, chunked: bool = False) -> None:
        """Send bytes of the blob, and note that they have left."""
        for at in range(start, stop, PIECE_BYTES):
            end = min(stop, at + PIECE_BYTES)
            self.send(self.data[at:end], chunked=chunked)
            self.server.note_sent(end - at)

    def answer(self) -> None:
        """The right answer."""
        self.range_head()
        self.send_right(self.start, self.stop)

    def whole(self, length: int | None = -1) -> None:
        """The answer of a server that knows no ranges."""
        self.head(200, len(self.data) if length == -1 else length, ETag=self.server.etag)
        self.send_right(0, len(self.data))

    def close(self) -> None:
        self.closes = True

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.closes = True

    def stall(self, wait_s: float = DEADLINE_S) -> None:
        self.server.stopping.wait(wait_s)

    @property
    def middle(self) -> int:
        """A place within the answer."""
        return self.rng.randrange(self.start, max(self.start + 1, self.stop))


Act = Callable[[Exchange], object]


@dataclass(frozen=True)
class Kind:
    """One way to go wrong."""

    act: Act
    when: str = "some"
    """Which requests are hit: "once", "some", "from" one on, "always"."""
    outcome: str = "right"
    """What a client has to make of it: "right" bytes, a clean "error", or "either"."""
    spoils: bool = False
    """Whether bytes that came have to be thrown away."""


def refuse(status: int, *, body: bytes = b"no\n", **headers: str) -> Act:
    def act(exchange: Exchange) -> None:
        exchange.head(status, len(body), **headers)
        exchange.send(body)

    return act


def retry_at_a_date(x: Exchange) -> None:
    refuse(429, Retry_After=formatdate(usegmt=True))(x)


def short_body(x: Exchange) -> None:
    x.range_head()
    x.send_right(x.start, x.middle)
    x.close()


def honest_short_body(x: Exchange) -> None:
    middle = x.middle
    x.range_head(middle - x.start)
    x.send_right(x.start, middle)


def bytes_after_the_body(x: Exchange) -> None:
    x.answer()
    x.send(b"and something more")


def longer_than_its_range(x: Exchange) -> None:
    x.range_head(len(x.body) + 100)
    x.send_right(x.start, x.stop)
    x.send(bytes(100))


def empty_body(x: Exchange) -> None:
    x.range_head(0)


def zeros(x: Exchange) -> None:
    x.range_head()
    x.send(bytes(len(x.body)))


def flipped_bit(x: Exchange) -> None:
    body = bytearray(x.body)
    body[x.rng.randrange(len(body))] ^= 1 << x.rng.randrange(8)
    x.range_head()
    x.send(bytes(body))


def other_file(x: Exchange) -> None:
    x.range_head()
    x.send(x.server.other[x.start : x.stop])


def web_page(x: Exchange) -> None:
    x.head(200, len(PAGE), Content_Type="text/html; charset=utf-8")
    x.send(PAGE)


def compressed(x: Exchange) -> None:
    x.range_head(Content_Encoding="gzip")
    x.send_right(x.start, x.stop)


def chunked(x: Exchange) -> None:
    x.range_head(None, Transfer_Encoding="chunked")
    x.send_right(x.start, x.stop, chunked=True)
    x.raw(b"0\r\n\r\n")


def chunked_and_cut(x: Exchange) -> None:
    x.range_head(None, Transfer_Encoding="chunked")
    x.send_right(x.start, x.middle, chunked=True)
    x.raw(b"1000\r\n")
    x.close()


def ends_by_closing(x: Exchange) -> None:
    x.range_head(None, Connection="close")
    x.send_right(x.start, x.stop)
    x.close()


def whole_without_length(x: Exchange) -> None:
    x.whole(None)
    x.close()


def ranges_ignored(x: Exchange) -> None:
    x.whole()


def wrong_start_announced(x: Exchange) -> None:
    x.range_head(Content_Range=f"bytes {x.start + 7}-{x.stop + 6}/{len(x.data)}")
    x.send_right(x.start, x.stop)


def wrong_total_announced(x: Exchange) -> None:
    x.range_head(Content_Range=f"bytes {x.start}-{x.stop - 1}/{len(x.data) + 1 + x.rng.randrange(10**6)}", status=206)
    x.send_right(x.start, x.stop)


def part_of_the_beginning(x: Exchange) -> None:
    x.range_head()
    x.send(x.data[: len(x.body)])


def many_parts(x: Exchange) -> None:
    part = b"--cut\r\nContent-Range: bytes %d-%d/%d\r\n\r\n%b\r\n" % (x.start, x.stop - 1, len(x.data), x.body)
    body = part + part + b"--cut--\r\n"
    x.range_head(len(body), status=206, Content_Type="multipart/byteranges; boundary=cut", Content_Range="")
    x.send(body)


def reset_first(x: Exchange) -> None:
    x.reset()


def reset_within(x: Exchange) -> None:
    x.range_head()
    x.send_right(x.start, x.middle)
    x.reset()


def cut_headers(x: Exchange) -> None:
    x.raw(b"HTTP/1.1 206 Partial Content\r\nContent-Len")
    x.close()


def silent(x: Exchange) -> None:
    x.stall()
    x.close()


def silent_within(x: Exchange) -> None:
    x.range_head()
    x.send_right(x.start, x.middle)
    x.stall()
    x.close()


def drip(x: Exchange) -> None:
    x.range_head()
    for at in range(x.start, x.stop):
        x.raw(x.data[at : at + 1])
        x.stall(0.05)


def slow_headers(x: Exchange) -> None:
    for byte in b"HTTP/1.1 206 Partial Content\r\nX-Slow: yes\r\n":
        x.raw(bytes([byte]))
        x.stall(0.002)
    x.raw(b"Content-Range: bytes %d-%d/%d\r\n" % (x.start, x.stop - 1, len(x.data)))
    x.raw(b"Content-Length: %d\r\n\r\n" % len(x.body))
    x.send_right(x.start, x.stop)


def closes_unannounced(x: Exchange) -> None:
    x.answer()
    x.close()


def no_http(x: Exchange) -> None:
    x.raw(GARBAGE)
    x.close()


def redirect_elsewhere(x: Exchange) -> None:
    if x.path == "/elsewhere":
        x.answer()
    else:
        x.head(307, 0, Location=x.server.second_url + "/elsewhere")


def redirect_in_circles(x: Exchange) -> None:
    x.head(302, 0, Location=f"/again{x.number}")


def other_version_name(x: Exchange) -> None:
    x.server.etag = f'"{x.number}"'
    x.answer()


def moved(x: Exchange) -> None:
    x.server.move()
    x.answer()


KINDS: dict[str, Kind] = {
    # statuses
    "500 now and then": Kind(refuse(500)),
    "503 with Retry-After": Kind(refuse(503, Retry_After="3600")),
    "429 until a date": Kind(retry_at_a_date),
    "503 always": Kind(refuse(503), "always", "error"),
    "404 always": Kind(refuse(404), "always", "error"),
    "403 from then on": Kind(refuse(403), "from", "error"),
    "416 always": Kind(refuse(416, Content_Range="bytes */7"), "always", "error"),
    # bodies
    "short body": Kind(short_body),
    "short body with its length": Kind(honest_short_body),
    "bytes after the body": Kind(bytes_after_the_body),
    "longer than its range": Kind(longer_than_its_range),
    "empty body once": Kind(empty_body, "once"),
    "zeros once": Kind(zeros, "once", "right", spoils=True),
    "a flipped bit always": Kind(flipped_bit, "always", "error", spoils=True),
    "another file always": Kind(other_file, "always", "error", spoils=True),
    "a web page": Kind(web_page, "once", "error"),
    "compressed": Kind(compressed, "always", "error"),
    "chunked": Kind(chunked, "always"),
    "chunked and cut": Kind(chunked_and_cut),
    "ends by closing": Kind(ends_by_closing, "always"),
    # ranges
    "ranges ignored": Kind(ranges_ignored, "always"),
    "ranges ignored once": Kind(ranges_ignored, "once"),
    "whole without length": Kind(whole_without_length, "always"),
    "wrong start announced": Kind(wrong_start_announced, "some", "error"),
    "wrong total announced": Kind(wrong_total_announced, "always", "error"),
    "many parts in one": Kind(many_parts, "always", "error"),
    "the beginning instead of the range": Kind(part_of_the_beginning, "always", "right", spoils=True),
    # connections
    "reset before the answer": Kind(reset_first),
    "reset within the body": Kind(reset_within),
    "headers cut off": Kind(cut_headers),
    "silent before the answer": Kind(silent, "once"),
    "silent within the body": Kind(silent_within, "once"),
    "drip once": Kind(drip, "once"),
    "slow headers": Kind(slow_headers, "once"),
    "closes without a word": Kind(closes_unannounced, "always"),
    "no HTTP": Kind(no_http),
    # places and versions
    "redirect to another host": Kind(redirect_elsewhere, "always"),
    "redirect in circles": Kind(redirect_in_circles, "always", "error"),
    "versions named anew": Kind(other_version_name, "always"),
    "moved to another version": Kind(moved, "once", "either", spoils=True),
}
"""Forty."""


@dataclass
class FaultServer:
    """Use as a context. `heal` ends the faults, `die_after` makes the server vanish for good."""

    data: bytes
    kind: str = ""
    seed: int = 0
    other: bytes = b""
    """What "another file" and "another version" are; as long as `data`."""
    die_after: int | None = None
    """Bytes of the blob after which no connection brings anything any more."""
    etag: str = '"v1"'
    log: list[tuple[str, str]] = field(default_factory=list)
    """(path, Range header) of each request."""
    num_sent: int = 0
    """Right bytes of the blob that have left."""

    def __post_init__(self) -> None:
        self._first_version = (self.data, self.etag)
        self.stopping = threading.Event()
        self.is_dead = False
        self.connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._num_requests = 0
        self._first_hit = random.Random(f"{self.kind} {self.seed}").choice((0, 1, 2, 3, 5, 8))
        self._servers = [_Listener(host, self) for host in ("127.0.0.1", "127.0.0.3")]
        self.url, self.second_url = (
            f"http://{host}:{port}" for host, port in (s.server_address for s in self._servers)
        )
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}) for server in self._servers
        ]

    def heal(self) -> None:
        """Answer rightly from now on, with the file of the beginning."""
        self.kind, self.die_after, self.is_dead = "", None, False
        self.data, self.etag = self._first_version

    def move(self) -> None:
        """Have another version of the file from now on."""
        self.data, self.etag = self.other, '"v2"'

    def note_sent(self, num_bytes: int) -> None:
        with self._lock:
            self.num_sent += num_bytes
            if self.die_after is not None and self.num_sent >= self.die_after:
                self.is_dead = True

    def respond(self, exchange: Exchange) -> None:
        kind = KINDS.get(self.kind)
        if kind is not None and self._is_hit(kind.when, exchange.number):
            kind.act(exchange)
        else:
            exchange.answer()

    def exchange(self, connection: socket.socket, path: str, headers: dict[str, str]) -> Exchange:
        text = headers.get("range", "")
        with self._lock:
            self.log.append((path, text))
            number, self._num_requests = self._num_requests, self._num_requests + 1
        first, _, last = text.removeprefix("bytes=").partition("-")
        stop = min(len(self.data), int(last) + 1) if last else len(self.data)
        rng = random.Random(f"{self.kind} {self.seed} {number}")
        return Exchange(self, connection, path, int(first or 0), stop, bool(text), number, rng)

    def _is_hit(self, when: str, number: int) -> bool:
        if when == "once":
            return number == self._first_hit
        if when == "from":
            return number >= self._first_hit
        return when == "always" or (number + self.seed) % 3 == 0

    def __enter__(self) -> FaultServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        for server in self._servers:
            server.shutdown()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for server, thread in zip(self._servers, self._threads, strict=True):
            thread.join()
            server.server_close()  # joins the threads of connections


class _Listener(socketserver.ThreadingTCPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 50

    def __init__(self, host: str, owner: FaultServer) -> None:
        self.owner = owner
        super().__init__((host, 0), _Connection)


class _Connection(socketserver.StreamRequestHandler):
    server: _Listener
    disable_nagle_algorithm = True

    def handle(self) -> None:
        owner = self.server.owner
        connection: Any = self.connection
        owner.connections.add(connection)
        try:
            while not owner.is_dead and (words := self.rfile.readline().split()):
                lines = iter(self.rfile.readline, b"\r\n")
                headers = {
                    name.lower(): text.strip() for name, _, text in (str(x, "latin-1").partition(":") for x in lines)
                }
                exchange = owner.exchange(connection, str(words[1], "latin-1"), headers)
                owner.respond(exchange)
                if exchange.closes:
                    return
        except OSError:
            pass  # the client left, or the server died
        finally:
            owner.connections.discard(connection)
