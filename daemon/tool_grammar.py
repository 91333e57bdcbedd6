"""From tools and a tool_choice to a constraint on the answer: calls in the form that the model writes them. Pure.

    "required", or a tool's name    nothing but calls
    "auto"                          text and calls, where a tool is `strict`; else no constraint: the model decides
    "none"                          no constraint; the tools were not shown to the model

Arguments follow a tool's schema. What of it cannot be enforced is ignored, unless the tool is `strict`: then it is an
error, as for any schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from daemon.errors import BadRequest
from daemon.parsers.tool_calls import CLOSE_TAG, OPEN_TAG
from engine.constraint import Constraint
from engine.grammar.closed_objects import close_objects

WHITE_SPACE = r"[ ]{1,2}|\n[ ]{0,40}|\n\t{1,10}"
"""Between JSON's tokens."""


@dataclass(frozen=True)
class ToolChoice:
    """Which tools an answer may, or must, call."""

    tools: Sequence[Mapping[str, Any]]
    """Each as {"type": "function", "function": {"name": ..., "parameters": a schema, "strict": ...}}."""
    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    """The tool that must be called; `mode` is then of no account."""
    parallel: bool = True
    """Whether there may be several calls."""


@dataclass(frozen=True)
class CallForm:
    """How a model writes calls: around all of them, around each, and between two."""

    begin: str = ""
    end: str = ""
    open: str = ""
    close: str = ""
    separator: str = "\n"
    arguments: str = "arguments"
    """The key of a call's arguments."""


HERMES = CallForm(open=OPEN_TAG, close=CLOSE_TAG)
"""<tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes and Qwen."""
BARE_JSON = CallForm(separator="; ", arguments="parameters")
"""{"name": ..., "parameters": {...}}: Llama 3."""
MISTRAL = CallForm(begin="[TOOL_CALLS] [", end="]", separator=", ")
"""[TOOL_CALLS] [{"name": ..., "arguments": {...}}]"""


def tool_constraint(choice: ToolChoice, form: CallForm) -> Constraint | None:
    """The constraint, or None where the answer is free.

    Raises:
        BadRequest: a tool must be called that is not there.
    """
    functions = [tool.get("function") or {} for tool in choice.tools]
    must_call = choice.name is not None or choice.mode == "required"
    if choice.name is not None:
        functions = [function for function in functions if function.get("name") == choice.name]
        if not functions:
            raise BadRequest(f'tool_choice names "{choice.name[:80]}", which is none of the tools')
    elif choice.mode == "none" or (choice.mode == "auto" and not any(function.get("strict") for function in functions)):
        return None
    if not functions:
        raise BadRequest("tool_choice requires a call of a tool, but there are no tools")
    return Constraint(kind="lark", value=_lark(functions, form, must_call=must_call, parallel=choice.parallel))


def _lark(functions: Sequence[Mapping[str, Any]], form: CallForm, *, must_call: bool, parallel: bool) -> str:
    body = f"WS body WS {_literal(form.close)}" if form.open else "body"
    rest = f"{f'({_literal(form.separator)} call)*' if parallel else ''} {_literal(form.end)}"
    rules = [
        "%llguidance {}",
        f"calls: {_literal(form.begin)} call {rest}",
        f"call: {_literal(form.open)} {body}",
        "body: " + " | ".join(f"tool_{number}" for number in range(len(functions))),
        "WS: /[ \\n]?/",
    ]
    if must_call:
        rules.append("start: calls")
    elif first := (form.begin or form.open):
        # The lexeme ends with the first mark of a call, what follows the mark is one, and calls end the answer.
        rules += [
            f"start: TEXT | before {'call' if form.begin else body} {rest}",
            f"before[lazy]: /(.|\\n)*/ {_literal(first)}",
            "TEXT: /(.|\\n)*/",
        ]
    else:
        rules += ["start: calls | TEXT", "TEXT: /[^{\\[\\s](.|\\n)*/"]
    rules += [_tool(number, function, form.arguments) for number, function in enumerate(functions)]
    return "\n".join(rules) + "\n"


def _tool(number: int, function: Mapping[str, Any], arguments: str) -> str:
    """A call's JSON; the schema is a document of its own, so that its references are its own."""
    schema = dict(function.get("parameters") or {})
    schema.setdefault("type", "object")
    schema["x-guidance"] = {"whitespace_pattern": WHITE_SPACE, "lenient": not function.get("strict")}
    head = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "{arguments}": '
    return f"tool_{number}: {_literal(head)} %json {close_objects(json.dumps(schema))} {_literal('}')}"


def _literal(text: str) -> str:
    return json.dumps(text) if text else '""'
