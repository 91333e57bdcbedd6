"""TaggedCallParser: calls of tools between an opening and a closing tag, one call a pair. Pure.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

A call is handed out as soon as its closing tag is there; where a text ends inside a call, it is one if it is whole.
White space around calls is dropped. What stands between the tags and is no call comes out as the text that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from daemon.parsers.families import Tags
from daemon.parsers.partial import first_tag, held_back
from daemon.parsers.tool_calls import Output, ParsedCall

ReadBody = Callable[[str], list[ParsedCall] | None]
"""The calls that the text between two tags asks for; None where it is something else."""
IsOpen = Callable[[str], bool]
"""Whether a body goes on behind the closing tag, because that stands inside of an argument."""

MAX_CLOSES = 16
"""Closing tags of which that is asked; the next one closes, whatever stands before it."""


class TaggedCallParser:
    """Feed text with `push`, end with `flush`.

    Args:
        tags: pairs that may stand around a call; none begins as another does.
        around: tags around all calls of an answer, which are dropped.
    """

    def __init__(
        self,
        tags: Sequence[Tags],
        read_body: ReadBody,
        is_open: IsOpen = lambda body: False,
        around: Sequence[str] = (),
    ) -> None:
        self._closing = {pair.open: pair.close for pair in tags}
        self._around = around
        self._tags = (*self._closing, *around)
        self._read_body = read_body
        self._is_open = is_open
        self._held = ""
        """White space and what may be the beginning of a tag, or a call and the white space before it."""
        self._body = 0
        """Where the body of a call begins in `_held`; 0 outside of calls."""
        self._close = ""
        self._num_closes = 0
        self._searched = 0
        """No further closing tag begins before this place."""
        self._after_call = False
        """White space that comes next is dropped."""

    def push(self, text: str) -> Output:
        """Take a piece of text; returns what is certain by now."""
        return self._read(text, is_whole=False)

    def flush(self) -> Output:
        """The text has ended."""
        return self._read("", is_whole=True)

    def _read(self, text: str, *, is_whole: bool) -> Output:
        self._held += text
        said: list[str] = []
        calls: list[ParsedCall] = []
        while self._body or self._find_open(said, is_whole=is_whole):
            end = self._find_close()
            if end is None and not is_whole:
                break
            found, num_taken = self._take(end)
            if found is None:
                said.append(self._held[:num_taken])
            else:
                calls += found
            self._after_call = found is not None
            self._held, self._body = self._held[num_taken:], 0
        return Output("".join(said), tuple(calls))

    def _find_open(self, said: list[str], *, is_whole: bool) -> bool:
        """Let text out up to an opening tag, or up to what may become a tag, and the white space before it."""
        while True:
            if self._after_call:
                self._held = self._held.lstrip()
                self._after_call = not self._held
            place, tag = first_tag(self._held, self._tags)
            num_certain = place if tag or is_whole else place - max(held_back(self._held, tag) for tag in self._tags)
            if tag or not is_whole:
                num_certain = len(self._held[:num_certain].rstrip())
            said.append(self._held[:num_certain])
            if tag not in self._around:
                break
            self._held, self._after_call = self._held[place + len(tag) :], True
        self._held = self._held[num_certain:]
        if tag:
            self._body = self._searched = place - num_certain + len(tag)
            self._close, self._num_closes = self._closing[tag], 0
        return bool(tag)

    def _find_close(self) -> int | None:
        """Where the closing tag of the body begins."""
        while (place := self._held.find(self._close, self._searched)) >= 0:
            self._num_closes += 1
            if self._num_closes > MAX_CLOSES or not self._is_open(self._held[self._body : place]):
                return place
            self._searched = place + len(self._close)
        self._searched = max(self._searched, len(self._held) - len(self._close) + 1)
        return None

    def _take(self, end: int | None) -> tuple[list[ParsedCall] | None, int]:
        """The calls of the body, and how much of what is held is done with them.

        Args:
            end: where the closing tag begins; None where the text ended without one.
        """
        if end is not None:
            return self._read_body(self._held[self._body : end]), end + len(self._close)
        if calls := self._read_body(self._held[self._body :]):
            return calls, len(self._held)
        # What was taken for the inside of an argument was none.
        first = self._held.find(self._close, self._body)
        return None, len(self._held) if first < 0 else first + len(self._close)
