"""Routes about stored and loaded models: tags, show, ps, copy, delete, create and blobs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import ASGIApp

from daemon import api
from daemon.bodies import ClientLeft, read
from daemon.clock import rfc3339
from daemon.creation import create_events
from daemon.library import parse_name, shorten
from daemon.services import Services
from daemon.show import show
from daemon.streaming import EmptyResponse, JSONResponse, progress_reply
from modelfiles.parameters import check_options
from registry.errors import BlobNotFound, ModelNotFound
from registry.manifest import Digest
from registry.store import Store
from registry.stored_model import StoredModel

FOREVER_NS = 9_000_000_000 * 10**9
"""`expires_at` of a model that stays, in the year 2255: about as far as nanoseconds since 1970 go in 64 bits."""


def routes(services: Services) -> list[Route]:
    """The routes of this file."""
    return [
        Route("/api/tags", partial(_tags, services)),
        Route("/api/ps", partial(_ps, services)),
        Route("/api/show", partial(_show, services), methods=["POST"]),
        Route("/api/copy", partial(_copy, services), methods=["POST"]),
        Route("/api/delete", partial(_delete, services), methods=["DELETE"]),
        Route("/api/create", partial(_create, services), methods=["POST"]),
        Route("/api/blobs/{digest}", partial(_has_blob, services), methods=["HEAD"]),
        Route("/api/blobs/{digest}", partial(_put_blob, services), methods=["POST"]),
    ]


# ---- looking


async def _tags(services: Services, request: Request) -> JSONResponse:
    stored = await asyncio.to_thread(services.store.list)
    return JSONResponse(api.ListResponse(models=[await _listed(services, model) for model in stored]))


async def _listed(services: Services, stored: StoredModel) -> api.ListedModel:
    description = await services.library.describe(stored)
    return api.ListedModel(
        name=stored.name.short,
        model=stored.name.short,
        remote_model=stored.config.get("remote_model", ""),
        remote_host=stored.config.get("remote_host", ""),
        modified_at=stored.modified_at.isoformat().replace("+00:00", "Z"),
        size=stored.size,
        digest=stored.digest.hex,
        details=description.details,
        capabilities=list(description.capabilities),
    )


async def _ps(services: Services, request: Request) -> JSONResponse:
    rows = []
    now_ns = services.clock.time_ns()
    for row in services.models.running():
        expires_ns = FOREVER_NS if math.isinf(row.remaining_s) else now_ns + int(row.remaining_s * 1e9)
        rows.append(
            api.RunningModel(
                name=row.stored.name.short,
                model=row.stored.name.short,
                size=row.size_bytes,
                digest=row.stored.digest.hex,
                details=(await services.library.describe(row.stored)).details,
                expires_at=rfc3339(expires_ns),
                size_vram=row.vram_bytes,
                context_length=row.context_length,
            )
        )
    return JSONResponse(api.ProcessResponse(models=rows))


async def _show(services: Services, request: Request) -> JSONResponse:
    body = await read(request, api.ShowRequest)
    stored = await services.library.find_valid(body.model or body.name)
    description = await services.library.describe(stored)
    options = check_options(body.options or {})
    reply = await asyncio.to_thread(show, stored, description, options, body.system, verbose=body.verbose is True)
    return JSONResponse(reply)


# ---- changing


async def _copy(services: Services, request: Request) -> ASGIApp:
    body = await read(request, api.CopyRequest)
    source = parse_name(body.source, f'source "{shorten(body.source or "")}" is invalid')
    destination = parse_name(body.destination, f'destination "{shorten(body.destination or "")}" is invalid')
    try:
        await asyncio.to_thread(services.store.copy, source, destination)
    except ModelNotFound as error:
        raise ModelNotFound(body.source or "") from error  # as the client wrote it
    return EmptyResponse()


async def _delete(services: Services, request: Request) -> ASGIApp:
    body = await read(request, api.DeleteRequest)
    given = body.model or body.name or ""
    name = parse_name(given, f'name "{shorten(given)}" is invalid')
    await services.models.unload(name)
    await services.library.delete(name, given)
    return EmptyResponse()


async def _create(services: Services, request: Request) -> ASGIApp:
    body = await read(request, api.CreateRequest)
    quantize = partial(services.quantizer.run, asyncio.get_running_loop())
    events = create_events(services.store, services.transfers, body, quantize)
    return progress_reply(events, streams=body.stream is not False)


# ---- blobs


async def _has_blob(services: Services, request: Request) -> ASGIApp:
    digest = Digest.parse(request.path_params["digest"])
    found = await asyncio.to_thread(services.store.has_blob, digest)
    return EmptyResponse(200 if found else 404)


async def _put_blob(services: Services, request: Request) -> ASGIApp:
    digest = Digest.parse(request.path_params["digest"])
    if await asyncio.to_thread(services.store.has_blob, digest):
        return EmptyResponse(200)
    if key := request.headers.get(api.INBOX_HEADER):
        if not await asyncio.to_thread(services.store.take_from_inbox, key, digest):
            raise BlobNotFound(str(digest))
        return EmptyResponse(201)
    try:
        await asyncio.to_thread(_write_blob, services.store, digest, request, asyncio.get_running_loop())
    except ClientDisconnect:
        raise ClientLeft from None
    return EmptyResponse(201)


def _write_blob(store: Store, digest: Digest, request: Request, loop: asyncio.AbstractEventLoop) -> None:
    """Hash and write in this thread what the loop receives, one piece at a time: no more than one is in memory."""
    stream = request.stream()

    def pieces() -> Iterator[bytes]:
        while True:
            piece: Any = asyncio.run_coroutine_threadsafe(_next_piece(stream), loop).result()
            if piece is None:
                return
            yield piece

    store.write_blob(pieces(), digest)


async def _next_piece(stream: Any) -> bytes | None:
    return await anext(stream, None)
