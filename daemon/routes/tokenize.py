"""/api/tokenize and /api/detokenize: text to token ids and back, by a model's tokenizer. No weights are loaded."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.requests import Request
from starlette.routing import Route

from daemon import api
from daemon.bodies import read
from daemon.errors import BadRequest
from daemon.services import Services
from daemon.streaming import JSONReply
from engine.text.tokenizer import Tokenizer


def routes(services: Services) -> list[Route]:
    """The routes of this file."""
    return [
        Route("/api/tokenize", partial(_tokenize, services), methods=["POST"]),
        Route("/api/detokenize", partial(_detokenize, services), methods=["POST"]),
    ]


async def _tokenize(services: Services, request: Request) -> JSONReply:
    body = await read(request, api.TokenizeRequest)
    if body.content is None and body.text is None:
        raise BadRequest("content is missing: give the text to tokenize", "content")
    return JSONReply(_tokens(services, body, body.model or ""))


async def _tokens(services: Services, body: api.TokenizeRequest, name: str) -> api.TokenizeResponse:
    tokenizer = await _tokenizer(services, name)
    return await asyncio.to_thread(_encode, tokenizer, body, name)


def _encode(tokenizer: Tokenizer, body: api.TokenizeRequest, name: str) -> api.TokenizeResponse:
    text = body.content if body.content is not None else body.text or ""
    ids = tokenizer.encode(text, add_special=body.add_special is True, parse_special=body.parse_special is not False)
    if not body.with_pieces:
        return api.TokenizeResponse(model=name, tokens=ids)
    pieces = [api.TokenPiece(id=token_id, piece=_piece(tokenizer.token_bytes(token_id))) for token_id in ids]
    return api.TokenizeResponse(model=name, tokens=pieces)


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


async def _detokenize(services: Services, request: Request) -> JSONReply:
    body = await read(request, api.DetokenizeRequest)
    if body.tokens is None:
        raise BadRequest("tokens is missing: give a list of token ids", "tokens")
    return JSONReply(_text(services, body.tokens, body.model or ""))


async def _text(services: Services, tokens: list[int], name: str) -> api.DetokenizeResponse:
    tokenizer = await _tokenizer(services, name)
    # Special tokens by their names, so that nothing that was tokenized gets lost on the way back.
    content = await asyncio.to_thread(tokenizer.decode, tokens, skip_special=False)
    return api.DetokenizeResponse(model=name, content=content)


async def _tokenizer(services: Services, name: str) -> Tokenizer:
    return (await services.texts.get(await services.library.find_valid(name))).tokenizer
