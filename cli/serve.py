"""`hob serve` runs the daemon in the foreground; `hob shutdown` ends one that runs in the background."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated

import typer

from cli.background import DAEMON_COMMAND, POLL_S
from cli.connection import connected, load_settings
from cli.errors import CliError, DaemonUnreachable

SHUTDOWN_TIMEOUT_S = 30.0


def serve(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on, with or without a port. Overrides HOB_HOST.")
    ] = "",
    port: Annotated[int | None, typer.Option(metavar="PORT", help="Port to listen on.", min=1, max=65535)] = None,
    models: Annotated[str, typer.Option(metavar="FOLDER", help="Folder of the models. Overrides HOB_MODELS.")] = "",
) -> None:
    """Run the daemon in the foreground until Ctrl-C."""
    settings = load_settings({"host": host} if host else None)
    # Flags travel as the variables that they override, so the daemon needs no second way to be told.
    environ = dict(os.environ)
    if host or port:
        listen = f"[{settings.host}]" if ":" in settings.host else settings.host
        environ["HOB_HOST"] = f"{listen}:{port or settings.port}"
    if models:
        environ["HOB_MODELS"] = models
    sys.stdout.flush()
    # The daemon takes this process's place: signals, exit status and the supervisor's process id are then its own.
    os.execve(DAEMON_COMMAND[0], DAEMON_COMMAND, environ)


def shutdown() -> None:
    """End the daemon that runs in the background, and unload its models."""
    settings = load_settings()
    with connected(settings, start=False) as client:
        client.shutdown()
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                client.version()
            except DaemonUnreachable:  # it is gone, which is what was asked
                return
            time.sleep(POLL_S)
    raise CliError(
        f"the daemon at {settings.base_url} was asked to end and still answers after {SHUTDOWN_TIMEOUT_S:.0f} s; "
        f"its log is {settings.log_file}"
    )
