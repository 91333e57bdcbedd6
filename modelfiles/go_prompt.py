"""Ollama's TEMPLATE: a Go template over System, Messages, Tools and so on, or over one turn at a time.

Three ways, chosen by what the template mentions, as in Ollama:
- it mentions Messages: it runs once over the whole conversation;
- it does not (older models): it runs once a turn with System, Prompt and Response, and the last turn ends where the
  response begins;
- a prompt with a suffix: it runs once with Prompt and Suffix.
Source: ollama/ollama template/template.go (Execute, collate), api/types.go (Tool and its JSON).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from modelfiles.gotemplate import GoTemplate
from modelfiles.gotemplate_values import GoStruct
from modelfiles.prompt_types import Message, PromptTemplate, TemplateError, Tool

BASE_STEPS, STEPS_A_PART = 100_000, 500
BASE_CHARACTERS, CHARACTERS_A_CHARACTER = 16 << 20, 64

# Order and absence as Ollama's Go structs have them; keys that it does not know follow behind.
FUNCTION_KEYS = ("name", "description", "parameters")
PARAMETERS_KEYS = ("type", "$defs", "items", "required", "properties")
PROPERTY_KEYS = ("anyOf", "type", "items", "description", "enum", "properties", "required")

TYPE_SCRIPT = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


@dataclass(frozen=True)
class GoPromptTemplate(PromptTemplate):
    """A TEMPLATE of a Modelfile."""

    template: GoTemplate = field(repr=False)
    names: frozenset[str] = field(repr=False)
    """What the template mentions, in lower case."""

    @classmethod
    def compile(cls, text: str) -> GoPromptTemplate:
        """Raises TemplateError with the line of what is wrong."""
        template = GoTemplate.parse(text)
        identifiers = template.identifiers
        names = frozenset(name.lower() for name in identifiers)
        if not names & {"messages", "response"}:
            template = template.append_field("Response")
        capabilities = {"completion"}
        if "tools" in names:
            capabilities.add("tools")
        if "suffix" in names:
            capabilities.add("insert")
        if identifiers & {"Think", "Thinking", "ThinkLevel"}:
            capabilities.add("thinking")
        return cls(text, template, names, capabilities=frozenset(capabilities))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        think: bool | str | None = None,
        now: datetime,
        add_generation_prompt: bool = True,
    ) -> str:
        system, turns = _collate(messages)
        run = _Runner(self.template, think, now, messages, tools)
        if "messages" in self.names:
            return run(
                System=system,
                Messages=[_message(message) for message in turns],
                Tools=[_tool(tool) for tool in tools] or None,
                Response="",
            )
        return _render_turns(run, turns)

    def render_generate(
        self,
        prompt: str,
        *,
        suffix: str = "",
        system: str = "",
        think: bool | str | None = None,
        now: datetime,
    ) -> str:
        if suffix and "insert" not in self.capabilities:
            raise TemplateError("the template of this model cannot insert text before a suffix: it has no .Suffix")
        messages = [*([Message("system", system)] if system else []), Message("user", prompt)]
        if suffix and prompt:
            run = _Runner(self.template, think, now, [*messages, Message("user", suffix)], ())
            return run(Prompt=prompt, Suffix=suffix, Response="")
        return self.render(messages, think=think, now=now)


class _Runner:
    """Runs a template with what all ways have in common."""

    def __init__(
        self,
        template: GoTemplate,
        think: bool | str | None,
        now: datetime,
        messages: Sequence[Message],
        tools: Sequence[Tool],
    ) -> None:
        self.template = template
        self.now = now
        self.common = {
            "Think": bool(think),
            "ThinkLevel": think if isinstance(think, str) else "",
            "IsThinkSet": think is not None,
        }
        size = sum(len(str(message)) for message in messages) + len(str(tools))
        self.max_steps = BASE_STEPS + STEPS_A_PART * (len(messages) + len(tools))
        self.max_characters = BASE_CHARACTERS + CHARACTERS_A_CHARACTER * size

    def __call__(self, template: GoTemplate | None = None, /, **values: Any) -> str:
        return (template or self.template).execute(
            {**values, **self.common}, now=self.now, max_steps=self.max_steps, max_characters=self.max_characters
        )


def _render_turns(run: _Runner, turns: Sequence[Message]) -> str:
    """One execution for each turn: a system or user message that follows on a prompt or response begins a new one."""
    text, system, prompt, response = "", "", "", ""
    for message in turns:
        ends_turn = response or (prompt and message.role == "system")
        if message.role in ("system", "user") and ends_turn:
            text += run(System=system, Prompt=prompt, Response=response)
            system, prompt, response = "", "", ""
        if message.role == "system":
            system = message.content
        elif message.role == "user":
            prompt = message.content
        elif message.role == "assistant":
            response = message.content
    return text + run(run.template.cut_after("Response"), System=system, Prompt=prompt, Response=response)


def _collate(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """All system texts as one, and the messages with neighbours of one role joined, except tools' answers."""
    turns: list[Message] = []
    for message in messages:
        if turns and turns[-1].role == message.role != "tool":
            before = turns.pop()
            message = Message(
                before.role,
                f"{before.content}\n\n{message.content}",
                before.thinking,
                before.tool_calls,
                before.tool_name,
                before.tool_call_id,
            )
        turns.append(message)
    return "\n\n".join(message.content for message in messages if message.role == "system"), turns


