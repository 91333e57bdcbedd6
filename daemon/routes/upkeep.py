"""Routes about the store as a whole: fsck, and models that other programs on this machine hold already."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from daemon import api
from daemon.bodies import read
from daemon.creation import check_source
from daemon.library import parse_name
from daemon.services import Services
from daemon.streaming import JSONResponse, NDJSONReply, iterate_in_thread, progress_reply
from registry.fsck import Damage, fsck
from registry.name import ModelName
from registry.store import Store

if TYPE_CHECKING:
    from registry.adoption import ImportSource

CHECKING = "reading the store"


def routes(services: Services) -> list[Route]:
    """The routes of this file."""
    return [
        Route("/api/fsck", partial(_fsck, services), methods=["POST"]),
        Route("/api/importable", partial(_importable, services), methods=["POST"]),
        Route("/api/import", partial(_import, services), methods=["POST"]),
    ]


async def _fsck(services: Services, request: Request) -> ASGIApp:
    body = await read(request, api.FsckRequest)
    return NDJSONReply(iterate_in_thread(_fsck_events(services.store, rehash=body.rehash is not False)))


def _fsck_events(store: Store, *, rehash: bool) -> Iterator[api.FsckResponse]:
    for event in fsck(store, rehash=rehash):
        if isinstance(event, Damage):
            yield api.FsckResponse(
                status="damaged",
                subject=event.subject,
                reason=event.reason,
                models=list(event.models),
                quarantined=event.is_quarantined,
            )
        else:
            yield api.FsckResponse(status=CHECKING, digest="store", total=event.total, completed=event.completed)
    yield api.FsckResponse(status="success")


async def _importable(services: Services, request: Request) -> JSONResponse:
    body = await read(request, api.ImportRequest)
    found = await asyncio.to_thread(lambda: _source(body.source).models(services.store))
    models = [api.ImportableModel(name=model.name.short, size=model.size, stored=model.is_stored) for model in found]
    return JSONResponse(api.ImportableResponse(models=models))


async def _import(services: Services, request: Request) -> ASGIApp:
    body = await read(request, api.ImportRequest)
    name = parse_name(body.model, "invalid model name")
    return progress_reply(_import_events(services.store, body.source, name), streams=body.stream is not False)


def _import_events(store: Store, source: str, name: ModelName) -> Iterator[api.ProgressResponse]:
    for event in _source(source).adopt(store, name, check_source):
        yield api.ProgressResponse(
            status=event.status, digest=event.digest, total=event.total, completed=event.completed
        )


def _source(name: str) -> ImportSource:
    # Imported here because huggingface_hub, whose cache it may be, costs as much as the daemon's whole start.
    from registry.import_models import import_source

    return import_source(name, os.environ)
