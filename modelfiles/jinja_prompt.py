"""Chat templates of Hugging Face models: Jinja, rendered exactly as `apply_chat_template` does, within limits.

A template sees: messages, tools (OpenAI's format), documents, add_generation_prompt, the special tokens by name
(bos_token, eos_token, ...), and where the request says something about thinking: enable_thinking, thinking and, for a
level, reasoning_effort. Functions: raise_exception, strftime_now, and Jinja's own.
Source: transformers utils/chat_template_utils.py (render_jinja_template).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import CodeType
from typing import Any

import jinja2
from jinja2 import meta

from modelfiles.call_ids import with_fitting_ids
from modelfiles.jinja_sandbox import AddSteps, BoundedEnvironment, Budget
from modelfiles.prompt_types import Message, PromptTemplate, TemplateError, Tool

MAX_TEMPLATE = 1 << 17
BASE_STEPS, STEPS_A_MESSAGE = 250_000, 500
BASE_CHARACTERS, CHARACTERS_A_CHARACTER = 16 << 20, 64
END_MARK = "\ue000hob-continue-here\ue001"
"""Stands after the text that the model shall continue; from Unicode's private use area."""

THINKING_VARIABLES = {"enable_thinking", "thinking", "reasoning_effort"}
THINKING_TEXT = re.compile(r"reasoning_content|</?think>|\[THINK\]|<thinking>|<\|START_THINKING\|>")
MESSAGE_TOOLS = re.compile(r"message(?:\.tools\b|\[['\"]tools['\"]\])")
"""How Phi-4-mini's template reads tools: as a text that the system message carries."""


@dataclass(frozen=True)
class JinjaPromptTemplate(PromptTemplate):
    """A chat template in Jinja."""

    special_tokens: Mapping[str, str]
    code: CodeType = field(repr=False)
    has_message_tools: bool
    """Whether the system message carries the tools."""

    @classmethod
    def compile(cls, text: str, special_tokens: Mapping[str, str]) -> JinjaPromptTemplate:
        """Raises TemplateError with the line of what is wrong."""
        if len(text) > MAX_TEMPLATE:
            raise TemplateError(f"the chat template has {len(text)} characters; {MAX_TEMPLATE} are allowed")
        environment = BoundedEnvironment(Budget(BASE_STEPS, BASE_CHARACTERS), datetime.fromtimestamp(0, UTC))
        try:
            tree = environment.parse(text)
            variables = meta.find_undeclared_variables(tree)
            code = environment.compile(AddSteps().visit(tree))
        except Exception as error:  # also Python's compiler: SyntaxError, RecursionError, MemoryError
            raise _template_error(error) from error
        capabilities = {"completion"}
        has_message_tools = "tools" not in variables and MESSAGE_TOOLS.search(text) is not None
        if "tools" in variables or has_message_tools:
            capabilities.add("tools")
        if variables & THINKING_VARIABLES or THINKING_TEXT.search(text):
            capabilities.add("thinking")
        return cls(text, special_tokens, code, has_message_tools, capabilities=frozenset(capabilities))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        think: bool | str | None = None,
        now: datetime,
        add_generation_prompt: bool = True,
    ) -> str:
        messages = with_fitting_ids(messages, self.text)
        turns = [_message(message) for message in messages]
        if tools and self.has_message_tools:
            if not turns or turns[0]["role"] != "system":
                turns.insert(0, {"role": "system", "content": ""})
            turns[0]["tools"] = json.dumps([tool.get("function", tool) for tool in tools], ensure_ascii=False)
        variables = {"tools": [dict(tool) for tool in tools] or None, **_thinking(think)}
        if add_generation_prompt and turns and _is_open(messages[-1]):
            turns[-1]["content"] += END_MARK
            prompt, mark, _ = self._render(turns, variables, now, False).rpartition(END_MARK)
            if mark:
                return prompt
            turns[-1]["content"] = messages[-1].content
        return self._render(turns, variables, now, add_generation_prompt)

    def render_generate(
        self,
        prompt: str,
        *,
        suffix: str = "",
        system: str = "",
        think: bool | str | None = None,
        now: datetime,
    ) -> str:
        if suffix:
            raise TemplateError("the chat template of this model cannot insert text before a suffix")
        messages = [Message("system", system)] if system else []
        return self.render([*messages, Message("user", prompt)], think=think, now=now)

    def _render(
        self, turns: list[dict[str, Any]], variables: dict[str, Any], now: datetime, add_generation_prompt: bool
    ) -> str:
        size = len(str(turns)) + len(str(variables))
        steps = BASE_STEPS + STEPS_A_MESSAGE * len(turns)
        budget = Budget(steps, BASE_CHARACTERS + CHARACTERS_A_CHARACTER * size)
        environment = BoundedEnvironment(budget, now)
        values = {
            **self.special_tokens,
            "messages": turns,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **variables,
        }
        try:
            template = jinja2.Template.from_code(environment, self.code, environment.make_globals(None))
            return template.render(values)
        except Exception as error:  # a template can raise whatever Python can
            raise _template_error(error) from error


def _message(message: Message) -> dict[str, Any]:
    """A message as templates expect it; keys without a value are left out, since templates ask `is defined`."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking:  # under both names that templates read
        turn["thinking"] = turn["reasoning_content"] = message.thinking
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_name:
        turn["name"] = message.tool_name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _is_open(message: Message) -> bool:
    return message.role == "assistant" and bool(message.content) and not message.tool_calls


def _thinking(think: bool | str | None) -> dict[str, Any]:
    if think is None:
        return {}
    variables: dict[str, Any] = {"enable_thinking": bool(think), "thinking": bool(think)}
    if isinstance(think, str):
        variables["reasoning_effort"] = think
    return variables


def _template_error(error: Exception) -> TemplateError:
    line = getattr(error, "lineno", None)
    where = f" (line {line})" if isinstance(line, int) else ""
    if isinstance(error, RecursionError):
        return TemplateError(f"the chat template is nested too deeply or calls itself without end{where}")
    if isinstance(error, jinja2.TemplateSyntaxError):
        return TemplateError(f"the chat template does not parse{where}: {error.message}")
    if isinstance(error, SyntaxError):
        return TemplateError(f"the chat template does not parse: {error.msg}")
    if type(error) is jinja2.TemplateError:
        return TemplateError(f"the chat template refuses the conversation: {error}")
    return TemplateError(f"the chat template fails: {str(error) or type(error).__name__}")
