"""Transport, Reply and retries, against servers on this machine."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from registry.addresses import NearbyAddress, Reach, literal_reach, reach_of
from registry.errors import RemoteDenied, RemoteError, RemoteNotFound, RemoteUnreachable
from registry.reply import Timeouts, retry_after_s
from registry.retries import RetryPolicy, with_retries
from registry.transport import Transport, parse_url
from tests.registry.local_server import DEADLINE_S, PRIVATE, PUBLIC, LocalServer, Request, Response, far
from tests.registry.relay import copy

SECRET = "Bearer 0123456789abcdef"


@pytest.fixture
def transport() -> Iterator[Transport]:
    with far() as made:
        yield made


def get(transport: Transport, url: str, *, insecure: bool = False, authorization: str = "") -> bytes:
    with transport.send("GET", url, insecure=insecure, authorization=authorization) as reply:
        reply.check("the file")
        return reply.read(1000, "a file")


def moved(url: str, status: int = 302) -> Response:
    return Response(status, headers={"Location": url})


# ---- requests and bodies


def test_a_request_says_who_asks_and_wants_plain_bytes(transport: Transport) -> None:
    with LocalServer(lambda _: Response(body=b"hello")) as server:
        assert get(transport, server.url + "/a?b=c") == b"hello"
    (request,) = server.requests
    assert (request.method, request.path) == ("GET", "/a?b=c")
    assert request.headers["User-Agent"] == "hob"
    assert request.headers["Accept-Encoding"] == "identity"
    assert "Authorization" not in request.headers
    assert "Cookie" not in request.headers


def test_a_streamed_body_is_sent_with_its_length(transport: Transport) -> None:
    with LocalServer(lambda request: Response(body=request.body)) as server:
        headers = {"Content-Length": "6"}
        with transport.send("PUT", server.url, headers=headers, body=iter([b"abc", b"def"])) as reply:
            assert reply.read(10, "an echo") == b"abcdef"
    assert server.requests[0].headers["Content-Length"] == "6"


def test_connections_are_used_again(transport: Transport) -> None:
    peers = set()

    def respond(_: Request) -> Response:
        peers.add(threading.get_ident())  # the server has a thread for each connection
        return Response(body=b"x")

    with LocalServer(respond) as server:
        for _ in range(5):
            get(transport, server.url)
    assert len(peers) == 1


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_is_read_up_to_its_limit(transport: Transport, is_announced: bool) -> None:
    with LocalServer(lambda _: Response(body=b"x" * 1001, has_length=is_announced)) as server:
        with pytest.raises(RemoteError, match="more than 1000 bytes") as caught:
            get(transport, server.url)
        assert not caught.value.is_temporary
        server.respond = lambda _: Response(body=b"x" * 1000, has_length=is_announced)
        assert len(get(transport, server.url)) == 1000


def test_compressed_bodies_are_refused(transport: Transport) -> None:
    packed = gzip.compress(bytes(10**6))
    with (
        LocalServer(lambda _: Response(body=packed, headers={"Content-Encoding": "gzip"})) as server,
        pytest.raises(RemoteError, match="asked for plain bytes"),
    ):
        get(transport, server.url)


def test_a_short_body_is_an_error_that_may_pass(transport: Transport) -> None:
    with (
        LocalServer(lambda _: Response(body=b"abc", length=10)) as server,
        pytest.raises(RemoteError, match="broke off") as caught,
    ):
        get(transport, server.url)
    assert caught.value.is_temporary


def test_a_reset_is_an_error_that_may_pass(transport: Transport) -> None:
    with (
        LocalServer(lambda _: Response(body=b"abc", length=10, is_reset=True)) as server,
        pytest.raises(RemoteError) as caught,
    ):
        get(transport, server.url)
    assert caught.value.is_temporary


def test_silence_in_a_body_ends_it() -> None:
    with far(Timeouts(silence_s=0.2)) as transport, LocalServer(lambda _: Response()) as server:

        def body() -> Iterator[bytes]:
            yield b"abc"
            yield from server.wait()

        server.respond = lambda _: Response(body=body(), length=10)
        with pytest.raises(RemoteError, match=r"nothing came for 0\.2 s") as caught:
            get(transport, server.url)
    assert caught.value.is_temporary


def test_silence_before_the_answer_ends_the_wait() -> None:
    with far(Timeouts(silence_s=0.2)) as transport, LocalServer(lambda _: Response()) as server:

        def respond(_: Request) -> Response:
            server.wait()
            return Response()

        server.respond = respond
        with pytest.raises(RemoteUnreachable, match=r"did not answer within 0\.2 s") as caught:
            get(transport, server.url)
    assert caught.value.is_temporary


def test_a_trickle_ends_the_body() -> None:
    """The server sends a byte whenever the clock, the test's, is looked at, and the clock says that it took 10 s."""
    ticks = threading.Semaphore(0)
    times = iter(range(0, 10**6, 10))

    def trickle() -> Iterator[bytes]:
        for _ in range(2000):
            assert ticks.acquire(timeout=DEADLINE_S)
            yield b"x"

    def clock() -> float:
        ticks.release()
        return next(times)

    with (
        far() as transport,
        LocalServer(lambda _: Response(body=trickle(), length=2000)) as server,
        transport.send("GET", server.url) as reply,
    ):
        with pytest.raises(RemoteError, match="fewer than 1024 bytes in 30 s") as caught:
            list(reply.chunks(clock))
        ticks.release(2000)
    assert caught.value.is_temporary


