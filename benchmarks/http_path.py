"""The daemon's CPU time for each streamed chunk, from the engine's frame to the socket, and 256 streams at once.

    python benchmarks/http_path.py [--out benchmarks/results/http.jsonl]

A real daemon in an empty home, with its real engine client, serves the built-in model; only the worker is a stand-in,
which sends one token for each request at a steady pace, in the frames of the real one. CPU time is the daemon's own
clock (all its threads, user and system), read from here before and after; each case is measured with few and with many
chunks a request, and their difference is what a chunk costs without what a request costs. Chunks are counted where they
arrive: one that carried two tokens, since the daemon was late, counts once.

The ceiling is a floor: what a bare event loop spends on writing a chunk's bytes to as many sockets at the same pace. A
single stream's floor is high where the processor sleeps between two tokens, as each chunk pays for waking up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import uvloop

import daemon.main
from engine.channel import decode_for_worker, encode_frame, read_payload
from engine.client import EngineClient
from engine.messages import Abort, Load, Ready, Shutdown, StepOutput, Submit, TokenRow

LISTENING = re.compile(r"listening on http://127\.0\.0\.1:([0-9]+)")
MODEL = "tale"
FIRST_ID, NUM_IDS = 300, 400
"""Ids of ordinary words in the model's vocabulary."""
PROMPT = "Tell me a story about a fox. "
TALK = [{"role": "user", "content": PROMPT}]
FEW, MANY = 50, 250
"""Chunks a request."""
CHUNK = b"8e\r\n" + b"x" * 142 + b"\r\n"
"""As long as a chunk of /api/generate."""
OPENAI = "/v1/chat/completions"
CASES = (("/api/generate", 1), ("/api/generate", 32), ("/api/generate", 256), ("/api/chat", 256), (OPENAI, 256))
SPEC = {
    "/api/generate": lambda num: {"prompt": PROMPT, "options": {"num_predict": num}},
    "/api/chat": lambda num: {"messages": TALK, "options": {"num_predict": num}},
    OPENAI: lambda num: {"messages": TALK, "max_tokens": num, "stream": True},
}


# ---- the worker's stand-in


