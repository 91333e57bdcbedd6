"""Who Hob is to a registry: challenges, tokens, and the user's name and password where they are asked for.

`registry.registry_client` has one Authenticator for each registry that it talks to. A request goes out bare; when the
registry answers 401, its WWW-Authenticate header says what it wants. Bearer: a token from the address that the header
calls realm. Basic: name and password.

The header comes from a server that may lie (CVE-2025-51471 was a realm on a foreign host), so:
- the realm must be of the registry's own site, and as safe as the registry itself;
- the token's request follows no redirect;
- names and passwords are looked up for the host that is about to get them, and for no other;
- tokens go to the registry and nowhere else.

Names and passwords are those of the daemon's user in ~/.netrc, in the form that curl and git read:
`machine registry.example.com login NAME password SECRET`; a port other than the usual one belongs to the machine's name
where realm and registry differ in it. Source: RFC 7235, and Docker's "Token Authentication Specification".
"""

from __future__ import annotations

import base64
import netrc
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
import msgspec

from registry.addresses import literal_reach
from registry.errors import RemoteDenied, RemoteError
from registry.reply import Origin, Reply
from registry.transport import Transport, parse_url, with_query

MAX_TOKEN_BYTES = 64 * 1024

TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
WORD = re.compile(rf'[\s,]*({TOKEN})(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({TOKEN})))?')

Credentials = Callable[[str], tuple[str, str] | None]
"""Host, with its port where that is not the usual one -> name and password, None where there are none."""


def netrc_credentials(machine: str) -> tuple[str, str] | None:
    """What ~/.netrc has for this machine; its `default` entry is for no particular one, and so for none.

    Raises:
        RemoteDenied: the file is there and cannot be used.
    """
    try:
        known = netrc.netrc().hosts
    except FileNotFoundError:
        return None
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        raise RemoteDenied(
            f"{machine} wants a login, and the .netrc file of the daemon's user cannot be used: it must be readable "
            "for that user alone, and hold lines such as: machine HOST login NAME password SECRET"
        ) from error
    if machine == "default" or machine not in known:
        return None
    name, _, password = known[machine]
    return name, password or ""


@dataclass(frozen=True)
class Challenge:
    """One way to be let in."""

    scheme: str
    """In lower case: "bearer", "basic"."""
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """The ways that a WWW-Authenticate header names; what is no challenge is passed over."""
    challenges: list[tuple[str, dict[str, str]]] = []
    for match in WORD.finditer(header):
        word, quoted, plain = match.groups()
        if quoted is None and plain is None:
            challenges.append((word.lower(), {}))
        elif challenges:
            challenges[-1][1].setdefault(word.lower(), plain or re.sub(r"\\(.)", r"\1", quoted or ""))
    return [Challenge(scheme, parameters) for scheme, parameters in challenges]


