"""Transport: how Hob speaks HTTP to registries and hubs.

One for the daemon; any number of threads share it and its connections. It makes single attempts (`registry.retries`
tries again) and follows redirects of GET and HEAD by hand, so that every hop is looked at:

- at most five hops, to http or https, never from https to http unless the person asked for --insecure;
- authorisation goes to the origin that it was made for and to no other;
- a hop, or a link that a caller took from a reply, leads to no nearer network than its giver's (`registry.addresses`).

No cookies, no compression, no credentials out of URLs. Proxies are those of the environment (HTTPS_PROXY, HTTP_PROXY,
ALL_PROXY, NO_PROXY), as the standard library reads them; this machine is never reached through one. What a name behind
a proxy leads to is the proxy's affair: there only hosts that are addresses can be looked at. SSL_CERT_FILE and
SSL_CERT_DIR name other certificates than certifi's.
"""

from __future__ import annotations

import re
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import httpcore
import httpx

from registry.addresses import GuardedBackend, NearbyAddress, Reach, ReachOf, literal_reach, reach_of
from registry.connection_errors import as_remote_error
from registry.errors import RemoteError
from registry.reply import Origin, Reply, Timeouts
from registry.wide_reads import WideReads

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
HOST = re.compile("[A-Za-z0-9._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
PROXY_SCHEMES = ("http", "https")
MIN_SECRET = 8
"""Shortest part of an authorisation that is looked for in a server's words: not "Basic"."""

Body = bytes | Iterable[bytes] | None


@dataclass(frozen=True)
class _Question:
    """What is the same at every hop of a request."""

    method: str
    headers: Mapping[str, str]
    authorization: str
    origin: Origin
    """Whom the authorisation is for."""
    body: Body
    insecure: bool
    timeouts: Timeouts


@dataclass(frozen=True)
class _Route:
    """What connections are kept apart by."""

    proxy: str
    is_tls: bool
    insecure: bool
    least: Reach
    """MACHINE where the person named the host, so that any address will do."""


class Transport:
    """Connections to other machines; close it, or use it as a context.

    Args:
        user_agent: who asks.
        reach_of: tells how near an address is; tests, which have no internet, pass their own.
        use_environment: whether the environment's proxies and certificates count.
    """

    def __init__(
        self,
        timeouts: Timeouts | None = None,
        *,
        user_agent: str = "hob",
        reach_of: ReachOf = reach_of,
        use_environment: bool = True,
    ) -> None:
        self.timeouts = timeouts or Timeouts()
        self._user_agent = user_agent
        self._reach_of = reach_of
        self._use_environment = use_environment
        self._proxies = urllib.request.getproxies() if use_environment else {}
        self._lock = threading.Lock()
        self._pools: dict[_Route, httpx.BaseTransport] = {}  # guarded by _lock
        self._contexts: dict[bool, ssl.SSLContext] = {}  # whether insecure -> context; guarded by _lock

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections; requests that still run fail."""
        with self._lock:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()

    @contextmanager
    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        authorization: str = "",
        body: Body = None,
        insecure: bool = False,
        linked_from: Reply | None = None,
        follow: bool = True,
        patience_s: float | None = None,
    ) -> Iterator[Reply]:
        """Ask once; the reply, whatever its status, is open inside the block.

        Args:
            authorization: the header's value; hops to other origins do without.
            body: an iterable is sent in chunks unless `headers` has a Content-Length.
            insecure: whether plain HTTP after HTTPS, and certificates that cannot be verified, will do.
            linked_from: the reply that named this URL; without it the URL is a person's.
            follow: whether redirects of GET and HEAD are followed; other methods' never are.
            patience_s: how long the answer may take where that is longer than usual.

        Raises:
            RemoteUnreachable: no answer came.
            RemoteError: a redirect that must not be followed, or a URL that is none.
        """
        giver, target = linked_from, parse_url(url)
        timeouts = self.timeouts if patience_s is None else replace(self.timeouts, silence_s=patience_s)
        asked = Origin.of(target)
        question = _Question(method, headers or {}, authorization, asked, body, insecure, timeouts)
        is_followed = follow and method in ("GET", "HEAD")
        secrets = tuple(word for word in authorization.split() if len(word) >= MIN_SECRET)
        for _ in range(MAX_REDIRECTS + 1):
            if giver is not None:
                self._check_link(giver, target, insecure)
            response, reach = self._exchange(question, target, giver)
            try:
                reply = Reply(response, target, reach, timeouts, secrets)
                if not is_followed or reply.status not in REDIRECTS:
                    yield reply
                    reply.drain(is_empty=method == "HEAD")
                    return
                giver, target = reply, _location(reply)
                reply.drain(is_empty=method == "HEAD")
            finally:
                response.close()
        raise RemoteError(f"{asked} redirects more than {MAX_REDIRECTS} times, the last time to {Origin.of(target)}")

    def _exchange(self, question: _Question, url: httpx.URL, giver: Reply | None) -> tuple[httpx.Response, Reach]:
        """One hop: the answer, and how near the machine is that gave it."""
        origin = Origin.of(url)
        proxy = self._proxy_for(origin)
        least = Reach.MACHINE if giver is None or proxy else giver.reach
        headers = {"User-Agent": self._user_agent, "Accept": "*/*", "Accept-Encoding": "identity", **question.headers}
        if question.authorization and origin == question.origin:
            headers["Authorization"] = question.authorization
        timeouts = question.timeouts
        waits = {
            "connect": timeouts.connect_s,
            "read": timeouts.silence_s,
            "write": timeouts.silence_s,
            "pool": None,
        }
        request = httpx.Request(
            question.method, url, headers=headers, content=question.body, extensions={"timeout": waits}
        )
        route = _Route(proxy, url.scheme == "https", question.insecure, least)
        pool = self._pool(route)
        try:
            response = pool.handle_request(request)
        except (httpx.TransportError, OSError) as error:
            name = httpx.URL(proxy).host if proxy else ""
            raise as_remote_error(error, origin, timeouts, name) from error
        return response, self._reach(response, origin, proxy)

    def _reach(self, response: httpx.Response, origin: Origin, proxy: str) -> Reach:
        if not proxy:
            with suppress(OSError):  # the connection is gone already
                return self._reach_of(str(response.extensions["network_stream"].get_extra_info("server_addr")[0]))
        literal = literal_reach(origin.host, self._reach_of)
        return Reach.INTERNET if literal is None else literal

    def _check_link(self, giver: Reply, url: httpx.URL, insecure: bool) -> None:
        """Raise RemoteError where a link of `giver` must not be followed."""
        target = Origin.of(url)
        if giver.origin.scheme == "https" and target.scheme == "http" and not insecure:
            raise RemoteError(
                f"{giver.origin} leads from https to plain http at {target}, where anybody on the way could change "
                "what is sent; --insecure allows it"
            )
        reach = literal_reach(target.host, self._reach_of)
        if reach is not None and reach < giver.reach:
            raise NearbyAddress(str(target))

    def _proxy_for(self, origin: Origin) -> str:
        """The proxy's URL, "" for none: as in Go's and so in Ollama's rules, this machine is reached without."""
        url = self._proxies.get(origin.scheme) or self._proxies.get("all") or ""
        if not url or literal_reach(origin.host) is Reach.MACHINE:
            return ""
        if urllib.request.proxy_bypass(f"{origin.host}:{origin.port}"):
            return ""
        if "://" not in url:
            url = f"http://{url}"
        if not url.lower().startswith(tuple(f"{scheme}://" for scheme in PROXY_SCHEMES)):
            scheme = url.partition(":")[0]
            raise RemoteError(
                f"the proxy of the environment is of the kind {scheme}, which Hob does not speak; set HTTPS_PROXY and "
                "HTTP_PROXY to one with http:// or https://"
            )
        return url

    def _pool(self, route: _Route) -> httpx.BaseTransport:
        with self._lock:
            if route not in self._pools:
                self._pools[route] = self._make_pool(route)
            return self._pools[route]

    def _make_pool(self, route: _Route) -> httpx.BaseTransport:
        context = self._context(route)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=30)
        if route.proxy:
            return httpx.HTTPTransport(verify=context, trust_env=False, limits=limits, proxy=route.proxy)
        is_free = route.least is Reach.MACHINE
        backend = httpcore.SyncBackend() if is_free else GuardedBackend(route.least, self._reach_of)
        return _DirectTransport(context, limits, WideReads(backend))

    def _context(self, route: _Route) -> ssl.SSLContext:
        if not route.is_tls:
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used; the real one takes 0.1 s to load
        if route.insecure not in self._contexts:
            try:
                made = httpx.create_ssl_context(verify=not route.insecure, trust_env=self._use_environment)
            except OSError as error:
                raise RemoteError("SSL_CERT_FILE or SSL_CERT_DIR names certificates that cannot be read") from error
            self._contexts[route.insecure] = made
        return self._contexts[route.insecure]