class StandIn:
    """Answers each request with as many tokens as it asks for, one a step for all requests."""

    def __init__(self, sock: socket.socket, step_s: float) -> None:
        self._sock = sock
        self._step_s = step_s
        self._left: dict[int, int] = {}
        self._lock = threading.Lock()
        self._has_work = threading.Event()

    def run(self) -> None:
        """Serve until the daemon hangs up."""
        threading.Thread(target=self._step_for_ever, daemon=True).start()
        while (payload := read_payload(self._sock)) is not None:
            message = decode_for_worker(payload)
            if isinstance(message, Load):
                self._sock.sendall(encode_frame(READY))
            elif isinstance(message, Submit):
                with self._lock:
                    self._left[message.seq_id] = message.params.max_tokens or 1
                self._has_work.set()
            elif isinstance(message, Abort):
                with self._lock:
                    for seq_id in message.seq_ids:
                        self._left.pop(seq_id, None)
            elif isinstance(message, Shutdown):
                return

    def _step_for_ever(self) -> None:
        due = time.monotonic()
        while True:
            self._has_work.wait()
            due = max(due + self._step_s, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            with self._lock:
                rows = [self._row(seq_id) for seq_id in list(self._left)]
                if not self._left:
                    self._has_work.clear()
            if rows:
                self._sock.sendall(encode_frame(StepOutput(rows=rows)))

    def _row(self, seq_id: int) -> TokenRow:
        self._left[seq_id] -= 1
        left = self._left[seq_id]
        if not left:
            del self._left[seq_id]
        ids = [FIRST_ID + (seq_id * 7 + left) % NUM_IDS]
        return TokenRow(seq_id=seq_id, token_ids=ids, finish_reason=None if left else "length")


READY = Ready(
    num_blocks=100_000, block_size=16, weights_bytes=1, kv_cache_bytes=1, max_context=4096, device="cpu",
    dtype="float32", load_s=0.0,
)  # fmt: skip


# ---- the daemon


def serve(step_s: float) -> None:
    """The daemon's entry point, with the stand-in for its worker."""

    class Client:
        start: ClassVar[Any] = partial(
            EngineClient.start, command=(sys.executable, "-P", __file__, "--step", str(step_s), "worker")
        )

    daemon.main.EngineClient = Client  # type: ignore[misc, assignment]
    daemon.main.main(["--host", "127.0.0.1:0"])


@dataclass
class Daemon:
    """A running daemon."""

    process: subprocess.Popen[str]
    port: int

    def cpu_s(self) -> float:
        """CPU time of the process by its own clock, in seconds."""
        return time.clock_gettime((~self.process.pid << 3) | 2)  # as clock_getcpuclockid(3) makes it


def start(home: str, step_s: float, role: str = "daemon") -> Daemon:
    """Start one, or the bare server, and wait until it listens."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("HOB_", "OLLAMA_"))}
    environ |= {"HOB_HOME": home, "HOB_SPARE_WORKER": "0"}
    command = [sys.executable, __file__, "--step", str(step_s), role]
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := LISTENING.search(line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return Daemon(process, int(found[1]))
    raise SystemExit("the daemon did not start")


async def serve_bare(step_s: float) -> None:
    """Writes CHUNK to whoever connects, as often as the first line asks for, and hangs up. The floor."""
    left: dict[asyncio.StreamWriter, int] = {}

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left[writer] = int(await reader.readline())

    server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=1024)
    sys.stderr.write(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stderr.flush()
    while True:
        await asyncio.sleep(step_s)
        for writer in list(left):
            writer.write(CHUNK)
            left[writer] -= 1
            if not left[writer]:
                del left[writer]
                writer.close()


# ---- clients


async def stream(port: int, path: str, body: dict[str, Any]) -> tuple[int, int]:
    """One request. Returns its chunks with text and its tokens; fails unless the stream is whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps({"model": MODEL, **body}).encode()
    writer.write(b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % (path.encode(), len(data)))
    writer.write(b"Connection: close\r\n\r\n" + data)
    reply = await reader.read(-1)
    writer.close()
    last = reply.split(b"\r\n")[-4]
    if not reply.startswith(b"HTTP/1.1 200") or not (b'"done":true' in last or b"data: [DONE]" in last):
        raise SystemExit(f"a stream failed: {reply[:200]!r} ... {reply[-200:]!r}")
    chunks = reply.count(b'"done":false') + reply.count(b'"delta":{"content":')
    return chunks, json.loads(last)["eval_count"] if path != OPENAI else chunks


async def bare_stream(port: int, num_chunks: int) -> tuple[int, int]:
    """As `stream`, from the bare server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"%d\n" % num_chunks)
    chunks = (await reader.read(-1)).count(b"8e\r\n")
    writer.close()
    return chunks, chunks


async def streams(port: int, path: str, count: int, num_tokens: int) -> tuple[int, int]:
    """Many at once: all their chunks, and all their tokens."""
    one = partial(stream, port, path, SPEC[path](num_tokens)) if path else partial(bare_stream, port, num_tokens)
    done = await asyncio.gather(*(one() for _ in range(count)))
    return sum(chunks for chunks, _ in done), sum(tokens for _, tokens in done)


def measure(daemon: Daemon, path: str, count: int, num_tokens: int) -> tuple[float, int, int]:
    """CPU seconds of the daemon, chunks and tokens."""
    before = daemon.cpu_s()
    chunks, tokens = asyncio.run(streams(daemon.port, path, count, num_tokens))
    return daemon.cpu_s() - before, chunks, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", nargs="?", choices=["worker", "daemon", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--step", type=float, default=0.04, help="seconds between two tokens of a request")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.role == "worker":
        StandIn(socket.socket(fileno=args.fd), args.step).run()
    elif args.role == "daemon":
        serve(args.step)
    elif args.role == "bare":
        uvloop.run(serve_bare(args.step))
    else:
        run(args)


def cost(server: Daemon, path: str, count: int) -> tuple[float, float, float]:
    """Microseconds a chunk, milliseconds a request, and tokens a chunk."""
    few, few_chunks, _ = measure(server, path, count, FEW)
    many, many_chunks, many_tokens = measure(server, path, count, MANY)
    chunk_s = (many - few) / (many_chunks - few_chunks)
    return chunk_s * 1e6, (few - chunk_s * few_chunks) / count * 1e3, many_tokens / many_chunks


def run(args: argparse.Namespace) -> None:
    """All cases."""
    from report import Report  # imports torch, which the daemon and the stand-in do without

    report = Report(args.out)
    with tempfile.TemporaryDirectory() as home:
        daemon, bare = start(home, args.step), start(home, args.step, "bare")
        try:
            for path, count in CASES:
                measure(daemon, path, count, FEW)  # loads the model, and warms up
                costs = [cost(daemon, path, count) for _ in range(args.repeats)]
                floors = [cost(bare, "", count)[0] for _ in range(args.repeats)]
                report.case(
                    f"CPU a chunk, {path}, {count} stream{'s' if count > 1 else ''}",
                    median(chunk for chunk, _, _ in costs),
                    "us",
                    ceiling=median(floors),
                    smaller_is_better=True,
                    lowest=round(min(costs)[0], 2),
                    highest=round(max(costs)[0], 2),
                    request_ms=round(median(request for _, request, _ in costs), 3),
                    tokens_a_chunk=round(median(ratio for _, _, ratio in costs), 3),
                    chunks_a_stream=MANY,
                    step_s=args.step,
                    repeats=args.repeats,
                )
        finally:
            for server in (daemon, bare):
                server.process.terminate()
                server.process.wait()


if __name__ == "__main__":
    main()
