"""A daemon with a worker, and a hundred right and a hundred wrong requests to each operation that it describes.

    python tools/fuzz_api.py [--examples 100] [--out benchmarks/results/fuzz-api.log]

`make fuzz-api` calls it. schemathesis makes the requests from /openapi.json; tests/daemon/api_cases.py says what must
be true of the replies: no status from 500 on but a deliberate one, nothing that is not described. Meanwhile another
client asks for /healthz, to see that no request holds up the daemon. Prints what is wrong; exits with 1 if anything is.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx

from tests.daemon.api_cases import Case, Described, summary
from tests.daemon.tiny_model import CHAT_TEMPLATE, THINKING_TEMPLATE, write_tiny_model
from tests.e2e.conftest import Daemon, end, follow, launch

MAX_WAIT_S = 120.0
PAUSE_S = 0.02
MODELS = {"tiny": CHAT_TEMPLATE, "thinker": THINKING_TEMPLATE}


class Pulse:
    """Asks for /healthz for as long as it is entered, and remembers the longest wait."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.worst_s = 0.0

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._base_url, timeout=MAX_WAIT_S, trust_env=False) as http:
            while not self._stop.wait(PAUSE_S):
                start = time.monotonic()
                http.get("/healthz").raise_for_status()
                self.worst_s = max(self.worst_s, time.monotonic() - start)


def start(home: Path) -> Daemon:
    """A daemon that reaches no other machine, with models of a few tokens an answer."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    daemon = launch(home, HOME=str(home), HF_HOME=str(home / "hub"), **nowhere)
    follow(daemon)
    for seed, (name, template) in enumerate(MODELS.items()):
        write_tiny_model(home / "files" / name, chat_template=template, seed=seed)
        client = daemon.client()
        files = {path.name: client.create_blob(path) for path in (home / "files" / name).iterdir()}
        client.create(name, files=files, parameters={"num_predict": 4})
    return daemon


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--examples", type=int, default=100, help="requests to each operation, right and wrong ones")
    parser.add_argument("--out", type=Path, help="file to write the log to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        daemon = start(Path(home))
        try:
            lines, num_wrong = fuzz(daemon, arguments.examples)
        finally:
            end(daemon)
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if arguments.out:
        arguments.out.write_text(text, "utf-8")
    return 1 if num_wrong else 0


def fuzz(daemon: Daemon, examples: int) -> tuple[list[str], int]:
    """Send all; returns the log's lines and how many replies were wrong."""
    wrong: list[str] = []
    by_operation: dict[str, Counter[tuple[str, int]]] = {}
    slowest: dict[str, float] = {}
    with (
        httpx.Client(base_url=daemon.base_url, timeout=MAX_WAIT_S, trust_env=False) as http,
        Pulse(daemon.base_url) as pulse,
    ):
        described = Described(http.get("/openapi.json").json())
        for case in described.cases(examples, [*MODELS], derandomize=True):
            name = f"{case.row.method} {case.row.path}"
            began = time.monotonic()
            response = http.request(case.row.method, case.path, content=case.body, headers=case.headers)
            slowest[name] = max(slowest.get(name, 0.0), time.monotonic() - began)
            by_operation.setdefault(name, Counter())[case.mode, response.status_code] += 1
            wrong += _complaints(described, case, response)
    num_requests = sum(counts.total() for counts in by_operation.values())
    lines = [
        f"{datetime.now(UTC).date()}, {platform.machine()}, schemathesis {version('schemathesis')}, "
        f"{examples} examples of each operation and mode",
        *(f"{name}: {summary(counts)}; slowest {slowest[name]:.2f} s" for name, counts in by_operation.items()),
        *wrong,
        f"{num_requests} requests to {len(by_operation)} operations, {len(wrong)} wrong replies; "
        f"/healthz waited {pulse.worst_s:.2f} s at most",
    ]
    return lines, len(wrong)


def _complaints(described: Described, case: Case, response: httpx.Response) -> list[str]:
    content_type = response.headers.get("content-type", "")
    complaint = described.complaint(case, response.status_code, content_type, response.content)
    return [f"WRONG {case.row.method} {case.path} {case.body[:300]!r}: {complaint}"] if complaint else []


if __name__ == "__main__":
    sys.exit(main())
