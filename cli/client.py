"""Client: the daemon's REST API as typed methods; streams are iterators of `daemon.api` replies.

Every command talks to the daemon through this class and through nothing else. `connect` is the one place that makes
an HTTP client. Errors of the daemon, also those that end a stream, are raised as `ServerError` with the daemon's own
sentence. An answer may take as long as it takes: a model may be loading, and Ctrl-C is the way out.
"""

from __future__ import annotations

import platform
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

# Costs 60 to 100 ms and is needed by every command, so cli.main imports this module inside its commands: `hob --help`
# and completion stay quick.
import httpx
import msgspec

from cli.errors import CliError, DaemonSilent, DaemonUnreachable, NoDaemon, NotFound, ServerError
from cli.version import VERSION
from daemon import api

T = TypeVar("T")
CONNECT_TIMEOUT_S = 5.0
VERSION_TIMEOUT_S = 5.0
"""For the one question that needs no model: what holds the port and does not answer it is no daemon that works."""


class Client:
    """A connection to one daemon. Closes with `with`; one thread at a time."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    @classmethod
    def connect(cls, base_url: str, api_key: str = "", transport: httpx.BaseTransport | None = None) -> Client:
        """A client of the daemon at `base_url`. Nothing is sent yet.

        Args:
            api_key: sent as a bearer token where it is not empty.
            transport: what carries requests; tests give one of their own.
        """
        headers = {"User-Agent": f"hob/{VERSION} ({platform.machine()} {platform.system().lower()})"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        # trust_env off: a proxy that the environment names for the internet must not see a local conversation.
        http = httpx.Client(
            base_url=base_url,
            headers=headers,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            transport=transport,
            trust_env=False,
        )
        return cls(http)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    @property
    def base_url(self) -> str:
        return str(self._http.base_url).rstrip("/")

    # ---- conversation

    def generate(self, request: api.GenerateRequest) -> Generator[api.GenerateResponse, None, None]:
        """Chunks of an answer. Closing the iterator ends the request, and with it the work in the daemon."""
        return self._stream("POST", "/api/generate", request, api.GenerateResponse)

    def chat(self, request: api.ChatRequest) -> Generator[api.ChatResponse, None, None]:
        """Chunks of the assistant's next message. Closing the iterator ends the request."""
        return self._stream("POST", "/api/chat", request, api.ChatResponse)

    def embed(self, request: api.EmbedRequest) -> api.EmbedResponse:
        return self._ask("POST", "/api/embed", request, api.EmbedResponse)

    # ---- models

    def list_models(self) -> list[api.ListedModel]:
        """All models in the store, the newest first."""
        return self._ask("GET", "/api/tags", None, api.ListResponse).models

    def running(self) -> list[api.RunningModel]:
        """The models that are loaded now."""
        return self._ask("GET", "/api/ps", None, api.ProcessResponse).models

    def show(self, model: str, *, verbose: bool = False) -> api.ShowResponse:
        """What a model is.

        Raises:
            NotFound: the store has no such model.
        """
        return self._ask("POST", "/api/show", api.ShowRequest(model=model, verbose=verbose or None), api.ShowResponse)

    def copy(self, source: str, destination: str) -> None:
        self._send("POST", "/api/copy", api.CopyRequest(source=source, destination=destination))

    def delete(self, model: str) -> None:
        self._send("DELETE", "/api/delete", api.DeleteRequest(model=model))

    def pull(self, model: str, *, insecure: bool = False) -> Iterator[api.ProgressResponse]:
        """Progress of a download."""
        request = api.PullRequest(model=model, insecure=insecure or None)
        return self._stream("POST", "/api/pull", request, api.ProgressResponse)

    def push(self, model: str, *, insecure: bool = False) -> Iterator[api.ProgressResponse]:
        """Progress of an upload."""
        request = api.PullRequest(model=model, insecure=insecure or None)
        return self._stream("POST", "/api/push", request, api.ProgressResponse)

    def remote_tags(self, model: str, *, insecure: bool = False) -> list[api.RemoteTag]:
        """The variants in which a model can be pulled."""
        request = api.PullRequest(model=model, insecure=insecure or None)
        return self._ask("POST", "/api/remote-tags", request, api.RemoteTagsResponse).tags

    def search(self, query: str) -> list[api.CatalogModel]:
        """What the catalog has for some words."""
        return self._ask("POST", "/api/search", api.SearchRequest(query=query), api.SearchResponse).models

    def fsck(self, *, rehash: bool) -> Iterator[api.FsckResponse]:
        """Progress of a look at the whole store, and what is broken."""
        return self._stream("POST", "/api/fsck", api.FsckRequest(rehash=rehash), api.FsckResponse)

    def importable(self, source: str) -> list[api.ImportableModel]:
        """Models that another program on the daemon's machine has."""
        return self._ask("POST", "/api/importable", api.ImportRequest(source), api.ImportableResponse).models

    def import_model(self, source: str, model: str) -> Iterator[api.ProgressResponse]:
        """Progress of taking one of them into the store."""
        return self._stream("POST", "/api/import", api.ImportRequest(source, model), api.ProgressResponse)

    def create(self, request: api.CreateRequest) -> Iterator[api.ProgressResponse]:
        """Progress of making a model."""
        return self._stream("POST", "/api/create", request, api.ProgressResponse)

    def load(self, model: str, keep_alive: api.KeepAlive | None = None) -> None:
        """Load a model without asking it anything, or unload it with a keep_alive of 0."""
        for _ in self.generate(api.GenerateRequest(model=model, keep_alive=keep_alive)):
            pass

    # ---- blobs

    def has_blob(self, digest: str) -> bool:
        """Whether the daemon has the file already; `digest` is "sha256:" and 64 hex digits."""
        with self._reached():
            response = self._http.head(f"/api/blobs/{digest}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return False
        _raise_for_error(response)
        return True

    def offer_blob(self, digest: str, inbox_name: str) -> bool:
        """Tell the daemon of a file in its inbox. False where it does not take it: then its bytes must be sent."""
        with self._reached():
            response = self._http.post(f"/api/blobs/{digest}", headers={api.INBOX_HEADER: inbox_name})
        return response.is_success

    def send_blob(self, digest: str, chunks: Iterable[bytes]) -> None:
        """Send a file's bytes. The daemon refuses them unless they hash to `digest`."""
        with self._reached():
            response = self._http.post(f"/api/blobs/{digest}", content=chunks)
        _raise_for_error(response)

    # ---- the daemon itself

    def version(self) -> api.VersionResponse:
        """Who answers. `hob_version` is empty where it is another server.

        Raises:
            NoDaemon: nobody does.
            DaemonSilent: somebody takes the question and does not answer it.
            DaemonUnreachable: the connection broke.
        """
        with self._reached():
            try:
                response = self._http.get("/api/version", timeout=VERSION_TIMEOUT_S)
            except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
                raise DaemonSilent(
                    f"what listens at {self.base_url} did not answer within {VERSION_TIMEOUT_S:.0f} s; "
                    "stop it, or set HOB_HOST to another address"
                ) from error
        if response.is_error:
            return api.VersionResponse(version="")
        try:
            return msgspec.json.decode(response.content, type=api.VersionResponse)
        except msgspec.DecodeError:  # it speaks HTTP and is neither Hob nor Ollama
            return api.VersionResponse(version="")

    def shutdown(self) -> None:
        """Ask the daemon to unload its models and end."""
        self._send("POST", "/api/shutdown", None)

    # ---- plumbing

    def _send(self, method: str, path: str, body: api.Request | None) -> bytes:
        with self._reached():
            response = self._http.request(method, path, content=_encode(body) if body else None)
        _raise_for_error(response)
        return response.content

    def _ask(self, method: str, path: str, body: api.Request | None, kind: type[T]) -> T:
        return _decode(self._send(method, path, body), kind)

    def _stream(self, method: str, path: str, body: api.Request, kind: type[T]) -> Generator[T, None, None]:
        with self._reached(), self._http.stream(method, path, content=_encode(body)) as response:
            if response.is_error:
                response.read()
                _raise_for_error(response)
            for line in _lines(response.iter_bytes()):
                # An error after the first byte cannot change the status any more: it is the stream's last line.
                if line.startswith(b'{"error"'):
                    raise ServerError(_error_text(line), response.status_code)
                yield _decode(line, kind)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NoDaemon(
                f"no daemon answers at {self.base_url} ({error}); start it with `hob serve`, or set HOB_HOST to "
                "another address"
            ) from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise DaemonUnreachable(
                f"the connection to hob at {self.base_url} broke ({reason}); try again, and look into the daemon's "
                "log if it breaks again"
            ) from error


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """NDJSON lines. Not `iter_lines`, which also splits at U+2028 and other separators that JSON strings may hold."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest


def _encode(body: api.Request) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError as error:
        # Bytes that are no UTF-8, from the command line or the keyboard, are lone surrogates in Python's strings.
        text = error.object[max(error.start - 20, 0) : error.end].encode("utf-8", "replace").decode()
        raise CliError(f'"{text}" is not UTF-8 text, which is all that hob can send') from error


def _decode(line: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        raise ServerError(
            f"the daemon's answer is not what hob understands ({error}); are both of one version?", 200
        ) from error


def _raise_for_error(response: httpx.Response) -> None:
    if response.is_error:
        kind = NotFound if response.status_code == httpx.codes.NOT_FOUND else ServerError
        raise kind(_error_text(response.content) or response.reason_phrase, response.status_code)


def _error_text(body: bytes) -> str:
    """The sentence in an error's body, or the body itself where it is plain text."""
    try:
        return msgspec.json.decode(body, type=api.ErrorReply).error
    except msgspec.DecodeError:
        return body.decode("utf-8", "replace").strip()[:500]