class _DirectTransport(httpx.HTTPTransport):
    """Connections through a backend of ours, for which httpx has no argument."""

    def __init__(self, context: ssl.SSLContext, limits: httpx.Limits, backend: httpcore.NetworkBackend) -> None:
        super().__init__(verify=context, trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=backend,
        )


def parse_url(text: str, base: httpx.URL | None = None) -> httpx.URL:
    """A URL that can be asked.

    Raises:
        RemoteError: it is none, of another scheme than http and https, or holds a user's name or password.
    """
    try:
        url = base.join(text) if base is not None else httpx.URL(text)
        host = url.raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError) as error:
        raise RemoteError(f"{_giver(base)} is no URL that Hob can follow") from error
    if url.scheme not in ("http", "https"):
        raise RemoteError(f"{_giver(base)} has the scheme {url.scheme[:20]!r}; Hob follows http and https")
    if not HOST.fullmatch(host) or url.userinfo:
        raise RemoteError(f"{_giver(base)} has no proper host or holds a user name; Hob follows neither")
    return url.copy_with(fragment=None)


def with_query(url: str, parameters: Mapping[str, str]) -> str:
    """The URL with more parameters; what is in it stays as it is, since it may be signed."""
    if not parameters:
        return url
    return f"{url}{'&' if '?' in url else '?'}{urllib.parse.urlencode(parameters)}"


def _giver(base: httpx.URL | None) -> str:
    return f"a link of {Origin.of(base)}" if base is not None else "what was asked for"


def _location(reply: Reply) -> httpx.URL:
    text = reply.headers.get("location", "")
    if not text:
        raise RemoteError(f"{reply.origin} redirects (HTTP {reply.status}) without saying where to")
    return parse_url(text, reply.url)
