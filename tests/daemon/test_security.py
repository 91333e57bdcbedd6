"""Host and Origin: who gets in, on every route and on none."""

from __future__ import annotations

import pytest

from daemon.security import HostCheck, OriginCheck
from tests.daemon.conftest import RawClient, World

LOCAL_HOSTS = [
    "localhost",
    "localhost:11434",
    "LOCALHOST:1",
    "127.0.0.1",
    "127.0.0.1:11434",
    "127.8.9.1",
    "[::1]",
    "[::1]:11434",
    "0.0.0.0:11434",
    "192.168.1.7:11434",
    "10.0.0.1",
    "[fd00::1]:80",
    "[::ffff:127.0.0.1]",
    "box.local",
    "a.b.internal:99",
    "my.localhost",
    "thisbox:11434",
]
STRANGE_HOSTS = [
    "",
    "evil.com",
    "evil.com:11434",
    "evil.com.",
    "localhost.",
    "127.0.0.1.",
    "127.0.0.1.evil.com",
    "localhost.evil.com",
    "evillocalhost",
    "8.8.8.8",
    "[2606:4700::1111]",
    "[::ffff:8.8.8.8]",
    "127.1",
    "0x7f.1",
    "2130706433",
    "localhost:port",
    "localhost:",
    "localhost:123456",
    "a@localhost",
    "localhost/healthz?",
    "localhost#x",
    "local host",
    " localhost",
    "[::1",
    "::1",
    "[localhost]",
    "localhost,evil.com",
    "localhost\x00",
    "ⅼocalhost",
    "box.local.evil.com",
]
PATHS = ["/", "/api/tags", "/api/generate", "/healthz", "/api/shutdown", "/nothing", "/api/blobs/sha256:" + "0" * 64]
LOCAL_ORIGINS = [
    "http://localhost",
    "http://localhost:3000",
    "https://127.0.0.1:8443",
    "http://[::1]:5173",
    "http://0.0.0.0:80",
    "app://obsidian.md",
    "tauri://localhost",
    "vscode-webview://1abc",
    "vscode-file://vscode-app",
    "file://",
    "https://web.example.org",
    "https://a.wild.org",
]
STRANGE_ORIGINS = [
    "null",
    "",
    "http://evil.com",
    "http://localhost.evil.com",
    "http://localhost:80.evil.com",
    "http://localhost:",
    "http://localhost:x",
    "http://localhost@evil.com",
    "http://127.0.0.1.evil.com",
    "https://web.example.org.evil.com",
    "http://web.example.org",
    "https://wild.org",
    "ftp://localhost",
    "http://localhost:8080, http://evil.com",
]


def host_check(*, loopback: bool = True) -> HostCheck:
    return HostCheck(loopback=loopback, names=["thisbox"])


@pytest.mark.parametrize("host", LOCAL_HOSTS)
def test_names_of_this_machine(host: str) -> None:
    assert host_check().allows([(b"host", host.encode())])


@pytest.mark.parametrize("host", STRANGE_HOSTS)
def test_names_that_a_stranger_could_own(host: str) -> None:
    assert not host_check().allows([(b"host", host.encode())])


def test_no_host_and_two_hosts() -> None:
    assert not host_check().allows([])
    assert not host_check().allows([(b"host", b"localhost"), (b"host", b"localhost")])


def test_beyond_loopback_addresses_are_no_names() -> None:
    assert host_check(loopback=False).allows([(b"host", b"8.8.8.8:11434")])
    assert not host_check(loopback=False).allows([(b"host", b"evil.com")])


@pytest.mark.parametrize("origin", LOCAL_ORIGINS)
def test_origins_that_may(origin: str) -> None:
    assert OriginCheck(["https://web.example.org", "https://*.wild.org"]).allows(origin, "localhost:11434")


@pytest.mark.parametrize("origin", STRANGE_ORIGINS)
def test_origins_that_may_not(origin: str) -> None:
    assert not OriginCheck(["https://web.example.org", "https://*.wild.org"]).allows(origin, "localhost:11434")


def test_a_page_of_this_daemon_may() -> None:
    assert OriginCheck().allows("http://thisbox:11434", "thisbox:11434")
    assert OriginCheck(["*"]).allows("http://anything", "localhost")


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "TRACE", "__INIT__"])
@pytest.mark.parametrize("path", PATHS)
async def test_every_route_refuses_strangers(world: World, method: str, path: str) -> None:
    for headers in ({"host": "evil.com"}, {"origin": "http://evil.com"}, {"origin": "null"}):
        response = await world.http.request(method, path, headers=headers)
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
    assert not world.is_shut_down


@pytest.mark.anyio
async def test_a_strange_host_is_told_what_would_do(world: World) -> None:
    error = (await world.http.get("/api/version", headers={"host": "evil.com"})).json()["error"]
    assert error.startswith("the Host header does not name this machine; reach it as localhost")


@pytest.mark.anyio
async def test_a_page_cannot_post_plain_text(world: World) -> None:
    headers = {"origin": "http://evil.com", "content-type": "text/plain"}
    response = await world.http.post("/api/generate", content='{"model": "tiny", "keep_alive": 0}', headers=headers)
    assert response.status_code == 403
    assert "may not use the API" in response.json()["error"]


@pytest.mark.anyio
async def test_a_preflight_and_its_request(world: World) -> None:
    headers = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    response = await world.http.options("/api/chat", headers=headers)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "Content-Type" in response.headers["access-control-allow-headers"]
    response = await world.http.get("/api/version", headers={"origin": "http://localhost:3000"})
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert response.headers["vary"] == "Origin"
    response = await world.http.get("/nothing", headers={"origin": "http://localhost:3000"})
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (404, "http://localhost:3000")


@pytest.mark.anyio
async def test_websockets_are_closed(world: World) -> None:
    client = RawClient(world.app, "GET", "/api/chat")
    client.scope["type"] = "websocket"
    await client.task
    assert (await client.sent.get())["type"] == "websocket.close"
