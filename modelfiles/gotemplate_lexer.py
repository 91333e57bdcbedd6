"""Go templates, first step: text and actions, and the tokens inside an action.

Source: Go's text/template/parse/lex.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from modelfiles.prompt_types import TemplateError

SPACES = " \t\r\n"
LEFT, RIGHT = "{{", "}}"
TERMINATORS = SPACES + ".,|:)("
"""What may follow a name; "}}" may, too."""

TOKENS = re.compile(
    r"""
      (?P<space>   [ \t\r\n]+ )
    | (?P<string>  "(?:[^"\\\n]|\\.)*" | `[^`]*` )
    | (?P<char>    '(?:[^'\\\n]|\\.)+' )
    | (?P<number>  [+-]? (?: 0[xX][0-9a-fA-F_]+ | 0[bB][01_]+ | 0[oO][0-7_]+
                         | (?: [0-9][0-9_]* (?:\.[0-9_]*)? | \.[0-9][0-9_]* ) (?: [eE][+-]?[0-9]+ )? ) )
    | (?P<field>   \.[^\W\d]\w* )
    | (?P<variable>\$\w* )
    | (?P<word>    [^\W\d]\w* )
    | (?P<symbol>  := | [=|(),.] )
    """,
    re.VERBOSE,
)
KEYWORDS = {
    "block", "break", "continue", "define", "else", "end", "if", "range", "nil", "template", "with"
}  # fmt: skip
NAMES = ("field", "variable", "word")


@dataclass(frozen=True)
class Token:
    """`kind` is "text", a group of TOKENS, "keyword", or "end of action"."""

    kind: str
    text: str
    line: int


def syntax_error(line: int, message: str) -> TemplateError:
    return TemplateError(f"the template does not parse (line {line}): {message}")


def tokenize(text: str) -> Iterator[list[Token]]:
    """Each text as a list of one token, each action as the list of its tokens and "end of action"."""
    position, line, trim_next = 0, 1, False
    while True:
        left = text.find(LEFT, position)
        piece = text[position:] if left < 0 else text[position:left]
        trimmed = piece.lstrip(SPACES) if trim_next else piece
        inside = left + len(LEFT)
        trims = left >= 0 and text[inside : inside + 1] == "-" and text[inside + 1 : inside + 2] in tuple(SPACES)
        if trims:
            trimmed = trimmed.rstrip(SPACES)
        if trimmed:
            yield [Token("text", trimmed, line)]
        if left < 0:
            return
        line += piece.count("\n")
        inside += 2 if trims else 0
        if text.startswith("/*", inside):
            position, trim_next = _comment(text, inside, line)
        else:
            tokens, position, trim_next = _action(text, inside, line)
            yield tokens
        line += text.count("\n", left, position)


def _comment(text: str, start: int, line: int) -> tuple[int, bool]:
    end = text.find("*/", start)
    if end < 0:
        raise syntax_error(line, "a comment is not closed")
    end += 2
    trims = text[end : end + 1] in tuple(SPACES) and text.startswith("-" + RIGHT, end + 1)
    end += 2 if trims else 0
    if not text.startswith(RIGHT, end):
        raise syntax_error(line, "a comment ends before }}")
    return end + len(RIGHT), trims


def _action(text: str, position: int, line: int) -> tuple[list[Token], int, bool]:
    """The tokens of an action, where the text behind it begins, and whether that text is trimmed."""
    tokens: list[Token] = []
    depth = 0
    while True:
        if text[position : position + 1] in tuple(SPACES) and text.startswith("-" + RIGHT, position + 1) and not depth:
            return [*tokens, Token("end of action", "", line)], position + 2 + len(RIGHT), True
        if text.startswith(RIGHT, position) and not depth:
            return [*tokens, Token("end of action", "", line)], position + len(RIGHT), False
        found = TOKENS.match(text, position)
        if found is None:
            what = repr(text[position]) if position < len(text) else "the end of the text"
            raise syntax_error(line, f"unexpected {what} in an action")
        kind, piece = str(found.lastgroup), found.group()
        position = found.end()
        following = text[position : position + 1]
        if kind in NAMES and following not in TERMINATORS and not text.startswith(RIGHT, position):
            raise syntax_error(line, f"unexpected {following!r} after {piece!r}")
        if kind == "word" and piece in KEYWORDS:
            kind = "keyword"
        depth += {"(": 1, ")": -1}.get(piece, 0) if kind == "symbol" else 0
        if depth < 0:
            raise syntax_error(line, "a right parenthesis that nothing opened")
        tokens.append(Token(kind, piece, line))
        line += piece.count("\n")
