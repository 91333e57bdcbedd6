"""A Jinja environment for templates by strangers: Jinja's immutable sandbox, plus limits on time and memory.

The sandbox keeps a template from reaching Python. It does not keep it from counting to 10^9 or from doubling a string
forty times, so one environment is made for each rendering and carries its budget:

- every turn of a loop and every call of a macro costs a step (a call is put into the syntax tree before compiling);
- every call, filter, operator and output costs the characters that it produces, estimated beforehand where
  one call could produce more than memory holds ("x" * 10**10, ljust, %9999999s, nested lists that share their parts);
- the rest is Python's own: recursion depth, and the conversion limit of long integers.

Not bounded: comparing deep structures that share parts, sorting and grouping inside one filter call (linear in what the
budget let the template build), and the time of one regular string method on the longest string allowed.

Source: jinja2.sandbox; CVE-2024-56201, CVE-2024-56326, CVE-2025-27516 (hence jinja2 from 3.1.6); CVE-2025-61620.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_PADDING = 10_000
"""Largest width, indent, count or exponent that a template may ask for."""
MAX_INTEGER_BITS = 65_536
MAX_DATE_FORMAT = 256

# Their integer arguments multiply what they produce.
PADDING_METHODS = {"ljust", "rjust", "center", "zfill", "expandtabs", "to_bytes"}
PADDING_FILTERS = {"center", "indent", "batch", "slice", "tojson", "round", "wordwrap", "truncate"}
FORMAT_METHODS = {"format", "format_map"}
WIDE_FORMAT = re.compile(r"[0-9]{5,}|%[^A-Za-z%]*\*|\{[^{}]*\{")


class Budget:
    """What one rendering may still spend."""

    def __init__(self, steps: int, characters: int) -> None:
        self.steps = steps
        self.characters = characters

    def spend(self, steps: int, characters: int = 0) -> None:
        """Raises jinja2's SecurityError when nothing is left."""
        self.steps -= steps
        self.characters -= characters
        if self.steps < 0:
            raise SecurityError("the template takes too many steps")
        if self.characters < 0:
            raise SecurityError("the template produces too much text")

    def spend_value(self, value: object) -> None:
        """Pay for turning a value into text; shared parts of a structure are paid as often as they are printed."""
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                self.spend(0, len(item))
            elif isinstance(item, list | tuple):
                self.spend(len(item), 2 * len(item))
                stack.extend(item)
            elif isinstance(item, Mapping):
                self.spend(2 * len(item), 4 * len(item))
                stack.extend(item.keys())
                stack.extend(item.values())
            elif isinstance(item, int):
                self.spend(0, item.bit_length() // 3)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """One rendering's environment."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, budget: Budget, now: datetime) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, GenerationTag],
            finalize=self._finalize,
            cache_size=0,
        )
        self.budget = budget
        self.filters["tojson"] = _to_json
        for name, function in list(self.filters.items()):
            self.filters[name] = self._bounded_filter(name, function)
        for name in ("lipsum", "cycler", "joiner"):
            self.globals.pop(name, None)
        self.globals["namespace"] = TemplateNamespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = functools.partial(_strftime, now)

    # ---- called from the compiled template

    def step(self, characters: int) -> str:
        """Stands at the head of every loop and macro; `characters` is the plain text inside it."""
        self.budget.spend(1, characters)
        return ""

    def concat_texts(self, *values: object) -> str:
        """What the operator ~ does."""
        self.budget.spend_value(values)
        return "".join(map(str, values))

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.budget.spend(1)
        name = getattr(__obj, "__name__", "")
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | bytes | int):
            self._check_method(owner, name, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        self._spend_result(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for text, count in ((left, right), (right, left)):
                if isinstance(text, str | list | tuple | bytes) and isinstance(count, int):
                    self.budget.spend(1, len(text) * max(count, 0))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_INTEGER_BITS:
                raise SecurityError(f"the template computes a number of {bits} bits; {MAX_INTEGER_BITS} are allowed")
        if operator == "%" and isinstance(left, str):
            self._check_format(left, right)
        result = super().call_binop(context, operator, left, right)
        self._spend_result(result)
        return result

    # ---- prices

    def _finalize(self, value: Any) -> Any:
        self.budget.spend_value(value)
        return value

    def _spend_result(self, result: object) -> None:
        if isinstance(result, str | list | tuple | range):
            self.budget.spend(len(result) if isinstance(result, range) else 1, len(result))

    def _bounded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # keeps Jinja's marks, such as "pass me the environment"
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.budget.spend(1)
            values = [*args, *kwargs.values()]
            if name in PADDING_FILTERS:
                self._check_padding(name, values)
            elif name == "format" and values:
                self._check_format(values[0], values[1:])
            elif name == "replace":
                self._check_replace([value for value in values if isinstance(value, str)])
            elif name in ("join", "string", "pprint", "sum"):
                self.budget.spend_value([v for v in values if isinstance(v, str | list | tuple | Mapping)])
            if name == "tojson":
                self.budget.spend_value(args[0] if args else None)
            result = function(*args, **kwargs)
            self._spend_result(result)
            return result

        return bounded

    def _check_method(self, owner: str | bytes | int, name: str, args: Any, kwargs: Mapping[str, Any]) -> None:
        values = [*args, *kwargs.values()]
        if name in PADDING_METHODS:
            self._check_padding(name, [owner, *values])
        elif name in FORMAT_METHODS:
            self._check_format(str(owner), values)
        elif isinstance(owner, str) and name == "replace":
            self._check_replace([owner, *values])
        elif isinstance(owner, str) and name == "join" and args and isinstance(args[0], list | tuple):
            self.budget.spend(len(args[0]), len(owner) * len(args[0]))
            self.budget.spend_value(args[0])

    def _check_padding(self, name: str, values: list[Any]) -> None:
        width = max((abs(v) for v in values if isinstance(v, int) and not isinstance(v, bool)), default=0)
        if name == "to_bytes" or name == "round":
            values = values[1:]
            width = max((abs(v) for v in values if isinstance(v, int)), default=0)
        if width > MAX_PADDING:
            raise SecurityError(f"the template asks {name} for {width}; {MAX_PADDING} is allowed")
        lines = sum(1 + v.count("\n") for v in values if isinstance(v, str) and name in ("indent", "expandtabs"))
        tabs = sum(v.count("\t") for v in values if isinstance(v, str) and name == "expandtabs")
        self.budget.spend(1, width * (lines + tabs))

    def _check_format(self, text: object, values: object) -> None:
        if isinstance(text, str) and WIDE_FORMAT.search(text):
            raise SecurityError("the template formats with a width that is too large or not written out")
        self.budget.spend_value(list(values) if isinstance(values, list | tuple) else [values])

    def _check_replace(self, texts: list[str]) -> None:
        if len(texts) >= 3 and all(isinstance(text, str) for text in texts[:3]):
            self.budget.spend(1, len(texts[0]) + texts[0].count(texts[1]) * len(texts[2]))


class TemplateNamespace(jinja2.utils.Namespace):
    """`namespace()` whose attributes cannot begin with an underscore, where Python keeps its own."""

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise SecurityError(f"a template may not set the attribute {name!r} of a namespace")
        super().__setitem__(name, value)


class GenerationTag(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; to a renderer it is its body, as a scope."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class AddSteps(NodeTransformer):
    """Puts the calls that pay for loops, macros and ~ into a syntax tree."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        concat = nodes.EnvironmentAttribute("concat_texts", lineno=node.lineno)
        return nodes.Call(concat, node.nodes, [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._with_step(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._with_step(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._with_step(node)

    def _with_step(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        characters = nodes.Const(sum(len(data.data) for data in node.find_all(nodes.TemplateData)))
        step = nodes.Call(nodes.EnvironmentAttribute("step"), [characters], [], None, None)
        node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
        return node


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes for HTML; models were trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError("" if isinstance(message, Undefined) else str(message))


def _strftime(now: datetime, format: str) -> str:
    if len(format) > MAX_DATE_FORMAT or re.search(r"%[^A-Za-z%]*[0-9]", format):
        raise SecurityError("the template formats the date with a text that is too long or with a width")
    return now.strftime(format)
