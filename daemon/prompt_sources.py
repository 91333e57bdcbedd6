"""From a request of the native API to what is rendered: whose system message counts, and which messages come first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from daemon import api
from daemon.errors import BadRequest
from daemon.parsers.families import Tags, family_of
from daemon.prompts import MessagesPrompt, PromptSource, TextPrompt
from daemon.workers import LoadedModel
from modelfiles.prompt import Message, PromptTemplate, TemplateError, ToolCall, go_prompt_template
from registry.stored_model import StoredModel

MAX_MESSAGES = 50_000
ROLES = ("system", "user", "assistant", "tool")


class HasTemplate(Protocol):
    """A model as far as messages need it: with or without its weights."""

    @property
    def template(self) -> PromptTemplate: ...


def generate_source(
    body: api.GenerateRequest, think: api.Think | None, now: datetime, model: LoadedModel
) -> PromptSource:
    prompt = body.prompt or ""
    if body.raw:
        return TextPrompt(lambda: prompt)
    template = go_prompt_template(body.template) if body.template else model.template
    system = model.stored.system if body.system is None else body.system
    if body.suffix:
        suffix = body.suffix
        return TextPrompt(lambda: template.render_generate(prompt, suffix=suffix, system=system, think=think, now=now))
    messages = [] if body.context else _stored_messages(model.stored)
    if system:
        messages.insert(0, Message("system", system))
    return _messages_prompt([*messages, Message("user", prompt)], template, (), think, now)


def chat_source(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    think: api.Think | None,
    now: datetime,
    model: HasTemplate,
) -> PromptSource:
    if "thinking" in model.template.capabilities:
        messages = without_old_thoughts(messages, family_of(model.template.text).thinking)
    return _messages_prompt(messages, model.template, tools, think, now)


def without_old_thoughts(messages: Sequence[Message], tags: Tags) -> list[Message]:
    """The messages with the thoughts left out that clients sent back inside earlier answers.

    A client that knows nothing of thinking returns what it was sent by a server that did not split it: tags in the
    content. Models are trained to see only their answers of turns before the last question.
    """
    last_user = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
    return [
        replace(message, content=_after_thought(message.content, tags))
        if message.role == "assistant" and index < last_user
        else message
        for index, message in enumerate(messages)
    ]


def _after_thought(content: str, tags: Tags) -> str:
    _, tag, answer = content.partition(tags.close)
    return answer.lstrip() if tag and content.lstrip().startswith(tags.open) else content


def _messages_prompt(
    messages: Sequence[Message],
    template: PromptTemplate,
    tools: Sequence[Mapping[str, Any]],
    think: api.Think | None,
    now: datetime,
) -> MessagesPrompt:
    def render(kept: Sequence[Message]) -> str:
        try:
            return template.render(kept, tools=tools, think=think, now=now)
        except TemplateError:
            if (folded := _without_system(kept)) is None:
                raise
            try:
                return template.render(folded, tools=tools, think=think, now=now)
            except TemplateError:
                pass
            raise

    return MessagesPrompt(messages, render)


def _without_system(messages: Sequence[Message]) -> list[Message] | None:
    """The conversation with its system message in front of the first question: templates of models that know no such
    message refuse it. None where that cannot be done."""
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
        return None
    question = replace(messages[1], content=f"{messages[0].content}\n\n{messages[1].content}")
    return [question, *messages[2:]]


def with_model_messages(stored: StoredModel, messages: Sequence[Message]) -> list[Message]:
    """The model's own MESSAGEs come first; its SYSTEM before all, unless the request begins with a system message."""
    result = [*_stored_messages(stored), *messages]
    if stored.system and messages and messages[0].role != "system":
        result.insert(0, Message("system", stored.system))
    return result


def _stored_messages(stored: StoredModel) -> list[Message]:
    return [Message(message["role"], message["content"]) for message in stored.messages]


def check_num_messages(num_messages: int) -> None:
    """Refuse a conversation of too many messages.

    Raises:
        BadRequest: it is one.
    """
    if num_messages > MAX_MESSAGES:
        raise BadRequest(f"messages has {num_messages} messages; {MAX_MESSAGES} are allowed", "messages")


def read_messages(messages: Sequence[api.RequestMessage]) -> list[Message]:
    """The messages of a request.

    Raises:
        BadRequest: there are too many, or one has a role that there is not.
    """
    check_num_messages(len(messages))
    return [read_message(message) for message in messages]


def read_message(message: api.RequestMessage) -> Message:
    role = message.role.lower()
    if role not in ROLES:
        raise BadRequest(f'the role "{message.role[:40]}" is not one of {", ".join(ROLES)}')
    calls = tuple(
        ToolCall(call.id or "", call.function.name, call.function.arguments or {}) for call in message.tool_calls or ()
    )
    return Message(
        role,
        message.content or "",
        thinking=message.thinking or "",
        tool_calls=calls,
        tool_name=message.tool_name or "",
        tool_call_id=message.tool_call_id or "",
    )
