"""/v1: a request of OpenAI's API becomes one Job or several for daemon.generation, and what they yield its reply."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.routing import Route

from daemon.bodies import read
from daemon.errors import BadRequest, UnknownResponse, describe
from daemon.openai import api
from daemon.openai.chat import ChatReplies
from daemon.openai.choices import generate_all
from daemon.openai.completions import CompletionReplies, check_completion, read_prompts
from daemon.openai.errors import openai_error
from daemon.openai.input_items import read_input
from daemon.openai.jobs import (
    Talk,
    check_ids,
    completion_job,
    count_tokens,
    fit_talk,
    naming_field,
    talk_job,
    text_of,
    with_seeds,
)
from daemon.openai.messages import read_messages
from daemon.openai.replies import Header, Totals, stream, whole
from daemon.openai.requests import (
    check_logprobs,
    read_chat_format,
    read_count,
    read_settings,
    read_think,
    refuse_unavailable,
)
from daemon.openai.responses import ResponseWriter, stream_response, whole_response
from daemon.openai.responses_api import InputTokens, ResponsesRequest, StreamEvent
from daemon.openai.responses_request import (
    namespaces,
    new_response,
    read_response_tool_choice,
    read_response_tools,
    read_text_format,
    refuse_kept,
)
from daemon.openai.tools import read_tool_choice, read_tools
from daemon.services import Services
from daemon.streaming import Event, JSONReply, JSONResponse, SSEReply
from registry.stored_model import StoredModel

DONE = "[DONE]"
LOGPROBS = "message.output_text.logprobs"


def routes(services: Services) -> list[Route]:
    """The routes of this file."""
    return [
        Route("/v1/chat/completions", partial(_chat, services), methods=["POST"]),
        Route("/v1/completions", partial(_completions, services), methods=["POST"]),
        Route("/v1/responses", partial(_responses, services), methods=["POST"]),
        Route("/v1/responses/input_tokens", partial(_count_input, services), methods=["POST"]),
        Route("/v1/responses/{response_id:path}", _no_response, methods=["GET", "POST", "DELETE"]),
        Route("/v1/models", partial(_models, services)),
        Route("/v1/models/{model:path}", partial(_model, services)),
    ]


async def _chat(services: Services, request: Request) -> JSONReply | SSEReply:
    # What may be as long as a body is read in a thread: it must not hold up the loop.
    body = await read(request, api.ChatRequest)
    stored = await services.library.find_valid(body.model)
    refuse_unavailable(body)
    count, num_top = read_count(body.n), check_logprobs("top_logprobs", body.top_logprobs)
    effort = body.reasoning.effort if body.reasoning and body.reasoning_effort is None else body.reasoning_effort
    limit = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    talk = Talk(
        model=body.model or "",
        messages=await asyncio.to_thread(read_messages, body.messages or (), body.model or ""),
        tools=read_tools(body.tools or ()),
        tool_use=read_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        think=read_think(effort, "reasoning_effort"),
        think_param="reasoning_effort",
        num_top=(num_top or 0) if body.logprobs or num_top else None,
        settings=read_settings(body, stored.params, limit, constraint=read_chat_format(body.response_format)),
    )
    job = talk_job(services, stored, await fit_talk(services, stored, talk))
    replies = ChatReplies(
        header=_header(services, "chatcmpl", body, stored),
        wants_logprobs=job.logprobs is not None,
        wants_usage=_wants_usage(body),
        totals=Totals(count),
    )
    pieces = generate_all(services.generator, [with_seeds(job, count)])
    if job.constraint or job.tools:
        pieces = naming_field(pieces, talk.settings.constraint_param)
    return _sse(stream(pieces, replies)) if body.stream else JSONReply(whole(pieces, replies))


async def _completions(services: Services, request: Request) -> JSONReply | SSEReply:
    body = await read(request, api.CompletionRequest)
    stored = await services.library.find_valid(body.model)
    name, suffix = f'"{body.model}"', body.suffix or ""
    prompts = await asyncio.to_thread(read_prompts, body.prompt)
    count, num_top = read_count(body.n), check_logprobs("logprobs", body.logprobs)
    check_completion(body, prompts, count)
    settings = read_settings(body, stored.params, "max_tokens", low=0)
    await services.library.require(stored, "completion", "completions", name)
    if suffix:
        await services.library.require(stored, "insert", "insert", name, "suffix")
    await check_ids(services, stored, settings.logit_bias, "logit_bias")
    for prompt in prompts:
        await check_ids(services, stored, () if isinstance(prompt, str) else prompt, "prompt")
    replies = CompletionReplies(
        header=_header(services, "cmpl", body, stored),
        echoes=[await text_of(services, stored, prompt) if body.echo else "" for prompt in prompts],
        num_top=num_top,
        wants_usage=_wants_usage(body),
        totals=Totals(count),
    )
    jobs = [completion_job(services, stored, settings, prompt, suffix, num_top) for prompt in prompts]
    pieces = generate_all(services.generator, [with_seeds(job, count) for job in jobs])
    if settings.constraint:
        pieces = naming_field(pieces, settings.constraint_param)
    return _sse(stream(pieces, replies)) if body.stream else JSONReply(whole(pieces, replies))


async def _responses(services: Services, request: Request) -> JSONReply | SSEReply:
    body, stored, talk = await _read_response(services, request)
    job = talk_job(services, stored, talk)
    key = secrets.token_hex(12)
    response = new_response(body, talk.settings, f"resp_{key}", _now(services))
    writer = ResponseWriter(response, key, namespaces(body.tools or ()))
    generated = naming_field(services.generator.generate(job), talk.settings.constraint_param)
    if body.stream:
        return SSEReply(_named(stream_response(generated, writer)), _error_event)
    return JSONReply(whole_response(generated, writer))


async def _count_input(services: Services, request: Request) -> JSONReply:
    _, stored, talk = await _read_response(services, request)

    async def count() -> InputTokens:
        return InputTokens(input_tokens=await count_tokens(services, stored, talk))

    return JSONReply(count())


async def _read_response(services: Services, request: Request) -> tuple[ResponsesRequest, StoredModel, Talk]:
    body = await read(request, ResponsesRequest)
    stored = await services.library.find_valid(body.model)
    refuse_kept(body)
    if body.truncation not in (None, "auto", "disabled"):
        raise BadRequest('truncation must be "auto" or "disabled"', "truncation")
    may_drop, form = body.truncation == "auto", read_text_format(body.text)
    settings = read_settings(body, stored.params, "max_output_tokens", truncate=may_drop, constraint=form)
    num_top = check_logprobs("top_logprobs", body.top_logprobs)
    talk = Talk(
        model=body.model or "",
        messages=await asyncio.to_thread(read_input, body.input, body.instructions, body.model or ""),
        tools=read_response_tools(body.tools or []),
        tool_use=read_response_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        think=read_think(body.reasoning.effort if body.reasoning else None, "reasoning.effort"),
        think_param="reasoning.effort",
        num_top=(num_top or 0) if num_top or LOGPROBS in (body.include or ()) else None,
        settings=settings,
    )
    return body, stored, await fit_talk(services, stored, talk)


async def _no_response(request: Request) -> JSONResponse:
    raise UnknownResponse(request.path_params["response_id"])


async def _models(services: Services, request: Request) -> JSONResponse:
    stored = await asyncio.to_thread(services.store.list)
    return JSONResponse(api.ModelList(data=[_described(model, model.name.short) for model in stored]))


async def _model(services: Services, request: Request) -> JSONResponse:
    name = request.path_params["model"]
    return JSONResponse(_described(await services.library.find(name), name))


def _described(stored: StoredModel, name: str) -> api.Model:
    return api.Model(id=name, created=int(stored.modified_at.timestamp()), owned_by=stored.name.namespace)


def _header(services: Services, prefix: str, body: api.TextRequest, stored: StoredModel) -> Header:
    return Header(
        id=f"{prefix}-{secrets.token_hex(12)}",
        created=_now(services),
        model=body.model or "",
        fingerprint=f"fp_{stored.digest.hex[:10]}",
    )


def _now(services: Services) -> int:
    return services.clock.time_ns() // 1_000_000_000


def _wants_usage(body: api.CompletionsRequest) -> bool:
    return bool(body.stream and body.stream_options is not None and body.stream_options.include_usage)


def _sse(items: AsyncGenerator[msgspec.Struct]) -> SSEReply:
    async def events() -> AsyncGenerator[Event]:
        async with aclosing(items):
            async for item in items:
                yield Event(item)

    return SSEReply(events(), _error_event, ends_with=DONE)


async def _named(items: AsyncGenerator[StreamEvent]) -> AsyncGenerator[Event]:
    async with aclosing(items):
        async for item in items:
            yield Event(item, item.type)


def _error_event(error: Exception) -> Event:
    return Event(openai_error(*describe(error), error))
