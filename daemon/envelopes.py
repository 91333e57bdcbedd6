"""Which body an error has, by the path of the request: each protocol's clients read their own. One table."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from daemon.anthropic.errors import anthropic_error
from daemon.api import ErrorReply
from daemon.openai.errors import openai_error

Envelope = Callable[[int, str, BaseException], msgspec.Struct]
"""From the status, the sentence and the exception, which may know more (`param`), to the body."""


def native_error(status: int, sentence: str, error: BaseException) -> ErrorReply:
    """The body of the native API."""
    return ErrorReply(error=sentence)


ENVELOPES: tuple[tuple[str, Envelope], ...] = (("/v1/messages", anthropic_error), ("/v1/", openai_error))
"""Prefix of a path and its envelope; the first that fits counts, so longer prefixes stand before shorter ones."""


def envelope_for(path: str) -> Envelope:
    """The envelope of a request's path."""
    return next((envelope for prefix, envelope in ENVELOPES if path.startswith(prefix)), native_error)
