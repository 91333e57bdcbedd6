"""Errors as Anthropic's clients read them: {"type": "error", "error": {"type", "message"}}, as a body or in a stream.

Source: Anthropic's API reference and the error types of its own client (`anthropic.types.shared`).
"""

from __future__ import annotations

import msgspec

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""By status; every other below 500 is the request's fault, every other from 500 on the server's."""


class AnthropicError(msgspec.Struct):
    """What went wrong."""

    type: str
    message: str


class AnthropicErrorBody(msgspec.Struct, tag_field="type", tag="error"):
    """Body of a failed request, and the last event of a stream that failed after it began."""

    error: AnthropicError


def anthropic_error(status: int, sentence: str, error: BaseException) -> AnthropicErrorBody:
    """The body of an error with this status and this sentence."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return AnthropicErrorBody(AnthropicError(kind, sentence))
