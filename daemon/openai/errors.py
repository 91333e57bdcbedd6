"""Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}}, as a body or in a stream.

Source: OpenAI's API reference; `code` as its clients look for it, of which most know the two below.
"""

from __future__ import annotations

import msgspec

from daemon.errors import PromptTooLong, UnknownModel

CODES: dict[type[BaseException], str] = {UnknownModel: "model_not_found", PromptTooLong: "context_length_exceeded"}
TYPES = {401: "authentication_error", 403: "permission_error"}
NO_SUCH_PATH = "unknown_url"


class OpenAIError(msgspec.Struct, kw_only=True):
    """What went wrong. All four are always sent."""

    message: str
    type: str
    param: str | None = None
    """The field that is wrong, such as "messages[0].content"."""
    code: str | None = None


class OpenAIErrorBody(msgspec.Struct):
    """Body of a failed request, and the last event of a stream that failed after it began."""

    error: OpenAIError


def openai_error(status: int, sentence: str, error: BaseException) -> OpenAIErrorBody:
    """The body of an error with this status and this sentence."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = next((CODES[cls] for cls in type(error).__mro__ if cls in CODES), None)
    return OpenAIErrorBody(
        OpenAIError(message=sentence, type=kind, param=getattr(error, "param", None), code=code or _of_path(error))
    )


def _of_path(error: BaseException) -> str | None:
    return NO_SUCH_PATH if getattr(error, "status_code", None) == 404 else None
