"""One attempt to get a range of a file over HTTP, for `registry.remote.OpenRange`.

Sources make an OpenRange of it by giving URL and headers. It believes neither lengths nor offsets: what a 206 says is
compared with what was asked for, and a body that ends early is an error. A server that does no ranges answers 200 with
the whole file, which is reported as it is (`start` 0): whoever asked decides whether to take it from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from registry.errors import RemoteError
from registry.remote import RangeReply
from registry.reply import Reply
from registry.transport import Transport

CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)", re.IGNORECASE)


@contextmanager
def open_range(
    transport: Transport,
    url: str,
    start: int,
    stop: int | None,
    *,
    what: str,
    headers: Mapping[str, str] | None = None,
    authorization: str = "",
    insecure: bool = False,
    validator: str = "",
    linked_from: Reply | None = None,
    remedy: str = "",
) -> Iterator[RangeReply]:
    """Ask for the bytes from `start` to before `stop`, None being the end.

    Args:
        what: what the file is called in messages: "blob sha256:...".
        validator: the version that is wanted, as an earlier reply named it: of another one all bytes come, from 0.
        authorization, insecure, linked_from: as in `Transport.send`.
        remedy: what the person can do about a refusal.

    Raises:
        RemoteError: no bytes will come.
    """
    with transport.send(
        "GET",
        url,
        headers={**(headers or {}), **range_headers(start, stop, validator)},
        authorization=authorization,
        insecure=insecure,
        linked_from=linked_from,
    ) as reply:
        yield range_reply(reply, start, stop, what, remedy)


def range_headers(start: int, stop: int | None, validator: str = "") -> dict[str, str]:
    """The headers that ask for a range; none where the whole file is wanted.

    Some servers answer "bytes=0-" with 416 where the file is empty, so that is not sent.
    """
    if start == 0 and stop is None:
        return {}
    last = "" if stop is None else str(stop - 1)
    lines = {"Range": f"bytes={start}-{last}"}
    if validator:
        lines["If-Range"] = validator
    return lines


def range_reply(reply: Reply, start: int, stop: int | None, what: str, remedy: str = "") -> RangeReply:
    """What the reply to a request with `range_headers` brings.

    Raises:
        RemoteError: nothing, or not what was asked for.
    """
    if reply.status == 416:
        return _past_the_end(reply, start, what)
    reply.check(what, remedy)
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/html":
        raise RemoteError(
            f"{reply.origin} sent a web page where {what} was expected; something on the way may want a login"
        )
    if reply.status != 206:
        return RangeReply(0, reply.length, _validator(reply), _counted(reply, reply.length, what), reply.interrupt)
    match = CONTENT_RANGE.fullmatch(reply.headers.get("content-range", "").strip())
    if kind == "multipart/byteranges" or not match or match[1] is None:
        raise RemoteError(f"{reply.origin} sent a part of {what} without saying which")
    first, end = int(match[1]), int(match[2]) + 1
    total = None if match[3] == "*" else int(match[3])
    wanted = f"bytes {start} to {'the end' if stop is None else stop - 1}"
    is_wanted = (
        first == start and start < end <= (end if stop is None else stop) and end <= (end if total is None else total)
    )
    if not is_wanted:
        raise RemoteError(f"{reply.origin} sent bytes {first} to {end - 1} of {what} where {wanted} were asked for")
    # A part that is shorter than asked for ends with an error, unless the file ends there.
    due = end if total is None and stop is None else min(bound for bound in (total, stop) if bound is not None)
    return RangeReply(start, total, _validator(reply), _counted(reply, due - start, what), reply.interrupt)


def _past_the_end(reply: Reply, start: int, what: str) -> RangeReply:
    match = CONTENT_RANGE.fullmatch(reply.headers.get("content-range", "").strip())
    total = int(match[3]) if match and match[3] != "*" else None
    if total == start:
        return RangeReply(start, total, _validator(reply), iter(()), reply.interrupt)
    size = f"has {total} bytes" if total is not None else "is shorter"
    raise RemoteError(f"{reply.origin} has no byte {start} of {what}: its file {size}")


def _validator(reply: Reply) -> str:
    """The strong ETag. Weak ones promise too little to put parts together by."""
    text = reply.headers.get("etag", "").strip()
    return text if re.fullmatch(r'"[\x21\x23-\x7e]{1,256}"', text) else ""


def _counted(reply: Reply, due: int | None, what: str) -> Iterator[bytes]:
    """The body's first `due` bytes; an error where there are fewer."""
    num_bytes = 0
    for chunk in reply.chunks():
        kept = chunk if due is None else chunk[: due - num_bytes]
        num_bytes += len(kept)
        if kept:
            yield kept
        if len(kept) < len(chunk):
            return
    if due is not None and num_bytes < due:
        raise RemoteError(
            f"{reply.origin} sent {num_bytes} of {due} bytes of {what} and ended; try again", is_temporary=True
        )
