"""Go templates (text/template), as far as Ollama's models use them: parsed once, run over plain Python values.

Supported: text and trim markers, comments, pipelines, variables, if / else if / with / range with else, break and
continue, define / template / block, the functions of modelfiles.gotemplate_functions, fields of maps and structs. A key
that a map does not have is no value (missingkey=zero). Not supported: methods, except those that Ollama's types have.

A template is written by a stranger: a run has a budget of steps and of characters, and an exceeded budget is an error
like any other, with the line where it happened.
Source: Go's text/template (exec.go).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from modelfiles.gotemplate_functions import FUNCTIONS, LAZY, call
from modelfiles.gotemplate_nodes import (
    Action,
    Branch,
    Call,
    Chain,
    Command,
    Dot,
    Field,
    Function,
    Jump,
    Literal,
    Node,
    Operand,
    Pipeline,
    Text,
    Tree,
    Variable,
    cut_after_field,
    identifiers,
)
from modelfiles.gotemplate_parser import parse_tree
from modelfiles.gotemplate_values import GoError, field_of, is_true, to_text
from modelfiles.prompt_types import TemplateError

__all__ = ["GoTemplate", "TemplateError"]

MAX_STEPS = 100_000
MAX_CHARACTERS = 32 << 20
MAX_CALL_DEPTH = 50
MAX_VARIABLES = 500
"""In sight at once; they are looked up one by one."""
READ_DISCOUNT = 16
"""Characters of an argument that cost as much as one that is written."""


@dataclass(frozen=True)
class GoTemplate:
    """A parsed template. Immutable; runs do not share anything."""

    text: str
    tree: Tree

    @classmethod
    def parse(cls, text: str) -> GoTemplate:
        """Raises TemplateError with the line of what is wrong."""
        return cls(text, parse_tree(text, FUNCTIONS))

    @property
    def identifiers(self) -> frozenset[str]:
        """Names of all fields and variables that the template mentions."""
        names = identifiers(self.tree.body)
        for body in self.tree.defined.values():
            names |= identifiers(body)
        return frozenset(names)

    def cut_after(self, name: str) -> GoTemplate:
        """The template up to the first place that prints the field, that place included."""
        return GoTemplate(self.text, Tree(cut_after_field(self.tree.body, name), self.tree.defined))

    def append_field(self, name: str) -> GoTemplate:
        """The template with `{{ .name }}` behind it."""
        action = Action(Pipeline(1, (Command((Field((name,)),)),)))
        return GoTemplate(self.text, Tree((*self.tree.body, action), self.tree.defined))

    def execute(
        self,
        data: Mapping[str, Any],
        *,
        now: datetime | None = None,
        max_steps: int = MAX_STEPS,
        max_characters: int = MAX_CHARACTERS,
    ) -> str:
        """Run the template.

        Args:
            data: the dot. Values: None, bool, int, float, str, list, dict, GoStruct.
            now: what currentDate and yesterdayDate read.

        Raises:
            TemplateError: with the line; also when the budget is exceeded.
        """
        run = _Run(self.tree, now, max_steps, max_characters)
        try:
            run.nodes(self.tree.body, data)
        except GoError as error:
            raise TemplateError(f"the template fails (line {run.line}): {error}") from error
        except RecursionError as error:
            raise TemplateError(f"the template fails (line {run.line}): a value is nested too deeply") from error
        return "".join(run.output)


class _Run:
    """One execution: output, variables, budget."""

    def __init__(self, tree: Tree, now: datetime | None, steps: int, characters: int) -> None:
        self.tree = tree
        self.now = now
        self.steps = steps
        self.characters = characters
        self.output: list[str] = []
        self.variables: list[tuple[str, Any]] = []
        self.line = 1
        self.depth = 0

    def spend(self, value: object = None) -> None:
        """Pay for a step, and for the text that it made."""
        self.steps -= 1
        if isinstance(value, str):
            self.characters -= len(value)
        if self.steps < 0 or self.characters < 0:
            raise GoError("it takes too many steps" if self.steps < 0 else "it produces too much text")

    # ---- nodes; each returns "break", "continue" or nothing

    def nodes(self, nodes: Iterable[Node], dot: Any) -> str:
        if not self.variables:
            self.variables.append(("$", dot))
        for node in nodes:
            if jump := self.node(node, dot):
                return jump
        return ""

    def node(self, node: Node, dot: Any) -> str:
        self.spend()
        if isinstance(node, Text):
            self.write(node.text)
        elif isinstance(node, Action):
            value = self.pipeline(node.pipeline, dot)
            if not node.pipeline.variables:
                self.write(to_text(value))
        elif isinstance(node, Jump):
            return node.kind
        elif isinstance(node, Call):
            self.template(node, dot)
        elif node.kind == "range":
            return self.range(node, dot)
        else:
            return self.branch(node, dot)
        return ""

    def write(self, text: str) -> None:
        self.spend(text)
        self.output.append(text)

    def branch(self, node: Branch, dot: Any) -> str:
        mark = len(self.variables)
        value = self.pipeline(node.pipeline, dot)
        if is_true(value):
            jump = self.nodes(node.body, value if node.kind == "with" else dot)
        else:
            jump = self.nodes(node.otherwise, dot)
        del self.variables[mark:]
        return jump

    def range(self, node: Branch, dot: Any) -> str:
        mark = len(self.variables)
        names = node.pipeline.variables
        value = self.pipeline(node.pipeline, dot)
        inner = len(self.variables)
        is_empty = True
        for key, item in self.items(value):
            is_empty = False
            self.spend()
            for name, bound in zip(names, (item,) if len(names) == 1 else (key, item), strict=False):
                self.assign(name, bound) if node.pipeline.assigns else self.declare(name, bound)
            jump = self.nodes(node.body, item)
            del self.variables[inner:]
            if jump == "break":
                break
        jump = self.nodes(node.otherwise, dot) if is_empty else ""
        del self.variables[mark:]
        return jump

    def items(self, value: Any) -> Iterable[tuple[Any, Any]]:
        if value is None:
            return ()
        if isinstance(value, Mapping):
            return list(value.items())
        if isinstance(value, list | tuple):
            return enumerate(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return ((number, number) for number in range(value))
        raise GoError(f"range can't iterate over {to_text(value)[:60]}")

    def template(self, node: Call, dot: Any) -> None:
        self.line = node.line
        body = self.tree.defined.get(node.name)
        if body is None:
            raise GoError(f'template "{node.name}" not defined')
        argument = self.pipeline(node.pipeline, dot) if node.pipeline else None
        self.depth += 1
        if self.depth > MAX_CALL_DEPTH:
            raise GoError(f"templates call each other more than {MAX_CALL_DEPTH} deep")
        outer, self.variables = self.variables, [("$", argument)]
        self.nodes(body, argument)
        self.variables = outer
        self.depth -= 1

    # ---- values

    def pipeline(self, pipeline: Pipeline, dot: Any) -> Any:
        self.line = pipeline.line
        value: tuple[Any, ...] = ()
        for command in pipeline.commands:
            self.spend()
            result = self.command(command, dot, value)
            self.line = pipeline.line
            value = (result,)
        for name in pipeline.variables:  # those of a range get the items later
            self.assign(name, value[0]) if pipeline.assigns else self.declare(name, value[0])
        return value[0]

    def command(self, command: Command, dot: Any, final: tuple[Any, ...]) -> Any:
        """A value, or the call of a function with its arguments and, at the end, what the pipe brings."""
        first, rest = command.operands[0], command.operands[1:]
        if isinstance(first, Function):
            return self.function(first.name, rest, dot, final)
        if rest or final:
            raise GoError("a value that is no function has arguments")
        if first == Literal(None):
            raise GoError("nil is not a command")
        return self.operand(first, dot)

    def function(self, name: str, operands: tuple[Operand, ...], dot: Any, final: tuple[Any, ...]) -> Any:
        self.steps -= len(operands)
        if name in LAZY and operands:
            value: Any = None
            for operand in operands:
                value = self.operand(operand, dot)
                if is_true(value) == (name == "or"):
                    return value
            return final[0] if final else value
        arguments = [*(self.operand(operand, dot) for operand in operands), *final]
        # Measuring or comparing a text reads it whole, which is cheaper than writing it but not free.
        self.characters -= sum(len(value) for value in arguments if isinstance(value, str)) // READ_DISCOUNT
        value = call(name, arguments, self.now)
        self.spend(value)
        return value

    def operand(self, operand: Operand, dot: Any) -> Any:
        if isinstance(operand, Dot):
            return dot
        if isinstance(operand, Literal):
            return operand.value
        if isinstance(operand, Field):
            return self.fields(dot, operand.names)
        if isinstance(operand, Variable):
            return self.fields(self.variable(operand.name), operand.fields)
        if isinstance(operand, Function):
            return self.function(operand.name, (), dot, ())
        if isinstance(operand, Chain):
            return self.fields(self.operand(operand.operand, dot), operand.names)
        return self.pipeline(operand, dot)

    def fields(self, value: Any, names: tuple[str, ...]) -> Any:
        for name in names:
            value = field_of(value, name)
        return value

    def variable(self, name: str) -> Any:
        for known, value in reversed(self.variables):
            if known == name:
                return value
        raise GoError(f'undefined variable "{name}"')

    def declare(self, name: str, value: Any) -> None:
        if len(self.variables) == MAX_VARIABLES:
            raise GoError(f"it has more than {MAX_VARIABLES} variables")
        self.variables.append((name, value))

    def assign(self, name: str, value: Any) -> None:
        for index in range(len(self.variables) - 1, -1, -1):
            if self.variables[index][0] == name:
                self.variables[index] = (name, value)
                return
        raise GoError(f'undefined variable "{name}"')
