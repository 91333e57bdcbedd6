"""Request bodies: read under a limit, decoded strictly, and every failure a sentence.

The Content-Type is not looked at (clients of this API often send JSON as something else, curl's `-d` as a form), with
one exception: a body that is announced as a form and is one gets 415, since nothing here reads forms.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from daemon.errors import BadRequest, BodyTooLarge, UnsupportedMediaType

MAX_BODY_BYTES = 64 * 1024 * 1024
STALL_TIMEOUT_S = 60.0
"""A client that sends nothing of its body for so long is given up."""

T = TypeVar("T")


async def read(request: Request, type_: type[T], *, limit: int = MAX_BODY_BYTES) -> T:
    """The request's body as a struct of daemon.api.

    Raises:
        BadRequest: it is empty, not JSON, or not of this shape.
        BodyTooLarge: more than `limit` bytes were announced or came.
        UnsupportedMediaType: it is a form.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("multipart/"):
        raise UnsupportedMediaType("the request body is a multipart form; send JSON")
    body = await _read_bytes(request, limit)
    if media_type == "application/x-www-form-urlencoded" and not body.lstrip().startswith((b"{", b"[")):
        raise UnsupportedMediaType("the request body is a form; send JSON")
    return decode(body, type_)


def decode(body: bytes, type_: type[T]) -> T:
    """JSON as a struct.

    Raises:
        BadRequest: it is not.
    """
    if not body.strip():
        raise BadRequest("missing request body")
    try:
        # The decoder skips unknown fields without a look at their bytes, so UTF-8 is checked on the whole.
        return msgspec.json.decode(body.decode("utf-8"), type=type_)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the request body is not UTF-8 (byte {error.start})") from error
    except msgspec.ValidationError as error:
        raise BadRequest(f"invalid request: {_plain(error)}") from error
    except msgspec.DecodeError as error:
        raise BadRequest(f"the request body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise BadRequest("the request body is nested too deeply") from error


def _plain(error: msgspec.ValidationError) -> str:
    """ "Expected `str | null`, got `int` - at `$.model`" as "field model: expected str, got int"."""
    text, _, path = str(error).partition(" - at ")
    text = text.replace(" | null", "").replace("`", "")
    text = text[:1].lower() + text[1:]
    field = path.strip("`").removeprefix("$").removeprefix(".")
    return f"field {field}: {text}" if field else text


async def _read_bytes(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    stream = request.stream()
    try:
        while True:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                chunk = await anext(stream, None)
            if chunk is None:
                return b"".join(chunks)
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            chunks.append(chunk)
    except TimeoutError as error:
        raise BadRequest(f"the request body stopped coming for {STALL_TIMEOUT_S:.0f} s") from error
    except ClientDisconnect:
        raise ClientLeft from None


class ClientLeft(Exception):
    """The client closed the connection; there is nobody to answer."""


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than {limit // 2**20} MiB, the limit")
