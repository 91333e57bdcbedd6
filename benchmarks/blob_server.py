"""An HTTP server of one file, as fast as the machine or as a limit allows; `store_pull.py` starts it.

    python benchmarks/blob_server.py FILE [BITS_PER_SECOND]

It prints its port. Single ranges, connections that stay open, sendfile; the limit is one token bucket for all
connections, as a line to the internet is.
"""

from __future__ import annotations

import os
import re
import socketserver
import sys
import threading
import time
from pathlib import Path

SLICE_BYTES = 256 * 1024
BURST_S = 0.01
"""How much of a second's bytes may be sent at once after a pause."""


class TokenBucket:
    """Lets `take` return when so many bytes may be sent."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_at_s = time.monotonic()

    def take(self, num_bytes: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._free_at_s = max(self._free_at_s, now - BURST_S) + num_bytes / self._bytes_per_s
            wait_s = self._free_at_s - now
        if wait_s > 0:
            time.sleep(wait_s)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 50

    def __init__(self, path: Path, bucket: TokenBucket | None) -> None:
        self.file = path.open("rb")
        self.size = path.stat().st_size
        self.bucket = bucket
        super().__init__(("127.0.0.1", 0), Connection)


class Connection(socketserver.StreamRequestHandler):
    server: Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        try:
            while self.rfile.readline():
                self._answer("".join(str(line, "latin-1") for line in iter(self.rfile.readline, b"\r\n")))
        except OSError:
            pass  # the client has what it wants

    def _answer(self, headers: str) -> None:
        size = self.server.size
        match = re.search(r"^range: bytes=(\d+)-(\d*)", headers, re.IGNORECASE | re.MULTILINE)
        start = int(match[1]) if match else 0
        stop = min(size, int(match[2]) + 1) if match and match[2] else size
        status = "206 Partial Content" if match else "200 OK"
        span = f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n" if match else ""
        self.wfile.write(f"HTTP/1.1 {status}\r\n{span}Content-Length: {stop - start}\r\n\r\n".encode())
        while start < stop:
            num_bytes = min(SLICE_BYTES, stop - start)
            if self.server.bucket is not None:
                self.server.bucket.take(num_bytes)
            start += os.sendfile(self.connection.fileno(), self.server.file.fileno(), start, num_bytes)


def main() -> None:
    bits_per_s = float(sys.argv[2]) if len(sys.argv) > 2 else 0
    with Server(Path(sys.argv[1]), TokenBucket(bits_per_s / 8) if bits_per_s else None) as server:
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    main()
