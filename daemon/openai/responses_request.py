"""What /v1/responses asks for beside its input: tools, the form of the text; and what is said back. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daemon.errors import BadRequest
from daemon.openai import responses_api as api
from daemon.openai.requests import NEUTRAL, Settings, read_format
from daemon.openai.tools import ToolUse, allowed_tools, check_function, read_mode
from engine.constraint import Constraint

HOSTED_TOOLS = (
    "web_search",
    "file_search",
    "code_interpreter",
    "image_generation",
    "computer",
    "mcp",
    "tool_search",
    "local_shell",
)
"""What OpenAI's servers do themselves. The model is not told of them, so it never asks for them."""
FUNCTION_KEYS = ("name", "description", "parameters", "strict")


def refuse_kept(body: api.ResponsesRequest) -> None:
    """Refuse what would need something to be kept between requests.

    Raises:
        BadRequest: it does.
    """
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(body, name) is not None:
            raise BadRequest(
                f"{name} cannot be used: nothing is kept between requests; send the whole conversation as input", name
            )
    if body.background:
        raise BadRequest("background cannot be used: a response ends with its request; use stream", "background")


def read_response_tools(tools: Sequence[Mapping[str, Any]], param: str = "tools") -> list[dict[str, Any]]:
    """Tools as templates take them; those that OpenAI runs itself are left out, and namespaces are taken apart.

    Raises:
        BadRequest: one is no function, or has no name.
    """
    functions = []
    for index, tool in enumerate(tools):
        if is_hosted(tool):
            continue
        if tool.get("type") == "namespace":
            functions += read_response_tools(_inner(tool, f"{param}[{index}]"), f"{param}[{index}].tools")
            continue
        check_function(tool.get("type", "function"), tool, f"{param}[{index}]", "")
        given = {key: tool[key] for key in FUNCTION_KEYS if tool.get(key) is not None}
        functions.append({"type": "function", "function": given})
    return functions


def _inner(namespace: Mapping[str, Any], param: str) -> list[Mapping[str, Any]]:
    tools = namespace.get("tools")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and "tools" not in tool for tool in tools):
        raise BadRequest(f"{param}.tools must be a list of functions", f"{param}.tools")
    return tools


def namespaces(tools: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Namespace of a function by its name; of two functions of one name, that of the later."""
    return {
        inner["name"]: str(tool.get("name", ""))
        for tool in tools
        if tool.get("type") == "namespace"
        for inner in tool["tools"]
        if not is_hosted(inner)
    }


def is_hosted(tool: Mapping[str, Any]) -> bool:
    """Whether it is a tool that OpenAI's servers run."""
    kind = tool.get("type")
    return isinstance(kind, str) and kind.startswith(HOSTED_TOOLS)


def read_response_tool_choice(choice: str | api.ToolChoice | None) -> ToolUse:
    """What the field says.

    Raises:
        BadRequest: it says nothing that there is.
    """
    if choice is None or isinstance(choice, str):
        return ToolUse(read_mode(choice or "auto", "tool_choice"))
    if choice.type == "function" and choice.name:
        return ToolUse("required", (choice.name,))
    if choice.type == "allowed_tools" and choice.tools is not None:
        return allowed_tools(choice.mode or "auto", [tool for tool in choice.tools if not is_hosted(tool)])
    raise BadRequest('tool_choice must be "none", "auto", "required", a function or allowed_tools', "tool_choice")


def read_text_format(text: api.TextConfig | None) -> Constraint | None:
    """What the text must look like.

    Raises:
        BadRequest: it is of no form that there is.
    """
    if text is None or text.format is None:
        return None
    return read_format(text.format.type, text.format.schema, "text.format")


def new_response(body: api.ResponsesRequest, settings: Settings, response_id: str, created: int) -> api.Response:
    """The response before it begins."""
    reasoning = body.reasoning
    return api.Response(
        id=response_id,
        created_at=created,
        status="in_progress",
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        model=body.model or "",
        output=[],
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning=api.ResponseReasoning(reasoning.effort, reasoning.summary) if reasoning else api.ResponseReasoning(),
        temperature=settings.options.get("temperature", NEUTRAL["temperature"]),
        text=body.text if body.text and body.text.format else api.TextConfig(format=api.TextFormat(type="text")),
        tool_choice=body.tool_choice or "auto",
        tools=[
            tool if "tools" in tool else {"type": "function", "parameters": None, "strict": None, **tool}
            for tool in body.tools or ()
            if not is_hosted(tool)
        ],
        top_p=settings.options.get("top_p", NEUTRAL["top_p"]),
        truncation=body.truncation or "disabled",
        metadata=body.metadata or {},
    )
