"""A Jinja environment for templates by strangers: Jinja's immutable sandbox, plus limits on time and memory.

The sandbox keeps a template from reaching Python. It does not keep it from counting to 10^9 or from doubling a string
forty times, so one environment is made for each rendering and carries its budget:

- every turn of a loop and every call of a macro costs a step (a call is put into the syntax tree before compiling);
- every call, filter, operator and output costs the characters that it produces, estimated beforehand where
  one call could produce more than memory holds ("x" * 10**10, ljust, %9999999s, nested lists that share their parts);
- the rest is Python's own: recursion depth, and the conversion limit of long integers.

What remains is bounded by the budget times a small constant, not exactly: sorting inside one filter call, and calls
whose price is estimated from the sizes of their arguments. A rendering that spends everything takes about a second.

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
COMPILERS_OWN = {"_loop_vars", "_block_vars"}
"""Arguments that compiled templates add to every call inside loops and blocks."""
COMPARING_FILTERS = {"sort", "unique", "groupby", "min", "max", "dictsort"}
PRINTING_FILTERS = {"join", "string", "pprint", "sum", "tojson", "urlencode", "xmlattr"}
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

        for name, function in list(self.tests.items()):
            self.tests[name] = self._bounded_test(function)

    # ---- called from the compiled template

    def step(self, characters: int) -> str:
        """Stands at the head of every loop and macro; `characters` is the plain text inside it."""
        self.budget.spend(1, characters)
        return ""

    def concat_texts(self, *values: object) -> str:
        """What the operator ~ does."""
        self.budget.spend_value(values)
        return "".join(map(str, values))

    def compared(self, value: object) -> object:
        """Stands around both sides of a comparison: Python compares shared parts as often as they are met."""
        self._spend_input(value)
        return value

    def sliced(self, value: object) -> object:
        """Stands around every slice, which Python makes without asking anybody."""
        self._spend_result(value)
        return value

    def flat_tuple(self, *values: object) -> tuple[object, ...]:
        """What a tuple in the template becomes. One in another would be hashed without end when they share parts."""
        if any(isinstance(value, tuple) for value in values):
            raise SecurityError("a template may not put tuples into tuples")
        return values

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if owner is self:
            return __obj(*args)
        self.budget.spend(1)
        if owner is not None:
            named = [value for key, value in kwargs.items() if key not in COMPILERS_OWN]
            self._check_method(owner, getattr(__obj, "__name__", ""), [*args, *named])
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

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's hook where `text.format` is looked up, which later calls no longer show."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            self._check_format(value.__self__, ())
        return wrapped

    # ---- prices

    def _finalize(self, value: Any) -> Any:
        self.budget.spend_value(value)
        return value

    def _spend_input(self, value: object) -> None:
        """Pay for looking through a value; text goes by in sixteenths, because searching it is fast."""
        if isinstance(value, str | bytes):
            self.budget.spend(0, len(value) // 16)
        elif isinstance(value, list | tuple | Mapping):
            self.budget.spend_value(value)

    def _spend_result(self, result: object) -> None:
        if isinstance(result, range):
            self.budget.spend(len(result))
        elif isinstance(result, str | list | tuple):
            self.budget.spend(1, len(result))

    def _bounded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # keeps Jinja's marks, such as "pass me the environment"
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.budget.spend(1)
            values = [*args, *kwargs.values()]
            for value in values:
                if isinstance(value, str) or name in COMPARING_FILTERS:
                    self._spend_input(value)
            if name in PADDING_FILTERS:
                self._check_padding(name, values)
            if name in PRINTING_FILTERS:
                self._check_print(values)
            if name == "format":
                self._check_format(values[0], values[1:])
            if name == "replace":
                self._check_replace([value for value in values if isinstance(value, str)])
            result = function(*args, **kwargs)
            self._spend_result(result)
            return result

        return bounded

    def _bounded_test(self, function: Any) -> Callable[..., Any]:
        @functools.wraps(function)
        def bounded(*args: Any) -> Any:
            if len(args) > 1:  # the others, such as "is defined", look at no part of the value
                for value in args:
                    self._spend_input(value)
            return function(*args)

        return bounded

    def _check_method(self, owner: object, name: str, values: list[Any]) -> None:
        if isinstance(owner, str | bytes):
            self._spend_input(owner)
        if isinstance(owner, list | tuple) and name in ("index", "count"):
            self._spend_input([owner, values])
        if name in PADDING_METHODS:
            self._check_padding(name, [owner, *values])
        if isinstance(owner, str) and name == "replace":
            self._check_replace([owner, *values])
        if isinstance(owner, str) and name == "join":
            self._check_print([owner, *values])
        if name == "translate":
            raise SecurityError("a template may not call translate")

    def _check_print(self, values: list[Any]) -> None:
        """Values that become one text: each is paid, and a separator as often as it can stand between others."""
        self.budget.spend_value(values)
        parts = max((len(value) for value in values if isinstance(value, list | tuple | Mapping)), default=1)
        if parts > 1:
            self.budget.spend(0, parts * sum(len(value) for value in values if isinstance(value, str)))

    def _check_padding(self, name: str, values: list[Any]) -> None:
        counts = values[1:] if name in ("to_bytes", "round") else values
        width = max((abs(v) for v in counts if isinstance(v, int)), default=0)
        if width > MAX_PADDING:
            raise SecurityError(f"the template asks {name} for {width}; {MAX_PADDING} is allowed")
        texts = [value for value in values if isinstance(value, str)]
        self.budget.spend(1, width * sum(1 + text.count("\n") + text.count("\t") for text in texts))

    def _check_format(self, text: object, values: object) -> None:
        if isinstance(text, str) and WIDE_FORMAT.search(text):
            raise SecurityError("the template formats with a width that is too large or not written out")
        self.budget.spend_value([text, values])

    def _check_replace(self, texts: list[Any]) -> None:
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
    """Puts the calls that pay for loops, macros, slices and ~ into a syntax tree."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concat_texts", node.nodes, node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("flat_tuple", node.items, node.lineno) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _call("sliced", [node], node.lineno) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        holders: list[nodes.Compare | nodes.Operand] = [node, *node.ops]
        for holder in holders:
            if not isinstance(holder.expr, nodes.Const):
                holder.expr = _call("compared", [holder.expr], node.lineno)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._with_step(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._with_step(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._with_step(node)

    def _with_step(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        characters = nodes.Const(sum(len(data.data) for data in node.find_all(nodes.TemplateData)))
        node.body.insert(0, nodes.ExprStmt(_call("step", [characters], node.lineno)).set_lineno(node.lineno))
        return node


def _call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    """A call of one of BoundedEnvironment's methods."""
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None, lineno=line)


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
