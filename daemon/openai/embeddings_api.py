"""Types of /v1/embeddings. See daemon/openai/api.py about what they have in common."""

from __future__ import annotations

from typing import Any

from daemon.api import KeepAlive, TokenUsage
from daemon.openai.api import Reply, Request


class EmbeddingsRequest(Request):
    """POST /v1/embeddings."""

    model: str | None = None
    input: str | list[str | int | list[int]] | None = None
    """A text, a list of texts, token ids, or a list of lists of token ids."""
    encoding_format: str | None = None
    """"float", or "base64" of little-endian float32."""
    dimensions: int | None = None
    """Elements to keep of each vector, which then gets the length 1 anew; 0, or more than there are, is all."""
    user: str | None = None
    truncate: bool | None = None
    """Hob's own, as the two below: cut texts that are too long. True where not given."""
    options: dict[str, Any] | None = None
    """Ollama's options, of which num_ctx counts, and keep_alive and truncate."""
    keep_alive: KeepAlive | None = None


class Embedding(Reply):
    """The vector of one input."""

    object: str
    embedding: list[float] | str
    index: int


class EmbeddingsResponse(Reply):
    """POST /v1/embeddings."""

    object: str
    data: list[Embedding]
    model: str
    usage: TokenUsage
