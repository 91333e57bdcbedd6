"""/api/generate and /api/chat: a request becomes a Job for daemon.generation, and what that yields becomes replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from daemon import api
from daemon.bodies import read
from daemon.constraints import read_constraint
from daemon.errors import BadRequest
from daemon.generation import Job
from daemon.options import Options, check_top_logprobs, read_keep_alive
from daemon.prompt_sources import chat_source, generate_source, read_messages, with_model_messages
from daemon.replies import ChatReplies, GenerateReplies, Replies, Reply, stream, whole
from daemon.services import Services
from daemon.streaming import JSONReply, JSONResponse, NDJSONReply
from registry.stored_model import StoredModel

THINK_LEVELS = ("low", "medium", "high", "max")


def routes(services: Services) -> list[Route]:
    """The routes of this file."""
    return [
        Route("/api/generate", partial(_generate, services), methods=["POST"]),
        Route("/api/chat", partial(_chat, services), methods=["POST"]),
    ]


# ---- the two protocols


async def _generate(services: Services, request: Request) -> JSONReply | NDJSONReply | JSONResponse:
    body = await read(request, api.GenerateRequest)
    logprobs = check_top_logprobs(body.logprobs, body.top_logprobs)
    stored = await services.library.find(body.model)
    replies = GenerateReplies(body.model or "", services.now)
    keep_alive_s = read_keep_alive(body.keep_alive)
    if not body.prompt and not body.suffix and keep_alive_s == 0:
        await services.models.unload(stored.name)
        return JSONResponse(replies.done("unload"))
    if body.raw and (body.template or body.system or body.context):
        raise BadRequest("raw mode does not support template, system, or context")
    think = await _think(services, stored, body.think, body.model or "")
    await services.library.require(stored, "completion", "generate", f'"{body.model}"')
    if body.suffix:
        await services.library.require(stored, "insert", "insert", f'"{body.model}"')
    _refuse_images(body.images, body.model or "")
    constraint = read_constraint(body.format, body.options)
    Options.merge(stored.params, body.options or {})  # a wrong option is told before a model is loaded
    if not body.prompt and not body.suffix:
        return JSONReply(_load(services, stored, keep_alive_s, replies))
    templated = not body.raw and not body.suffix
    job = Job(
        stored=stored,
        source=partial(generate_source, body, think, services.local_now()),
        context_ids=tuple(body.context or ()),
        options=body.options or {},
        keep_alive_s=keep_alive_s,
        parses_thinking=templated and "thinking" in (await services.library.describe(stored)).capabilities,
        shows_thinking=think is not False,
        truncate=body.truncate is not False,
        shift=body.shift is not False,
        logprobs=logprobs,
        constraint=constraint,
    )
    if body.raw:
        replies = GenerateReplies(body.model or "", services.now, with_context=False)
    return _answer(services, job, replies, streams=body.stream is not False, render_only=body.debug_render_only is True)


async def _chat(services: Services, request: Request) -> JSONReply | NDJSONReply | JSONResponse:
    body = await read(request, api.ChatRequest)
    logprobs = check_top_logprobs(body.logprobs, body.top_logprobs)
    stored = await services.library.find_valid(body.model)
    replies = ChatReplies(body.model or "", services.now)
    keep_alive_s = read_keep_alive(body.keep_alive)
    if not body.messages and keep_alive_s == 0:
        await services.models.unload(stored.name)
        return JSONResponse(replies.done("unload"))
    think = await _think(services, stored, body.think, body.model or "")
    await services.library.require(stored, "completion", "chat", f'"{body.model}"')
    if body.tools:
        await services.library.require(stored, "tools", "tools", stored.name.full)
        _check_tools(body.tools)
    messages = read_messages(body.messages or ())
    images = [image for message in body.messages or () for image in message.images or ()]
    _refuse_images(images, body.model or "")
    constraint = read_constraint(body.format, body.options)
    Options.merge(stored.params, body.options or {})
    if not messages:
        return JSONReply(_load(services, stored, keep_alive_s, replies))
    messages = with_model_messages(stored, messages)
    job = Job(
        stored=stored,
        source=partial(chat_source, messages, body.tools or (), think, services.local_now()),
        options=body.options or {},
        keep_alive_s=keep_alive_s,
        parses_thinking="thinking" in (await services.library.describe(stored)).capabilities,
        shows_thinking=think is not False,
        parses_tools=bool(body.tools),
        tools=body.tools or (),
        truncate=body.truncate is not False,
        shift=body.shift is not False,
        logprobs=logprobs,
        constraint=constraint,
    )
    return _answer(services, job, replies, streams=body.stream is not False, render_only=body.debug_render_only is True)


def _answer(
    services: Services, job: Job, replies: Replies, *, streams: bool, render_only: bool
) -> JSONReply | NDJSONReply:
    if render_only:
        return JSONReply(_render(services, job, replies))
    generated = services.generator.generate(job)
    return NDJSONReply(stream(generated, replies)) if streams else JSONReply(whole(generated, replies))


async def _render(services: Services, job: Job, replies: Replies) -> Reply:
    return replies.debug(await services.generator.render(job))


async def _load(services: Services, stored: StoredModel, keep_alive_s: float | None, replies: Replies) -> Reply:
    await services.generator.load(stored, keep_alive_s)
    return replies.done("load")


# ---- checks that both share


async def _think(services: Services, stored: StoredModel, think: api.Think | None, name: str) -> api.Think | None:
    """Whether to think: what the request says, and where it says nothing, what the model can.

    Raises:
        BadRequest: it should, and the model cannot; or it is no such thing.
    """
    if isinstance(think, str) and think not in THINK_LEVELS:
        raise BadRequest(f'invalid think value: "{think[:40]}" (must be true, false, {", ".join(THINK_LEVELS)})')
    can_think = "thinking" in (await services.library.describe(stored)).capabilities
    if think and not can_think:
        raise BadRequest(f'"{name}" does not support thinking')
    return True if think is None and can_think else think


def _refuse_images(images: Sequence[str] | None, name: str) -> None:
    """Say no to what would otherwise be silently ignored."""
    if images:
        raise BadRequest(f'"{name}" does not support images')


def _check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    for index, tool in enumerate(tools):
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise BadRequest(
                f'tools[{index}] has no function with a name; write {{"type": "function", "function": ...}}'
            )
        if not isinstance(function.get("parameters"), dict | None):
            raise BadRequest(f"tools[{index}].function.parameters must be a JSON schema")
