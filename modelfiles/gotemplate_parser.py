"""Go templates, second step: tokens to a syntax tree.

Also checks what Go checks before running: functions and variables exist, break stands in a range, blocks are closed.
Source: Go's text/template/parse/parse.go.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection

from modelfiles.gotemplate_lexer import Token, syntax_error, tokenize
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
)
from modelfiles.prompt_types import TemplateError

MAX_TEMPLATE = 1 << 17
MAX_DEPTH = 64
ESCAPE = re.compile(r"\\([abfnrtv\\'\"]|[0-7]{3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})")
BRANCHES = ("if", "with", "range")


def parse_tree(text: str, functions: Collection[str]) -> Tree:
    """Parse a template.

    Args:
        functions: the names that may be called.

    Raises:
        TemplateError: with the line of what is wrong.
    """
    if len(text) > MAX_TEMPLATE:
        raise TemplateError(f"the template has {len(text)} characters; {MAX_TEMPLATE} are allowed")
    return _Parser(text, functions).tree()


class _Parser:
    """Reads actions one by one; within an action, tokens one by one."""

    def __init__(self, text: str, functions: Collection[str]) -> None:
        self.pieces = list(tokenize(text))
        self.next_piece = 0
        self.functions = functions
        self.tokens: list[Token] = []
        self.position = 0
        self.variables = ["$"]
        self.num_ranges = 0
        self.depth = 0
        self.defined: dict[str, tuple[Node, ...]] = {}

    def tree(self) -> Tree:
        body, ending = self.nodes(top=True)
        if ending is not None:
            raise self.error(f"unexpected {{{{{ending}}}}}")
        return Tree(body, self.defined)

    # ---- lists of nodes

    def nodes(self, *, top: bool = False) -> tuple[tuple[Node, ...], str | None]:
        """Nodes up to the `end` or `else` that belongs to the caller, whose tokens stand behind that word."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"blocks are nested deeper than {MAX_DEPTH}")
        found: list[Node] = []
        while self.next_piece < len(self.pieces):
            self.tokens, self.position = self.pieces[self.next_piece], 0
            self.next_piece += 1
            if self.tokens[0].kind == "text":
                found.append(Text(self.tokens[0].text))
                continue
            self.skip_space()
            token = self.peek()
            if token.kind == "keyword" and token.text in ("end", "else"):
                self.advance()
                self.depth -= 1
                return tuple(found), token.text
            found += self.action(top)
        self.depth -= 1
        if not top:
            raise self.error("the text ends before {{end}}")
        return tuple(found), None

    def action(self, top: bool) -> list[Node]:
        token = self.peek()
        if token.kind != "keyword" or token.text == "nil":
            pipeline = self.pipeline("command")
            self.expect_end("command")
            return [Action(pipeline)]
        self.advance()
        if token.text in BRANCHES:
            return [self.branch(token.text)]
        if token.text in ("break", "continue"):
            self.expect_end(token.text)
            if not self.num_ranges:
                raise self.error(f"{{{{{token.text}}}}} outside of {{{{range}}}}")
            return [Jump(token.text)]
        if token.text == "template":
            name = self.name("template")
            self.skip_space()
            pipeline_or_none = None if self.at_end() else self.pipeline("template")
            self.expect_end("template")
            return [Call(token.line, name, pipeline_or_none)]
        if token.text == "block":
            return [self.block(token.line)]
        if not top or token.text != "define":
            raise self.error(f"unexpected {{{{{token.text}}}}}")
        self.define()
        return []

    def branch(self, kind: str) -> Branch:
        num_variables = len(self.variables)
        pipeline = self.pipeline(kind)
        self.expect_end(kind)
        self.num_ranges += kind == "range"
        body, ending = self.nodes()
        self.num_ranges -= kind == "range"
        otherwise: tuple[Node, ...] = ()
        if ending == "else":
            self.skip_space()
            chained = self.peek()
            if kind != "range" and chained.kind == "keyword" and chained.text in ("if", "with"):
                self.advance()
                otherwise = (self.branch(chained.text),)  # its {{end}} ends this branch, too
                del self.variables[num_variables:]
                return Branch(kind, pipeline, body, otherwise)
            self.expect_end("else")
            otherwise, ending = self.nodes()
            if ending == "else":
                raise self.error("a second {{else}}")
        self.expect_end("end")
        del self.variables[num_variables:]
        return Branch(kind, pipeline, body, otherwise)

    def block(self, line: int) -> Call:
        name = self.name("block")
        pipeline = self.pipeline("block")
        self.expect_end("block")
        self.definition(name)
        return Call(line, name, pipeline)

    def define(self) -> None:
        name = self.name("define")
        self.expect_end("define")
        self.definition(name)

    def definition(self, name: str) -> None:
        """The body of a named template, which sees no variables from outside."""
        outer, self.variables = self.variables, ["$"]
        outer_ranges, self.num_ranges = self.num_ranges, 0
        body, ending = self.nodes()
        if ending != "end":
            raise self.error("unexpected {{else}} in a definition")
        self.expect_end("end")
        self.variables, self.num_ranges = outer, outer_ranges
        if any(not isinstance(node, Text) or node.text.strip() for node in body) or name not in self.defined:
            self.defined[name] = body  # as in Go, an empty definition does not replace one that is there

    def name(self, what: str) -> str:
        self.skip_space()
        token = self.advance()
        if token.kind != "string":
            raise self.error(f"{{{{{what}}}}} without a name in quotes")
        return self.string(token)

    # ---- pipelines

    def pipeline(self, what: str) -> Pipeline:
        self.skip_space()
        line = self.peek().line
        variables, assigns = self.declaration(what)
        commands = [self.command(what)]
        while self.peek().text == "|" and self.peek().kind == "symbol":
            self.advance()
            commands.append(self.command(what))
            if isinstance(commands[-1].operands[0], Dot | Literal):
                raise self.error(f"the value in stage {len(commands)} of a pipeline is no function")
        if not assigns:
            self.variables += variables
        return Pipeline(line, tuple(commands), variables, assigns)

    def declaration(self, what: str) -> tuple[tuple[str, ...], bool]:
        """`$x :=`, `$x =`, or in a range `$i, $x :=`; nothing otherwise."""
        start, names = self.position, []
        while self.peek().kind == "variable":
            names.append(self.advance().text)
            self.skip_space()
            token = self.peek()
            if token.kind == "symbol" and token.text in (":=", "="):
                self.advance()
                if token.text == "=":
                    for name in names:
                        self.check_variable(name)
                return tuple(names), token.text == "="
            if token.text != "," or what != "range" or len(names) == 2:
                break
            self.advance()
            self.skip_space()
        self.position = start
        return (), False

    def command(self, what: str) -> Command:
        operands: list[Operand] = []
        self.skip_space()
        while not self.at_end() and self.peek().text not in ("|", ")"):
            operands.append(self.operand())
            token = self.peek()
            if token.kind != "space" and not self.at_end() and token.text not in ("|", ")"):
                raise self.error(f"unexpected {token.text!r} in an operand")
            self.skip_space()
        if not operands:
            raise self.error(f"a value is missing for {what}")
        return Command(tuple(operands))

    def operand(self) -> Operand:
        term = self.term()
        names: list[str] = []
        while self.peek().kind == "field":
            names.append(self.advance().text[1:])
        if not names:
            return term
        if isinstance(term, Field):
            return Field((*term.names, *names))
        if isinstance(term, Variable):
            return Variable(term.name, tuple(names))
        if isinstance(term, Literal | Dot | Function):
            raise self.error(f"unexpected .{names[0]} after a value that has no fields")
        return Chain(term, tuple(names))

    def term(self) -> Operand:
        token = self.advance()
        if token.kind == "field":
            return Field((token.text[1:],))
        if token.kind == "variable":
            self.check_variable(token.text)
            return Variable(token.text, ())
        if token.kind == "string":
            return Literal(self.string(token))
        if token.kind == "char":
            return Literal(ord(self.character(token)))
        if token.kind == "number":
            return Literal(self.number(token))
        if token.text == "nil" and token.kind == "keyword":
            return Literal(None)
        if token.kind == "word":
            if token.text in ("true", "false"):
                return Literal(token.text == "true")
            if token.text not in self.functions:
                raise self.error(f'function "{token.text}" not defined')
            return Function(token.text)
        if token.text == ".":
            return Dot()
        if token.text == "(":
            return self.parenthesis()
        raise self.error(f"unexpected {token.text!r}")

    def parenthesis(self) -> Pipeline:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"parentheses are nested deeper than {MAX_DEPTH}")
        pipeline = self.pipeline("parentheses")
        self.depth -= 1
        if self.advance().text != ")":
            raise self.error("a parenthesis is not closed")
        return pipeline

    # ---- tokens

    def peek(self) -> Token:
        return self.tokens[self.position]

    def advance(self) -> Token:
        token = self.tokens[self.position]
        if token.kind != "end of action":
            self.position += 1
        return token

    def skip_space(self) -> None:
        while self.peek().kind == "space":
            self.position += 1

    def at_end(self) -> bool:
        return self.peek().kind == "end of action"

    def expect_end(self, what: str) -> None:
        self.skip_space()
        if not self.at_end():
            raise self.error(f"unexpected {self.peek().text!r} in {what}")

    def check_variable(self, name: str) -> None:
        if name not in self.variables:
            raise self.error(f'undefined variable "{name}"')

    def error(self, message: str) -> TemplateError:
        line = self.tokens[min(self.position, len(self.tokens) - 1)].line if self.tokens else 1
        return syntax_error(line, message)

    def string(self, token: Token) -> str:
        if token.text[0] == "`":
            return token.text[1:-1].replace("\r", "")  # Go drops carriage returns in raw strings
        return self.unescape(token.text[1:-1])

    def character(self, token: Token) -> str:
        character = self.unescape(token.text[1:-1])
        if len(character) != 1:
            raise self.error(f"{token.text} is no single character")
        return character

    def unescape(self, text: str) -> str:
        if "\\" in ESCAPE.sub("", text):
            raise self.error(f"unknown escape in {text!r}")
        try:
            return ESCAPE.sub(lambda found: str(ast.literal_eval(f'"{found.group()}"')), text)
        except (ValueError, SyntaxError) as error:
            raise self.error(f"unknown escape in {text!r}") from error

    def number(self, token: Token) -> int | float:
        text = token.text.replace("_", "")
        try:
            return int(text, 0) if re.fullmatch(r"[+-]?(0[xXbBoO].*|[0-9]{1,19})", text) else float(text)
        except ValueError:
            try:
                return int(text, 8)  # "017" is octal in Go
            except ValueError as error:
                raise self.error(f"{token.text} is no number") from error
