"""Reply: a server's answer, of which nothing is believed.

`registry.transport` makes it. Bodies are read under a limit or as a watched stream, and never decompressed: Hob asks
for plain bytes, so compressed ones are an error and a small answer cannot become a large one. An error's text is
shortened, cleaned and quoted, unless it repeats a secret of ours.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
import msgspec

from registry.addresses import Reach
from registry.errors import RemoteDenied, RemoteError, RemoteNotFound

MAX_ERROR_BYTES = 8 * 1024
MAX_DETAIL = 200
"""Characters of a server's own words that a message quotes."""

TEMPORARY = frozenset({408, 425, 429})
"""Statuses below 500 after which the same request may succeed."""


@dataclass(frozen=True)
class Timeouts:
    """How long a server may keep Hob waiting."""

    connect_s: float = 15
    silence_s: float = 30
    """Longest time without a byte."""
    stall_s: float = 30
    """A body that brings fewer than `stall_bytes` in this time has stalled."""
    stall_bytes: int = 1024


@dataclass(frozen=True)
class Origin:
    """Who is asked; what authorisation is for."""

    scheme: str
    host: str
    """In ASCII (names of other scripts in punycode), lower case."""
    port: int

    @classmethod
    def of(cls, url: httpx.URL) -> Origin:
        port = url.port or (443 if url.scheme == "https" else 80)
        return cls(url.scheme, url.raw_host.decode("ascii").lower(), port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


class Reply:
    """Status, headers and body of one answer; the body can be read once, while the reply is open.

    Args:
        secrets: what must not appear in a message although the server repeats it.
    """

    def __init__(
        self, response: httpx.Response, url: httpx.URL, reach: Reach, timeouts: Timeouts, secrets: tuple[str, ...] = ()
    ) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        """By name in any case."""
        self.url = url
        """Where it came from, after redirects."""
        self.origin = Origin.of(url)
        self.reach = reach
        self._response = response
        self._timeouts = timeouts
        self._secrets = secrets
        self._is_interrupted = False

    @property
    def length(self) -> int | None:
        """Bytes of the body as the header announces them."""
        text = self.headers.get("content-length", "")
        return int(text) if re.fullmatch("[0-9]{1,18}", text) else None

    def read(self, max_bytes: int, what: str) -> bytes:
        """The whole body.

        Args:
            what: what is read, to follow "sent": "a manifest".

        Raises:
            RemoteError: it is longer than `max_bytes`, or broke off.
        """
        self._refuse_compression()
        too_long = RemoteError(f"{self.origin} sent {what} of more than {max_bytes} bytes, which Hob does not read")
        if (self.length or 0) > max_bytes:
            raise too_long
        body = bytearray()
        for chunk in self.chunks():
            body += chunk
            if len(body) > max_bytes:
                raise too_long
        return bytes(body)

    def drain(self, is_empty: bool) -> None:
        """Take in a small rest that nobody asked for, so that the connection can be used again.

        Args:
            is_empty: whether no body comes, whatever length is announced.
        """
        if not self._response.is_stream_consumed and (is_empty or (self.length or 0) <= MAX_ERROR_BYTES):
            with suppress(RemoteError):
                num_bytes = 0
                for chunk in self.chunks():
                    num_bytes += len(chunk)
                    if num_bytes > MAX_ERROR_BYTES:  # no length was announced, or no body was due
                        return

    def chunks(self, clock: Callable[[], float] = time.monotonic) -> Iterator[bytes]:
        """The body as it comes.

        Raises:
            RemoteError: it is compressed, breaks off or stalls, or `interrupt` was called.
        """
        self._refuse_compression()
        stream = self._response.iter_raw()
        watch = _Watch(self._timeouts)
        try:
            while True:
                before = clock()
                chunk = next(stream, None)
                if chunk is None:
                    return
                # Only waiting counts, not what the consumer does with the bytes.
                if watch.has_stalled(clock() - before, len(chunk)):
                    raise RemoteError(
                        f"{self.origin} has all but stopped sending: fewer than {self._timeouts.stall_bytes} bytes "
                        f"in {self._timeouts.stall_s:g} s; try again later",
                        is_temporary=True,
                    )
                yield chunk
        except httpx.TimeoutException as error:
            raise RemoteError(
                f"{self.origin} stopped sending: nothing came for {self._timeouts.silence_s:g} s; try again later",
                is_temporary=True,
            ) from error
        except (httpx.TransportError, httpx.StreamError, OSError, ssl.SSLError) as error:
            what = "was interrupted" if self._is_interrupted else "broke off"
            raise RemoteError(f"the answer of {self.origin} {what}; try again", is_temporary=True) from error

    def interrupt(self) -> None:
        """End a `chunks` that waits in another thread, with an error; the one call that any thread may make."""
        self._is_interrupted = True
        stream = self._response.extensions.get("network_stream")
        raw = stream.get_extra_info("socket") if stream is not None else None
        if isinstance(raw, socket.socket):
            with suppress(OSError):  # closed already
                # Not SSLSocket.shutdown, which takes the TLS state from under the reading thread.
                socket.socket.shutdown(raw, socket.SHUT_RDWR)

    def check(self, what: str, remedy: str = "") -> None:
        """Do nothing where the status is 2xx.

        Args:
            what: what was asked for, to follow "has no": "blob sha256:...".
            remedy: what the person can do about a refusal.

        Raises:
            RemoteNotFound, RemoteDenied, RemoteError: by the status, with the server's reason as far as it gave one.
        """
        if 200 <= self.status < 300:
            return
        detail = self._detail()
        then = f"; {remedy}" if remedy else ""
        if self.status == 404:
            raise RemoteNotFound(f"{self.origin} has no {what}{detail}")
        if self.status in (401, 403):
            raise RemoteDenied(f"{self.origin} denies access to {what} (HTTP {self.status}){detail}{then}")
        if self.status in TEMPORARY or self.status >= 500:
            raise RemoteError(
                f"{self.origin} cannot answer for {what} at the moment (HTTP {self.status}){detail}; try again later",
                is_temporary=True,
                retry_after_s=retry_after_s(self.headers.get("retry-after", ""), datetime.now(UTC)),
            )
        raise RemoteError(f"{self.origin} refuses {what} (HTTP {self.status}){detail}{then}")

    def _refuse_compression(self) -> None:
        if self.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            raise RemoteError(f"{self.origin} compressed its answer although it was asked for plain bytes")

    def _detail(self) -> str:
        """The server's own words, ": ..." or ""."""
        try:
            body = self.read(MAX_ERROR_BYTES, "an error text")
        except RemoteError:
            return ""
        text = " ".join("".join(c if c.isprintable() else " " for c in _error_text(body)).split())
        if not text or any(secret in text for secret in self._secrets):
            return ""
        return ": " + (text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 3] + "...")


class _Watch:
    """Notices a stream that trickles: adds up waiting time and bytes, in windows of `stall_s` of waiting."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._waited_s = 0.0
        self._num_bytes = 0

    def has_stalled(self, waited_s: float, num_bytes: int) -> bool:
        self._waited_s += waited_s
        self._num_bytes += num_bytes
        if self._waited_s < self._timeouts.stall_s:
            return False
        is_slow = self._num_bytes < self._timeouts.stall_bytes
        self._waited_s, self._num_bytes = 0.0, 0
        return is_slow


def retry_after_s(text: str, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, in either of its two forms; None where it says nothing."""
    text = text.strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - now).total_seconds())


def _error_text(body: bytes) -> str:
    """The messages of a registry's error JSON, or the text itself; "" for web pages."""
    text = body.decode("utf-8", "replace")
    try:
        parsed = msgspec.json.decode(body, type=_ErrorJSON)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "" if text.lstrip().startswith(("<", "{", "[")) else text
    return "; ".join(dict.fromkeys(entry.message for entry in parsed.errors if entry.message)) or parsed.error


class _ErrorEntry(msgspec.Struct):
    message: str = ""


class _ErrorJSON(msgspec.Struct):
    errors: list[_ErrorEntry] = []
    error: str = ""
