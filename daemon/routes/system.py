"""Routes about the daemon itself: that it runs, its version, its health, its end."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from daemon import api
from daemon.errors import Conflict, Forbidden
from daemon.openapi import openapi_document
from daemon.operations import OPERATIONS
from daemon.services import Services
from daemon.streaming import JSONResponse

CLOUD_ROUTES = (
    ("POST", "/api/me"),
    ("POST", "/api/signout"),
    ("DELETE", "/api/user/keys/{key}"),
    ("POST", "/api/experimental/web_search"),
    ("POST", "/api/experimental/web_fetch"),
    ("GET", "/api/experimental/model-recommendations"),
)
"""Ollama's, all refused."""


def routes(services: Services) -> list[Route]:
    """The routes of this file."""
    description = lru_cache(1)(lambda: openapi_document(OPERATIONS, version("hob-llm")))  # 20 ms, for few who ask
    return [
        Route("/", _root),
        Route("/openapi.json", partial(_openapi, description)),
        Route("/healthz", _health),
        Route("/api/version", partial(_version, version("hob-llm"))),
        Route("/api/status", _status),
        *(Route(path, _no_cloud, methods=[method]) for method, path in CLOUD_ROUTES),
        Route("/api/shutdown", partial(_shut_down, services), methods=["POST"]),
    ]


async def _root(request: Request) -> PlainTextResponse:
    # The text is what programs look for on this port; /api/version tells who really answers.
    return PlainTextResponse("Ollama is running")


async def _openapi(description: Callable[[], dict[str, Any]], request: Request) -> JSONResponse:
    return JSONResponse(description())


async def _health(request: Request) -> JSONResponse:
    return JSONResponse(api.HealthResponse(status="ok"))


async def _version(hob_version: str, request: Request) -> JSONResponse:
    return JSONResponse(api.VersionResponse(version=api.API_VERSION, hob_version=hob_version))


async def _status(request: Request) -> JSONResponse:
    return JSONResponse(api.StatusResponse(cloud=api.CloudStatus(disabled=True, source="config")))


async def _no_cloud(request: Request) -> JSONResponse:
    raise Forbidden("this needs an account with Ollama's cloud; Hob has no cloud, and all its models run here")


async def _shut_down(services: Services, request: Request) -> JSONResponse:
    if services.shut_down is None:
        raise Conflict("this daemon was not started in the background; end it where it was started (Ctrl-C, systemctl)")
    services.shut_down()
    return JSONResponse(api.HealthResponse(status="shutting down"))
