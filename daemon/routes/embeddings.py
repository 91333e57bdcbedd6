"""/api/embed, /api/embeddings and /v1/embeddings: a request becomes an EmbedJob, and vectors become the reply."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeGuard

import msgspec
from starlette.requests import Request
from starlette.routing import Route

from daemon import api
from daemon.bodies import read
from daemon.embedding import MAX_INPUTS, EmbedJob, floats
from daemon.embedding_inputs import TextInput
from daemon.errors import BadRequest
from daemon.extensions import read_extensions
from daemon.openai.embeddings_api import Embedding, EmbeddingsRequest, EmbeddingsResponse
from daemon.options import Options, read_keep_alive
from daemon.services import Services
from daemon.streaming import JSONReply, JSONResponse
from registry.stored_model import StoredModel

ENCODING_FORMATS = ("float", "base64")


def routes(services: Services) -> list[Route]:
    """The routes of this file."""
    return [
        Route("/api/embed", partial(_embed, services), methods=["POST"]),
        Route("/api/embeddings", partial(_embeddings, services), methods=["POST"]),
        Route("/v1/embeddings", partial(_openai_embeddings, services), methods=["POST"]),
    ]


# ---- Ollama's


async def _embed(services: Services, request: Request) -> JSONReply:
    body = await read(request, api.EmbedRequest)
    inputs = read_texts(body.input)
    stored = await services.library.find(body.model)
    job = EmbedJob(
        stored=stored,
        inputs=inputs,
        options=body.options or {},
        keep_alive_s=read_keep_alive(body.keep_alive),
        truncate=body.truncate is not False,
        dimensions=check_dimensions(body.dimensions),
    )
    await _check(services, stored, body.options, body.model or "")

    async def reply() -> api.EmbedResponse:
        done = await services.embedder.embed(job)
        return api.EmbedResponse(
            model=body.model or "",
            embeddings=await asyncio.to_thread(lambda: [as_json(vector) for vector in done.vectors]),
            total_duration=done.total_ns,
            load_duration=done.load_ns,
            prompt_eval_count=done.num_tokens,
            truncated=done.is_truncated,
        )

    return JSONReply(reply())


async def _embeddings(services: Services, request: Request) -> JSONReply | JSONResponse:
    body = await read(request, api.EmbeddingsRequest)
    stored = await services.library.find_valid(body.model)
    keep_alive_s = read_keep_alive(body.keep_alive)
    job = EmbedJob(
        stored=stored,
        inputs=[body.prompt] if body.prompt else [],
        options=body.options or {},
        keep_alive_s=keep_alive_s,
        normalize=False,
    )
    await _check(services, stored, body.options, body.model or "")

    async def reply() -> api.EmbeddingsResponse:
        done = await services.embedder.embed(job)
        return api.EmbeddingsResponse(embedding=floats(done.vectors[0]) if done.vectors else [])

    return JSONReply(reply())


# ---- OpenAI's


async def _openai_embeddings(services: Services, request: Request) -> JSONReply:
    body = await read(request, EmbeddingsRequest)
    inputs = read_openai_inputs(body.input)
    encoding = body.encoding_format or "float"
    if encoding not in ENCODING_FORMATS:
        known = " or ".join(ENCODING_FORMATS)
        raise BadRequest(f'encoding_format is "{encoding[:40]}"; it can be {known}', "encoding_format")
    own = read_extensions(body.options, body.keep_alive)
    stored = await services.library.find_valid(body.model)
    job = EmbedJob(
        stored=stored,
        inputs=inputs,
        options=own.options,
        keep_alive_s=own.keep_alive_s,
        truncate=body.truncate is not False and own.truncate is not False,
        dimensions=check_dimensions(body.dimensions),
    )
    await _check(services, stored, own.options, body.model or "")
    encode = as_json if encoding == "float" else as_base64

    async def reply() -> EmbeddingsResponse:
        done = await services.embedder.embed(job)
        vectors = await asyncio.to_thread(lambda: [encode(vector) for vector in done.vectors])
        return EmbeddingsResponse(
            object="list",
            data=[Embedding(object="embedding", embedding=vector, index=index) for index, vector in enumerate(vectors)],
            model=body.model or "",
            usage=api.TokenUsage(prompt_tokens=done.num_tokens, total_tokens=done.num_tokens),
        )

    return JSONReply(reply())


# ---- reading and writing


def read_texts(value: Any) -> list[str]:
    """`input` of /api/embed; nothing and "" are no texts.

    Raises:
        BadRequest: it is neither a text nor a list of texts, or there are too many.
    """
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    if not _is_list_of(value, str):
        raise BadRequest("invalid input type: input must be a text or a list of texts", "input")
    _check_number(value)
    return value


def read_openai_inputs(value: str | list[str | int | list[int]] | None) -> Sequence[TextInput]:
    """`input` of /v1/embeddings.

    Raises:
        BadRequest: it is empty, too long, or not all of a kind.
    """
    if not value:
        raise BadRequest("invalid input: input must hold at least one text or token id", "input")
    if isinstance(value, str):
        return [value]
    if _is_list_of(value, str):
        _check_number(value)
        return value
    lists = [value] if _is_list_of(value, int) else value
    if not all(_is_list_of(ids, int) for ids in lists):
        raise BadRequest("invalid input: input mixes texts, token ids and lists of token ids; give one kind", "input")
    _check_number(lists)
    return lists  # type: ignore[return-value]  # all are lists of int, as was just looked at


def check_dimensions(dimensions: int | None) -> int:
    """Raises BadRequest where there can be no such number."""
    if dimensions is not None and dimensions < 0:
        raise BadRequest(f"dimensions is {dimensions}; it must be 0, for all of them, or more", "dimensions")
    return dimensions or 0


def as_json(vector: bytes) -> Any:
    """A vector's elements as a piece of JSON: encoded here, in a thread, and not on the loop with the whole reply."""
    return msgspec.Raw(msgspec.json.encode(floats(vector)))


def as_base64(vector: bytes) -> Any:
    """A vector as OpenAI's clients ask for it by default: base64 of little-endian float32."""
    return base64.b64encode(vector).decode("ascii")


def _is_list_of(value: Any, kind: type[Any]) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _check_number(inputs: Sequence[object]) -> None:
    if len(inputs) > MAX_INPUTS:
        raise BadRequest(
            f"input holds {len(inputs)} texts; the limit is {MAX_INPUTS}, so send them in several requests"
        )


async def _check(services: Services, stored: StoredModel, options: dict[str, Any] | None, name: str) -> None:
    """What can be told before a model is loaded.

    Raises:
        BadRequest: the model scores pairs of texts and gives no vectors.
        ParameterError: an option has the wrong type or is out of range.
    """
    Options.merge(stored.params, options or {})
    if "rerank" in (await services.library.describe(stored)).capabilities:
        raise BadRequest(f'"{name}" does not support embeddings: it is a model for /api/rerank', "model")
