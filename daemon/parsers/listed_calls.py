"""ListedCallParser: calls of tools that stand one after another, behind a mark or at the beginning of an answer. Pure.

    {"name": "get_weather", "parameters": {"city": "Paris"}}                    Llama 3, perhaps behind <|python_tag|>
    [get_weather(city="Paris"), get_time()]                                     Llama 3.2 and 4
    [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]      Mistral
    [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}                              Mistral since 2025
    <|tool_call|>[{"name": "get_weather", "arguments": {}}]<|/tool_call|>       Phi-4

Each call of a list is handed out as soon as its last bracket is there. Behind a mark all forms are read, since a mark
is no text. At the beginning of an answer JSON and lists of Python are, and there only calls of tools that the request
has are calls: an answer may well be JSON. From the first thing on that is no call, text is text, up to the next mark.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from daemon.parsers.call_bodies import python_call
from daemon.parsers.partial import first_tag, held_back
from daemon.parsers.tool_calls import Output, ParsedCall, as_call
from daemon.parsers.values import Reader, ValueScanner, read_value

SEPARATORS = ";, \t\r\n"
OBJECT = re.compile(r"\{\s*[\"'}]")
LIST = re.compile(r"\[\s*[{A-Za-z_\]]")
PYTHON = re.compile(r"[A-Za-z_][\w.-]{0,127}\(")
NAMED = re.compile(r"([A-Za-z_][\w.-]{0,127})\s{0,9}(?:\[CALL_ID\][\w-]{0,64}\s{0,9})?(?:\[ARGS\]\s{0,9})?\{")
# What may still become one of these; what is longer than 300 characters is too long for all of them.
MAX_OPEN_CHARS = 300
OPEN_BRACKET = re.compile(r"[\[{]\s*")
OPEN_NAME = re.compile(r"[A-Za-z_][\w.\s\[\]-]*")


class ListedCallParser:
    """Feed text with `push`, end with `flush`.

    Args:
        marks: tags behind which calls stand.
        closers: tags that end what a mark began; they say nothing.
        is_bare: whether calls may stand at the beginning of an answer without a mark.
        names: the tools that the request has; None where it does not matter.
    """

    def __init__(
        self,
        marks: Sequence[str],
        closers: Sequence[str] = (),
        *,
        is_bare: bool,
        names: Collection[str] | None = None,
    ) -> None:
        self._marks = marks
        self._closers = closers
        self._names = names
        self._held = ""
        """All that has not been handed out: what may be the beginning of a mark, or what has begun as calls."""
        self._step: Callable[[bool], bool] = self._begin if is_bare else self._find_mark
        self._said: list[str] = []
        self._calls: list[ParsedCall] = []
        self._after_call = False
        """White space that comes next is dropped."""
        # ---- while calls are read
        self._has_calls = self._is_marked = self._in_list = False
        self._place = 0
        """What of `_held` has been understood, and is nothing but white space, marks and the brackets of lists."""
        self._text_from = 0
        """What of that is dropped if no further call follows."""
        self._read_call: Callable[[str], ParsedCall | None] | None = None
        """Reads the call that begins at `_place` once its end is there."""
        self._scanner = ValueScanner()

    def push(self, text: str) -> Output:
        """Take a piece of text; returns what is certain by now."""
        self._held += text
        return self._run(is_whole=False)

    def flush(self) -> Output:
        """The text has ended."""
        return self._run(is_whole=True)

    def _run(self, *, is_whole: bool) -> Output:
        while self._held and self._step(is_whole):
            pass
        output = Output("".join(self._said), tuple(self._calls))
        self._said, self._calls = [], []
        return output

    # ---- steps; each returns whether there is something to do for another

    def _begin(self, is_whole: bool) -> bool:
        """At the beginning of the answer: calls, or text."""
        visible = self._held.lstrip()
        if not is_whole and (not visible or any(mark.startswith(visible) for mark in self._marks)):
            return False
        if visible.startswith(("{", "[")) and not visible.startswith(tuple(self._marks)):
            self._enter_calls(len(self._held) - len(visible), is_marked=False)
        else:
            self._step = self._find_mark
        return True

    def _find_mark(self, is_whole: bool) -> bool:
        """In text, which goes up to a mark, or to what may become one, and the white space before it."""
        if self._after_call:
            self._held = self._held.lstrip()
            self._after_call = not self._held
        place, mark = first_tag(self._held, self._marks)
        num_certain = place
        if self._marks and (mark or not is_whole):
            num_certain -= 0 if mark else max(held_back(self._held, mark) for mark in self._marks)
            num_certain = len(self._held[:num_certain].rstrip())
        self._said.append(self._held[:num_certain])
        self._held = self._held[num_certain:]
        if mark:
            self._enter_calls(place - num_certain + len(mark), is_marked=True)
        return bool(mark)

    def _read_list(self, is_whole: bool) -> bool:
        """Among calls: over what stands between them to the beginning of the next one."""
        self._skip_to(len(self._held) - len(self._held[self._place :].lstrip(SEPARATORS)))
        rest = self._held[self._place : self._place + MAX_OPEN_CHARS]
        if not rest:
            return is_whole and self._leave_calls()
        for tag in (*self._marks, *self._closers):
            if rest.startswith(tag):
                return self._pass_tag(tag)
            if not is_whole and tag.startswith(rest):
                return False
        if self._in_list and rest[0] == "]":
            self._in_list = False
            self._skip_to(self._place + 1)
            return True
        if LIST.match(rest) and not self._in_list:
            self._in_list = True
            self._place += 1
            return True
        if self._find_call(rest):
            self._step = self._finish_call
            return True
        may_begin = OPEN_BRACKET.fullmatch(rest) or OPEN_NAME.fullmatch(rest)
        if may_begin and not is_whole and len(rest) < MAX_OPEN_CHARS:
            return False
        return self._leave_calls()

    def _finish_call(self, is_whole: bool) -> bool:
        """In a call: to its last bracket."""
        end = self._scanner.find_end(self._held)
        if end is None and not is_whole:
            return False
        assert self._read_call is not None
        try:
            call = self._read_call(self._held[self._place : end]) if end is not None else None
        except ValueError:
            call = None
        if call is None or not (self._is_marked or self._names is None or call.name in self._names):
            return self._leave_calls()
        self._calls.append(call)
        self._held, self._place, self._text_from = self._held[end:], 0, 0
        self._has_calls = True
        self._step = self._read_list
        return True

    # ---- what steps have in common

    def _enter_calls(self, place: int, *, is_marked: bool) -> None:
        self._place, self._text_from = place, 0
        self._has_calls, self._in_list, self._is_marked = False, False, is_marked
        self._step = self._read_list

    def _skip_to(self, place: int) -> None:
        if self._has_calls and self._text_from == self._place:
            self._text_from = place
        self._place = place

    def _pass_tag(self, tag: str) -> bool:
        self._place += len(tag)
        if tag in self._marks:
            self._is_marked, self._in_list = True, False
            return True
        if self._has_calls and self._text_from == self._place - len(tag):
            self._text_from = self._place
        return self._leave_calls()

    def _find_call(self, rest: str) -> bool:
        """Whether a call begins here; says how it will be read, and sends the scan to its bracket."""
        if found := OBJECT.match(rest):
            self._read_call, bracket = _read_object, 0
        elif (self._in_list or self._is_marked) and (found := PYTHON.match(rest)):
            self._read_call, bracket = _read_python, found.end() - 1
        elif self._is_marked and (found := NAMED.match(rest)):
            self._read_call, bracket = _read_named, found.end() - 1
        else:
            return False
        self._scanner.restart(self._place + bracket)
        return True

    def _leave_calls(self) -> bool:
        """What comes is text, as is what began as a call and is none."""
        text = self._held[self._text_from : self._place]
        self._said.append(text)
        self._held = self._held[self._place :]
        self._after_call = self._has_calls and not text
        self._step = self._find_mark
        return True


def _read_object(text: str) -> ParsedCall | None:
    return as_call(read_value(text))


def _read_python(text: str) -> ParsedCall | None:
    return python_call(Reader(text))


def _read_named(text: str) -> ParsedCall | None:
    found = NAMED.match(text)
    assert found is not None
    arguments = read_value(text[found.end() - 1 :])
    return ParsedCall(found[1], arguments) if isinstance(arguments, dict) else None
