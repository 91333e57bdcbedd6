"""/v1/messages: a request of Anthropic's API becomes a Job for daemon.generation, and what that yields its reply."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from daemon.anthropic import types
from daemon.anthropic.errors import anthropic_error
from daemon.anthropic.replies import Reply, stream, whole
from daemon.anthropic.requests import read_constraint, read_messages, read_options, read_think, read_tools
from daemon.api import Think
from daemon.bodies import read
from daemon.errors import describe
from daemon.extensions import read_extensions
from daemon.generation import Job, Summary
from daemon.options import Options
from daemon.output import Chunk
from daemon.prompt_sources import chat_source, with_model_messages
from daemon.services import Services
from daemon.streaming import Event, JSONReply, SSEReply
from modelfiles.prompt import Message
from registry.stored_model import StoredModel


def routes(services: Services) -> list[Route]:
    """The routes of this file."""
    return [
        Route("/v1/messages", partial(_messages, services), methods=["POST"]),
        Route("/v1/messages/count_tokens", partial(_count_tokens, services), methods=["POST"]),
    ]


async def _messages(services: Services, request: Request) -> JSONReply | SSEReply:
    body = await read(request, types.MessagesRequest)
    stored = await services.library.find_valid(body.model)
    await services.library.require(stored, "completion", "chat", f'"{body.model}"')
    reply = Reply(
        id=f"msg_{secrets.token_hex(12)}",
        model=body.model,
        max_tokens=body.max_tokens,
        stop_sequences=body.stop_sequences or (),
    )
    generated = services.generator.generate(await _job(services, stored, body, reply))
    return SSEReply(_events(generated, reply), _error_event) if body.stream else JSONReply(whole(generated, reply))


async def _job(services: Services, stored: StoredModel, body: types.MessagesRequest, reply: Reply) -> Job:
    own = read_extensions(body.options, constraint=read_constraint(body))
    options = read_options(body, own.options, Options.merge(stored.params, {}).stop)
    messages, tools = await _messages_and_tools(stored, body)
    if tools:
        await services.library.require(stored, "tools", "tools", f'"{body.model}"')
    can_think, think = await _think(services, stored, body)
    choice = body.tool_choice
    is_shown = body.thinking is not None and body.thinking.display != "omitted"
    return Job(
        stored=stored,
        source=partial(chat_source, messages, tools, think, services.local_now()),
        options=options,
        keep_alive_s=own.keep_alive_s,
        parses_thinking=can_think,
        shows_thinking=bool(think) and is_shown,
        parses_tools=bool(tools),
        tools=tools,
        tool_choice="required" if choice is not None and choice.type in ("any", "tool") else "auto",
        tool_name=choice.name if choice is not None and choice.type == "tool" else None,
        max_tool_calls=1 if choice is not None and choice.disable_parallel_tool_use else None,
        # Clients of this API shorten a conversation themselves, and do so when they are told that it is too long.
        truncate=own.truncate is True,
        shift=own.truncate is True,
        constraint=own.constraint,
        on_start=reply.started,
    )


async def _count_tokens(services: Services, request: Request) -> JSONReply:
    body = await read(request, types.Conversation)
    stored = await services.library.find_valid(body.model)
    messages, tools = await _messages_and_tools(stored, body)
    _, think = await _think(services, stored, body)

    async def count() -> types.TokensCount:
        model = await services.texts.get(stored)

        def num_tokens() -> int:
            source = chat_source(messages, tools, think, services.local_now(), model)
            return len(model.tokenizer.encode(source.render(0)))

        return types.TokensCount(await asyncio.to_thread(num_tokens))

    return JSONReply(count())


async def _messages_and_tools(
    stored: StoredModel, body: types.Conversation
) -> tuple[list[Message], list[dict[str, Any]]]:
    # A conversation may have as many blocks as there is room for in a body: that must not hold up the loop.
    messages = await asyncio.to_thread(read_messages, body)
    return with_model_messages(stored, messages), read_tools(body)


async def _think(services: Services, stored: StoredModel, body: types.Conversation) -> tuple[bool, Think | None]:
    """Whether the model can think, and whether it shall. A model that cannot is not refused: it answers without."""
    can_think = "thinking" in (await services.library.describe(stored)).capabilities
    return can_think, read_think(body) if can_think else None


async def _events(generated: AsyncGenerator[Chunk | Summary], reply: Reply) -> AsyncGenerator[Event]:
    async with aclosing(stream(generated, reply)) as events:
        async for event in events:
            yield Event(event, str(type(event).__struct_config__.tag))


def _error_event(error: Exception) -> Event:
    return Event(anthropic_error(*describe(error), error), "error")
