"""Routes about the daemon itself: that it runs, its version, its health, its end."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from daemon import api
from daemon.errors import Conflict
from daemon.services import Services
from daemon.streaming import JSONResponse


def routes(services: Services) -> list[Route]:
    """The routes of this file."""
    return [
        Route("/", _root),
        Route("/healthz", _health),
        Route("/api/version", partial(_version, version("hob-llm"))),
        Route("/api/shutdown", partial(_shut_down, services), methods=["POST"]),
    ]


async def _root(request: Request) -> PlainTextResponse:
    # The text is what programs look for on this port; /api/version tells who really answers.
    return PlainTextResponse("Ollama is running")


async def _health(request: Request) -> JSONResponse:
    return JSONResponse(api.HealthResponse(status="ok"))


async def _version(hob_version: str, request: Request) -> JSONResponse:
    return JSONResponse(api.VersionResponse(version=api.API_VERSION, hob_version=hob_version))


async def _shut_down(services: Services, request: Request) -> JSONResponse:
    if services.shut_down is None:
        raise Conflict("this daemon was not started in the background; end it where it was started (Ctrl-C, systemctl)")
    services.shut_down()
    return JSONResponse(api.HealthResponse(status="shutting down"))
