"""Routes about models elsewhere: pull, push, the variants there are of one, and the catalog."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from daemon import api
from daemon.bodies import read
from daemon.library import parse_name
from daemon.services import Services
from daemon.streaming import JSONResponse, progress_reply


def routes(services: Services) -> list[Route]:
    """The routes of this file."""
    return [
        Route("/api/pull", partial(_pull, services), methods=["POST"]),
        Route("/api/push", partial(_push, services), methods=["POST"]),
        Route("/api/remote-tags", partial(_remote_tags, services), methods=["POST"]),
        Route("/api/search", partial(_search, services), methods=["POST"]),
    ]


async def _pull(services: Services, request: Request) -> ASGIApp:
    body = await read(request, api.PullRequest)
    name = parse_name(body.model or body.name, "invalid model name")
    events = services.transfers.pull(name, insecure=body.insecure is True)
    return progress_reply(events, streams=body.stream is not False)


async def _push(services: Services, request: Request) -> ASGIApp:
    body = await read(request, api.PullRequest)
    given = body.model or body.name
    await services.library.find_valid(given)
    # Not the stored name, which does not know by which scheme its host is to be reached.
    events = services.transfers.push(parse_name(given, "invalid model name"), insecure=body.insecure is True)
    return progress_reply(events, streams=body.stream is not False)


async def _remote_tags(services: Services, request: Request) -> JSONResponse:
    body = await read(request, api.PullRequest)
    name = parse_name((body.model or body.name or "").removesuffix(":"), "invalid model name")
    tags = await asyncio.to_thread(services.transfers.tags, name, insecure=body.insecure is True)
    return JSONResponse(api.RemoteTagsResponse(tags=tags))


async def _search(services: Services, request: Request) -> JSONResponse:
    body = await read(request, api.SearchRequest)
    return JSONResponse(api.SearchResponse(models=await asyncio.to_thread(services.transfers.search, body.query)))
