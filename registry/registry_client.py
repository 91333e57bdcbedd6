"""RegistryClient: one registry, asked for the things of one model.

What pulling (`registry.oci`) and pushing (`registry.push`) have in common: where the registry is, the login, and
requests that are tried again. Source: the OCI distribution specification, which Ollama's registry follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from registry.auth import Authenticator, Credentials, netrc_credentials, netrc_remedy
from registry.errors import RemoteError, RemoteUnreachable
from registry.name import DEFAULT_HOST, ModelName
from registry.reply import Origin, Reply
from registry.retries import RetryPolicy, with_retries
from registry.transport import Body, Transport, parse_url

Result = TypeVar("Result")


@dataclass(frozen=True)
class Access:
    """How registries are asked; the same for all of them."""

    transport: Transport
    credentials: Credentials = netrc_credentials
    """Names and passwords for those that want them."""
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    sleep: Callable[[float], object] = time.sleep
    """Waits before another try; may raise to give up."""

    def connect(self, name: ModelName, *, actions: str = "pull", insecure: bool = False) -> RegistryClient:
        """The client for a model.

        Args:
            actions: what a login is for: "pull" or "pull,push".
            insecure: whether plain HTTP and certificates that cannot be verified will do. A registry that has no TLS is
                then spoken to without.

        Raises:
            RemoteError: the name asks for plain HTTP and nobody allowed it.
        """
        if name.scheme == "http" and not insecure:
            raise RemoteError(f"insecure protocol http: {name.host} would be asked without TLS; --insecure allows it")
        scheme = name.scheme
        if insecure and scheme == "https" and not self._answers("https", name.host):
            # Where neither answers, the first request says why.
            scheme = "http" if self._answers("http", name.host) else "https"
        return RegistryClient(self, name, scheme, actions, insecure)

    def _answers(self, scheme: str, host: str) -> bool:
        try:
            with self.transport.send("GET", f"{scheme}://{host}/v2/", insecure=True, follow=False):
                return True
        except RemoteUnreachable:
            return False


class RegistryClient:
    """One registry and one of its models; any thread may use it. `Access.connect` makes it."""

    def __init__(self, access: Access, name: ModelName, scheme: str, actions: str, insecure: bool) -> None:
        self.name = name
        self.insecure = insecure
        self._access = access
        self._scope = f"repository:{name.namespace}/{name.model}:{actions}"
        self._root = parse_url(f"{scheme}://{name.host}")
        self._origin = Origin.of(self._root)
        self._authenticator = Authenticator(access.transport, self._origin, access.credentials, self.retry, insecure)

    @property
    def host(self) -> str:
        """As messages call it."""
        return str(self._origin)

    @property
    def remedy(self) -> str:
        """What a person can do who is refused."""
        if self.name.host.lower() == DEFAULT_HOST:
            return "what is not public there wants Ollama's own key, which Hob does not have"
        return netrc_remedy(self._origin)

    def url(self, path: str) -> str:
        """The address of something of the model: "manifests/latest"."""
        return f"{self._root.scheme}://{self.name.host}/v2/{self.name.namespace}/{self.name.model}/{path}"

    @contextmanager
    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Body] | None = None,
        linked_from: Reply | None = None,
        patience_s: float | None = None,
    ) -> Iterator[Reply]:
        """Ask once, and once more with a new login where the registry wants one.

        Args:
            body: makes the request's body, each time that it is sent.
            linked_from: the registry's reply that named the URL; on other hosts than its own nobody is logged in.
            patience_s: as in `Transport.send`.

        Raises:
            RemoteError: no answer came, or none that can be used; statuses are left to the caller.
        """
        is_own = Origin.of(parse_url(url)) == self._origin
        rejected = None
        while True:
            authorization = self._authenticator.authorization(self._scope) if is_own else ""
            with self._access.transport.send(
                method,
                url,
                headers=headers,
                authorization=authorization,
                body=body() if body else None,
                insecure=self.insecure,
                linked_from=linked_from,
                patience_s=patience_s,
            ) as reply:
                if reply.status != 401 or reply.origin != self._origin or rejected is not None:
                    yield reply
                    return
                rejected = authorization
                self._authenticator.answer(reply, rejected, self._scope)

    def retry(self, action: Callable[[], Result], progress: Callable[[], int] = lambda: 0) -> Result:
        """What `action` gives, trying again what may pass; arguments as in `with_retries`.

        Raises:
            RemoteError: the last try's.
        """
        return with_retries(action, self._access.retries, self._access.sleep, progress=progress)
