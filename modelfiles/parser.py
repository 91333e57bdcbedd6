"""The Modelfile: how a person describes a model. Reads it and prints it, so that what is printed reads back the same.

    # a comment, only where an instruction could begin
    FROM llama3.2                          the instruction in any case, then the value to the end of the line
    PARAMETER stop "<|im_end|>"            quotes keep blanks at both ends, and may go over several lines
    SYSTEM \"\"\"
    You are terse.
    \"\"\"

The grammar is Ollama's. A value that begins with a quote goes on until a line ends with the same quotes; there are no
escapes. Lines end with LF, CR or CRLF and stay as they are inside quotes. Two differences: characters that Ollama drops
outside of triple quotes (such as the joiner inside an emoji) are kept, and a value that its quoting cannot hold (one
with three quotes at the end of a line, say) is written between two lines of eight or more quotes, which Ollama would
read as a value of nothing but quotes.

Every error begins with line and column; behind them stand Ollama's words where clients look for them. Whether values
make sense (a FROM that exists, a TEMPLATE that parses) is for those who use them to say; `Modelfile.parameters` types
the PARAMETER lines, `Modelfile.requires` reads REQUIRES.
Source: ollama/ollama parser/parser.go, docs/modelfile.md.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field

from modelfiles.parameters import ParameterError, Value, collect_parameters
from modelfiles.versions import parse_version

COMMANDS = (
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
)
ROLES = ("system", "user", "assistant")
UNKNOWN_COMMAND = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", '
    '"parameter", "message", or "requires"'
)
NO_MESSAGES = ("system", "")
UNKNOWN_ROLE = 'message role must be one of "system", "user", or "assistant"'
NO_FROM = "no FROM line"
EMPTY_FROM = "FROM names nothing; it takes a model, a file or a folder"
UNEXPECTED_EOF = "unexpected EOF"

MAX_CHARACTERS = 16 << 20
FENCE_QUOTES = 8

LINE_END = re.compile(r"\r\n|\r|\n")
GAP = re.compile(r"[ \t\r\n]*")
BLANKS = re.compile(r"[ \t]*")
WORD = re.compile(r"[A-Za-z]+")
NAME = re.compile(r"[A-Za-z0-9_]+")
FENCE = re.compile(rf'("{{{FENCE_QUOTES},}})(\r\n|\r|\n)')


class ModelfileError(ValueError):
    """Text that is no Modelfile; `line` and `column` count from 1, and are 0 for what was not read from a file."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(f"(line {line}, column {column}): {message}" if line else message)
        self.line = line
        self.column = column


@dataclass(frozen=True, init=False)
class Instruction:
    """One instruction: ("from", model), ("parameter", name, value), ("message", role, text), or (command, value)."""

    command: str
    """One of COMMANDS, in lower case."""
    args: tuple[str, ...]
    line: int = field(compare=False)
    """Where it stands, from 1; 0 for one that was not read from a file. No part of its identity."""
    column: int = field(compare=False)
    """Where its first argument stands, likewise."""

    def __init__(self, command: str, *args: str, line: int = 0, column: int = 0) -> None:
        wanted = 2 if command in ("parameter", "message") else 1
        if command not in COMMANDS or len(args) != wanted:
            raise ModelfileError(f"no instruction is written {(command, *args)!r}"[:200])
        object.__setattr__(self, "command", command)
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "line", line)
        object.__setattr__(self, "column", column)

    @property
    def value(self) -> str:
        return self.args[-1]

    def __str__(self) -> str:
        return " ".join((self.command.upper(), *self.args[:-1], _quoted(self.value)))


