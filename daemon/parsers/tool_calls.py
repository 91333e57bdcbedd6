"""What the parsers of calls have in common: what a call is, what they give back, and when JSON is a call. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from daemon.parsers.values import read_value


class ParsedCall(NamedTuple):
    """A call that the model wants made."""

    name: str
    arguments: dict[str, Any]


class Output(NamedTuple):
    """What became certain with a piece of text. The text stood before the calls, or between them."""

    text: str
    calls: tuple[ParsedCall, ...]


class CallParser(Protocol):
    """What the parsers of all forms do. However a text is cut into pieces, the concatenation of what comes out is the
    same, and of what is no call nothing gets lost."""

    def push(self, text: str) -> Output:
        """Take a piece of text; returns what is certain by now."""
        ...

    def flush(self) -> Output:
        """The text has ended."""
        ...


def parse_call(body: str) -> ParsedCall | None:
    """The call that JSON of the form {"name": ..., "arguments": {...}} asks for, or None where it is something else."""
    try:
        return as_call(read_value(body))
    except ValueError:
        return None


def as_call(value: Any) -> ParsedCall | None:
    """The call that a decoded value asks for, or None where it is something else.

    Models also write "parameters" for "arguments", leave them out where there are none, encode them twice, and wrap all
    in the {"type": "function", "function": ...} in which they read of tools.
    """
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = read_value(arguments)
        except ValueError:
            return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ParsedCall(name, arguments)


def as_calls(value: Any) -> list[ParsedCall] | None:
    """The same of one value or a list of them; all of them must be calls, and there must be one."""
    found = [as_call(item) for item in (value if isinstance(value, list) else [value])]
    calls = [call for call in found if call is not None]
    return calls if calls and len(calls) == len(found) else None


def joined(outputs: Iterable[Output]) -> Output:
    """Several outputs as one."""
    texts, calls = zip(*outputs, strict=True)
    return Output("".join(texts), tuple(call for group in calls for call in group))
