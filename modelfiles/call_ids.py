"""Ids of tool calls for templates that demand a form of them. Pure.

Mistral's chat templates refuse a conversation whose ids are not of nine letters and digits, and no client has such ids
by itself: they are made of those that it has, or of the calls' places where it has none. The same id always becomes the
same, so a conversation keeps its prefix.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from modelfiles.prompt_types import Message

DEMAND = re.compile(r"tool_call_id['\"]?\]?\s*\|\s*length\s*!=\s*9")
LENGTH = 9
FITTING = re.compile(r"[A-Za-z0-9]{9}")


def with_fitting_ids(messages: Sequence[Message], template: str) -> Sequence[Message]:
    """The messages with ids that the template takes; unchanged where it demands no form."""
    if not any(message.tool_calls or message.role == "tool" for message in messages):
        return messages
    return list(_fitted(messages)) if DEMAND.search(template) else messages


def _fitted(messages: Sequence[Message]) -> Iterator[Message]:
    num_calls = 0
    open_ids: list[str] = []
    """Of calls that have no result yet, in their order: a result that names none answers the first."""
    for message in messages:
        if message.tool_calls:
            calls = []
            for call in message.tool_calls:
                num_calls += 1
                calls.append(replace(call, id=_fit(call.id) if call.id else f"{num_calls:0{LENGTH}}"))
            open_ids = [call.id for call in calls]
            yield replace(message, tool_calls=tuple(calls))
        elif message.role == "tool":
            fitting = _fit(message.tool_call_id) if message.tool_call_id else next(iter(open_ids), "0" * LENGTH)
            if fitting in open_ids:
                open_ids.remove(fitting)
            yield replace(message, tool_call_id=fitting)
        else:
            yield message


def _fit(call_id: str) -> str:
    return call_id if FITTING.fullmatch(call_id) else hashlib.sha256(call_id.encode()).hexdigest()[:LENGTH]