def test_a_slow_reader_is_no_trickle(transport: Transport) -> None:
    with LocalServer(lambda _: Response(body=(b"x" for _ in range(1000)), length=1000)) as server:
        clock = [0.0]
        with transport.send("GET", server.url) as reply:
            num_bytes = 0
            for chunk in reply.chunks(clock=lambda: clock[0]):
                num_bytes += len(chunk)
                clock[0] += 100  # spent by the reader, between two waits
    assert num_bytes == 1000


def test_another_thread_can_end_a_wait(transport: Transport) -> None:
    with LocalServer(lambda _: Response()) as server:

        def body() -> Iterator[bytes]:
            yield b"abc"
            yield from server.wait()

        server.respond = lambda _: Response(body=body(), length=10)
        with transport.send("GET", server.url) as reply:
            chunks = reply.chunks()
            assert next(chunks) == b"abc"
            other = threading.Timer(0.05, reply.interrupt)
            other.start()
            with pytest.raises(RemoteError, match="was interrupted"):
                next(chunks)
            other.join()


# ---- errors


@pytest.mark.parametrize(
    ("status", "kind", "is_temporary"),
    [
        (400, RemoteError, False),
        (401, RemoteDenied, False),
        (403, RemoteDenied, False),
        (404, RemoteNotFound, False),
        (408, RemoteError, True),
        (412, RemoteError, False),
        (429, RemoteError, True),
        (500, RemoteError, True),
        (502, RemoteError, True),
        (503, RemoteError, True),
        (504, RemoteError, True),
    ],
)
def test_a_status_becomes_an_error(
    transport: Transport, status: int, kind: type[RemoteError], is_temporary: bool
) -> None:
    with (
        LocalServer(lambda _: Response(status, headers={"Retry-After": "7"})) as server,
        pytest.raises(RemoteError) as caught,
    ):
        get(transport, server.url)
    assert type(caught.value) is kind
    assert caught.value.is_temporary is is_temporary
    assert caught.value.retry_after_s == (7 if is_temporary else None)
    assert f"{PUBLIC}:{server.port}" in str(caught.value)
    assert "the file" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"errors":[{"code":"X","message":"needs a newer version"}]}', ": needs a newer version"),
        (b'{"error":"no such thing"}', ": no such thing"),
        (b"plain words\r\nX-Fake: \x1b[31mred", ": plain words X-Fake: [31mred"),
        (b"<html>nginx</html>", ""),
        (b'{"errors":[{"message":"token 0123456789abcdef is old"}]}', ""),
        (b"x" * 9000, ""),
        (b"x" * 300, ": " + "x" * 197 + "..."),
    ],
)
def test_a_servers_words_are_quoted_with_care(transport: Transport, body: bytes, shown: str) -> None:
    with LocalServer(lambda _: Response(400, body)) as server, pytest.raises(RemoteError) as caught:
        get(transport, server.url, authorization=SECRET)
    assert str(caught.value) == f"{PUBLIC}:{server.port} refuses the file (HTTP 400){shown}"


