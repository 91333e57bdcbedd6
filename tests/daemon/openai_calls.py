"""Calls of OpenAI's API in the tests: a body of defaults, the events of a stream, the error of a reply."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.daemon.conftest import World

USER: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "description": "", "parameters": {"type": "object"}},
}


class SentEvent(NamedTuple):
    """A server-sent event."""

    name: str
    data: str


async def chat(world: World, **body: Any) -> dict[str, Any]:
    """The reply of a chat that is not streamed."""
    reply = await whole(world, "/v1/chat/completions", **{"messages": USER, **body})
    ChatCompletion.model_validate(reply)
    return reply


async def whole(world: World, path: str, **body: Any) -> dict[str, Any]:
    """The object of a reply that is not streamed."""
    response = await world.post(path, **{"model": "tiny", **body})
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


async def events_of(world: World, path: str, **body: Any) -> list[SentEvent]:
    """The events of a stream, the mark of its end included."""
    response = await world.post(path, **{"model": "tiny", "stream": True, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *blocks, rest = response.text.split("\n\n")
    assert rest == ""
    events = []
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append(SentEvent(fields.get("event", ""), fields["data"]))
    return events


async def chunks_of(world: World, path: str, **body: Any) -> list[dict[str, Any]]:
    """The chunks of a stream that ends well."""
    *events, last = await events_of(world, path, **body)
    assert last == SentEvent("", "[DONE]")
    assert not any(event.name for event in events)
    chunks = [json.loads(event.data) for event in events]
    for chunk in chunks:
        if chunk["object"] == "chat.completion.chunk":  # OpenAI's own type of a text's chunk forbids what OpenAI sends
            ChatCompletionChunk.model_validate(chunk)
    return chunks


async def error_of(world: World, status: int, path: str, **body: Any) -> dict[str, Any]:
    """The error of a request that is refused."""
    response = await world.post(path, **{"model": "tiny", **body})
    assert response.status_code == status, response.text
    reply = response.json()
    assert list(reply) == ["error"]
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = reply["error"]
    return error
