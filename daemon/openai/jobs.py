"""From what was read of a request to Jobs for daemon.generation: what the model can do and knows is looked up here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from daemon.api import GenerateRequest, Think
from daemon.errors import BadRequest
from daemon.generation import Job
from daemon.openai.completions import TextOrIds
from daemon.openai.requests import Settings, seeds
from daemon.openai.tools import ToolUse
from daemon.options import Options
from daemon.prompt_sources import chat_source, generate_source, with_model_messages
from daemon.services import Services
from engine.constraint import ConstraintError
from modelfiles.prompt import Message
from registry.stored_model import StoredModel

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Talk:
    """What chats and responses ask for, in the words of neither."""

    model: str
    """As the client calls it."""
    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]]
    tool_use: ToolUse
    parallel_tool_calls: bool
    think: Think | None
    think_param: str
    """The field that says so."""
    num_top: int | None
    """Likeliest tokens to name; None for no log-probabilities."""
    settings: Settings


async def fit_talk(services: Services, stored: StoredModel, talk: Talk) -> Talk:
    """The talk as this model is to have it: with its own messages, with the tools that it may call, and with `think`
    decided; None is a model that cannot.

    Raises:
        BadRequest: the model cannot do what is asked for.
    """
    name = f'"{talk.model}"'
    await services.library.require(stored, "completion", "chat", name)
    if talk.tools:
        await services.library.require(stored, "tools", "tools", name, "tools")
    if talk.think:
        await services.library.require(stored, "thinking", "thinking", name, talk.think_param)
    await check_ids(services, stored, talk.settings.logit_bias, "logit_bias")
    can_think = "thinking" in (await services.library.describe(stored)).capabilities
    return replace(
        talk,
        messages=with_model_messages(stored, talk.messages),
        tools=talk.tool_use.told(talk.tools),
        think=(True if talk.think is None else talk.think) if can_think else None,
    )


def talk_job(services: Services, stored: StoredModel, talk: Talk) -> Job:
    """The Job of one answer.

    Args:
        talk: as `fit_talk` gives it.
    """
    return Job(
        source=partial(chat_source, talk.messages, talk.tools, talk.think, services.local_now()),
        parses_thinking=talk.think is not None,
        shows_thinking=talk.think is not False,
        parses_tools=bool(talk.tools),
        tools=talk.tools,
        tool_choice="required" if talk.tool_use.mode == "required" else "auto",
        logprobs=talk.num_top,
        max_tool_calls=None if talk.parallel_tool_calls else 1,
        **_common(stored, talk.settings),
    )


async def count_tokens(services: Services, stored: StoredModel, talk: Talk) -> int:
    """How many tokens the prompt has, whole.

    Args:
        talk: as `fit_talk` gives it.
    """
    model = await services.texts.get(stored)

    def count() -> int:
        source = chat_source(talk.messages, talk.tools, talk.think, services.local_now(), model)
        return len(model.tokenizer.encode(source.render(0)))

    return await asyncio.to_thread(count)  # templates come from strangers, and texts may be long


def completion_job(
    services: Services, stored: StoredModel, settings: Settings, prompt: TextOrIds, suffix: str, num_top: int | None
) -> Job:
    """The Job of one text."""
    text, token_ids = (prompt, []) if isinstance(prompt, str) else ("", prompt)
    # Without a suffix the prompt is the model's input as it stands: clients of this route write templates themselves.
    asked = GenerateRequest(prompt=text, suffix=suffix, raw=not suffix)
    return Job(
        source=partial(generate_source, asked, None, services.local_now()),
        context_ids=tuple(token_ids),
        logprobs=num_top,
        **_common(stored, settings),
    )


async def naming_field(items: AsyncGenerator[Item], param: str) -> AsyncGenerator[Item]:
    """The items; a constraint that cannot be enforced is the fault of this field."""
    async with aclosing(items):
        try:
            async for item in items:
                yield item
        except ConstraintError as error:
            raise BadRequest(str(error), param) from error


def _common(stored: StoredModel, settings: Settings) -> dict[str, Any]:
    return {
        "stored": stored,
        "options": settings.options,
        "keep_alive_s": settings.keep_alive_s,
        "truncate": settings.truncate,
        "shift": settings.shift,
        "logit_bias": settings.logit_bias,
        "constraint": settings.constraint,
    }


def with_seeds(job: Job, count: int) -> list[Job]:
    """The job once for each answer, with a seed of its own."""
    seed = Options.merge(job.stored.params, job.options).values["seed"]
    return [replace(job, options={**job.options, "seed": each}) for each in seeds(seed, count)]


async def check_ids(services: Services, stored: StoredModel, token_ids: Collection[int], param: str) -> None:
    """Refuse token ids that the model does not have, before it is loaded.

    Raises:
        BadRequest: there is one.
    """
    if not token_ids:
        return
    vocab_size = (await services.texts.get(stored)).tokenizer.vocab_size
    for token_id in (min(token_ids), max(token_ids)):  # in C, as there may be millions
        if not 0 <= token_id < vocab_size:
            shown = token_id if token_id.bit_length() <= 256 else "a number of hundreds of digits"
            raise BadRequest(f"{param} holds {shown}, which is no token: ids go from 0 to {vocab_size - 1}", param)


async def text_of(services: Services, stored: StoredModel, prompt: TextOrIds) -> str:
    """A prompt as text."""
    if isinstance(prompt, str):
        return prompt
    tokenizer = (await services.texts.get(stored)).tokenizer
    return await asyncio.to_thread(lambda: tokenizer.decode(prompt, skip_special=False))
