"""What a line of Markdown is, by how it begins: a heading, an item, a quotation, a rule, code, or text. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cli.flow import Span
from cli.markdown_inline import BOLD, FAINT, UNDERLINE

QUOTE = re.compile(r" {0,3}(?:> ?)+")
FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*")
HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+|$)")
ITEM = re.compile(r"([ \t]*)([-+*]|\d{1,9}[.)])(?:[ \t]+(\[[ xX]\])(?=[ \t]))?(?:[ \t]+|$)")
RULE = re.compile(r" {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})")
UNDECIDED = re.compile(
    r"[ \t]*(?:#{0,6}[ \t]*|[-+*][ \t]*(?:\[[ xX]?\]?)?|\d{1,9}(?:[.)][ \t]*(?:\[[ xX]?\]?)?)?|"
    r"`{1,2}|~{1,2}|[-*_][-*_ \t]*)"
)
"""Starts of a line that more of it could make something else than text."""
CODE_INDENT = "    "
BULLET, BOX, TICKED, BAR = "• ", "☐ ", "☑ ", "│ "
RULE_COLUMNS = 20
"""Of a rule: few enough for any terminal."""


@dataclass(frozen=True)
class Line:
    """How to show a line."""

    first: list[Span]
    """What stands before its text."""
    hanging: list[Span]
    """What stands before the text where the line is broken and goes on below."""
    text: str
    """What the line says, as far as it is here."""
    style: str = ""
    literal: bool = False
    """Whether marks in it are text."""
    item: bool = False


def quote_length(line: str) -> int:
    """Characters of the marks of a quotation."""
    found = QUOTE.match(line)
    return found.end() if found else 0


def undecided(line: str) -> bool:
    """Whether what the line is depends on what comes next."""
    return UNDECIDED.fullmatch(line, quote_length(line)) is not None


def read_line(line: str, *, in_list: bool) -> Line:
    """The line, or a start of it that is not `undecided`.

    Args:
        in_list: a line before it is an item, so that spaces before it are no sign of code.
    """
    quote = quote_length(line)
    leaf = _leaf(line[quote:], in_list)
    bars = [Span(BAR * line[:quote].count(">"), FAINT)] if quote else []
    return Line([*bars, *leaf.first], [*bars, *leaf.hanging], leaf.text, leaf.style, leaf.literal, leaf.item)


def _leaf(line: str, in_list: bool) -> Line:
    if RULE.fullmatch(line):
        return Line([Span("─" * RULE_COLUMNS, FAINT)], [], "")
    if found := HEADING.match(line):
        style = f"{BOLD};{UNDERLINE}" if len(found.group(1)) == 1 else BOLD
        return Line([], [], line[found.end() :], style)
    if found := ITEM.match(line):
        indent, marker, box = found.groups()
        shown = BULLET if marker in "-+*" else f"{marker} "
        if box:
            shown = BOX if box == "[ ]" else TICKED
        first = indent.expandtabs(4) + shown
        return Line([Span(first)], [Span(" " * len(first))], line[found.end() :], item=True)
    text = line.lstrip()
    indent = line[: len(line) - len(text)].expandtabs(4)
    literal = indent.startswith(CODE_INDENT) and not in_list
    return Line([Span(indent)], [Span(indent)], text, literal=literal)