@dataclass(frozen=True)
class Modelfile:
    """The instructions in their order."""

    instructions: tuple[Instruction, ...]

    def __str__(self) -> str:
        return "".join(f"{instruction}\n" for instruction in self.instructions)

    def values(self, command: str) -> tuple[str, ...]:
        """The values of every instruction of this kind."""
        return tuple(instruction.value for instruction in self.instructions if instruction.command == command)

    def last(self, command: str) -> str | None:
        """The value that counts where a later instruction replaces an earlier one."""
        values = self.values(command)
        return values[-1] if values else None

    @property
    def messages(self) -> tuple[tuple[str, str], ...] | None:
        """Role and text of each MESSAGE, or None without one. An empty one of the role system takes away all that stand
        before it, those of the model that FROM names included."""
        found = [item.args for item in self.instructions if item.command == "message"]
        first = max((index + 1 for index, args in enumerate(found) if args == NO_MESSAGES), default=0)
        return tuple((role, text) for role, text in found[first:]) if found else None

    def requires(self) -> str | None:
        """The version that REQUIRES names.

        Raises:
            ModelfileError: it is none, with its place.
        """
        for item in self.instructions:
            if item.command == "requires" and item.value:
                try:
                    parse_version(item.value)
                except ValueError as error:
                    raise ModelfileError(str(error), item.line, item.column) from error
        return self.last("requires")

    def parameters(self) -> tuple[dict[str, Value], list[str]]:
        """The typed PARAMETERs, and warnings about deprecated ones.

        Raises:
            ModelfileError: a name is unknown or a value wrong, with its place.
        """
        lines = [item for item in self.instructions if item.command == "parameter"]
        for item in lines:
            try:
                collect_parameters([(item.args[0], item.args[1])])
            except ParameterError as error:
                raise ModelfileError(str(error), item.line, item.column) from error
        return collect_parameters([(item.args[0], item.args[1]) for item in lines])


def parse(source: str | bytes) -> Modelfile:
    """Read a Modelfile: text, or bytes in UTF-8 or in UTF-16 with a byte order mark.

    Raises:
        ModelfileError: with line and column.
    """
    text = _decode(source) if isinstance(source, bytes) else source
    if len(text) > MAX_CHARACTERS:
        raise ModelfileError(f"the Modelfile has {len(text)} characters; {MAX_CHARACTERS} are allowed", 1, 1)
    parser = _Parser(text.removeprefix("\ufeff"))
    instructions = parser.instructions()
    if not any(instruction.command == "from" for instruction in instructions):
        raise parser.error(NO_FROM)
    return Modelfile(tuple(instructions))


