"""From the items of a response's input to messages as templates know them. Pure; every refusal names its field.

An answer of the model is one message to a template and several items here: what it thought, what it said, and the
calls of tools. Items that follow each other in this order are put together again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.errors import BadRequest
from daemon.openai.messages import ROLES, read_arguments, read_content
from daemon.openai.responses_api import InputItem
from daemon.prompt_sources import check_num_messages
from modelfiles.prompt import Message, ToolCall

MAX_SHOWN = 40


def read_input(given: str | Sequence[InputItem] | None, instructions: str | None, model: str) -> list[Message]:
    """The conversation.

    Args:
        instructions: what stands before it, as a system message.
        model: what the client calls it, for a refusal.

    Raises:
        BadRequest: there is none, or an item is none that a text model can read; or there are too many.
    """
    if not given:
        raise BadRequest("input is missing: give a text or at least one item", "input")
    messages = [Message("system", instructions)] if instructions else []
    if isinstance(given, str):
        return [*messages, Message("user", given)]
    check_num_messages(len(given), "input", "items")
    reader = _Reader(model, messages)
    for index, item in enumerate(given):
        reader.take(item, f"input[{index}]")
    return reader.finish()


@dataclass
class _Answer:
    """What was read so far of an answer of the model."""

    thoughts: list[str] = field(default_factory=list)
    content: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def is_said(self) -> bool:
        """Whether it is past its thoughts."""
        return bool(self.content or self.calls)

    def message(self) -> Message:
        thinking = "\n".join(text for text in self.thoughts if text)
        return Message("assistant", self.content, thinking=thinking, tool_calls=tuple(self.calls))


class _Reader:
    """Takes one item after the other, and puts together those of one answer."""

    def __init__(self, model: str, messages: list[Message]) -> None:
        self._model = model
        self._messages = messages
        self._answer: _Answer | None = None
        self._names: dict[str, str] = {}
        """Of the tool, by the id of its call."""

    def take(self, item: InputItem, param: str) -> None:
        kind = item.type or "message"
        if kind == "message":
            self._message(item, param)
        elif kind == "reasoning":
            self._thought(item, param)
        elif kind == "function_call":
            self._call(item, param)
        elif kind == "function_call_output":
            self._output(item, param)
        elif kind == "item_reference":
            raise BadRequest(f"{param} refers to an item that was not kept: send the item itself", param)
        else:
            raise BadRequest(f'{param} is of the type "{kind[:MAX_SHOWN]}", which no model here reads', f"{param}.type")

    def finish(self) -> list[Message]:
        self._end_answer()
        return self._messages

    def _message(self, item: InputItem, param: str) -> None:
        role = ROLES.get((item.role or "").lower())
        if role is None or role == "tool":
            shown = f'is "{item.role[:MAX_SHOWN]}"' if item.role else "is missing"
            raise BadRequest(f"{param}.role {shown}; give user, assistant, system or developer", f"{param}.role")
        if item.content is None:
            raise BadRequest(f"{param}.content is missing", f"{param}.content")
        content = read_content(item.content, f"{param}.content", self._model)
        if role == "assistant":
            self._answer_before_text().content = content
        else:
            self._end_answer()
            self._messages.append(Message(role, content))

    def _thought(self, item: InputItem, param: str) -> None:
        thought = read_content(item.content or item.summary, param, self._model)
        self._answer_before_text().thoughts.append(thought)

    def _call(self, item: InputItem, param: str) -> None:
        if not item.name:
            raise BadRequest(f"{param}.name is missing", f"{param}.name")
        call_id = item.call_id or item.id or ""
        self._names[call_id] = item.name
        call = ToolCall(call_id, item.name, read_arguments(item.arguments, f"{param}.arguments"))
        self._answer = self._answer or _Answer()
        self._answer.calls.append(call)

    def _output(self, item: InputItem, param: str) -> None:
        self._end_answer()
        if item.output is None:
            raise BadRequest(f"{param}.output is missing", f"{param}.output")
        output = read_content(item.output, f"{param}.output", self._model)
        call_id = item.call_id or ""
        self._messages.append(
            Message("tool", output, tool_name=self._names.get(call_id, item.name or ""), tool_call_id=call_id)
        )

    def _answer_before_text(self) -> _Answer:
        """The answer that is being read, or a new one where that is past its thoughts."""
        if self._answer is None or self._answer.is_said:
            self._end_answer()
            self._answer = _Answer()
        return self._answer

    def _end_answer(self) -> None:
        if self._answer is not None:
            self._messages.append(self._answer.message())
            self._answer = None
