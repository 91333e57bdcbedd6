"""Who may talk to the daemon: the Host and the Origin of every request, before any route sees it. Pure ASGI.

A web page that a person visits can make the browser send requests to localhost. Two doors are shut against that:

- DNS rebinding: the page's own name is made to resolve to 127.0.0.1, so to the browser the daemon *is* the page's
  server. The Host header still says the page's name; only names that no stranger can own are taken.
- Cross-site requests: a page may POST text/plain anywhere without asking. The browser adds the Origin header; only
  local origins and those that the settings name are taken.

Both are decided on the raw scope, never on a rebuilt URL, and for unknown paths too. A client that is no browser sends
no Origin and a Host that it was given by its user, and notices nothing of this.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import socket
from collections.abc import Iterable

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.envelopes import envelope_for
from daemon.errors import Forbidden

LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
HOST = re.compile(rb"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_.-]+))(?::[0-9]{1,5})?")
LOCAL_ORIGIN_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0", "[::1]")
APP_ORIGINS = ("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")
ALLOWED_METHODS = b"GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
ALLOWED_HEADERS = (
    b"Authorization, Content-Type, User-Agent, Accept, X-Requested-With, OpenAI-Beta, X-Api-Key, Anthropic-Version, "
    b"Anthropic-Beta, Anthropic-Dangerous-Direct-Browser-Access, "
    b"X-Stainless-Arch, X-Stainless-Async, X-Stainless-Custom-Poll-Interval, X-Stainless-Helper-Method, "
    b"X-Stainless-Lang, X-Stainless-Os, X-Stainless-Package-Version, X-Stainless-Poll-Helper, "
    b"X-Stainless-Retry-Count, X-Stainless-Runtime, X-Stainless-Runtime-Version, X-Stainless-Timeout"
)
STRANGE_HOST = (
    "the Host header does not name this machine; reach it as localhost, by its IP address or by its host name, and let "
    'a proxy in front of it send "Host: localhost"'
)
PREFLIGHT_MAX_AGE_S = 12 * 3600
CORS_HEADERS = "hob.cors_headers"
"""Key of the scope under which an error's reply finds what lets an allowed page read it."""


class HostCheck:
    """Which Host headers name this machine.

    Args:
        loopback: the daemon listens on the loopback interface only. Otherwise any IP address will do as well, since
            rebinding needs a name.
        names: further names, such as the one that the daemon is bound to.
    """

    def __init__(self, *, loopback: bool, names: Iterable[str] = ()) -> None:
        self._loopback = loopback
        self._names = {name.lower() for name in (socket.gethostname(), *names) if name}

    def allows(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether there is exactly one Host header and it names this machine."""
        hosts = [value for name, value in headers if name == b"host"]
        match = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None:
            return False
        name = (match["v6"] or match["name"]).decode("ascii").lower()
        try:
            return self._allows_address(ipaddress.ip_address(name))
        except ValueError:
            return match["v6"] is None and self._allows_name(name)

    def _allows_address(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        local = address.is_loopback or address.is_private or address.is_unspecified
        return local or not self._loopback or str(address) in self._names

    def _allows_name(self, name: str) -> bool:
        return name == "localhost" or name in self._names or name.endswith(LOCAL_SUFFIXES)


class OriginCheck:
    """Which Origin headers may use the API: local pages, desktop applications, and `extra` with "*" for any text."""

    def __init__(self, extra: Iterable[str] = ()) -> None:
        local = [f"{scheme}://{host}" for scheme in ("http", "https") for host in LOCAL_ORIGIN_HOSTS]
        self._exact = set(local)
        self._prefixes = tuple(f"{origin}:" for origin in local)
        # "[" is a character class to fnmatch; an IPv6 origin means the bracket itself.
        self._patterns = [re.compile(fnmatch.translate(o.replace("[", "[[]").lower())) for o in (*APP_ORIGINS, *extra)]

    def allows(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` may call; a page that this daemon served itself (its Host, checked) may."""
        origin = origin.lower()
        if origin in self._exact or origin in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return True
        for prefix in self._prefixes:
            port = origin.removeprefix(prefix)
            if port != origin and port.isascii() and port.isdigit() and len(port) <= 5:
                return True
        return any(pattern.fullmatch(origin) for pattern in self._patterns)


class SecurityMiddleware:
    """Refuses strangers with 403, answers preflights, and adds the headers that let an allowed page read the reply."""

    def __init__(self, app: ASGIApp, hosts: HostCheck, origins: OriginCheck) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if not self._hosts.allows(headers):
            await _refuse(send, scope["path"], STRANGE_HOST)
            return
        origins = [value for name, value in headers if name == b"origin"]
        if not origins:
            await self._app(scope, receive, send)
            return
        host = next(value for name, value in headers if name == b"host").decode("ascii")
        if len(origins) > 1 or not self._origins.allows(origins[0].decode("latin-1"), host):
            await _refuse(
                send, scope["path"], "this origin may not use the API; HOB_ORIGINS lists further origins that may"
            )
            return
        cors = [(b"access-control-allow-origin", origins[0]), (b"vary", b"Origin")]
        if scope["method"] == "OPTIONS":
            await _answer_preflight(send, cors)
            return
        scope[CORS_HEADERS] = cors
        await self._app(scope, receive, _with_headers(send, cors))


def _with_headers(send: Send, extra: list[tuple[bytes, bytes]]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return send_with_headers


async def _answer_preflight(send: Send, cors: list[tuple[bytes, bytes]]) -> None:
    headers = [
        *cors,
        (b"access-control-allow-methods", ALLOWED_METHODS),
        (b"access-control-allow-headers", ALLOWED_HEADERS),
        (b"access-control-max-age", str(PREFLIGHT_MAX_AGE_S).encode()),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(send: Send, path: str, why: str) -> None:
    body = msgspec.json.encode(envelope_for(path)(403, why, Forbidden(why)))
    headers = [
        (b"content-type", b"application/json; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        # The body of the refused request is not read, so the connection cannot be used again.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