def _decode(source: bytes) -> str:
    marks = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
    mark, encoding = next((pair for pair in marks if source.startswith(pair[0])), (b"", "utf-8"))
    try:
        return source[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        *before, last = LINE_END.split(source[len(mark) :][: error.start].decode(encoding))
        line, column = len(before) + 1, len(last) + 1
        what = f"the Modelfile is not {encoding.upper()} text: {error.reason} at byte {error.start + len(mark)}"
        raise ModelfileError(what, line, column) from error


class _Parser:
    """A cursor over the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.line = 1
        """The line of `line_start`, which never lies behind the cursor."""
        self.line_start = 0

    def instructions(self) -> list[Instruction]:
        found: list[Instruction] = []
        while True:
            self.skip(GAP)
            if self.position == len(self.text):
                return found
            if self.text[self.position] == "#":
                self.position = self.line_end()
                continue
            found.append(self.instruction())

    def instruction(self) -> Instruction:
        start = self.position
        line, _ = self.place()
        command = self.skip(WORD).lower()
        if self.position == len(self.text):
            raise self.unexpected_eof(f'"{command.upper()[:32]}" has no value')
        if command not in COMMANDS or not self.at_blank():
            raise self.error(UNKNOWN_COMMAND, start)
        self.skip(BLANKS)
        _, column = self.place()
        if command == "parameter":
            name = self.word_before_value(NAME, "a parameter's name is made of letters, digits and _, then its value")
            return Instruction(command, name, self.value(), line=line, column=column)
        if command == "message":
            role = self.word_before_value(WORD, "a MESSAGE has a role and then its text", ROLES)
            return Instruction(command, role, self.value(), line=line, column=column)
        value = self.value()
        if command == "from" and not value.strip():  # as a path it would mean the folder of the Modelfile
            raise ModelfileError(EMPTY_FROM, line, column)
        return Instruction(command, value, line=line, column=column)

    def word_before_value(self, pattern: re.Pattern[str], rule: str, among: tuple[str, ...] = ()) -> str:
        start = self.position
        word = self.skip(pattern)
        if self.position == len(self.text):
            raise self.unexpected_eof(rule)
        if among and word not in among and self.at_blank():
            raise self.error(UNKNOWN_ROLE, start)
        if not word or not self.at_blank():
            raise self.error(rule)
        self.skip(BLANKS)
        return word

    def value(self) -> str:
        """The rest of the line, or the text between quotes. The cursor ends behind its last line."""
        start = self.position
        if self.text[start : start + 1] != '"':
            self.position = self.line_end()
            return self.text[start : self.position].strip()
        if fence := FENCE.match(self.text, start):
            return self.fenced(fence)
        quotes = '"""' if self.text.startswith('"""', start) else '"'
        begin, end = start + len(quotes), start
        line_start = start
        while True:
            line_end = self.line_end(line_start)
            # Blanks behind the closing quotes do not count, so remember where the last line with text ended.
            if line := self.text[line_start:line_end].rstrip():
                end = line_start + len(line)
            if end - start >= 2 * len(quotes) and self.text.endswith(quotes, start, end):
                self.position = line_end
                return self.text[begin : end - len(quotes)]
            if line_end == len(self.text):
                raise self.unexpected_eof(f"no line ends with the {quotes} that close this value")
            following = LINE_END.match(self.text, line_end)
            assert following is not None
            line_start = following.end()

    def fenced(self, fence: re.Match[str]) -> str:
        """The text between two lines of as many quotes, without the line ends next to them."""
        quotes, line_end = fence.groups()
        close = re.compile(f"{line_end}{quotes}(?=[ \t]*(\r|\n|$))")
        # The line end before an empty value is the one of the fence itself.
        end = close.search(self.text, fence.end() - len(line_end))
        if end is None:
            raise self.unexpected_eof(f"no line of {len(quotes)} quotes closes this value")
        self.position = end.end()
        return self.text[fence.end() : max(end.start(), fence.end())]

    # ---- the cursor

    def skip(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.position)
        if found is None:
            return ""
        self.position = found.end()
        return found.group()

    def at_blank(self) -> bool:
        return self.text[self.position : self.position + 1] in (" ", "\t")

    def line_end(self, position: int | None = None) -> int:
        """Where the line of a position ends: at its line break, or at the end of the text."""
        found = LINE_END.search(self.text, self.position if position is None else position)
        return len(self.text) if found is None else found.start()

    def place(self, position: int | None = None) -> tuple[int, int]:
        """Line and column, from 1, of a position that is not before the last one asked for; else of the cursor."""
        position = self.position if position is None else position
        for found in LINE_END.finditer(self.text, self.line_start, position):
            self.line += 1
            self.line_start = found.end()
        return self.line, position - self.line_start + 1

    def error(self, message: str, position: int | None = None) -> ModelfileError:
        """An error at a position, else at the cursor."""
        return ModelfileError(message, *self.place(position))

    def unexpected_eof(self, why: str) -> ModelfileError:
        """The end of the file came too early; `why` explains it at the place where the cursor stands."""
        return self.error(f"{UNEXPECTED_EOF}: {why}")


def _quoted(value: str) -> str:
    """The plainest spelling that reads back as this value."""
    # A value reads back when the same parser says so: the rules are then in one place.
    for spelling in (value, f'"{value}"', f'"""{value}"""'):
        if _reads_back(spelling, value):
            return spelling
    longest = max((len(run) for run in re.findall(r'"+', value)), default=0)
    quotes = '"' * max(FENCE_QUOTES, longest + 1)
    return f"{quotes}\n{value}\n{quotes}"


def _reads_back(spelling: str, value: str) -> bool:
    parser = _Parser(f"{spelling}\n")
    if not value and spelling == value:  # an empty value is written "" to be seen
        return False
    try:
        return parser.value() == value and parser.position == len(spelling) and spelling[0] not in " \t"
    except ModelfileError:
        return False