# ---- Ollama's structs


def _message(message: Message) -> GoStruct:
    calls = [
        GoStruct(
            "ToolCall",
            {
                "ID": call.id,
                "Function": GoStruct(
                    "ToolCallFunction",
                    {"Index": index, "Name": call.name, "Arguments": call.arguments},
                    {"index": index, "name": call.name, "arguments": call.arguments},
                ),
            },
            {
                **({"id": call.id} if call.id else {}),
                "function": {"index": index, "name": call.name, "arguments": call.arguments},
            },
        )
        for index, call in enumerate(message.tool_calls)
    ]
    fields = {
        "Role": message.role,
        "Content": message.content,
        "Thinking": message.thinking,
        "Images": [],
        "ToolCalls": calls,
        "ToolName": message.tool_name,
        "ToolCallID": message.tool_call_id,
    }
    optional = {"thinking": message.thinking, "tool_calls": calls, "tool_name": message.tool_name}
    optional["tool_call_id"] = message.tool_call_id
    shown = {"role": message.role, "content": message.content}
    return GoStruct("Message", fields, {**shown, **{key: value for key, value in optional.items() if value}})


def _tool(tool: Tool) -> GoStruct:
    function = _function(_mapping(tool.get("function")))
    items = {"items": tool["items"]} if tool.get("items") is not None else {}
    return GoStruct(
        "Tool",
        {"Type": _text(tool.get("type")), "Items": tool.get("items"), "Function": function},
        {"type": _text(tool.get("type")), **items, "function": function},
    )


def _function(given: Mapping[str, Any]) -> GoStruct:
    parameters = _parameters(_mapping(given.get("parameters")))
    name, description = _text(given.get("name")), _text(given.get("description"))
    return GoStruct(
        "ToolFunction",
        {"Name": name, "Description": description, "Parameters": parameters},
        {"name": name, "description": description, "parameters": parameters, **_others(given, FUNCTION_KEYS)},
    )


def _parameters(given: Mapping[str, Any]) -> GoStruct:
    properties = {name: _property(value) for name, value in _mapping(given.get("properties")).items()}
    required = list(given["required"]) if isinstance(given.get("required"), list | tuple) else []
    fields = {
        "Type": _text(given.get("type")),
        "Defs": given.get("$defs"),
        "Items": given.get("items"),
        "Required": required,
        "Properties": properties,
    }
    shown: dict[str, Any] = {"type": fields["Type"]}
    shown |= {key: given[key] for key in ("$defs", "items") if given.get(key) is not None}
    shown |= {"required": required} if required else {}
    return GoStruct(
        "ToolFunctionParameters", fields, {**shown, "properties": properties, **_others(given, PARAMETERS_KEYS)}
    )


def _property(value: object) -> GoStruct:
    given = _mapping(value)
    any_of = [_property(item) for item in given.get("anyOf") or () if isinstance(item, Mapping)]
    types = given.get("type")
    type_names = [str(name) for name in types] if isinstance(types, list | tuple) else [str(types)] if types else []
    properties = {name: _property(item) for name, item in _mapping(given.get("properties")).items()}
    enum = list(given["enum"]) if isinstance(given.get("enum"), list | tuple) else []
    required = list(given["required"]) if isinstance(given.get("required"), list | tuple) else []
    type_text = type_names[0] if len(type_names) == 1 else f"[{' '.join(type_names)}]" if type_names else ""
    options = any_of or type_names
    fields = {
        "AnyOf": any_of,
        "Type": type_text,
        "Items": given.get("items"),
        "Description": _text(given.get("description")),
        "Enum": enum,
        "Properties": properties,
        "Required": required,
        "ToTypeScriptType": " | ".join(map(_type_script, options)) or "any",
    }
    shown = {
        "anyOf": any_of,
        "type": type_names[0] if len(type_names) == 1 else type_names,
        "items": given.get("items"),
        "description": fields["Description"],
        "enum": enum,
        "properties": properties,
        "required": required,
    }
    kept = {key: item for key, item in shown.items() if item not in ("", None, [], {})}
    return GoStruct("ToolProperty", fields, {**kept, **_others(given, PROPERTY_KEYS)})


def _type_script(option: GoStruct | str) -> str:
    if isinstance(option, GoStruct):
        return str(option.fields["ToTypeScriptType"])
    return TYPE_SCRIPT.get(option, "any")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _others(given: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """What a schema says beyond the keys that Ollama's structs have; Ollama would lose it."""
    return {key: value for key, value in given.items() if key not in known}
