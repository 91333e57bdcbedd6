"""From tools and a tool_choice to a constraint on the answer: calls in the form that the model writes them. Pure.

    "required", or a tool's name    nothing but calls
    "auto"                          text and calls, where a tool is `strict`; or calls and what a format says; else no
                                    constraint: the model decides
    "none"                          no constraint; the tools were not shown to the model

Arguments follow a tool's schema. What of it cannot be enforced is ignored, unless the tool is `strict`: then it is an
error, as for any schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from daemon.errors import BadRequest
from daemon.parsers.families import CallForm, Family
from engine.constraint import Constraint, ConstraintError
from engine.grammar.closed_objects import close_objects

WHITE_SPACE = r"[ ]{1,2}|\n[ ]{0,40}|\n\t{1,10}"
"""Between JSON's tokens."""
AT_LINE = re.compile(
    r"the grammar cannot be enforced: at (\d+)\(\d+\): failed to compile JSON schema: (.*?)( \d+ \| |$)"
)
GRAMMAR = re.compile(r"^the (grammar|lark)\b")
"""What the sentences of engine.grammar call a constraint of this kind."""


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
class CallSyntax:
    """How a model writes calls: around all of them, around each, between two, and around a call's arguments."""

    begin: str = ""
    end: str = ""
    open: str = ""
    close: str = ""
    separator: str = "\n"
    arguments: str = "arguments"
    """The key of a call's arguments."""
    name_end: str = ""
    """Where a call is a name, this, and the arguments, and not JSON as a whole."""

    def head(self, name: str) -> str:
        """What stands before a call's arguments."""
        if self.name_end:
            return name + self.name_end
        return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{self.arguments}": '


def call_syntax(family: Family) -> CallSyntax | None:
    """That of a family, or None where it writes calls in no form that is constrained yet."""
    key, call = family.arguments_key, family.call
    if family.form is CallForm.BARE:
        return CallSyntax(separator="; ", arguments=key)
    if call is None:
        return None
    if family.form is CallForm.JSON:
        return CallSyntax(open=call.open, close=call.close, arguments=key)
    if family.form is CallForm.LIST:
        return CallSyntax(begin=f"{call.open}[", end=f"]{call.close}", separator=", ", arguments=key)
    if family.form is CallForm.NAMED:
        return CallSyntax(begin=call.open, separator=call.open, name_end="[ARGS]")
    return None


def tool_constraint(choice: ToolChoice, syntax: CallSyntax, answer: Constraint | None = None) -> Constraint | None:
    """The constraint, or None where tools add none.

    Args:
        answer: what the answer must look like where it is no call.

    Raises:
        BadRequest: a tool must be called that is not there.
    """
    functions = _callable(choice)
    must_call = choice.name is not None or choice.mode == "required"
    if choice.name is not None and not functions:
        raise BadRequest(f'tool_choice names "{choice.name[:80]}", which is none of the tools')
    if must_call and not functions:
        raise BadRequest("tool_choice requires a call of a tool, but there are no tools")
    if must_call:
        start = ["start: calls"]
    elif choice.mode == "none" or not functions:
        return None
    elif answer is not None:
        if answer.kind not in ("json", "json_schema") or not (syntax.begin or syntax.open):
            return None  # such an answer leaves no room for calls: nothing tells the two apart
        schema = json.loads(answer.value) if answer.kind == "json_schema" else {"type": "object"}
        start = ["start: calls | answer", f"answer: {_json(schema, strict=True)}"]
    elif any(function.get("strict") for function in functions):
        start = _text_or_calls(syntax, parallel=choice.parallel)
    else:
        return None
    return Constraint(kind="lark", value=_lark(functions, syntax, start, parallel=choice.parallel))


def about_tools(error: ConstraintError, choice: ToolChoice, constraint: Constraint) -> ConstraintError:
    """The error in words of the tools: who sent them knows nothing of the grammar that was made of them.

    Args:
        constraint: what `tool_constraint` made of the choice.
    """
    if found := AT_LINE.match(str(error)):
        rule = constraint.value.splitlines()[int(found[1]) - 1].partition(":")[0]
        for number, function in enumerate(_callable(choice)):
            if rule == f"tool_{number}":
                name = str(function["name"])[:80]
                return ConstraintError(f'the parameters of the tool "{name}" cannot be enforced: {found[2]}')
    return ConstraintError(GRAMMAR.sub("the grammar of the tools", str(error)))


def _callable(choice: ToolChoice) -> list[Mapping[str, Any]]:
    """The functions that may be called, in the order of their rules."""
    functions = [tool.get("function") or {} for tool in choice.tools]
    return [function for function in functions if choice.name in (None, function.get("name"))]


def _lark(functions: Sequence[Mapping[str, Any]], syntax: CallSyntax, start: Sequence[str], *, parallel: bool) -> str:
    body, rest = _body_and_rest(syntax, parallel=parallel)
    rules = [
        "%llguidance {}",
        *start,
        f"calls: {_literal(syntax.begin)} call {rest}",
        f"call: {_literal(syntax.open)} {body}",
        "body: " + " | ".join(f"tool_{number}" for number in range(len(functions))),
        "WS: /[ \\n]?/",
        *(_tool(number, function, syntax) for number, function in enumerate(functions)),
    ]
    return "\n".join(rules) + "\n"


def _body_and_rest(syntax: CallSyntax, *, parallel: bool) -> tuple[str, str]:
    """What comes behind a call's opening, and what behind the first call."""
    body = f"WS body WS {_literal(syntax.close)}" if syntax.open else "body"
    more = f"({_literal(syntax.separator)} call)*" if parallel else ""
    return body, f"{more} {_literal(syntax.end)}"


def _text_or_calls(syntax: CallSyntax, *, parallel: bool) -> list[str]:
    """Rules for an answer in which calls, where there are any, are the tools'."""
    first = syntax.begin or syntax.open
    if not first:
        return ["start: calls | TEXT", "TEXT: /[^{\\[\\s](.|\\n)*/"]
    body, rest = _body_and_rest(syntax, parallel=parallel)
    # The lexeme ends with the first mark of a call, what follows the mark is one, and calls end the answer.
    return [
        f"start: TEXT | before {'call' if syntax.begin else body} {rest}",
        f"before[lazy]: /(.|\\n)*/ {_literal(first)}",
        "TEXT: /(.|\\n)*/",
    ]


def _tool(number: int, function: Mapping[str, Any], syntax: CallSyntax) -> str:
    """A call; the schema is a document of its own, so that its references are its own."""
    schema = dict(function.get("parameters") or {})
    schema.setdefault("type", "object")
    arguments = _json(schema, strict=bool(function.get("strict")))
    tail = "" if syntax.name_end else _literal("}")
    return f"tool_{number}: {_literal(syntax.head(function['name']))} {arguments} {tail}"


def _json(schema: Any, *, strict: bool) -> str:
    """What a schema allows, as an item of a rule."""
    options = {"whitespace_pattern": WHITE_SPACE, "lenient": not strict}
    return f"%json {close_objects(json.dumps({**schema, 'x-guidance': options}))}"


def _literal(text: str) -> str:
    return json.dumps(text) if text else '""'
