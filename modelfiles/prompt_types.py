"""What a prompt template takes and gives: messages, tool calls, and the interface that Go and Jinja templates share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


class TemplateError(ValueError):
    """A template that does not parse, or does something that it may not do. The message says where and what."""


@dataclass(frozen=True)
class ToolCall:
    """A call that the model made in an earlier turn."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    """The tool whose answer this is, for the role "tool"."""
    tool_call_id: str = ""


Tool = Mapping[str, Any]
"""A tool in OpenAI's format: {"type": "function", "function": {"name", "description", "parameters"}}."""


@dataclass(frozen=True)
class PromptTemplate(ABC):
    """A compiled template. Immutable; one object serves many requests at once."""

    text: str
    capabilities: frozenset[str] = field(default=frozenset({"completion"}), kw_only=True)
    """A subset of completion, tools, thinking and insert, as far as the text of the template tells."""

    @abstractmethod
    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        think: bool | str | None = None,
        now: datetime,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt of a conversation. A last message of the assistant is left open, so that the model continues it.

        Args:
            think: None leaves it to the template; a string is a level ("low", "medium", "high", "max").
            now: the time that templates may print.
            add_generation_prompt: whether the text ends where the assistant's turn begins.

        Raises:
            TemplateError: the template fails, refuses the conversation, or exceeds its limits.
        """

    @abstractmethod
    def render_generate(
        self,
        prompt: str,
        *,
        suffix: str = "",
        system: str = "",
        think: bool | str | None = None,
        now: datetime,
    ) -> str:
        """The prompt of one text without a conversation, as /api/generate takes it.

        Args:
            suffix: what follows the text to be inserted; needs the capability "insert".

        Raises:
            TemplateError: as in `render`, or the template cannot insert.
        """
