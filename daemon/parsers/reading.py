"""What the parser of a whole answer gives back, and the one that asks first for thoughts and then for calls. Pure."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from daemon.parsers.thinking import ThinkingParser
from daemon.parsers.tool_calls import CallParser, Output, ParsedCall


class Reading(NamedTuple):
    """What became certain with a piece of text. The text stood before the calls, or between them."""

    thinking: str
    text: str
    calls: tuple[ParsedCall, ...]


class OutputParser(Protocol):
    """What the parsers of all families do. However a text is cut into pieces, what comes out is the same."""

    def push(self, text: str) -> Reading:
        """Take a piece of text; returns what is certain by now."""
        ...

    def flush(self) -> Reading:
        """The text has ended."""
        ...


class SplitParser:
    """Thoughts between tags at the beginning, and calls in what follows; None leaves either in the text."""

    def __init__(self, thinking: ThinkingParser | None, calls: CallParser | None) -> None:
        self._thinking = thinking
        self._calls = calls

    def push(self, text: str) -> Reading:
        """Take a piece of text; returns what is certain by now."""
        thinking = ""
        if self._thinking is not None:
            thinking, text = self._thinking.push(text)
        output = self._calls.push(text) if self._calls is not None else Output(text, ())
        return Reading(thinking, *output)

    def flush(self) -> Reading:
        """The text has ended."""
        thinking, text = self._thinking.flush() if self._thinking is not None else ("", "")
        first = self._calls.push(text) if self._calls is not None else Output(text, ())
        last = self._calls.flush() if self._calls is not None else Output("", ())
        return Reading(thinking, first.text + last.text, (*first.calls, *last.calls))


class ChainedCalls:
    """A parser of calls that reads the text which another one leaves."""

    def __init__(self, first: CallParser, second: CallParser) -> None:
        self._first = first
        self._second = second

    def push(self, text: str) -> Output:
        """Take a piece of text; returns what is certain by now."""
        output = self._first.push(text)
        return _behind(output, self._second.push(output.text))

    def flush(self) -> Output:
        """The text has ended."""
        output = self._first.flush()
        last = _behind(output, self._second.push(output.text))
        return _behind(last, self._second.flush(), said=last.text)


def _behind(first: Output, second: Output, said: str = "") -> Output:
    return Output(said + second.text, (*first.calls, *second.calls))
