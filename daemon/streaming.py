"""How replies leave: one JSON object, one NDJSON line a chunk or one server-sent event; and clients that leave first.

All run their work only while the client is connected: when it goes, the work is cancelled where it stands (queued,
loading or generating) and closes its resources on the way out. Errors before the first byte are left to the caller,
who has a status for them; after it they become a last line `{"error": ...}`, or the event that the protocol has for
them. `send` waits while the client's socket is full, so the work is pulled no faster than it is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.api import ErrorReply, ProgressResponse
from daemon.bodies import ClientLeft
from daemon.errors import describe

JSON_TYPE = b"application/json; charset=utf-8"

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


class StreamedReply(Generic[T]):
    """Base of replies in pieces. An ASGI application; nothing is sent before the first item is there."""

    HEADERS: ClassVar[list[tuple[bytes, bytes]]]

    def __init__(self, items: AsyncGenerator[T]) -> None:
        self._items = items

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self._send_all(send))

    def encode(self, item: T) -> bytes:
        """An item as it goes over the wire."""
        raise NotImplementedError

    def encode_error(self, error: Exception) -> bytes:
        """The last piece of a stream that fails after it began."""
        raise NotImplementedError

    @property
    def end(self) -> bytes:
        """The last piece of a stream that did not fail."""
        return b""

    async def _send_all(self, send: Send) -> None:
        started = False
        async with aclosing(self._items) as items:
            try:
                async for item in items:
                    if not started:
                        await send({"type": "http.response.start", "status": 200, "headers": self.HEADERS})
                        started = True
                    await send({"type": "http.response.body", "body": self.encode(item), "more_body": True})
                last = self.end
            except Exception as error:
                if not started:
                    raise
                last = self.encode_error(error)
        await send({"type": "http.response.body", "body": last})


class NDJSONReply(StreamedReply[msgspec.Struct]):
    """One line for each item."""

    HEADERS: ClassVar[list[tuple[bytes, bytes]]] = [(b"content-type", b"application/x-ndjson")]

    def encode(self, item: msgspec.Struct) -> bytes:
        return msgspec.json.encode(item) + b"\n"

    def encode_error(self, error: Exception) -> bytes:
        return self.encode(ErrorReply(error=describe(error)[1]))


class Event(NamedTuple):
    """One server-sent event."""

    data: msgspec.Struct
    name: str = ""
    """Of the `event:` line; without a name there is none."""


class SSEReply(StreamedReply[Event]):
    """One server-sent event for each item.

    Args:
        error_event: what a stream ends with that fails after it began.
        ends_with: data of a last event of a stream that did not fail, such as "[DONE]".
    """

    # Proxies would collect a stream before they hand it on: nginx reads the third.
    HEADERS: ClassVar[list[tuple[bytes, bytes]]] = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ]

    def __init__(
        self, items: AsyncGenerator[Event], error_event: Callable[[Exception], Event], *, ends_with: str = ""
    ) -> None:
        super().__init__(items)
        self._error_event = error_event
        self._ends_with = ends_with

    def encode(self, item: Event) -> bytes:
        name = f"event: {item.name}\n".encode() if item.name else b""
        # JSON has no line breaks outside of strings and escapes those inside, so one data line is enough.
        return b"%bdata: %b\n\n" % (name, msgspec.json.encode(item.data))

    def encode_error(self, error: Exception) -> bytes:
        return self.encode(self._error_event(error))

    @property
    def end(self) -> bytes:
        return f"data: {self._ends_with}\n\n".encode() if self._ends_with else b""


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


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
