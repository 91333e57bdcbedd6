"""Random histories of a daemon's store: several workers at once, each with names of its own and a model of them.

Workers share base files, so that one creates from a blob while another deletes the last model that names it; that is
where a store loses things. Each knows exactly what its own names must hold, whatever the others do. `run_history` gives
back sentences, one for each violation; the test and `tools/store_history.py` use it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import httpx
from hypothesis import strategies as st

from registry.create import CreateRequest, create_model
from registry.manifest import Digest
from registry.name import ModelName
from registry.store import Store

NUM_NAMES = 4
MAX_ATTEMPTS = 50
"""To create from files that another worker's deletion takes away between upload and create."""
TIMEOUT_S = 120.0

Files = Mapping[str, bytes]


class Operation(NamedTuple):
    """What a worker does next; numbers choose names, files and texts."""

    kind: str
    target: int
    source: int
    text: int


def operations(kinds: Sequence[str], size: int) -> st.SearchStrategy[list[Operation]]:
    """One worker's history of so many operations."""
    numbers = st.integers(0, NUM_NAMES - 1)
    one = st.builds(Operation, st.sampled_from(kinds), numbers, numbers, st.integers(0, 5))
    return st.lists(one, min_size=size, max_size=size)


KINDS = ("create", "create", "derive", "derive", "copy", "delete", "delete", "show", "list")
KINDS_WITH_PULL = (*KINDS, "pull", "pull", "remove_pulled")


