"""What can go wrong in a command, as the person at the keyboard will read it.

CliError                 a sentence and an exit status; cli/main.py is the one place that prints it
+-- UsageError           the command line makes no sense (status 2)
+-- Incomplete           an answer ended before its end
+-- DaemonUnreachable    nothing answers, or something that is not Hob
|   +-- NoDaemon         ... nothing takes the connection: a daemon can be started there
|   +-- DaemonSilent     ... something takes it and does not answer: one cannot
+-- ServerError          the daemon answered with an error, before a stream or in the middle of it
    +-- NotFound         ... that the model is not there (HTTP 404)
"""

from __future__ import annotations

import os


class CliError(Exception):
    """The message is a sentence: what, the value, the limit, the remedy."""

    exit_status = 1


class UsageError(CliError):
    """Arguments that contradict each other or cannot be read."""

    exit_status = 2


class Incomplete(CliError):
    """An answer that ended before its end, without an error."""

    def __init__(self) -> None:
        super().__init__("the daemon ended its answer before it was complete; its log may say why")


class DaemonUnreachable(CliError):
    """No daemon of ours at the address."""


class NoDaemon(DaemonUnreachable):
    """Nothing listens at the address."""


class DaemonSilent(DaemonUnreachable):
    """What listens at the address did not even say its version in time."""


class ServerError(CliError):
    """The daemon's own sentence. `status` is the HTTP status, 200 where the error ended a stream."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotFound(ServerError):
    """The model is not in the store."""


def sentence_of(error: Exception) -> str:
    """What to show of an error, whatever it is.

    Raises:
        Exception: the error itself, where it is a defect of ours and HOB_DEBUG asks for tracebacks.
    """
    if isinstance(error, NotFound) and str(error).endswith(
        " not found"
    ):  # the daemon's words are those of Ollama's API
        return f"{error}; `hob list` shows the models that are here"
    if isinstance(error, CliError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    if os.environ.get("HOB_DEBUG"):  # not through Settings, whose reading may be what failed
        raise error
    return f"hob has a defect: {type(error).__name__}: {error}. HOB_DEBUG=1 shows where"
