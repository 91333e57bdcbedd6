"""Where the daemon listens and its clients dial: the grammar of OLLAMA_HOST, `[scheme://]host[:port][/path]`.

Source: ollama/ollama envconfig (Host). Two differences: a wrong port is an error, where Ollama warns and takes the
default one, and an address that means "every interface" is dialled as this machine's loopback.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

DEFAULT_PORT = 11434
SCHEME_PORTS = {"http": 80, "https": 443}
NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")


class HostError(ValueError):
    """Text that names no address."""


@dataclass(frozen=True)
class HostAddress:
    """One address; `host` holds an IPv6 address without brackets, "0.0.0.0" and "::" mean every interface."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    scheme: str = "http"
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> HostAddress:
        """Read `[scheme://]host[:port][/path]`; each part may be left out, an IPv6 host may stand without brackets.

        Raises:
            HostError: the scheme, the host or the port is none.
        """
        scheme, separator, rest = text.strip().partition("://")
        if not separator:
            scheme, rest, port = "http", scheme, DEFAULT_PORT
        elif scheme in SCHEME_PORTS:
            port = SCHEME_PORTS[scheme]
        else:
            raise HostError(f'the scheme "{scheme}" is not known; write http:// or https://, or leave it out')
        authority, _, path = rest.partition("/")
        host, port_text = _split_port(authority)
        if port_text:
            if not re.fullmatch(r"[0-9]{1,5}", port_text, re.ASCII) or int(port_text) > 65535:
                raise HostError(f'the port "{port_text}" is not a number from 0 to 65535')
            port = int(port_text)
        path = path.strip("/")
        return cls(_check_host(host, authority), port, scheme, f"/{path}" if path else "")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    @property
    def dial_host(self) -> str:
        """The host that a client connects to: "every interface" is no address that one can dial."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def base_url(self) -> str:
        """The URL that a client puts before "/api/chat"; it has no slash at its end."""
        host = f"[{self.dial_host}]" if ":" in self.dial_host else self.dial_host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def _split_port(authority: str) -> tuple[str, str]:
    """Host and port of "host:port", "[v6]:port", "[v6]", "v6" or ":port"."""
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        if rest and not rest.startswith(":"):
            raise HostError(f'"{authority}" has text after the bracket that is no port')
        return host, rest[1:]
    if authority.count(":") > 1:
        return authority, ""
    host, _, port = authority.partition(":")
    return host, port


def _check_host(host: str, authority: str) -> str:
    """The host in its usual spelling. As in Go, ":8080" is every interface, while nothing at all is the loopback."""
    if not host:
        return "0.0.0.0" if authority.startswith(":") and authority != ":" else "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        if ":" in host or not NAME.fullmatch(host) or len(host) > 253:
            raise HostError(f'"{host}" is neither a host name nor an IP address') from None
    return host
