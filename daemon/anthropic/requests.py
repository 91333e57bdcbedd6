"""From a request of Anthropic's API to messages, tools and options of the one path. Pure.

Blocks of a turn become messages as templates know them: a `tool_result` is a message of the role "tool", texts of one
turn are one text, and turns of the same role that follow each other are one turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import msgspec

from daemon.anthropic import types
from daemon.api import Think
from daemon.errors import BadRequest
from daemon.extensions import check_named
from daemon.options import MAX_INT
from daemon.prompt_sources import check_num_messages
from engine.constraint import Constraint
from modelfiles.prompt import Message, ToolCall

BETWEEN_TEXTS = "\n"
MERGED_ROLES = ("user", "assistant")
SERVER_TOOLS = ("web_search_", "web_fetch_", "code_execution_", "tool_search_tool_")
"""How the types of tools begin that Anthropic's servers run."""
MAX_SHOWN = 40


def read_messages(body: types.Conversation) -> list[Message]:
    """The conversation, its system prompt first.

    Raises:
        BadRequest: a turn is none, or holds what a text model cannot read.
    """
    if not body.messages:
        raise BadRequest("messages is empty: at least one message is required", "messages")
    check_num_messages(len(body.messages))
    reader = _Reader({})
    messages = [Message("system", text)] if (text := _joined(_system(body.system))) else []
    for index, turn in enumerate(body.messages):
        messages += reader.turn(turn, f"messages[{index}]")
    return list(_merged(messages))


def read_tools(body: types.Conversation) -> list[dict[str, Any]]:
    """The tools as templates expect them; none where the model may not call any.

    Those that Anthropic's servers run are left out: nothing here leaves the machine, and an agent that sends them to
    every server has others.

    Raises:
        BadRequest: a tool has no schema, or `tool_choice` names one that is not there.
    """
    choice = body.tool_choice
    tools = [tool for tool in body.tools or () if not (tool.type or "").startswith(SERVER_TOOLS)]
    for index, tool in enumerate(tools):
        if tool.input_schema is None:
            kind = f' of the type "{tool.type[:MAX_SHOWN]}"' if tool.type else ""
            raise BadRequest(
                f'the tool "{tool.name[:MAX_SHOWN]}"{kind} has no input_schema, and the model does not know it without',
                f"tools[{index}]",
            )
    if choice is not None and choice.type == "tool" and choice.name not in {tool.name for tool in tools}:
        raise BadRequest(f'tool_choice names "{(choice.name or "")[:MAX_SHOWN]}", which is not in tools', "tool_choice")
    if choice is not None and choice.type == "any" and not tools:
        raise BadRequest("tool_choice wants a tool called, but there are no tools", "tool_choice")
    if choice is not None and choice.type == "none":
        return []
    return [_function(tool) for tool in tools]


def read_think(body: types.Conversation) -> Think:
    """Whether to think, and how hard. Who does not ask for thoughts gets none, as in Anthropic's API."""
    if body.thinking is None or body.thinking.type == "disabled":
        return False
    effort = body.output_config.effort if body.output_config is not None else None
    return True if effort is None else "max" if effort == "xhigh" else effort


def read_constraint(body: types.Conversation) -> Constraint | None:
    """What the answer must look like."""
    if body.output_config is None or body.output_config.format is None:
        return None
    return Constraint(kind="json_schema", value=msgspec.json.encode(body.output_config.format.schema).decode())


def read_options(body: types.MessagesRequest, own: Mapping[str, Any], model_stops: Sequence[str]) -> dict[str, Any]:
    """Options of the native API.

    Args:
        own: those that the request gives in their own names.
        model_stops: the model's own stop strings. The request's are added to them: a client that asks for a stop of its
            own knows nothing of those and relies on them.

    Raises:
        BadRequest: a field has a value that none can have.
    """
    if body.max_tokens < 0:
        raise BadRequest(f"max_tokens is {body.max_tokens} but must be at least 0", "max_tokens")
    fields = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    if body.stop_sequences:
        given["stop"] = [*model_stops, *body.stop_sequences]
    check_named(given)
    return {**own, **given, "num_predict": min(body.max_tokens, MAX_INT)}


