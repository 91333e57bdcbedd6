"""ToolCallParser: takes the calls of tools out of a model's text, in the form of Hermes and Qwen. Pure.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

A call is handed out as soon as its closing tag is there; a text that ends inside a call still yields it if the JSON is
whole. What stands between the tags and is no call comes out as the text that it is: nothing that the model said gets
lost. White space around a call is dropped. However the text is cut into pieces, the result is the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import msgspec

from daemon.parsers.partial import held_back

OPEN_TAG = "<tool_call>"
CLOSE_TAG = "</tool_call>"


class ParsedCall(NamedTuple):
    """A call that the model wants made."""

    name: str
    arguments: dict[str, Any]


class Output(NamedTuple):
    """What became certain with a piece of text. The text stood before the calls, or between them."""

    text: str
    calls: tuple[ParsedCall, ...]


class CallParser(Protocol):
    """What the parsers of all forms do."""

    def push(self, text: str) -> Output:
        """Take a piece of text; returns what is certain by now."""
        ...

    def flush(self) -> Output:
        """The text has ended."""
        ...


class ToolCallParser:
    """Feed text with `push`, end with `flush`."""

    def __init__(self, *, open_tag: str = OPEN_TAG, close_tag: str = CLOSE_TAG) -> None:
        self._open_tag = open_tag
        self._close_tag = close_tag
        self._held = ""
        self._inside = False
        self._after_call = False

    def push(self, text: str) -> Output:
        """Take a piece of text; returns what is certain by now."""
        self._held += text
        said: list[str] = []
        calls: list[ParsedCall] = []
        while True:
            if not self._inside:
                said.append(self._take_text())
            if not self._inside or self._close_tag not in self._held:
                return Output("".join(said), tuple(calls))
            body, _, self._held = self._held.partition(self._close_tag)
            self._inside = False
            call = parse_call(body)
            if call is None:
                said.append(f"{self._open_tag}{body}{self._close_tag}")
            else:
                calls.append(call)
            self._after_call = call is not None

    def flush(self) -> Output:
        """The text has ended: an open call is one if its JSON is whole, else it is text."""
        held, self._held = self._held, ""
        if not self._inside:
            return Output(held.lstrip() if self._after_call else held, ())
        self._inside = False
        call = parse_call(held)
        return Output("", (call,)) if call is not None else Output(self._open_tag + held, ())

    def _take_text(self) -> str:
        """The text up to an opening tag, or up to what may become one together with the white space before it."""
        if self._after_call:
            self._held = self._held.lstrip()
            self._after_call = not self._held
        text, tag, rest = self._held.partition(self._open_tag)
        if tag:
            self._held = rest
            self._inside = True
            return text.rstrip()
        certain = self._held[: len(self._held) - held_back(self._held, self._open_tag)].rstrip()
        self._held = self._held[len(certain) :]
        return certain


def parse_call(body: str) -> ParsedCall | None:
    """The call that JSON of the form {"name": ..., "arguments": {...}} asks for, or None where it is something else.

    Models also write "parameters" for "arguments", leave them out where there are none, and encode them twice.
    """
    try:
        return as_call(msgspec.json.decode(body))
    except (ValueError, RecursionError):
        return None


def as_call(value: Any) -> ParsedCall | None:
    """The call that a decoded JSON value asks for, or None where it is something else."""
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ParsedCall(name, arguments)
