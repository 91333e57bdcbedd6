"""How replies leave: one JSON object, or one NDJSON line a chunk; and what happens when the client leaves first.

Both run their work only while the client is connected: when it goes, the work is cancelled where it stands (queued,
loading or generating) and closes its resources on the way out. Errors before the first byte are left to the caller,
who has a status for them; after it they become a last line `{"error": ...}`. `send` waits while the client's socket is
full, so the work is pulled no faster than it is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.api import ErrorReply, ProgressResponse
from daemon.bodies import ClientLeft
from daemon.errors import describe

JSON_TYPE = b"application/json; charset=utf-8"
NDJSON_TYPE = b"application/x-ndjson"

T = TypeVar("T")


class JSONResponse:
    """One object that is there already. An ASGI application."""

    def __init__(self, reply: msgspec.Struct | dict[str, Any]) -> None:
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, self._reply)


class EmptyResponse:
    """A status alone. An ASGI application."""

    def __init__(self, status: int = 200) -> None:
        self._status = status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


class JSONReply:
    """One object, once `work` has it. An ASGI application."""

    def __init__(self, work: Coroutine[Any, Any, msgspec.Struct]) -> None:
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, await while_connected(receive, self._work))


class NDJSONReply:
    """One line for each item. An ASGI application; nothing is sent before the first item is there."""

    def __init__(self, items: AsyncGenerator[msgspec.Struct]) -> None:
        self._items = items

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        started = False
        async with aclosing(self._items) as items:
            try:
                async for item in items:
                    if not started:
                        headers = [(b"content-type", NDJSON_TYPE)]
                        await send({"type": "http.response.start", "status": 200, "headers": headers})
                        started = True
                    await _send_line(send, item)
            except Exception as error:
                if not started:
                    raise
                await _send_line(send, ErrorReply(error=describe(error)[1]))
        await send({"type": "http.response.body", "body": b""})


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; cancel it when the client leaves. The request's body must have been read.

    Raises:
        ClientLeft: the client left first; the work has been cancelled and has ended.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def iterate_in_thread(items: Iterator[T]) -> AsyncGenerator[T]:
    """A blocking iterator, one item at a time in a thread of its own. It is closed there too, also when the reader
    stops early.

    A thread of its own, since a download may hold it for hours: the loop's few shared ones are for what is short.
    """
    loop = asyncio.get_running_loop()
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="stream") as thread:
        pending: asyncio.Future[Any] | None = None
        try:
            while True:
                pending = loop.run_in_executor(thread, next, items, end)
                item = await asyncio.shield(pending)
                if item is end:
                    return
                yield item
        finally:
            if pending is not None:
                await asyncio.wait({pending})  # a generator that runs in its thread cannot be closed before it yields
            if close := getattr(items, "close", None):
                await loop.run_in_executor(thread, close)


def progress_reply(events: Iterator[ProgressResponse], *, streams: bool) -> ASGIApp:
    """Work that tells of its progress, as NDJSON, or as one object once it is done."""
    lines = iterate_in_thread(events)
    return NDJSONReply(lines) if streams else JSONReply(_last(lines))


async def _last(lines: AsyncGenerator[ProgressResponse]) -> ProgressResponse:
    status = ""
    async with aclosing(lines):
        async for line in lines:
            status = line.status
    return ProgressResponse(status=status)


async def send_json(
    send: Send,
    status: int,
    reply: msgspec.Struct | dict[str, Any],
    extra_headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """A whole reply with its length."""
    body = msgspec.json.encode(reply)
    headers = [(b"content-type", JSON_TYPE), (b"content-length", str(len(body)).encode()), *(extra_headers or ())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_line(send: Send, item: msgspec.Struct) -> None:
    await send({"type": "http.response.body", "body": msgspec.json.encode(item) + b"\n", "more_body": True})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
