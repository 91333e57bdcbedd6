"""The client at its transport: what it sends, and what it makes of answers, errors and broken streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import msgspec
import pytest

from cli.client import Client
from cli.errors import DaemonSilent, DaemonUnreachable, NoDaemon, NotFound, ServerError
from daemon import api


def client_of(handler: Callable[[httpx.Request], httpx.Response], api_key: str = "") -> Client:
    return Client.connect("http://127.0.0.1:11434", api_key, transport=httpx.MockTransport(handler))


def stream_of(*chunks: bytes) -> Callable[[httpx.Request], httpx.Response]:
    class Chunks(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield from chunks

    return lambda _: httpx.Response(200, stream=Chunks())


def piece(text: str, *, done: bool = False) -> bytes:
    return msgspec.json.encode(api.GenerateResponse(model="m", created_at="t", response=text, done=done)) + b"\n"


def test_a_stream_is_read_across_chunk_borders() -> None:
    data = piece("Once") + piece(" upon\u2028a") + piece("", done=True)
    chunks = [data[i : i + 7] for i in range(0, len(data), 7)]
    with client_of(stream_of(*chunks)) as client:
        got = list(client.generate(api.GenerateRequest(model="m", prompt="p")))
    assert [chunk.response for chunk in got] == ["Once", " upon\u2028a", ""]
    assert got[-1].done


def test_only_what_was_given_is_sent() -> None:
    sent: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, content=piece("", done=True))

    with client_of(handler, api_key="secret") as client:
        list(client.generate(api.GenerateRequest(model="m", prompt="p", think=False)))
    assert msgspec.json.decode(sent[0].content) == {"model": "m", "prompt": "p", "think": False}
    assert sent[0].headers["Authorization"] == "Bearer secret"


def test_an_error_in_the_middle_of_a_stream_is_raised() -> None:
    with client_of(stream_of(piece("Once"), b'{"error":"the engine died"}\n')) as client:
        chunks = client.generate(api.GenerateRequest(model="m", prompt="p"))
        assert next(chunks).response == "Once"
        with pytest.raises(ServerError, match="the engine died") as caught:
            next(chunks)
    assert caught.value.status == 200


def test_an_error_before_the_stream_has_its_status() -> None:
    with (
        client_of(lambda _: httpx.Response(503, json={"error": "server busy"})) as client,
        pytest.raises(ServerError, match="server busy") as caught,
    ):
        next(client.generate(api.GenerateRequest(model="m")))
    assert caught.value.status == 503


def test_not_found_is_a_kind_of_its_own() -> None:
    with (
        client_of(lambda _: httpx.Response(404, json={"error": "model 'x' not found"})) as client,
        pytest.raises(NotFound, match="model 'x' not found"),
    ):
        client.show("x")


@pytest.mark.parametrize(("body", "said"), [(b"404 page not found", "404 page not found"), (b"", "Not Found")])
def test_plain_text_errors_are_shown_as_they_are(body: bytes, said: str) -> None:
    with client_of(lambda _: httpx.Response(404, content=body)) as client, pytest.raises(NotFound, match=said):
        client.list_models()


def test_nobody_there() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused")

    with client_of(refuse) as client, pytest.raises(NoDaemon, match=r"127\.0\.0\.1:11434 .*`hob serve`"):
        client.version()


def test_a_port_that_does_not_answer_is_given_up_but_a_model_that_loads_is_not() -> None:
    limits: dict[str, object] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        limits[request.url.path] = request.extensions["timeout"]["read"]
        if request.url.path == "/api/version":
            raise httpx.ReadTimeout("timed out")
        return httpx.Response(200, content=piece("", done=True))

    with client_of(handler) as client:
        list(client.generate(api.GenerateRequest(model="m")))
        with pytest.raises(DaemonSilent, match="did not answer within 5 s"):
            client.version()
    assert limits == {"/api/generate": None, "/api/version": 5.0}


def test_a_connection_that_breaks_in_the_middle() -> None:
    class Broken(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield piece("Once")
            raise httpx.RemoteProtocolError("peer closed connection")

    with client_of(lambda _: httpx.Response(200, stream=Broken())) as client:
        chunks = client.generate(api.GenerateRequest(model="m"))
        next(chunks)
        with pytest.raises(DaemonUnreachable, match=r"broke \(peer closed connection\); try again"):
            next(chunks)


def test_an_answer_of_another_shape_is_named() -> None:
    with (
        client_of(lambda _: httpx.Response(200, json={"models": "none"})) as client,
        pytest.raises(ServerError, match="of one version"),
    ):
        client.list_models()


@pytest.mark.parametrize(
    "response", [httpx.Response(404), httpx.Response(200, text="<html>"), httpx.Response(200, json={"version": "0.9"})]
)
def test_another_server_has_no_hob_version(response: httpx.Response) -> None:
    with client_of(lambda _: response) as client:
        assert client.version().hob_version == ""


def test_a_blob_is_asked_for_and_streamed() -> None:
    sent: list[tuple[str, bytes]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append((request.method, request.read()))
        return httpx.Response(404 if request.method == "HEAD" else 201)

    with client_of(handler) as client:
        assert not client.has_blob("sha256:00")
        client.send_blob("sha256:00", iter([b"ab", b"cd"]))
    assert sent == [("HEAD", b""), ("POST", b"abcd")]