class _Reader:
    """Reads turns in their order, and remembers which tool a call was for.

    Args:
        tools: name of the tool by the call's id.
    """

    def __init__(self, tools: dict[str, str]) -> None:
        self._tools = tools

    def turn(self, turn: types.MessageParam, where: str) -> list[Message]:
        blocks = [types.TextBlock(turn.content)] if isinstance(turn.content, str) else turn.content
        if turn.role == "assistant":
            return [self._assistant(blocks, where)]
        if turn.role == "user":
            return list(self._user(blocks, where))
        if turn.role == "system":
            return [Message("system", _joined(_text(block, f"{where}.content") for block in blocks))]
        raise BadRequest(
            f'{where}: the role "{turn.role[:MAX_SHOWN]}" is not one of user, assistant, system', f"{where}.role"
        )

    def _assistant(self, blocks: Sequence[types.RequestBlock], where: str) -> Message:
        texts, thoughts, calls = [], [], []
        for index, block in enumerate(blocks):
            if isinstance(block, types.ToolUseBlock):
                self._tools[block.id] = block.name
                calls.append(ToolCall(block.id, block.name, block.input))
            elif isinstance(block, types.ThinkingBlock):
                thoughts.append(block.thinking)
            elif not isinstance(block, types.RedactedThinkingBlock):
                texts.append(_text(block, f"{where}.content[{index}]"))
        return Message("assistant", _joined(texts), thinking=_joined(thoughts), tool_calls=tuple(calls))

    def _user(self, blocks: Sequence[types.RequestBlock], where: str) -> Iterator[Message]:
        texts: list[str] = []
        for index, block in enumerate(blocks):
            if not isinstance(block, types.ToolResultBlock):
                texts.append(_text(block, f"{where}.content[{index}]"))
                continue
            if texts:
                yield Message("user", _joined(texts))
                texts = []
            yield Message(
                "tool",
                _result(block, f"{where}.content[{index}]"),
                tool_name=self._tools.get(block.tool_use_id, ""),
                tool_call_id=block.tool_use_id,
            )
        if texts or not blocks:
            yield Message("user", _joined(texts))


def _system(system: str | list[types.TextBlock] | None) -> list[str]:
    return [system or ""] if not isinstance(system, list) else [block.text for block in system]


def _result(block: types.ToolResultBlock, where: str) -> str:
    content = block.content or ""
    text = content if isinstance(content, str) else _joined(_text(part, f"{where}.content") for part in content)
    # No template has a place for the mark, and a model should know that what it reads is no answer.
    return f"Error: {text}" if block.is_error and not text.lower().startswith("error") else text


def _text(block: types.RequestBlock, where: str) -> str:
    """What a block says to a model that reads text."""
    if isinstance(block, types.TextBlock):
        return block.text
    if isinstance(block, types.SearchResultBlock):
        return _joined([block.title, block.source, *(part.text for part in block.content)])
    if isinstance(block, types.DocumentBlock):
        return _joined([block.title or "", block.context or "", _document(block.source, where)])
    if isinstance(block, types.ImageBlock):
        raise BadRequest(f"{where} is an image, and this model reads text only", where)
    raise BadRequest(f'{where}: a block of the type "{_tag(block)}" has no place there', where)


def _document(source: types.DocumentSource, where: str) -> str:
    if source.type == "text":
        return source.data or ""
    if source.type == "content":
        content = source.content or ""
        return content if isinstance(content, str) else _joined(_text(part, where) for part in content)
    raise BadRequest(
        f'{where} is a document of the type "{source.type[:MAX_SHOWN]}", which this server does not read; send its '
        'text, as a source of the type "text"',
        where,
    )


def _tag(block: msgspec.Struct) -> str:
    return str(type(block).__struct_config__.tag)


def _function(tool: types.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = tool.input_schema or {}
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _joined(texts: Iterable[str]) -> str:
    return BETWEEN_TEXTS.join(text for text in texts if text)


def _merged(messages: Iterable[Message]) -> Iterator[Message]:
    """Neighbours of the same role as one message: many templates refuse a user who speaks twice."""
    for role, group in groupby(messages, key=lambda message: message.role):
        if role not in MERGED_ROLES:
            yield from group
            continue
        turns = list(group)
        yield Message(
            role,
            _joined(turn.content for turn in turns),
            thinking=_joined(turn.thinking for turn in turns),
            tool_calls=tuple(call for turn in turns for call in turn.tool_calls),
        )
