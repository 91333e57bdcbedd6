"""The daemon's share of benchmarks/gpu.py: what HTTP, text and processes leave of the engine's speed.

A real daemon in an empty home, and the model in its store. `hob create` would hash the weights on one core and send
them; here they are hashed by several and linked into the store, and the same request makes the model.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gpu_bench import Bench
from random_model import FIRST_WORD

from engine.text.tokenizer import Tokenizer
from modelfiles.source import ModelSource

LISTENING = re.compile(r"listening on http://([^:\s]+):([0-9]+)")
MODEL = "random"
TIMEOUT_S = 120.0


@dataclass
class Stream:
    """One streamed answer, as its client saw it."""

    begin: float
    """When it was asked for."""
    times: list[float]
    """When each line with text came."""
    num_tokens: int
    eval_rate: float
    """Tokens a second by the figures in the answer."""

    @property
    def wall_rate(self) -> float:
        """Tokens a second between the first and the last line with text."""
        return self.num_tokens * (1 - 1 / len(self.times)) / (self.times[-1] - self.times[0])


class DaemonCases:
    """A daemon that is started with the first case, and its cases."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._home: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._address = ("", 0)
        self._tokenizer: Tokenizer | None = None
        self._rng = random.Random(0)
        self._create_s = 0.0
        self._load_s = 0.0

    def one(self) -> None:
        """A single stream's rate over the engine's own."""
        self._start()
        sizes, own = self._bench.sizes, self._bench.measured("decode/bf16/b1")
        texts = [self._text(sizes.http_prompt_tokens) for _ in range(sizes.repeats)]
        streams = [self._generate(text, sizes.new_tokens) for text in texts]
        wall = median(stream.wall_rate for stream in streams)
        by_answer = median(stream.eval_rate for stream in streams)
        self._bench.case(
            "http/bf16/b1/share",
            wall / own["value"],
            tok_s_wall=round(wall, 2),
            tok_s_eval=round(by_answer, 2),
            share_eval=round(by_answer / own["value"], 4),
            engine_tok_s=own["value"],
            prompt_tokens=sizes.http_prompt_tokens,
            new_tokens=sizes.new_tokens,
            repeats=len(streams),
            create_s=round(self._create_s, 2),
            load_s=round(self._load_s, 2),
        )

    def many(self) -> None:
        """The rate of 32 streams while all of them are being answered."""
        self._start()
        sizes, own = self._bench.sizes, self._bench.measured("decode/bf16/b32")
        with ThreadPoolExecutor(32) as pool:

            def once() -> list[Stream]:
                texts = [self._text(sizes.prompt_tokens) for _ in range(32)]
                return list(pool.map(lambda text: self._generate(text, sizes.new_tokens), texts))

            once()
            runs = [once() for _ in range(sizes.repeats)]
        rates = [_steady_rate(streams) for streams in runs]
        self._bench.case(
            "http/bf16/b32",
            median(rates),
            share_of_engine=round(median(rates) / own["value"], 4),
            engine_tok_s=own["value"],
            with_prefill=round(median(_whole_rate(streams) for streams in runs), 1),
            prompt_tokens=sizes.prompt_tokens,
            new_tokens=sizes.new_tokens,
            repeats=len(runs),
        )

    def close(self) -> None:
        """Ends the daemon, and takes its home away."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        home, self._home = self._home, None
        if home is not None:
            home.cleanup()

    # ---- the daemon

    def _start(self) -> None:
        """Starts the daemon, makes the model and loads it, unless that is done."""
        if self._process is not None:
            return
        # Beside the model, so that its files can be linked.
        self._home = tempfile.TemporaryDirectory(dir=self._bench.model.parent, prefix="hob-bench-")
        home = Path(self._home.name)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOB_", "OLLAMA_"))}
        environ = inherited | {
            "HOB_HOME": str(home),
            "HOB_HOST": "127.0.0.1:0",
            "HOB_SPARE_WORKER": "0",
            "HOB_DTYPE": "bfloat16",
            "HOB_DEVICE": self._bench.device.partition(":")[0],
        }
        command = [sys.executable, "-P", "-m", "daemon.main"]
        self._process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
        self._follow(self._process)
        begin = time.perf_counter()
        files = link_into_store(self._bench.model, home / "models")
        self._post("/api/create", {"model": MODEL, "files": files, "stream": False})
        self._create_s = time.perf_counter() - begin
        self._tokenizer = Tokenizer.from_source(ModelSource.from_path(self._bench.model))
        begin = time.perf_counter()
        self._generate(self._text(self._bench.sizes.http_prompt_tokens), 8)
        self._load_s = time.perf_counter() - begin

    def _follow(self, process: subprocess.Popen[str]) -> None:
        """Reads the daemon's log until it listens, and on in the background, so that it never waits for us.

        Raises:
            RuntimeError: it has ended.
        """
        assert process.stderr is not None
        log: list[str] = []
        for line in process.stderr:
            log.append(line.strip())
            if found := LISTENING.search(line):
                self._address = (found[1], int(found[2]))
                threading.Thread(target=process.stderr.read, daemon=True).start()
                return
        raise RuntimeError(f"the daemon did not start: {' '.join(log[-3:])}")

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)
        try:
            connection.request("POST", path, json.dumps(body))
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if "error" in answer:
            raise RuntimeError(f"the daemon answered {path} with: {answer['error']}")
        return answer

    def _generate(self, text: str, new_tokens: int) -> Stream:
        """Streams one greedy answer to a prompt that nobody has sent before.

        Raises:
            RuntimeError: the daemon answered with an error, or with fewer tokens.
        """
        body = {
            "model": MODEL,
            "prompt": text,
            "raw": True,
            "options": {"temperature": 0, "num_predict": new_tokens},
        }
        connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)
        times: list[float] = []
        line = b""
        begin = time.perf_counter()
        try:
            connection.request("POST", "/api/generate", json.dumps(body))
            response = connection.getresponse()
            while piece := response.readline():
                times.append(time.perf_counter())
                line = piece
        finally:
            connection.close()
        last = json.loads(line or b"{}")
        if not last.get("done"):
            raise RuntimeError(f"the daemon ended an answer with: {last.get('error', 'nothing')}")
        if last["eval_count"] != new_tokens or len(times) < 3:
            raise RuntimeError(f"{last['eval_count']} tokens came in {len(times)} lines, not {new_tokens}")
        # The last line has no text, only the figures.
        return Stream(begin, times[:-1], new_tokens, 1e9 * last["eval_count"] / last["eval_duration"])

    def _text(self, num_tokens: int) -> str:
        """Words that are as many tokens, others each time."""
        assert self._tokenizer is not None
        text = self._tokenizer.decode(
            self._rng.choices(range(FIRST_WORD, self._tokenizer.vocab_size - 3), k=num_tokens)
        )
        found = len(self._tokenizer.encode(text))
        if found != num_tokens:
            raise RuntimeError(f"a prompt of {num_tokens} words became {found} tokens")
        return text


def link_into_store(model: Path, models: Path) -> dict[str, str]:
    """Puts a model's files into a store under their digests; returns the digest of each by name."""
    blobs = models / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    paths = sorted(path for path in model.iterdir() if path.suffix in (".json", ".safetensors"))

    def put(path: Path) -> str:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        target = blobs / f"sha256-{digest}"
        try:
            os.link(path, target)
        except OSError:  # another file system, or one that knows no links
            shutil.copyfile(path, target)
        return f"sha256:{digest}"

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return dict(zip((path.name for path in paths), pool.map(put, paths), strict=True))


def _steady_rate(streams: list[Stream]) -> float:
    """Tokens a second while all streams are being answered; a stream's tokens are spread evenly over its lines."""
    begin = max(stream.times[0] for stream in streams)
    end = min(stream.times[-1] for stream in streams)
    num_tokens = 0.0
    for stream in streams:
        num_lines = sum(begin < time <= end for time in stream.times)
        num_tokens += stream.num_tokens * num_lines / len(stream.times)
    if end <= begin:
        raise RuntimeError("the streams were never answered at the same time")
    return num_tokens / (end - begin)


def _whole_rate(streams: list[Stream]) -> float:
    """Tokens a second from the first request to the last line."""
    seconds = max(stream.times[-1] for stream in streams) - min(stream.begin for stream in streams)
    return sum(stream.num_tokens for stream in streams) / seconds
