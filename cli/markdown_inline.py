"""Inline: the marks within a line of Markdown (emphasis, code, links) turned into styles, while the line arrives.

What an opening mark means is known only when its closing one is there, so text is held back from an opening mark to the
closing one, the end of the line, or HOLD characters, whichever comes first; without a closing mark it is text as it was
written. So `2 * 3`, `snake_case` and `**kwargs` stay what they are. Pure.
Source: CommonMark 0.31 section 6, less what models do not write (reference links, HTML), and within one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cli.flow import Span

BOLD, ITALIC, UNDERLINE, STRUCK, CODE, FAINT = "1", "3", "4", "9", "36", "2"
HOLD = 240
"""Characters of an unfinished mark that are held back: some lines of text, a second or so of a model's time."""

SPECIAL = re.compile(r"[\\`*_~\[!<]")
ESCAPED = frozenset("*_`#~|<>[]-+!.")
"""What a backslash before it makes text. Not the round brackets, and not the backslash: models write LaTeX."""
LINK = re.compile(
    r"!?\[((?:[^\[\]\\]|\\.|\[[^\[\]]*\])*)\]"  # what it says; brackets in it one deep
    r"\(\s*<?([^()\s<>]*(?:\([^()\s]*\)[^()\s<>]*)*)>?(?:\s+\"[^\"]*\")?\s*\)"  # its address, and a title
)
ADDRESS = re.compile(r"<((?:https?://|mailto:)[^\s<>]*)>")
ADDRESS_BEGUN = re.compile(r"<(?:h|m)[^\s<>]*|<")
EMPHASIS = {
    ("*", 1): ITALIC, ("_", 1): ITALIC, ("*", 2): BOLD, ("_", 2): BOLD, ("*", 3): f"{BOLD};{ITALIC}", ("~", 2): STRUCK,
}  # fmt: skip


class Inline:
    """The state of one line.

    Args:
        style: of all its text, beside what the marks add.
        literal: there are no marks in it.
    """

    def __init__(self, style: str = "", *, literal: bool = False) -> None:
        self._style = style
        self._literal = literal
        self._held = ""
        self._before = " "
        """The character before what is held."""

    def feed(self, text: str) -> list[Span]:
        """What the next piece lets be shown."""
        self._held += text
        return list(self._take(final=False))

    def end(self) -> list[Span]:
        """The rest, at the end of the line."""
        return list(self._take(final=True))

    def _take(self, *, final: bool) -> Iterator[Span]:
        at = 0
        while at < len(self._held):
            found = None if self._literal else SPECIAL.search(self._held, at)
            if found is None or found.start() > at:
                length = (found.start() if found else len(self._held)) - at
                yield Span(self._held[at : at + length], self._style)
            else:
                # No mark looks further, so that neither the time it takes nor what is found depends on the pieces.
                ahead = self._held[at : at + HOLD]
                step = marked(ahead, self._before, self._style, final or len(self._held) - at >= HOLD)
                if step is None:
                    break
                length, spans = step
                yield from spans
            at += length
            self._before = self._held[at - 1]
        self._held = self._held[at:]


def spans_of(text: str, style: str = "") -> list[Span]:
    """A whole line at once."""
    line = Inline(style)
    return [*line.feed(text), *line.end()]


Step = tuple[int, list[Span]]
"""How many characters were read, and what they are."""


def marked(text: str, before: str, style: str, final: bool) -> Step | None:
    """What stands at the start of `text`, which begins with a special character; None while that is not known."""
    match text[0]:
        case "\\":
            return _escape(text, style, final)
        case "`":
            return _code(text, style, final)
        case "[" | "!":
            return _link(text, style, final)
        case "<":
            return _address(text, style, final)
        case _:
            return _emphasis(text, before, style, final)


def _escape(text: str, style: str, final: bool) -> Step | None:
    if len(text) == 1 and not final:
        return None
    return (2, [Span(text[1], style)]) if text[1:2] in ESCAPED and len(text) > 1 else (1, [Span(text[0], style)])


