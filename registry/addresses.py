"""How near an address is, so that a server elsewhere cannot send the daemon to machines that only it can reach.

`registry.transport` compares: a redirect, or any other link that a server gives, may lead to addresses as public as
the server's own, never to nearer ones. So a registry of the internet cannot point at a service of the local network or
at a cloud's metadata address, while a registry that runs beside the daemon can keep its blobs wherever it likes.
Where a name leads is looked at when the connection is made, and the address that was looked at is the one dialled.
Source: RFC 6890 (special-purpose addresses), as Python's `ipaddress` has them.
"""

from __future__ import annotations

import enum
import ipaddress
import socket
from collections.abc import Callable, Iterable

import httpcore

from registry.errors import RemoteError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Reach(enum.IntEnum):
    """From where an address can be reached; greater is more public."""

    MACHINE = 0
    """This machine only: loopback, and the unspecified address, which is dialled as loopback."""
    LINK = 1
    """This link only: where clouds have their metadata services."""
    NETWORK = 2
    """A private network, or another range that the internet does not route."""
    INTERNET = 3


ReachOf = Callable[[str], Reach]
"""The reach of a numeric address."""


def reach_of(text: str) -> Reach:
    """The reach of a numeric address; of IPv6 addresses that carry an IPv4 one, the nearer of both."""
    address = ipaddress.ip_address(text.partition("%")[0])  # without an IPv6 scope
    return min(map(_reach_of, (address, *_carried(address))))


def literal_reach(host: str, reach_of: ReachOf = reach_of) -> Reach | None:
    """The reach of a host that is an address, or a name of this machine; None where only DNS can tell."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return Reach.MACHINE
    try:
        ipaddress.ip_address(name.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return reach_of(name.strip("[]"))


class NearbyAddress(RemoteError):
    """A link leads nearer than the server that gave it."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"a link to {host} was not followed, because it leads into a network that is closer to this machine than "
            "the server that gave the link; if that is meant, pull from that host by name"
        )


class GuardedBackend(httpcore.NetworkBackend):
    """Makes connections to addresses of some least reach only.

    Args:
        least: nearer addresses are refused with NearbyAddress.
    """

    def __init__(self, least: Reach, reach_of: ReachOf = reach_of) -> None:
        self._least = least
        self._reach_of = reach_of
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        # One near address among public ones is refused, too: whoever answers with both tries something.
        if any(self._reach_of(address) < self._least for address in addresses):
            raise NearbyAddress(host)
        for address in addresses[:-1]:
            try:
                return self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return self._backend.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)


def _carried(address: Address) -> list[Address]:
    """The IPv4 addresses inside an IPv6 address, as mapping and the transition mechanisms put them there."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    carried: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in NAT64:
        carried.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return [inner for inner in carried if inner is not None]


def _reach_of(address: Address) -> Reach:
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address in NAT64):
        return Reach.INTERNET  # only what it carries counts
    if address.is_loopback or address.is_unspecified:
        return Reach.MACHINE
    if address.is_link_local or address.is_multicast:
        return Reach.LINK
    return Reach.INTERNET if address.is_global else Reach.NETWORK
