"""The daemon's own errors, and the one table that says which HTTP status an exception becomes.

    DaemonError
    ├── BadRequest             400  the request's fault; the message says what would do
    │   └── PromptTooLong           it does not fit the context and may not be cut
    ├── Forbidden              403
    ├── UnknownModel           404
    ├── UnknownResponse        404
    ├── Conflict               409
    ├── BodyTooLarge           413
    ├── UnsupportedMediaType   415
    ├── ServerBusy             503  with Retry-After
    └── ShuttingDown           503  with Retry-After

The table is looked up along an exception's MRO, so a class stands for its children. What is not in it is a defect of
ours: the client gets 500 and no detail, the log gets the traceback. Messages never hold paths or reprs of objects.
"""

from __future__ import annotations

import logging

from engine.config import ConfigError
from engine.constraint import ConstraintError
from engine.errors import EngineError, RequestFailed
from engine.sampling_params import SamplingError
from engine.text.tokenizer import TokenizerError
from modelfiles.durations import DurationError
from modelfiles.gguf import GGUFError
from modelfiles.parameters import ParameterError
from modelfiles.prompt import TemplateError
from modelfiles.safetensors import SafetensorsError
from modelfiles.source import SourceError
from registry.errors import (
    BlobNotFound,
    CreateError,
    DigestMismatch,
    InvalidDigest,
    InvalidName,
    ModelNotFound,
    OutOfSpace,
    RegistryError,
    RemoteDenied,
    RemoteError,
    RemoteNotFound,
    StoreLocked,
)

logger = logging.getLogger("hob.daemon")

RETRY_AFTER_S = 1


class DaemonError(Exception):
    """Base of the errors that the daemon raises itself; the message is a sentence for the client."""


class BadRequest(DaemonError):
    """The request cannot be done as it stands.

    Args:
        param: the field that is at fault, such as "messages[0].role", for protocols that name it apart.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(BadRequest):
    """The prompt does not fit the context, and may not be cut."""


class Forbidden(DaemonError):
    """The client may not do this."""


class UnknownModel(DaemonError):
    """No model of that name, in the words that clients of /api/generate and /api/chat look for.

    Args:
        why: what more there is to say, such as that it can be no model's name.
    """

    param = "model"

    def __init__(self, name: str, why: str = "") -> None:
        super().__init__(f"model '{name}' not found{': ' if why else ''}{why}")


class UnknownResponse(DaemonError):
    """A response that a client wants to see again."""

    param = "response_id"

    def __init__(self, response_id: str) -> None:
        super().__init__(f"response '{response_id[:80]}' not found: responses are not kept here")


class Conflict(DaemonError):
    """What is asked does not go with the daemon's state."""


class BodyTooLarge(DaemonError):
    """The body is longer than the limit."""


class UnsupportedMediaType(DaemonError):
    """A form where JSON belongs."""


class ServerBusy(DaemonError):
    """The queue is full. Two spaces in the message: clients of Ollama match this text."""

    def __init__(self) -> None:
        super().__init__("server busy, please try again.  maximum pending requests exceeded")


class ShuttingDown(DaemonError):
    """The daemon is about to end."""

    def __init__(self) -> None:
        super().__init__("the daemon is shutting down; send the request again when it is back")


STATUS: dict[type[BaseException], int] = {
    BadRequest: 400,
    Forbidden: 403,
    UnknownModel: 404,
    UnknownResponse: 404,
    Conflict: 409,
    BodyTooLarge: 413,
    UnsupportedMediaType: 415,
    ServerBusy: 503,
    ShuttingDown: 503,
    InvalidName: 400,
    InvalidDigest: 400,
    CreateError: 400,
    DigestMismatch: 400,
    ModelNotFound: 404,
    BlobNotFound: 404,
    StoreLocked: 409,
    OutOfSpace: 507,
    RemoteNotFound: 404,
    RemoteDenied: 403,
    RemoteError: 502,
    RegistryError: 500,
    ParameterError: 400,
    TemplateError: 400,
    DurationError: 400,
    SamplingError: 400,
    ConstraintError: 400,
    TokenizerError: 400,
    EngineError: 500,
    # Files that are broken, or of a kind that Hob does not run; loading them fails with LoadFailed and the same words.
    ConfigError: 500,
    SourceError: 500,
    GGUFError: 500,
    SafetensorsError: 500,
}

RETRY_LATER = (ServerBusy, ShuttingDown)

INTERNAL_ERROR = "internal error; the daemon's log has the details"


def describe(error: BaseException) -> tuple[int, str]:
    """Status and sentence for the client. An exception that nobody designed is logged with its traceback."""
    if isinstance(error, RequestFailed) and error.kind == "invalid":
        return 400, str(error)
    for cls in type(error).__mro__:
        if cls in STATUS:
            return STATUS[cls], str(error) or cls.__name__
    logger.error("unexpected error while serving a request", exc_info=error)
    return 500, INTERNAL_ERROR


def headers_for(error: BaseException) -> dict[str, str]:
    """Headers that belong to the error."""
    if isinstance(error, BodyTooLarge | UnsupportedMediaType):
        return {"Connection": "close"}  # the rest of the body is not going to be read
    return {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, RETRY_LATER) else {}
