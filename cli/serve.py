"""`hob serve` runs the daemon in the foreground; `hob shutdown` ends one that runs in the background."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated

import typer

from cli.background import DAEMON_COMMAND, POLL_S
from cli.connection import ensure_hob, load_settings, open_client
from cli.errors import CliError, DaemonSilent, DaemonUnreachable, NoDaemon

SHUTDOWN_MARGIN_S = 15.0
"""Beyond the time that running answers get; the workers must end, too."""


def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on, with or without a port.")] = "",
    port: Annotated[int | None, typer.Option(metavar="PORT", help="Port to listen on.", min=0, max=65535)] = None,
    models: Annotated[str, typer.Option(metavar="FOLDER", help="Folder of the models.")] = "",
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Allow an address that other machines reach.")
    ] = False,
) -> None:
    """Run the daemon in the foreground until Ctrl-C. Other commands start it in the background by themselves."""
    load_settings()  # a wrong variable is said here, before this process is given up
    flags = {"--host": host, "--port": "" if port is None else str(port), "--models": models}
    command = [*DAEMON_COMMAND, *(word for flag, value in flags.items() if value for word in (flag, value))]
    sys.stdout.flush()
    # The daemon takes this process's place: signals, exit status and the supervisor's process id are then its own.
    os.execv(command[0], [*command, *(["--allow-remote"] if allow_remote else [])])


def shutdown() -> None:
    """End the daemon that runs in the background."""
    settings = load_settings()
    with open_client(settings) as client:
        try:
            ensure_hob(settings, client, start=False)
        except NoDaemon as error:
            raise NoDaemon(f"no daemon runs at {settings.base_url}") from error
        client.shutdown()
        deadline = time.monotonic() + settings.drain_s + SHUTDOWN_MARGIN_S
        while time.monotonic() < deadline:
            try:
                client.version()
            except DaemonSilent:  # busy with ending
                continue
            except DaemonUnreachable:  # it is gone, which is what was asked
                return
            time.sleep(POLL_S)
    raise CliError(
        f"the daemon at {settings.base_url} was asked to end and still answers; its log is {settings.log_file}"
    )
