"""Tools of a request, and what it says about calling them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from daemon.errors import BadRequest
from daemon.openai import api

MAX_SHOWN = 40

Mode = Literal["none", "auto", "required"]
MODES: tuple[Mode, ...] = ("none", "auto", "required")


@dataclass(frozen=True)
class ToolUse:
    """What `tool_choice` says."""

    mode: Mode = "auto"
    names: tuple[str, ...] | None = None
    """Only these tools; None is all of them."""

    def told(self, tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The tools that the model is told of: it cannot call any other.

        Raises:
            BadRequest: a name is none of theirs, or there is nothing to call.
        """
        if self.mode == "none":
            return []
        if self.mode == "required" and not tools:
            raise BadRequest("tool_choice wants a tool to be called, but tools is empty", "tool_choice")
        if self.names is None:
            return list(tools)
        by_name = {tool["function"]["name"]: tool for tool in tools}
        for name in self.names:
            if name not in by_name:
                raise BadRequest(f'tool_choice names "{name[:MAX_SHOWN]}", which is none of the tools', "tool_choice")
        return [by_name[name] for name in self.names]


def read_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools as templates take them.

    Raises:
        BadRequest: one is no function, or has no name.
    """
    for index, tool in enumerate(tools):
        check_function(tool.get("type", "function"), tool.get("function"), f"tools[{index}]", ".function")
    return [dict(tool) for tool in tools]


def check_function(kind: object, function: object, param: str, inner: str) -> None:
    """Refuse a tool that is no function with a name.

    Args:
        inner: where in the tool the function is.
    """
    if kind != "function":
        shown = f'of the type "{kind[:MAX_SHOWN]}"' if isinstance(kind, str) else "of no type"
        raise BadRequest(f"{param} is {shown}, but only functions can be called here", f"{param}.type")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRequest(f"{param} has no function with a name", f"{param}{inner}.name")
    if not isinstance(function.get("parameters"), dict | None):
        raise BadRequest(f"{param}{inner}.parameters must be a JSON schema", f"{param}{inner}.parameters")


def read_tool_choice(choice: str | api.ToolChoice | None) -> ToolUse:
    """What the field of a chat says.

    Raises:
        BadRequest: it says nothing that there is.
    """
    if choice is None or isinstance(choice, str):
        return ToolUse(read_mode(choice or "auto", "tool_choice"))
    if choice.type == "function" and choice.function is not None:
        return ToolUse("required", (choice.function.name,))
    if choice.type == "allowed_tools" and choice.allowed_tools is not None:
        return allowed_tools(choice.allowed_tools.mode, [tool.get("function") for tool in choice.allowed_tools.tools])
    raise BadRequest('tool_choice must be "none", "auto", "required", a function or allowed_tools', "tool_choice")


def allowed_tools(mode: str, functions: Sequence[object]) -> ToolUse:
    """Some of the tools may be called, or one of them must."""
    names = [function.get("name") if isinstance(function, dict) else None for function in functions]
    if not all(isinstance(name, str) for name in names):
        raise BadRequest("tool_choice allows a tool that is no function with a name", "tool_choice")
    return ToolUse(read_mode(mode, "tool_choice"), tuple(str(name) for name in names))


def read_mode(text: str, param: str) -> Mode:
    """Whether tools may, must or must not be called.

    Raises:
        BadRequest: it is none of these.
    """
    for mode in MODES:
        if text == mode:
            return mode
    raise BadRequest(f'{param} is "{text[:MAX_SHOWN]}", but it must be one of {", ".join(MODES)}', param)
