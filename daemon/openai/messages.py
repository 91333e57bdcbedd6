"""From the messages of a chat completion to messages as templates know them. Pure; every refusal names its field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from daemon.errors import BadRequest
from daemon.openai import api
from daemon.prompt_sources import check_num_messages
from modelfiles.prompt import Message, ToolCall

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
BETWEEN_PARTS = "\n"
TEXT_PARTS = ("text", "input_text", "output_text", "summary_text", "reasoning_text")
MEDIA = {
    "image_url": "images",
    "input_image": "images",
    "input_audio": "audio",
    "file": "files",
    "input_file": "files",
    "video_url": "videos",
}
MAX_SHOWN = 40


def read_messages(messages: Sequence[api.RequestMessage], model: str) -> list[Message]:
    """The conversation.

    Args:
        model: what the client calls it, for a refusal.

    Raises:
        BadRequest: a message is none, or holds what a text model cannot read; or there are too many.
    """
    if not messages:
        raise BadRequest("[] is too short - 'messages'", "messages")
    check_num_messages(len(messages))
    names: dict[str, str] = {}  # of the tool, by the id of its call
    return [_message(message, names, f"messages[{index}]", model) for index, message in enumerate(messages)]


def _message(message: api.RequestMessage, names: dict[str, str], param: str, model: str) -> Message:
    role = ROLES.get(message.role.lower())
    if role is None:
        raise BadRequest(
            f'{param}.role is "{message.role[:MAX_SHOWN]}", but it must be one of {", ".join(ROLES)}', f"{param}.role"
        )
    content = read_content(message.content, f"{param}.content", model)
    if role != "assistant":
        if message.content is None:
            raise BadRequest(f"{param}.content is missing", f"{param}.content")
        call_id = message.tool_call_id or ""
        is_tool = role == "tool"
        name = (names.get(call_id) or message.name or "") if is_tool else ""
        return Message(role, content, tool_name=name, tool_call_id=call_id if is_tool else "")
    calls = tuple(_call(call, f"{param}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls or ()))
    names.update({call.id: call.name for call in calls})
    return Message(
        role,
        content or message.refusal or "",
        thinking=message.reasoning or message.reasoning_content or "",
        tool_calls=calls,
    )


def _call(call: api.RequestToolCall, param: str) -> ToolCall:
    if call.function is None:
        raise BadRequest(f"{param} is no call of a function", param)
    return ToolCall(
        call.id or "", call.function.name, read_arguments(call.function.arguments, f"{param}.function.arguments")
    )


def read_arguments(text: str | None, param: str) -> dict[str, Any]:
    """The arguments of a call as an object; nothing is an empty one.

    Raises:
        BadRequest: they are no JSON object.
    """
    try:
        value = msgspec.json.decode(text) if text and not text.isspace() else {}
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{param} must be the JSON of an object: {error}", param) from error
    if not isinstance(value, dict):
        raise BadRequest(f"{param} must be the JSON of an object", param)
    return value


def read_content(content: str | Sequence[api.ContentPart] | None, param: str, model: str) -> str:
    """The text of a content; parts are set apart by line breaks.

    Raises:
        BadRequest: a part is no text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    return BETWEEN_PARTS.join(_part(part, f"{param}[{index}]", model) for index, part in enumerate(content))


def _part(part: api.ContentPart, param: str, model: str) -> str:
    if part.type in MEDIA:
        raise BadRequest(f'"{model}" does not support {MEDIA[part.type]}', param)
    text = part.refusal if part.type == "refusal" else part.text if part.type in TEXT_PARTS else None
    if text is None:
        raise BadRequest(f'{param} is of the type "{part.type[:MAX_SHOWN]}" and has no text', param)
    return text
