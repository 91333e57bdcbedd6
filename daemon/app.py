"""build_app: the ASGI application, from inside out: routes, Host and Origin checks, errors and the access log."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.bodies import ClientLeft
from daemon.clock import Clock
from daemon.envelopes import envelope_for, native_error
from daemon.errors import describe, headers_for
from daemon.routes import (
    anthropic,
    embeddings,
    generate,
    models,
    openai,
    rerank,
    system,
    tokenize,
    transfers,
    upkeep,
)
from daemon.security import CORS_HEADERS, HostCheck, OriginCheck, SecurityMiddleware
from daemon.services import Services
from daemon.streaming import send_json

access_logger = logging.getLogger("hob.access")

CLIENT_CLOSED_REQUEST = 499
"""For the log only: there is nobody left to read it."""
MAX_LOGGED_PATH = 200


def build_app(
    services: Services, *, loopback: bool = True, host_names: Iterable[str] = (), origins: Iterable[str] = ()
) -> ASGIApp:
    """The daemon's ASGI application.

    Args:
        loopback: as HostCheck.
        host_names: further names of this machine.
        origins: web origins that may use the API beside the local ones.
    """
    router = Router(all_routes(services), redirect_slashes=False, default=_not_found)
    secured = SecurityMiddleware(router, HostCheck(loopback=loopback, names=host_names), OriginCheck(origins))
    return Edge(secured, services.clock)


def all_routes(services: Services) -> list[Route]:
    """Every route; daemon.operations describes each."""
    return [
        *system.routes(services),
        *generate.routes(services),
        *anthropic.routes(services),
        *openai.routes(services),
        *tokenize.routes(services),
        *embeddings.routes(services),
        *rerank.routes(services),
        *models.routes(services),
        *transfers.routes(services),
        *upkeep.routes(services),
    ]


class Edge:
    """The outermost layer: an exception becomes a status and a sentence, and every request one line of the log."""

    def __init__(self, app: ASGIApp, clock: Clock) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if envelope_for(scope["path"]) is not native_error:
            scope["app"] = self  # without it, a route answers a wrong method itself, in plain text
        started_ns = self._clock.monotonic_ns()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientLeft:
            status = CLIENT_CLOSED_REQUEST
        except Exception as error:
            if status:  # the status line is out, so all that is left is to break the connection off
                raise
            await _send_error(watched, error, scope)
        finally:
            # Never the query or the body: they hold what people say.
            path = ascii(scope["path"][:MAX_LOGGED_PATH])[1:-1]
            milliseconds = (self._clock.monotonic_ns() - started_ns) / 1e6
            access_logger.info("%s %s %d %.1f ms", scope["method"][:10], path, status, milliseconds)


async def _send_error(send: Send, error: Exception, scope: Scope) -> None:
    if isinstance(error, HTTPException):
        status, text = error.status_code, error.detail
    else:
        status, text = describe(error)
    named = (error.headers or {}) if isinstance(error, HTTPException) else headers_for(error)
    headers = [(name.lower().encode(), value.encode()) for name, value in named.items()]
    body = envelope_for(scope["path"])(status, text, error)
    await send_json(send, status, body, [*headers, *scope.get(CORS_HEADERS, ())])


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    if envelope_for(scope["path"]) is not native_error:
        raise HTTPException(404, f"there is no {scope['method'][:10]} {ascii(scope['path'][:MAX_LOGGED_PATH])[1:-1]}")
    await PlainTextResponse("404 page not found", status_code=404)(scope, receive, send)