@dataclass
class Worker:
    """One client and what it believes to be stored."""

    number: int
    http: httpx.Client
    bases: Sequence[Files]
    pull_name: Callable[[int, int], str] | None
    """(worker, target) -> a name that can be pulled; it holds the first base."""
    stored: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Name -> its base and its system text."""
    digests: dict[str, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def do(self, operation: Operation) -> None:
        getattr(self, operation.kind)(operation)

    def name(self, number: int) -> str:
        return f"worker{self.number}/model{number}:latest"

    def create(self, operation: Operation) -> None:
        base = operation.source % len(self.bases)
        system = f"text {operation.text}" if operation.text else ""
        body = {"files": _digests(self.bases[base]), **({"system": system} if system else {})}
        for _ in range(MAX_ATTEMPTS):
            self._upload(self.bases[base])
            response = self._post("/api/create", model=self.name(operation.target), stream=False, **body)
            if response.status_code != httpx.codes.NOT_FOUND:
                break
        self._expect(response, operation, base, system)

    def derive(self, operation: Operation) -> None:
        source, system = self.name(operation.source), f"derived {operation.text}"
        if source not in self.stored:
            return
        name = self.name(operation.target)
        response = self._post("/api/create", model=name, stream=False, system=system, **{"from": source})
        self._expect(response, operation, self.stored[source][0], system)

    def copy(self, operation: Operation) -> None:
        source, target = self.name(operation.source), self.name(operation.target)
        response = self._post("/api/copy", source=source, destination=target)
        if source in self.stored:
            self._expect(response, operation, *self.stored[source])
        elif response.status_code != httpx.codes.NOT_FOUND:
            self._complain(operation, f"copying what is not there gave {response.status_code}")

    def delete(self, operation: Operation) -> None:
        self._remove(operation, self.name(operation.target))

    def _remove(self, operation: Operation, name: str) -> None:
        response = self.http.request("DELETE", "/api/delete", json={"model": name})
        wanted = httpx.codes.OK if self.stored.pop(name, None) is not None else httpx.codes.NOT_FOUND
        if response.status_code != wanted:
            self._complain(operation, f"deleting gave {response.status_code} and not {wanted}: {response.text}")

    def show(self, operation: Operation) -> None:
        name = self.name(operation.target)
        response = self._post("/api/show", model=name)
        if name not in self.stored:
            if response.status_code != httpx.codes.NOT_FOUND:
                self._complain(operation, f"{name} is gone, but showing it gave {response.status_code}")
        elif response.status_code != httpx.codes.OK:
            self._complain(operation, f"showing {name} gave {response.status_code}: {response.text}")
        elif response.json().get("system", "") != self.stored[name][1]:
            self._complain(operation, f"{name} has the system text {response.json().get('system')!r}")

    def list(self, operation: Operation) -> None:
        listed = {model["name"] for model in self.http.get("/api/tags").json()["models"]}
        mine = {name for name in listed if f"worker{self.number}/" in name}
        if mine != set(self.stored):
            self._complain(operation, f"listed are {sorted(mine)}, there should be {sorted(self.stored)}")

    def pull(self, operation: Operation) -> None:
        assert self.pull_name is not None
        source = self.pull_name(self.number, operation.target)
        response = self._post("/api/pull", model=source, insecure=True, stream=False)
        if response.status_code != httpx.codes.OK:
            self._complain(operation, f"pulling gave {response.status_code}: {response.text}")
            return
        self.stored[source.removeprefix("http://")] = (0, "")

    def remove_pulled(self, operation: Operation) -> None:
        assert self.pull_name is not None
        self._remove(operation, self.pull_name(self.number, operation.target).removeprefix("http://"))

    # ---- helpers

    def _upload(self, files: Files) -> None:
        for data in files.values():
            path = f"/api/blobs/{_digest(data)}"
            if self.http.head(path).status_code != httpx.codes.OK:
                self.http.post(path, content=data)

    def _post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def _expect(self, response: httpx.Response, operation: Operation, base: int, system: str) -> None:
        if response.status_code == httpx.codes.OK:
            self.stored[self.name(operation.target)] = (base, system)
        else:
            self._complain(operation, f"it gave {response.status_code}: {response.text}")

    def _complain(self, operation: Operation, sentence: str) -> None:
        self.violations.append(f"worker {self.number}, {operation}: {sentence}")


def run_history(
    base_url: str,
    histories: Sequence[Sequence[Operation]],
    bases: Sequence[Files],
    pull_name: Callable[[int, int], str] | None = None,
) -> list[str]:
    """Let a worker do each history, all at once, then remove what is left; returns the violations."""
    with ThreadPoolExecutor(len(histories)) as threads:
        jobs = [
            threads.submit(_work, base_url, number, history, bases, pull_name)
            for number, history in enumerate(histories)
        ]
        return [violation for job in jobs for violation in job.result()]


def _work(
    base_url: str,
    number: int,
    history: Sequence[Operation],
    bases: Sequence[Files],
    pull_name: Callable[[int, int], str] | None,
) -> list[str]:
    with httpx.Client(base_url=base_url, timeout=TIMEOUT_S, trust_env=False) as http:
        worker = Worker(number, http, bases, pull_name)
        for operation in history:
            worker.do(operation)
        worker.list(Operation("list", 0, 0, 0))
        for name in sorted(worker.stored):
            worker.violations += _check_whole(http, name)
            http.request("DELETE", "/api/delete", json={"model": name})
        return worker.violations


def _check_whole(http: httpx.Client, name: str) -> list[str]:
    """A model that is there can be shown with its tensors, which reads its weights' headers."""
    response = http.post("/api/show", json={"model": name, "verbose": True})
    if response.status_code != httpx.codes.OK:
        return [f"{name} is left broken: {response.text}"]
    return [] if response.json().get("tensors") else [f"{name} is left without tensors"]


def _digests(files: Files) -> dict[str, str]:
    return {name: _digest(data) for name, data in files.items()}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class SmallRegistry:
    """A registry that has one model under every name."""

    port: int

    def pull_name(self, worker: int, target: int) -> str:
        return f"http://127.0.0.1:{self.port}/worker{worker}/model{target}:latest"


@contextmanager
def serve_model(files: Files, **words: Any) -> Iterator[SmallRegistry]:
    """A registry on a free port that serves a model of these files until the block ends.

    Args:
        words: fields of CreateRequest, such as a template.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        name = ModelName("served")
        digests = {file: str(store.write_blob([data])) for file, data in files.items()}
        for _ in create_model(store, CreateRequest(name, files=digests, **words)):
            pass
        manifest = store.manifests.joinpath(*name.path_parts).read_bytes()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if "/manifests/" in self.path:
                    data = manifest
                else:
                    data = store.blob_path(Digest.parse(self.path.rpartition("/")[2])).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = Thread(target=server.serve_forever)
            thread.start()
            try:
                yield SmallRegistry(server.server_port)
            finally:
                server.shutdown()
                thread.join()
