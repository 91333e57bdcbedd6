"""Go templates: the syntax tree. Plain values; modelfiles.gotemplate_parser makes it, modelfiles.gotemplate runs it.

Source: Go's text/template/parse/node.go.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Dot:
    """`.`"""


@dataclass(frozen=True)
class Literal:
    """A string, a number, true, false or nil."""

    value: str | int | float | bool | None


@dataclass(frozen=True)
class Field:
    """`.A.B`: fields of the dot."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Variable:
    """`$x.A.B`; the name has its dollar."""

    name: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """The name of a function."""

    name: str


@dataclass(frozen=True)
class Chain:
    """`(pipeline).A.B`."""

    operand: Operand
    names: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """Operands beside each other: a value, or a function and its arguments."""

    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Pipeline:
    """Commands joined by |, and the variables that get the result."""

    line: int
    commands: tuple[Command, ...]
    variables: tuple[str, ...] = ()
    assigns: bool = False
    """`=` instead of `:=`."""


Operand = Dot | Literal | Field | Variable | Function | Chain | Pipeline


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Action:
    """`{{ pipeline }}`."""

    pipeline: Pipeline


@dataclass(frozen=True)
class Branch:
    """`{{ if }}`, `{{ with }}` or `{{ range }}`."""

    kind: str
    pipeline: Pipeline
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Jump:
    """`{{ break }}` or `{{ continue }}`."""

    kind: str


@dataclass(frozen=True)
class Call:
    """`{{ template "name" pipeline }}`."""

    line: int
    name: str
    pipeline: Pipeline | None


Node = Text | Action | Branch | Jump | Call


@dataclass(frozen=True)
class Tree:
    """A parsed template: its body, and those that it defines."""

    body: tuple[Node, ...]
    defined: dict[str, tuple[Node, ...]] = field(default_factory=dict)


def identifiers(nodes: tuple[Node, ...]) -> set[str]:
    """The names of all fields and variables, as Ollama collects them: also those under conditions never met."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, Action):
            names |= _in_pipeline(node.pipeline)
        elif isinstance(node, Branch):
            names |= _in_pipeline(node.pipeline) | identifiers(node.body) | identifiers(node.otherwise)
        elif isinstance(node, Call) and node.pipeline:
            names |= _in_pipeline(node.pipeline)
    return names


def _in_pipeline(pipeline: Pipeline) -> set[str]:
    names: set[str] = set()
    for command in pipeline.commands:
        for operand in command.operands:
            names |= _in_operand(operand)
    return names


def _in_operand(operand: Operand) -> set[str]:
    if isinstance(operand, Field):
        return set(operand.names)
    if isinstance(operand, Variable):
        return {operand.name, *operand.fields}
    if isinstance(operand, Chain):
        return set(operand.names) | _in_operand(operand.operand)
    return _in_pipeline(operand) if isinstance(operand, Pipeline) else set()


def cut_after_field(nodes: tuple[Node, ...], name: str) -> tuple[Node, ...]:
    """The tree without everything behind the first place that prints a field of this name."""
    return _cut(nodes, name)[0]


def _cut(nodes: tuple[Node, ...], name: str) -> tuple[tuple[Node, ...], bool]:
    """The nodes that stay, and whether the field was met among them. Conditions do not count, as in Ollama."""
    kept: list[Node] = []
    for node in nodes:
        if isinstance(node, Branch):
            body, found = _cut(node.body, name)
            otherwise, found_there = ((), False) if found else _cut(node.otherwise, name)
            kept.append(Branch(node.kind, node.pipeline, body, otherwise))
            if found or found_there:
                return tuple(kept), True
        elif isinstance(node, Action) and _prints(node.pipeline, name):
            return (*kept, node), True
        else:
            kept.append(node)
    return tuple(kept), False


def _prints(pipeline: Pipeline, name: str) -> bool:
    """Whether the dot's field of this name is among the operands; `$.name` does not count in Ollama, either."""
    operands = [operand for command in pipeline.commands for operand in command.operands]
    return any(
        (isinstance(operand, Field) and name in operand.names)
        or (isinstance(operand, Pipeline) and _prints(operand, name))
        for operand in operands
    )
