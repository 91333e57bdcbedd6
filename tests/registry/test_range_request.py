"""Ranges of a file over HTTP, and what servers make of the request."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from registry.errors import RemoteError, RemoteNotFound
from registry.range_request import open_range
from registry.transport import Transport
from tests.registry.local_server import LocalServer, Request, Response, far

DATA = bytes(range(256)) * 4
ETAG = '"v1"'


@pytest.fixture
def transport() -> Iterator[Transport]:
    with far() as made:
        yield made


def serve(request: Request) -> Response:
    """A file as a good server gives it."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not match or request.headers.get("If-Range", ETAG) != ETAG:
        return Response(body=DATA, headers={"ETag": ETAG})
    first = int(match[1])
    last = min(int(match[2] or len(DATA)), len(DATA) - 1)
    if first >= len(DATA):
        return Response(416, headers={"Content-Range": f"bytes */{len(DATA)}"})
    headers = {"Content-Range": f"bytes {first}-{last}/{len(DATA)}", "ETag": ETAG}
    return Response(206, DATA[first : last + 1], headers)


def partial(content_range: str, body: bytes = b"abc", **headers: str) -> Response:
    return Response(206, body, {"Content-Range": content_range, **headers})


def fetch(transport: Transport, url: str, start: int, stop: int | None, validator: str = "") -> tuple[int, bytes]:
    with open_range(transport, url, start, stop, what="blob x", validator=validator) as reply:
        return reply.start, b"".join(reply.chunks)


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 1), (0, 1024), (5, 10), (1000, None), (1000, 5000)])
def test_ranges(transport: Transport, start: int, stop: int | None) -> None:
    with LocalServer(serve) as server, open_range(transport, server.url, start, stop, what="blob x") as reply:
        assert (reply.start, reply.total, reply.validator) == (start, len(DATA), ETAG)
        assert b"".join(reply.chunks) == DATA[start:stop]


def test_the_whole_file_is_asked_for_without_a_range(transport: Transport) -> None:
    with LocalServer(lambda _: Response()) as server:
        assert fetch(transport, server.url, 0, None) == (0, b"")
    assert "Range" not in server.requests[0].headers


def test_nothing_is_left_behind_the_last_byte(transport: Transport) -> None:
    with LocalServer(serve) as server:
        assert fetch(transport, server.url, 1024, None) == (1024, b"")
        with pytest.raises(RemoteError, match="has no byte 1025 of blob x: its file has 1024 bytes"):
            fetch(transport, server.url, 1025, None)


def test_an_other_version_comes_whole(transport: Transport) -> None:
    with LocalServer(serve) as server:
        assert fetch(transport, server.url, 5, 10, validator=ETAG) == (5, DATA[5:10])
        assert fetch(transport, server.url, 5, 10, validator='"v0"') == (0, DATA)


def test_a_server_without_ranges_sends_all(transport: Transport) -> None:
    with LocalServer(lambda _: Response(body=DATA)) as server:
        assert fetch(transport, server.url, 5, 10) == (0, DATA)


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 0-2/1024",
        "bytes 6-8/1024",
        "bytes 5-10/1024",
        "bytes 5-4/1024",
        "bytes 5-7/7",
        "bytes 5-7/0",
        "bytes 5-99/*",
    ],
)
def test_other_bytes_than_asked_for_are_refused(transport: Transport, content_range: str) -> None:
    with (
        LocalServer(lambda _: partial(content_range)) as server,
        pytest.raises(RemoteError, match="where bytes 5 to 9 were asked for") as caught,
    ):
        fetch(transport, server.url, 5, 10)
    assert not caught.value.is_temporary


@pytest.mark.parametrize("content_range", ["", "bytes", "5-9/1024", "bytes 5-9", "bytes */1024", "bytes 5-x/1024"])
def test_a_part_that_does_not_say_which_is_refused(transport: Transport, content_range: str) -> None:
    with (
        LocalServer(lambda _: partial(content_range)) as server,
        pytest.raises(RemoteError, match="without saying which"),
    ):
        fetch(transport, server.url, 5, 10)


def test_several_parts_at_once_are_refused(transport: Transport) -> None:
    reply = partial("bytes 5-9/1024", **{"Content-Type": "multipart/byteranges; boundary=x"})
    with LocalServer(lambda _: reply) as server, pytest.raises(RemoteError, match="without saying which"):
        fetch(transport, server.url, 5, 10)


def test_a_part_that_is_shorter_than_asked_for(transport: Transport) -> None:
    """The server cuts the range; what came counts, and then the rest must be asked for."""
    with (
        LocalServer(lambda _: partial("bytes 5-7/1024")) as server,
        open_range(transport, server.url, 5, 10, what="blob x") as reply,
    ):
        assert next(reply.chunks) == b"abc"
        with pytest.raises(RemoteError, match="sent 3 of 5 bytes of blob x") as caught:
            next(reply.chunks)
    assert caught.value.is_temporary


def test_a_part_that_is_longer_than_it_says(transport: Transport) -> None:
    with LocalServer(lambda _: partial("bytes 5-9/1024", b"abcdefgh", Connection="close")) as server:
        assert fetch(transport, server.url, 5, 10) == (5, b"abcde")


def test_a_body_without_a_length(transport: Transport) -> None:
    with (
        LocalServer(lambda _: Response(body=DATA, has_length=False)) as server,
        open_range(transport, server.url, 0, None, what="blob x") as reply,
    ):
        assert reply.total is None
        assert b"".join(reply.chunks) == DATA


def test_a_part_of_a_file_of_unknown_size(transport: Transport) -> None:
    with LocalServer(lambda _: partial("bytes 5-7/*")) as server:
        assert fetch(transport, server.url, 5, None) == (5, b"abc")


def test_a_login_page_is_no_file(transport: Transport) -> None:
    page = Response(body=b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with LocalServer(lambda _: page) as server, pytest.raises(RemoteError, match="a web page where blob x"):
        fetch(transport, server.url, 0, None)


def test_a_missing_file(transport: Transport) -> None:
    with LocalServer(lambda _: Response(404)) as server, pytest.raises(RemoteNotFound, match="has no blob x"):
        fetch(transport, server.url, 0, None)


@pytest.mark.parametrize(
    ("etag", "validator"),
    [('W/"v1"', ""), ("v1", ""), ('"../../x"', '"../../x"'), ('"a"b"', ""), ('"' + "x" * 300 + '"', "")],
)
def test_only_strong_etags_name_a_version(transport: Transport, etag: str, validator: str) -> None:
    with (
        LocalServer(lambda _: Response(headers={"ETag": etag})) as server,
        open_range(transport, server.url, 0, None, what="blob x") as reply,
    ):
        assert reply.validator == validator
