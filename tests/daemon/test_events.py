"""Server-sent events, and the body that an error has by the path of its request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from daemon.bodies import ClientLeft
from daemon.envelopes import envelope_for
from daemon.errors import BadRequest
from daemon.streaming import Event, SSEReply
from tests.daemon.conftest import World

pytestmark = pytest.mark.anyio


class Word(msgspec.Struct):
    word: str


class Wire:
    """The bare ASGI interface of one reply."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.messages: asyncio.Queue[Any] = asyncio.Queue()

    async def receive(self) -> dict[str, str]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def answer(self, reply: SSEReply) -> bytes:
        """The body of a whole reply."""
        await reply({"type": "http"}, self.receive, self.messages.put)
        sent = [self.messages.get_nowait() for _ in range(self.messages.qsize())]
        assert sent[0]["status"] == 200
        assert dict(sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")
        assert [message.get("more_body", False) for message in sent[1:]] == [True] * (len(sent) - 2) + [False]
        return b"".join(message["body"] for message in sent[1:])


async def words(*events: Event, error: Exception | None = None) -> AsyncGenerator[Event]:
    for event in events:
        yield event
    if error is not None:
        raise error


def as_event(error: Exception) -> Event:
    return Event(Word(str(error)), "error")


async def test_events_with_and_without_names() -> None:
    items = words(Event(Word("one\ntwo\r🦊\u2028")), Event(Word("b"), "word.delta"))
    body = await Wire().answer(SSEReply(items, as_event, ends_with="[DONE]"))
    said = 'data: {"word":"one\\ntwo\\r🦊\u2028"}\n\nevent: word.delta\ndata: {"word":"b"}\n\ndata: [DONE]\n\n'
    assert body.decode() == said
    assert await Wire().answer(SSEReply(words(Event(Word("a"))), as_event)) == b'data: {"word":"a"}\n\n'


async def test_a_stream_that_fails_ends_with_an_error_and_without_the_mark_of_the_end() -> None:
    items = words(Event(Word("a")), error=BadRequest("no more"))
    body = await Wire().answer(SSEReply(items, as_event, ends_with="[DONE]"))
    assert body == b'data: {"word":"a"}\n\nevent: error\ndata: {"word":"no more"}\n\n'


async def test_an_error_before_the_first_event_is_the_callers() -> None:
    wire = Wire()
    with pytest.raises(BadRequest, match="not at all"):
        await wire.answer(SSEReply(words(error=BadRequest("not at all")), as_event))
    assert wire.messages.empty()


async def test_a_client_that_leaves_closes_the_items() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[Event]:
        try:
            yield Event(Word("a"))
            await asyncio.Event().wait()
        finally:
            closed.set()

    wire = Wire()
    running = asyncio.create_task(SSEReply(endless(), as_event)({"type": "http"}, wire.receive, wire.messages.put))
    assert (await wire.messages.get())["type"] == "http.response.start"
    assert (await wire.messages.get())["more_body"]
    wire.left.set()
    with pytest.raises(ClientLeft):
        await running
    assert closed.is_set()


def test_the_path_says_which_envelope() -> None:
    error = BadRequest("n is 0", "n")
    native = envelope_for("/api/chat")(400, "n is 0", error)
    assert msgspec.to_builtins(native) == {"error": "n is 0"}
    openai = envelope_for("/v1/chat/completions")(400, "n is 0", error)
    assert msgspec.to_builtins(openai) == {
        "error": {"message": "n is 0", "type": "invalid_request_error", "param": "n", "code": None}
    }
    broken = envelope_for("/v1/x")(500, "broken", ValueError())
    assert msgspec.to_builtins(broken)["error"]["type"] == "server_error"


async def test_unknown_paths_and_strangers_get_the_envelope_of_their_path(world: World) -> None:
    response = await world.http.get("/v1/nothing")
    assert response.status_code == 404
    assert response.json() == {
        "error": {
            "message": "there is no GET /v1/nothing",
            "type": "invalid_request_error",
            "param": None,
            "code": "unknown_url",
        }
    }
    assert (await world.http.get("/nothing")).text == "404 page not found"
    stranger = {"host": "evil.example"}
    response = await world.http.get("/v1/nothing", headers=stranger)
    assert (response.status_code, response.json()["error"]["type"]) == (403, "permission_error")
    assert isinstance((await world.http.get("/api/tags", headers=stranger)).json()["error"], str)


async def test_an_allowed_page_can_read_errors(world: World) -> None:
    page = {"origin": "http://localhost:3000"}
    for path in ("/v1/models/nope", "/v1/nothing", "/api/nothing", "/v1/models"):
        response = await world.http.get(path, headers=page)
        assert response.headers["access-control-allow-origin"] == page["origin"], path