def test_a_closed_port_is_unreachable(transport: Transport) -> None:
    with socket.create_server((PUBLIC, 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RemoteUnreachable, match=f"cannot reach {PUBLIC}:{port}: connection refused") as caught:
        get(transport, f"http://{PUBLIC}:{port}")
    assert caught.value.is_temporary


def test_an_unknown_name_is_unreachable(transport: Transport) -> None:
    with pytest.raises(RemoteUnreachable, match=r"cannot reach nowhere\.invalid"):
        get(transport, "http://nowhere.invalid/")


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH_9\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"]
)
def test_what_is_no_http_is_unreachable(transport: Transport, answer: bytes) -> None:
    with socket.create_server((PUBLIC, 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(RemoteUnreachable, match="broke before an answer came") as caught:
            get(transport, f"http://{PUBLIC}:{listener.getsockname()[1]}")
        thread.join()
    assert caught.value.is_temporary


@pytest.mark.parametrize(
    "url", ["ftp://a/b", "file:///etc/passwd", "gopher://a", "http://", "http://u:p@a/", "http://[/"]
)
def test_urls_that_are_not_asked(url: str) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_url(url)
    assert "passwd" not in str(caught.value)


# ---- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_and_authorisation_stays(transport: Transport, status: int) -> None:
    with (
        LocalServer(lambda _: Response(body=b"hello")) as other,
        LocalServer(lambda _: moved(other.url + "/b", status)) as server,
    ):
        assert get(transport, server.url, authorization=SECRET) == b"hello"
    assert server.requests[0].headers["Authorization"] == SECRET
    assert "Authorization" not in other.requests[0].headers  # another port is another origin


def test_a_redirect_within_the_origin_keeps_authorisation(transport: Transport) -> None:
    with LocalServer(lambda r: Response(body=b"hello") if r.path == "/b?x=1" else moved("/b?x=1")) as server:
        assert get(transport, server.url + "/a", authorization=SECRET) == b"hello"
    assert [request.headers["Authorization"] for request in server.requests] == [SECRET, SECRET]


def test_five_redirects_are_followed_and_no_more(transport: Transport) -> None:
    def respond(request: Request) -> Response:
        left = int(request.path[1:])
        return moved(f"/{left - 1}") if left else Response(body=b"hello")

    with LocalServer(respond) as server:
        assert get(transport, server.url + "/5") == b"hello"
        server.requests.clear()
        with pytest.raises(RemoteError, match="redirects more than 5 times"):
            get(transport, server.url + "/11")
    assert len(server.requests) == 6


def test_a_post_is_not_redirected(transport: Transport) -> None:
    with LocalServer(lambda _: moved("/b", 307)) as server, transport.send("POST", server.url, body=b"x") as reply:
        assert reply.status == 307
    assert len(server.requests) == 1


@pytest.mark.parametrize("location", ["file:///etc/passwd", "gopher://a/", "http://user:pass@127.0.0.1/"])
def test_redirects_that_are_not_followed(transport: Transport, location: str) -> None:
    with (
        LocalServer(lambda _: moved(location)) as server,
        pytest.raises(RemoteError, match=f"a link of {PUBLIC}:{server.port}"),
    ):
        get(transport, server.url)
    assert len(server.requests) == 1


def test_a_redirect_to_nowhere(transport: Transport) -> None:
    with LocalServer(lambda _: Response(302)) as server, pytest.raises(RemoteError, match="without saying where to"):
        get(transport, server.url)


@pytest.mark.parametrize("host", [PRIVATE, "localhost", "a.localhost"])
def test_the_internet_cannot_lead_to_this_machine(transport: Transport, host: str) -> None:
    with LocalServer(lambda _: Response(body=b"inside"), host=PRIVATE) as inside:
        with (
            LocalServer(lambda _: moved(f"http://{host}:{inside.port}/")) as server,
            pytest.raises(NearbyAddress, match=f"a link to {host}"),
        ):
            get(transport, server.url)
        assert inside.requests == []
        assert get(transport, inside.url) == b"inside"  # a person may ask for it by name


@pytest.mark.parametrize("addresses", [[PRIVATE], [PUBLIC, PRIVATE], [PRIVATE, PUBLIC]])
def test_nor_by_a_name_that_dns_leads_there(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    def lookup(host: str, port: int, *_: object, **__: object) -> list[object]:
        found = addresses if host == "evil.example" else [host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    with (
        LocalServer(lambda _: Response(body=b"inside"), host=PRIVATE) as inside,
        LocalServer(lambda _: moved(f"http://evil.example:{inside.port}/")) as server,
        monkeypatch.context() as patched,
    ):
        patched.setattr(socket, "getaddrinfo", lookup)
        with pytest.raises(NearbyAddress, match=r"evil\.example"):
            get(transport, server.url)
    assert inside.requests == []


def test_the_next_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(host: str, port: int, *_: object, **__: object) -> list[object]:
        found = ["127.0.0.3", PUBLIC] if host == "many.example" else [host]  # nobody listens at the first
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    with (
        Transport(reach_of=lambda _: Reach.INTERNET, use_environment=False) as transport,
        LocalServer(lambda _: Response(body=b"hello")) as other,
        LocalServer(lambda _: moved(f"http://many.example:{other.port}/")) as server,
        monkeypatch.context() as patched,
    ):
        patched.setattr(socket, "getaddrinfo", lookup)
        assert get(transport, server.url) == b"hello"


def test_this_machine_may_lead_anywhere(transport: Transport) -> None:
    with (
        LocalServer(lambda _: Response(body=b"outside")) as outside,
        LocalServer(lambda _: moved(outside.url), host=PRIVATE) as inside,
    ):
        assert get(transport, inside.url) == b"outside"
        outside.respond = lambda _: moved(inside.url)
        with pytest.raises(NearbyAddress):
            get(transport, inside.url)


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("127.0.0.1", Reach.MACHINE),
        ("127.8.8.8", Reach.MACHINE),
        ("0.0.0.0", Reach.MACHINE),
        ("::1", Reach.MACHINE),
        ("::", Reach.MACHINE),
        ("::ffff:127.0.0.1", Reach.MACHINE),
        ("64:ff9b::7f00:1", Reach.MACHINE),
        ("2002:7f00:1::", Reach.MACHINE),
        ("169.254.169.254", Reach.LINK),
        ("::ffff:169.254.169.254", Reach.LINK),
        ("fe80::1%eth0", Reach.LINK),
        ("224.0.0.1", Reach.LINK),
        ("10.0.0.1", Reach.NETWORK),
        ("172.16.0.1", Reach.NETWORK),
        ("192.168.1.1", Reach.NETWORK),
        ("100.64.0.1", Reach.NETWORK),
        ("198.18.0.1", Reach.NETWORK),
        ("fd00::1", Reach.NETWORK),
        ("64:ff9b::a00:1", Reach.NETWORK),
        ("8.8.8.8", Reach.INTERNET),
        ("::ffff:8.8.8.8", Reach.INTERNET),
        ("64:ff9b::808:808", Reach.INTERNET),
        ("2606:4700::1111", Reach.INTERNET),
    ],
)
def test_reach(address: str, reach: Reach) -> None:
    assert reach_of(address) is reach
    assert literal_reach(address) is reach


def test_reach_of_names() -> None:
    assert literal_reach("LOCALHOST.") is Reach.MACHINE
    assert literal_reach("example.com") is None
    assert literal_reach("127.0.0.1.example.com") is None


# ---- TLS and proxies


def test_a_certificate_must_be_trusted(transport: Transport, tls: ssl.SSLContext) -> None:
    with LocalServer(lambda _: Response(body=b"hello"), tls=tls) as server:
        with pytest.raises(RemoteUnreachable, match=r"certificate of .* --insecure") as caught:
            get(transport, server.url)
        assert not caught.value.is_temporary
        assert server.requests == []
        assert get(transport, server.url, insecure=True) == b"hello"


def test_an_authority_of_the_environment(tls: ssl.SSLContext, trusted: None) -> None:
    with Transport() as transport, LocalServer(lambda _: Response(body=b"hello"), tls=tls) as server:
        assert get(transport, server.url) == b"hello"


def test_certificates_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with Transport() as transport, pytest.raises(RemoteError, match="SSL_CERT_FILE") as caught:
        get(transport, "https://models.invalid/")
    assert not caught.value.is_temporary
    assert "missing.pem" not in str(caught.value)


def test_https_where_http_is_spoken(transport: Transport) -> None:
    with (
        LocalServer(lambda _: Response()) as server,
        pytest.raises(RemoteUnreachable, match=r"no secure connection to .* --insecure") as caught,
    ):
        get(transport, f"https://{server.host}:{server.port}/")
    assert not caught.value.is_temporary


def test_https_does_not_lead_to_http(tls: ssl.SSLContext, trusted: None) -> None:
    with (
        LocalServer(lambda _: Response(body=b"plain")) as plain,
        Transport() as transport,
        LocalServer(lambda _: moved(plain.url), tls=tls) as server,
    ):
        with pytest.raises(RemoteError, match="from https to plain http"):
            get(transport, server.url)
        assert plain.requests == []
        assert get(transport, server.url, insecure=True) == b"plain"


def test_a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalServer(lambda _: Response(body=b"by proxy")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "direct.invalid")
        with Transport() as transport, LocalServer(lambda _: Response(body=b"direct")) as server:
            assert get(transport, "http://models.invalid/a") == b"by proxy"
            assert get(transport, server.url) == b"direct"  # this machine is reached without
            with pytest.raises(RemoteUnreachable, match=r"direct\.invalid"):
                get(transport, "http://direct.invalid/")
    assert proxy.paths == ["GET http://models.invalid/a"]


def test_a_tunnel_through_a_proxy(tls: ssl.SSLContext, trusted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is the proxy's to look up; the certificate is checked through the tunnel."""
    asked = []
    with LocalServer(lambda _: Response(body=b"hello"), tls=tls) as server, socket.create_server((PUBLIC, 0)) as proxy:

        def tunnel() -> None:
            client, _ = proxy.accept()
            with client, socket.create_connection((server.host, server.port)) as target:
                asked.append(client.recv(65536))
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=copy, args=(target, client))
                back.start()
                copy(client, target)
                back.join()

        thread = threading.Thread(target=tunnel)
        thread.start()
        monkeypatch.setenv("https_proxy", f"{PUBLIC}:{proxy.getsockname()[1]}")
        with (
            Transport() as transport,
            pytest.raises(RemoteUnreachable, match=r"certificate of models\.invalid cannot be trusted"),
        ):
            get(transport, "https://models.invalid/a")  # the certificate is for 127.0.0.1
        thread.join()
    assert asked[0].startswith(b"CONNECT models.invalid:443 ")
    assert server.requests == []


def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalServer(lambda _: Response(407)) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with (
            Transport() as transport,
            pytest.raises(RemoteUnreachable, match=r"models\.invalid through the proxy 127\.0\.0\.1: 407") as caught,
        ):
            get(transport, "https://models.invalid/a")
    assert not caught.value.is_temporary
    assert proxy.paths == ["CONNECT models.invalid:443"]


def test_a_proxy_of_a_kind_that_is_not_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1080")
    with Transport() as transport, pytest.raises(RemoteError, match="socks5"):
        get(transport, "https://models.invalid/a")


def test_links_through_a_proxy_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalServer(lambda _: moved("http://169.254.169.254/latest/meta-data")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with Transport() as transport, pytest.raises(NearbyAddress, match=r"169\.254\.169\.254"):
            get(transport, "http://models.invalid/a")
    assert len(proxy.requests) == 1


# ---- retries


def test_retries_wait_longer_each_time_and_end() -> None:
    pauses: list[float] = []
    tries = 0

    def fail() -> None:
        nonlocal tries
        tries += 1
        raise RemoteError("no", is_temporary=True)

    with pytest.raises(RemoteError):
        with_retries(fail, RetryPolicy(), sleep=pauses.append, fraction=lambda: 0.5)
    assert tries == 5
    assert pauses == [0.375, 0.75, 1.5, 3.0]


def test_retries_heed_the_server_within_reason() -> None:
    waits = iter([7.0, 10_000.0])
    pauses: list[float] = []

    def act() -> str:
        for wait in waits:
            raise RemoteError("no", is_temporary=True, retry_after_s=wait)
        return "done"

    assert with_retries(act, RetryPolicy(), sleep=pauses.append, fraction=lambda: 0.0) == "done"
    assert pauses == [7.0, 60.0]


def test_what_is_not_temporary_is_tried_once() -> None:
    tries: list[None] = []

    def act() -> None:
        tries.append(None)
        raise RemoteNotFound("no")

    with pytest.raises(RemoteNotFound):
        with_retries(act, RetryPolicy(), sleep=lambda _: pytest.fail("it waits"))
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("Fri, 27 Nov 2026 02:00:30 GMT", 30),
        ("Fri, 27 Nov 2026 01:00:00 GMT", 0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1e9", None),
    ],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    assert retry_after_s(text, datetime(2026, 11, 27, 2, 0, tzinfo=UTC)) == seconds