def _code(text: str, style: str, final: bool) -> Step | None:
    ticks = re.match("`+", text)
    assert ticks is not None
    closing = re.compile(rf"(?<!`)`{{{ticks.end()}}}(?!`)").search(text, ticks.end())
    if closing is None or (closing.end() == len(text) and not final):  # one more tick would make it another
        return (ticks.end(), [Span(ticks.group(), style)]) if final else None
    code = text[ticks.end() : closing.start()]
    if code.startswith(" ") and code.endswith(" ") and code.strip():
        code = code[1:-1]
    return closing.end(), [Span(code, _with(style, CODE))]


def _link(text: str, style: str, final: bool) -> Step | None:
    if found := LINK.match(text):
        label, address = found.groups()
        spans = spans_of(label, _with(style, UNDERLINE))
        if address and address != label:
            spans += [Span(f" ({address})", _with(style, FAINT))]
        return found.end(), spans
    return None if not final and _link_begun(text) else (1, [Span(text[0], style)])


def _link_begun(text: str) -> bool:
    """Whether the start of a link is all that `text` is. By counting: an expression for it takes exponential time."""
    at = _closed(text, 1 if text[0] == "!" else 0, "[]")
    return at is None or (at > 0 and text[at:] in ("", "(")) or (at > 0 and _closed(text, at, "()") is None)


def _closed(text: str, start: int, pair: str) -> int | None:
    """Behind the bracket that closes the one at `start`; None where none does yet, 0 where none opens there."""
    depth, at = 0, start
    while at < len(text):
        character = text[at]
        depth += (character == pair[0]) - (character == pair[1])
        if depth == 0:
            return at + 1 if at > start else 0
        at += 2 if character == "\\" else 1
    return None


def _address(text: str, style: str, final: bool) -> Step | None:
    if found := ADDRESS.match(text):
        return found.end(), [Span(found.group(1), _with(style, UNDERLINE))]
    if not final and ADDRESS_BEGUN.fullmatch(text):
        return None
    return 1, [Span(text[0], style)]


def _emphasis(text: str, before: str, style: str, final: bool) -> Step | None:
    mark = text[0]
    length = len(text) - len(text.lstrip(mark))
    if length == len(text) and not final:
        return None
    literal = length, [Span(text[:length], style)]
    added = EMPHASIS.get((mark, length))
    if added is None or not _opens(mark, before, text[length : length + 1]):
        return literal
    closing = _closing(text, mark, length, final)
    if closing is None:
        return literal if final else None
    return closing + length, spans_of(text[length:closing], _with(style, added))


def _opens(mark: str, before: str, after: str) -> bool:
    """Whether a run of marks between two characters can begin something: CommonMark's left-flanking."""
    if not after or after.isspace():
        return False
    if mark == "_" and before.isalnum():
        return False
    return after.isalnum() or not before.isalnum()


def _closing(text: str, mark: str, length: int, final: bool) -> int | None:
    """Where the run that closes the first one begins. Code and escaped characters are passed over.

    Runs that open something else on the way are closed first, so that the next closing run is not always ours. One pass
    with a stack: looking for each one's end by itself takes exponential time.
    """
    open_runs, at = [length], length
    while at < len(text):
        if text[at] == "\\":
            at += 2
        elif text[at] == "`" and (step := _code(text[at:], "", final=False)):
            at += step[0]
        elif text[at] != mark:
            at += 1
        else:
            end = at + len(text[at:]) - len(text[at:].lstrip(mark))
            if end == len(text) and not final:
                return None
            if _closes(mark, text[at - 1], text[end : end + 1]):
                _close(open_runs, end - at)
            elif _opens(mark, text[at - 1], text[end : end + 1]):
                open_runs.append(end - at)
            if not open_runs:
                return end - length
            at = end
    return None


def _closes(mark: str, before: str, after: str) -> bool:
    """Whether a run of marks between two characters can end something."""
    return not before.isspace() and not (mark == "_" and after.isalnum())


def _close(open_runs: list[int], length: int) -> None:
    """Take from the stack what a run of this length closes: three marks close one and two, as in `*one **two***`."""
    while length and length in (3, *open_runs) and open_runs:
        index = next((i for i in reversed(range(len(open_runs))) if open_runs[i] <= length), None)
        if index is None:
            return
        length -= open_runs[index]
        del open_runs[index:]


def _with(style: str, added: str) -> str:
    return f"{style};{added}" if style else added
