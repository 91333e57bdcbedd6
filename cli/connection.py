"""connected(): a client of the daemon for one command, with the daemon started first where none answers.

Every command but `serve` begins here. It settles three questions before the command asks anything: does somebody answer
at the address, is it Hob (`hob_version` in /api/version), and may the CLI start it (only on this machine).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cli.background import start_daemon
from cli.errors import CliError, DaemonSilent, DaemonUnreachable
from modelfiles.host import HostAddress
from modelfiles.settings import Settings, SettingsError

if TYPE_CHECKING:
    from cli.client import Client


def load_settings() -> Settings:
    """The settings of this process.

    Raises:
        CliError: a variable or the file holds something that cannot be used.
    """
    try:
        return Settings.load(os.environ)
    except SettingsError as error:
        raise CliError(str(error)) from error


@contextmanager
def connected(settings: Settings, *, start: bool = True) -> Iterator[Client]:
    """A client whose daemon is known to answer and to be Hob.

    Raises:
        DaemonUnreachable: nobody answers and `start` is off, or it could not be started; or it is another server.
    """
    with open_client(settings) as client:
        ensure_hob(settings, client, start=start)
        yield client


def ensure_hob(settings: Settings, client: Client, *, start: bool = True) -> None:
    """See to it that a daemon answers the client. The prompt loop asks this before every message, since a daemon may
    end while a person thinks.

    Raises:
        DaemonUnreachable: as `connected`.
    """
    try:
        answer = client.version()
    except DaemonSilent:  # the port is taken
        raise
    except DaemonUnreachable:
        if not start:
            raise
        if not on_this_machine(settings.address):
            raise DaemonUnreachable(
                f"nothing answers at {settings.base_url}, and hob starts a daemon on this machine only: "
                "run `hob serve` there, or set HOB_HOST to another address"
            ) from None
        answer = start_daemon(settings, client)
    if not answer.hob_version:
        raise DaemonUnreachable(other_server(settings, answer.version))


def open_client(settings: Settings) -> Client:
    """A client that nobody has tried yet."""
    # Imported here because httpx costs 60 to 100 ms, which `hob --help` and the shell's completion should not pay.
    from cli.client import Client

    return Client.connect(settings.base_url, settings.api_key)


def on_this_machine(address: HostAddress) -> bool:
    """Whether a daemon started here could listen at the address: a socket can be bound only to an address of one's
    own.
    """
    if address.scheme != "http" or address.path:  # behind a proxy, wherever that may be
        return False
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(address.dial_host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(target)
    except OSError:
        return False
    return True


def other_server(settings: Settings, version: str) -> str:
    """What to say where something that is not Hob has the port."""
    who = f"another server (it speaks Ollama's API, version {version})" if version else "another server"
    port = settings.port + 1 if settings.port < 65535 else 11434
    return (
        f"{who} answers at {settings.base_url}, not hob. Stop it, or give hob an address of its own: "
        f"HOB_HOST={settings.address.dial_host}:{port} hob ..."
    )
