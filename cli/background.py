"""start_daemon(): a daemon in the background, for the commands that find none.

The child gets a session of its own, so that neither Ctrl-C nor the terminal's end reaches it, and writes to the log
file in the state folder. Two commands that start at once may each start one: only one of them can bind the port, the
other ends, and both commands go on with the one that answers.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.errors import DaemonUnreachable
from modelfiles.settings import Settings

if TYPE_CHECKING:
    from cli.client import Client
    from daemon.api import VersionResponse

# -P keeps the folder in which `hob` was typed off the import path: a file of its own named engine.py would shadow ours.
DAEMON_COMMAND = (sys.executable, "-P", "-m", "daemon.main")

READY_TIMEOUT_S = 60.0
"""A daemon starts in well under a second; a machine that swaps, or reads Python from a cold network disk, takes far
longer.
"""
POLL_S = 0.05


def start_daemon(
    settings: Settings, client: Client, command: Sequence[str] = (*DAEMON_COMMAND, "--background")
) -> VersionResponse:
    """Start a daemon and wait until it answers.

    Raises:
        DaemonUnreachable: it ended, or did not answer in time; the message holds the last sentence of its log.
    """
    if sys.stderr.isatty():
        sys.stderr.write("Starting the hob daemon in the background.\n")
    process, begin = _spawn(command, settings.log_file)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        ended = process.poll()  # read before asking: a daemon that ended after our question is seen the next time
        try:
            return client.version()
        except DaemonUnreachable as error:
            if ended is not None:
                said = last_line(settings.log_file, begin) or f"it ended with status {ended} and said nothing"
                raise DaemonUnreachable(
                    f"the hob daemon could not start: {said} (its log is {settings.log_file})"
                ) from error
        time.sleep(POLL_S)
    process.terminate()
    raise DaemonUnreachable(
        f"the hob daemon did not answer at {settings.base_url} within {READY_TIMEOUT_S:.0f} s; "
        f"{last_line(settings.log_file, begin) or 'it said nothing'} (its log is {settings.log_file})"
    )


def last_line(log_file: Path, begin: int) -> str:
    """The last line that was written after byte `begin`: the reason, where a daemon has ended."""
    try:
        with log_file.open("rb") as log:
            log.seek(begin)
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:  # no log, no reason: the caller says so
        return ""
    return next((line.strip().removeprefix("Error: ") for line in reversed(lines) if line.strip()), "")


def _spawn(command: Sequence[str], log_file: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The child, and the log's length before it wrote anything."""
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as log:
            begin = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",  # so that it does not hold the current folder's file system busy for its whole life
            )
    except OSError as error:
        raise DaemonUnreachable(f"the hob daemon could not be started: {error}") from error
    return process, begin
