"""Request bodies: read under a limit, decoded strictly, and every failure a sentence.

The Content-Type is not looked at (clients of this API often send JSON as something else, curl's `-d` as a form), with
one exception: a body that is announced as a form and is one gets 415, since nothing here reads forms.
"""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from daemon.errors import BadRequest, BodyTooLarge, UnsupportedMediaType

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_VALUES = 500_000
"""Values in one body. The decoder holds up everybody while it works, half a second for so many; text is quick."""
STALL_TIMEOUT_S = 60.0
"""A client that sends nothing of its body for so long is given up."""

LONE_SURROGATE = re.compile(
    rb"""(?<!\\)(?:\\\\)*  # backslashes that escape each other
    (\\u[dD](?:
        [89abAB][0-9a-fA-F]{2} (?!\\u[dD][c-fC-F])  # a first half
        | (?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD]) [c-fC-F][0-9a-fA-F]{2}  # a second half
    ))""",
    re.VERBOSE,
)
"""The first half of a surrogate pair without the second, or the second without the first, as JSON escapes them."""
STOPPED_AT = re.compile(r"\(byte ([0-9]+)\)")
SEARCHED_BYTES = 64
ANY_OPTION = "options[...]"
MAX_SHOWN_NAME = 64

T = TypeVar("T")


async def read(request: Request, type_: type[T], *, limit: int = MAX_BODY_BYTES) -> T:
    """The request's body as a struct of daemon.api.

    Raises:
        BadRequest: it is empty, not JSON, or not of this shape.
        BodyTooLarge: more than `limit` bytes were announced or came.
        UnsupportedMediaType: it is a form, or compressed.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("multipart/"):
        raise UnsupportedMediaType("the request body is a multipart form; send JSON")
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedMediaType(f"the request body is compressed ({coding[:20]}); send it as it is")
    body = await _read_bytes(request, limit)
    if media_type == "application/x-www-form-urlencoded" and body.strip() and body.lstrip()[:1] not in (b"{", b"["):
        raise UnsupportedMediaType("the request body is a form; send JSON")
    return decode(body, type_)


def decode(body: bytes, type_: type[T]) -> T:
    """JSON as a struct.

    Raises:
        BadRequest: it is not.
    """
    if not body.strip():
        raise BadRequest("missing request body")
    _check_num_values(body)
    try:
        # The decoder skips unknown fields without a look at their bytes, so UTF-8 is checked on the whole.
        return msgspec.json.decode(body.decode("utf-8"), type=type_)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the request body is not UTF-8 (byte {error.start})") from error
    except msgspec.ValidationError as error:
        sentence, field = _plain(error, body)
        raise BadRequest(f"invalid request: {sentence}", field or None) from error
    except msgspec.DecodeError as error:
        raise BadRequest(f"the request body is not valid JSON: {_lone_surrogate(error, body) or error}") from error
    except RecursionError as error:
        raise BadRequest("the request body is nested too deeply") from error


def _check_num_values(body: bytes) -> None:
    """Count the commas, first all of them, then those that stand in no text.

    Raises:
        BadRequest: there are too many.
    """
    if body.count(b",") <= MAX_VALUES:
        return
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")  # no quote that is left is part of a text
    num_values = plain.count(b'"') // 2
    if num_values <= MAX_VALUES:
        num_values = b"".join(plain.split(b'"')[::2]).count(b",")
    if num_values > MAX_VALUES:
        raise BadRequest(f"the request body has more than {MAX_VALUES} values, the limit")


class _RawOptions(msgspec.Struct):
    options: dict[str, msgspec.Raw] | None = None


def _plain(error: msgspec.ValidationError, body: bytes) -> tuple[str, str]:
    """ "Expected `str | null`, got `int` - at `$.model`" as "field model: expected str, got int", and "model"."""
    text, _, path = str(error).partition(" - at ")
    text = text.replace(" | null", "").replace("`", "")
    text = text[:1].lower() + text[1:]
    field = path.strip("`").removeprefix("$").removeprefix(".")
    if field.startswith(ANY_OPTION):
        field = _wrong_option(body) or field
    return f"field {field}: {text}" if field else text, field


def _wrong_option(body: bytes) -> str:
    """The first option whose value is no JSON that the decoder takes, such as 1e400; the decoder names no keys."""
    try:
        options = msgspec.json.decode(body, type=_RawOptions).options or {}
    except (msgspec.MsgspecError, RecursionError):  # the body is wrong in another place, too
        return ""
    for name, value in options.items():
        try:
            msgspec.json.decode(value)
        except msgspec.MsgspecError:
            return f"options.{name[:MAX_SHOWN_NAME]}"
    return ""


def _lone_surrogate(error: msgspec.DecodeError, body: bytes) -> str:
    """What is wrong with a text that holds half a character.

    The decoder says at which byte it stopped, but where the body ends soon behind it, that the body was truncated. Only
    the neighbourhood is searched: all of a large body would take seconds.
    """
    stopped = STOPPED_AT.search(str(error))
    at = int(stopped[1]) if stopped else len(body)
    match = LONE_SURROGATE.search(body, max(at - SEARCHED_BYTES, 0), at + SEARCHED_BYTES)
    if match is None:
        return ""
    return (
        f"{match[1].decode('ascii')} is a lone surrogate (byte {match.start(1)}): half of a pair that is one "
        "character; send both halves, or the character itself"
    )


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
