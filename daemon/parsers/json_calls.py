"""JSONCallParser: calls of tools that a model writes as bare JSON, in the forms of Llama 3 and Mistral. Pure.

    {"name": "get_weather", "parameters": {"city": "Paris"}}
    [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]

Only an answer that begins so (white space and a mark aside) is taken for calls; one that begins with anything else is
text from its first character. JSON that turns out to be no call comes out as text. However the text is cut into
pieces, the result is the same.
"""

from __future__ import annotations

from typing import Any

import msgspec

from daemon.parsers.tool_calls import Output, ParsedCall, as_call

MARKS = ("[TOOL_CALLS]", "<|python_tag|>")
SEPARATORS = "; \t\r\n"
"""Between one call's JSON and the next."""


class JSONCallParser:
    """Feed text with `push`, end with `flush`."""

    def __init__(self) -> None:
        self._held = ""
        self._is_text = False
        self._has_calls = False
        self._scanned = 0
        """Characters of `_held` that the scan for the value's end has passed."""
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, text: str) -> Output:
        """Take a piece of text; returns what is certain by now."""
        self._held += text
        calls: list[ParsedCall] = []
        while not self._is_text and self._begins():
            end = self._find_end()
            if end is None:
                break
            found = _calls(self._held[:end])
            if found is None:
                self._become_text()
            else:
                calls += found
                self._has_calls = True
                self._held, self._scanned = self._held[end:], 0
        if not self._is_text:
            return Output("", tuple(calls))
        said, self._held = self._held, ""
        return Output(said, tuple(calls))

    def flush(self) -> Output:
        """The text has ended: what is held back is no whole call, so it is text."""
        held, self._held = self._held, ""
        return Output(held.lstrip(SEPARATORS) if self._has_calls else held, ())

    def _begins(self) -> bool:
        """Whether JSON begins here; decides for text where it cannot, and for neither while that is open."""
        if self._scanned:
            return True
        visible = self._held.lstrip(SEPARATORS) if self._has_calls else self._held.lstrip()
        for mark in MARKS:
            if visible.startswith(mark):
                visible = visible[len(mark) :].lstrip()
            elif visible and mark.startswith(visible):
                return False  # may still become a mark
        if not visible:
            return False
        if visible[0] not in "{[":
            self._become_text()
            return False
        self._scanned = len(self._held) - len(visible)
        return True

    def _become_text(self) -> None:
        self._is_text = True
        if self._has_calls:
            self._held = self._held.lstrip(SEPARATORS)

    def _find_end(self) -> int | None:
        """Where the JSON value ends, or None while it has not ended."""
        for index in range(self._scanned, len(self._held)):
            character = self._held[index]
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
        self._scanned = len(self._held)
        return None


def _calls(text: str) -> list[ParsedCall] | None:
    """The calls that a JSON value asks for, one or a list of them; None where it is something else."""
    begin = min(text.find(bracket) for bracket in "{[" if bracket in text)
    for mark in MARKS:
        position = text.find(mark)
        if 0 <= position <= begin:
            begin = position + len(mark)
    try:
        value: Any = msgspec.json.decode(text[begin:])
    except (ValueError, RecursionError):
        return None
    found = [as_call(item) for item in (value if isinstance(value, list) else [value])]
    calls = [call for call in found if call is not None]
    return calls if calls and len(calls) == len(found) else None
