"""A hub on this machine: the part of the Hugging Face hub's protocol that huggingface_hub and Hob use.

Two servers on free ports: the hub itself, and the storage on another origin to which it redirects for large files. A
repository has commits, branches that name one, and may be private or gated. Every request is remembered. Tests that
play a hostile hub change its descriptions with `tamper`, or put an answer of their own into `answers`.

What it does is what huggingface.co does as far as a client can see: descriptions at /api/models, files at
/<repository>/resolve/<revision>/<path>, small ones by a redirect to a cache on the same origin and large ones by a
redirect to the storage, errors with an X-Error-Code, and 401 to nobody in particular for what is not there.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".gguf", ".safetensors", ".bin", ".model")
"""Endings of what lies in the storage."""

Files = Mapping[str, bytes | Path]


@dataclass(frozen=True)
class Request:
    """What somebody asked."""

    server: str
    """ "hub" or "storage"."""
    path: str
    headers: Mapping[str, str]
    """By lower-case name."""


@dataclass(frozen=True)
class Answer:
    """What to say instead of the truth."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class HubRepository:
    """One repository."""

    name: str
    is_private: bool = False
    gated: str | bool = False
    commits: dict[str, dict[str, bytes | Path]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    members: set[str] = field(default_factory=set)
    """Tokens that may read it."""
    looked_into: dict[str, Any] = field(default_factory=dict)
    """What the hub says of the files' insides, under "config" and "gguf"."""

    def commit(self, files: Files, branch: str = "main") -> str:
        """Make a branch hold these files; returns the commit."""
        names = sorted((name, git_hash(read(data))) for name, data in files.items())
        commit = hashlib.sha1(repr((self.name, branch, names, len(self.commits))).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str:
        """The commit that a revision names, "" where none."""
        return revision if revision in self.commits else self.branches.get(revision, "")


class HubServer:
    """Runs inside a `with` block."""

    def __init__(self) -> None:
        self.repositories: dict[str, HubRepository] = {}
        self.tokens: set[str] = set()
        """Valid ones."""
        self.requests: list[Request] = []
        self.tamper: Callable[[dict[str, Any]], Any] = lambda description: description
        """What becomes of a description before it is sent; may give a whole Answer."""
        self.answers: dict[str, Answer] = {}
        """By the beginning of a path; on either server."""
        self._servers = {name: _Server(name, self) for name in ("hub", "storage")}

    def __enter__(self) -> HubServer:
        for server in self._servers.values():
            server.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.thread.join()
            server.server_close()

    @property
    def endpoint(self) -> str:
        return self._servers["hub"].origin

    @property
    def storage(self) -> str:
        return self._servers["storage"].origin

    def add(self, name: str, files: Files, **how: Any) -> HubRepository:
        """A new repository with one commit."""
        repository = self.repositories[name] = HubRepository(name, **how)
        repository.commit(files)
        return repository

    def paths(self, server: str = "hub") -> list[str]:
        """What was asked of a server, in order."""
        return [request.path for request in self.requests if request.server == server]

    # ---- what it answers

    def answer(self, request: Request) -> Answer:
        path = urlsplit(request.path).path
        for beginning, answer in self.answers.items():
            if request.path.startswith(beginning):
                return answer
        if request.server == "storage":
            return self._stored(path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?", path):
            return self._described(request, match[1], unquote(match[2] or "main"))
        if match := re.fullmatch(r"/(?:api/resolve-cache/models/)?([^/]+/[^/]+?)(/resolve)?/([^/]+)/(.+)", path):
            return self._resolved(request, match[1], unquote(match[3]), unquote(match[4]), is_cache=not match[2])
        return Answer(404, b"no such page")

    def _described(self, request: Request, name: str, revision: str) -> Answer:
        repository = self.repositories.get(name)
        refusal = self._refusal(request, repository)
        if refusal or repository is None:
            return refusal or Answer(500)
        commit = repository.resolve(revision)
        if not commit:
            return error_answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        description = {
            "_id": "0" * 24,
            "id": name,
            "modelId": name,
            "sha": commit,
            "private": repository.is_private,
            "gated": repository.gated,
            "tags": ["text-generation"],
            "lastModified": "2026-01-01T00:00:00.000Z",
            **repository.looked_into,
            "siblings": [_sibling(path, read(data)) for path, data in sorted(repository.commits[commit].items())],
        }
        told = self.tamper(description)
        if isinstance(told, Answer):
            return told
        return Answer(body=json.dumps(told).encode(), headers={"Content-Type": "application/json"})

    def _resolved(self, request: Request, name: str, revision: str, path: str, *, is_cache: bool) -> Answer:
        repository = self.repositories.get(name)
        refusal = self._refusal(request, repository)
        if refusal or repository is None:
            return refusal or Answer(500)
        if repository.gated and _token(request) not in repository.members:
            status = 403 if _token(request) else 401
            return error_answer(status, "GatedRepo", f"Access to model {name} is restricted")
        commit = repository.resolve(revision)
        files = repository.commits.get(commit, {})
        if path not in files:
            return error_answer(404, "EntryNotFound", "Entry not found")
        data = read(files[path])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_hash(data)}"'}
        if path.endswith(LARGE):
            sha256 = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256}"'}
            return Answer(302, b"", headers | {"Location": f"{self.storage}/{sha256}?X-Signature=abc"})
        if is_cache:
            return Answer(body=data, headers=headers)
        return Answer(307, b"", headers | {"Location": f"/api/resolve-cache/models/{name}/{commit}/{path}"})

    def _stored(self, path: str) -> Answer:
        for repository in self.repositories.values():
            for files in repository.commits.values():
                for name, data in files.items():
                    if name.endswith(LARGE) and hashlib.sha256(read(data)).hexdigest() == path[1:]:
                        return Answer(body=read(data), headers={"ETag": f'"{path[1:]}"'})
        return Answer(403, b"expired")

    def _refusal(self, request: Request, repository: HubRepository | None) -> Answer | None:
        token = _token(request)
        if token and token not in self.tokens:
            return Answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        if repository is None or (repository.is_private and token not in repository.members):
            if token:
                return error_answer(404, "RepoNotFound", "Repository not found")
            return Answer(
                401, b'{"error":"Invalid username or password."}', {"X-Error-Message": "Invalid username or password."}
            )
        return None


def read(data: bytes | Path) -> bytes:
    return data.read_bytes() if isinstance(data, Path) else data


def git_hash(data: bytes) -> str:
    """What git calls a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sibling(path: str, data: bytes) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_hash(data)}
    if path.endswith(LARGE):
        sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return sibling


def error_answer(status: int, code: str, message: str) -> Answer:
    body = json.dumps({"error": message}).encode()
    return Answer(status, body, {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"})


def _token(request: Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, name: str, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.hub = hub
        self.origin = f"http://127.0.0.1:{self.server_port}"
        # A short poll, because shutdown waits for it.
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)


class _Handler(BaseHTTPRequestHandler):
    """Closes the connection after each answer, as HTTP/1.0 does."""

    server: _Server

    def do_GET(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.server.name, self.path, headers)
        self.server.hub.requests.append(request)
        answer = self.server.hub.answer(request)
        status, body, extra = answer.status, answer.body, dict(answer.headers)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if wanted and status == 200:
            start, stop = int(wanted[1]), min(int(wanted[2] or len(body)) + 1, len(body))
            extra["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
            status, body = 206, body[start:stop]
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **extra}.items():
            self.send_header(key, value)
        self.end_headers()
        with suppress(ConnectionError):  # a client that has read enough
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: requests are remembered."""
