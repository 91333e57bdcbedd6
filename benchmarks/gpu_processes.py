"""The cases of benchmarks/gpu.py that are processes of their own: starts, a small memory, the daemon, other engines."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from gpu_bench import Bench
from gpu_http import DaemonCases

CHILD = Path(__file__).resolve().parent / "gpu_child.py"
MAX_LAST_WORDS = 400
"""Characters of a child's stderr that a failure quotes."""


def figures(words: Sequence[str], environ: Mapping[str, str]) -> list[tuple[float, dict[str, Any]]]:
    """Runs a command; the JSON objects that it prints, each with the seconds from its start.

    Raises:
        RuntimeError: it ended with another status than 0, or printed none; the sentence holds its last words.
    """
    found = []
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                elapsed = time.perf_counter() - start
                if line.lstrip().startswith("{"):
                    found.append((elapsed, json.loads(line)))
        errors.seek(0)
        last_words = errors.read().strip()[-MAX_LAST_WORDS:]
    if process.returncode or not found:
        how = f"ended with status {process.returncode}" if process.returncode else "printed no JSON object"
        raise RuntimeError(f"{Path(words[0]).name} {' '.join(words[1:])[:80]} {how}: {last_words or 'no word'}")
    return found


class ProcessCases:
    """The cases by name."""

    def __init__(self, bench: Bench, peers: Sequence[str] = ()) -> None:
        self._bench = bench
        self._peers = peers
        self._daemon = DaemonCases(bench)
        self._transformers: dict[int, dict[str, Any]] | None = None

    def close(self) -> None:
        """Ends the daemon."""
        self._daemon.close()

    def table(self) -> dict[str, Callable[[], None]]:
        """What to call for each case."""
        table: dict[str, Callable[[], None]] = {
            "start/bf16/warm_s": partial(self.start, "start/bf16/warm_s"),
            "start/bf16/cold_s": self.cold_start,
            "http/bf16/b1/share": self._daemon.one,
            "http/bf16/b32": self._daemon.many,
            "fits/24gib/bf16": self.fits,
        }
        for batch in (1, 8, 32):
            table[f"transformers/bf16/b{batch}"] = partial(self.transformers, batch)
        for peer in self._peers:
            name, _, command = peer.partition("=")
            table[f"peer/{name}"] = partial(self.peer, name, command)
        return table

    def _child(self, what: str, *more: str) -> list[str]:
        return [sys.executable, str(CHILD), what, str(self._bench.model), "--device", self._bench.device, *more]

    def start(self, name: str, **environ: str) -> None:
        """A new process, from its start to the first token; the files are in the page cache."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(_read, self._bench.model.iterdir()))
        elapsed, line = figures(self._child("start"), {**os.environ, **environ})[0]
        parts = {key: round(value, 3) for key, value in line.items()}
        self._bench.case(name, elapsed, **parts)

    def cold_start(self) -> None:
        """The same, where no kernel has been compiled yet."""
        with tempfile.TemporaryDirectory() as folder:
            self.start("start/bf16/cold_s", TRITON_CACHE_DIR=folder)

    def fits(self) -> None:
        """What context a card of 24 GiB has left."""
        _, line = figures(self._child("fits", "--gib", "24"), os.environ)[0]
        if line["answered"] != 100:
            raise RuntimeError(f"{line['answered']} tokens were generated, not 100")
        self._bench.case("fits/24gib/bf16", line.pop("value"), **line)

    def transformers(self, batch: int) -> None:
        """Transformers' `generate` on the same weights; one process measures all batches."""
        if importlib.util.find_spec("transformers") is None:
            raise RuntimeError("transformers is not installed here; `pip install transformers` brings it")
        if self._transformers is None:
            self._transformers = {}
            new_tokens = str(self._bench.sizes.peer_new_tokens)
            prompt_tokens = str(self._bench.sizes.prompt_tokens)
            words = self._child("transformers", "--new-tokens", new_tokens, "--prompt-tokens", prompt_tokens)
            for _, line in figures(words, os.environ):
                self._transformers[line.pop("batch")] = line
        if batch not in self._transformers:
            raise RuntimeError(f"it printed no figure for batch {batch}")
        line = dict(self._transformers[batch])
        self._bench.case(f"transformers/bf16/b{batch}", line.pop("value"), **line)

    def peer(self, name: str, command: str) -> None:
        """Another engine's own benchmark: a shell command that prints JSON objects with a number under "value"."""
        num_figures = 0
        for _, line in figures(["/bin/sh", "-c", command], {**os.environ, "MODEL": str(self._bench.model)}):
            value = line.pop("value", None)
            if not isinstance(value, int | float):
                continue
            num_figures += 1
            case = "/".join(["peer", name, *([str(line.pop("case"))] if "case" in line else [])])
            # The rest of a line as report.py writes it is said of this run anew.
            more = {key: line[key] for key in line if key not in ("ceiling", "share", "shape", "machine", "date")}
            more["peer_command"] = more.pop("command", command)
            self._bench.case(case, float(value), **more)
        if not num_figures:
            raise RuntimeError(f'`{command}` printed no JSON object with a number under "value"')


def _read(path: Path) -> None:
    """Brings a file into the page cache."""
    if path.is_file():
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