class Authenticator:
    """What to tell one registry; any thread may ask.

    Args:
        retry: calls what it is given, again where that may help (`RegistryClient.retry`).
        insecure: whether a realm without TLS will do for a registry with it.
    """

    def __init__(
        self,
        transport: Transport,
        registry: Origin,
        credentials: Credentials,
        retry: Callable[[Callable[[], str]], str],
        insecure: bool,
    ) -> None:
        self.registry = registry
        self._transport = transport
        self._credentials = credentials
        self._retry = retry
        self._insecure = insecure
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}  # scope -> Authorization that was got for it; guarded by _lock

    def authorization(self, scope: str) -> str:
        """The header's value for requests of a scope, "" before the registry asked for one."""
        with self._lock:
            return self._known.get(scope, "")

    def answer(self, reply: Reply, rejected: str, scope: str) -> str:
        """Get a new header value after a 401.

        Args:
            reply: the 401, from the registry itself.
            rejected: what had been sent; where another thread has got something newer meanwhile, that is taken.

        Raises:
            RemoteDenied: there is nothing better to say.
            RemoteError: the realm must not be asked, or gives no token.
        """
        with self._lock:
            current = self._known.get(scope, "")
            if current == rejected:
                current = self._known[scope] = self._authorize(reply, scope)
            return current

    def _authorize(self, reply: Reply, scope: str) -> str:
        challenges = {item.scheme: item for item in parse_challenges(reply.headers.get("www-authenticate", "")[:8192])}
        if bearer := challenges.get("bearer"):
            return f"Bearer {self._token(bearer.parameters, scope, reply)}"
        if "basic" in challenges:
            login = self._login(self.registry)
            if login is None:
                raise RemoteDenied(f"{self.registry} wants a login; {netrc_remedy(self.registry)}")
            return login
        kinds = ", ".join(challenges) or "no kind"
        raise RemoteDenied(f"{self.registry} wants a login of a kind that Hob does not have (it names {kinds})")

    def _token(self, parameters: Mapping[str, str], scope: str, reply: Reply) -> str:
        realm = self._realm(parameters.get("realm", ""))
        query = {"scope": parameters.get("scope") or scope}
        if service := parameters.get("service"):
            query["service"] = service
        url = with_query(str(realm), query)
        login = self._login(Origin.of(realm)) or ""

        def ask() -> str:
            with self._transport.send(
                "GET", url, authorization=login, insecure=self._insecure, linked_from=reply, follow=False
            ) as answer:
                answer.check(f"a token for {self.registry}", netrc_remedy(Origin.of(realm)))
                return _read_token(answer)

        return self._retry(ask)

    def _realm(self, text: str) -> httpx.URL:
        """Where tokens come from, if it may be asked."""
        registry = self.registry
        try:
            url = parse_url(text)
        except RemoteError as error:
            raise RemoteError(f"{registry} sends for a token to an address that Hob does not ask: {error}") from error
        realm = Origin.of(url)
        if not is_same_site(registry.host, realm.host):
            raise RemoteError(
                f"{registry} sends for a token to {realm}, which is another site; Hob does not follow, since whoever "
                "gets such a request could act in your name"
            )
        if realm.scheme == "http" and registry.scheme == "https" and not self._insecure:
            raise RemoteError(f"{registry} sends for a token to {realm} without TLS; --insecure allows it")
        return url

    def _login(self, origin: Origin) -> str | None:
        """The Authorization with name and password for whoever is asked there."""
        pair = self._credentials(str(origin))
        if pair is None and origin == self.registry:
            pair = self._credentials(origin.host)
        return None if pair is None else "Basic " + base64.b64encode(":".join(pair).encode()).decode()


def netrc_remedy(origin: Origin) -> str:
    return f"give the daemon's user a line in ~/.netrc: machine {origin.host} login NAME password SECRET"


def is_same_site(one: str, other: str) -> bool:
    """Whether two hosts belong together: equal, one below the other, or side by side below one domain.

    Which domains sell names to anybody ("co.uk") only a long list knows; the guess here takes short ones below a
    country for such, and finds too few hosts belonging together rather than too many.
    """
    if one == other:
        return True
    if literal_reach(one) is not None or literal_reach(other) is not None:
        return False
    return any(
        _is_domain(site) and f".{one}".endswith(f".{site}") and f".{other}".endswith(f".{site}")
        for site in (one, other, one.partition(".")[2])
    )


def _is_domain(name: str) -> bool:
    labels = name.split(".")
    if len(labels) < 2 or not all(labels):
        return False
    return len(labels) > 2 or len(labels[1]) > 2 or len(labels[0]) > 3


class _TokenJSON(msgspec.Struct):
    token: str = ""
    access_token: str = ""


def _read_token(reply: Reply) -> str:
    body = reply.read(MAX_TOKEN_BYTES, "a token")
    try:
        parsed = msgspec.json.decode(body, type=_TokenJSON)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(f"{reply.origin} sent something else than a token") from error
    token = parsed.token or parsed.access_token
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise RemoteError(f"{reply.origin} sent an empty token, or one that is not plain text")
    return token
