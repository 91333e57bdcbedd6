"""Conversations as the chat template writes them, cut into segments that training weighs differently.

`render` does in plain Python what registry/builtin/tale/chat_template.jinja does (a test holds the two together), because
the generator renders thousands of conversations a second. The text is ChatML; an assistant's turn starts with a block of
thoughts, which is empty in old turns and when thinking is off, so that a conversation without thinking is rendered exactly
as it was generated and its prefix can be reused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

Json = dict[str, Any]

NO_THOUGHT = "<think>\n\n</think>\n\n"
END_OF_TEXT = "<|endoftext|>"
TOOL_INTRODUCTION = (
    "# Tools\n\nYou may call one or more of these functions to answer the user. "
    "Their signatures are given within <tools></tools>, one JSON object a line:\n<tools>"
)
TOOL_INSTRUCTION = (
    "\n</tools>\n\nTo call a function, answer with its name and arguments as JSON within <tool_call></tool_call>:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <arguments-object>}\n</tool_call>'
)


class Segment(NamedTuple):
    """A piece of text and its weight in the loss, in tenths; 0 is context only."""

    text: str
    weight: int


class Turn(NamedTuple):
    """One message. `weight` is that of the assistant's tokens in the loss."""

    role: str
    content: str
    thought: str = ""
    calls: tuple[Json, ...] = ()
    weight: int = 10


def tool_json(value: Any) -> str:
    """JSON as chat templates' `tojson` writes it."""
    return json.dumps(value, ensure_ascii=False)


def render(turns: Sequence[Turn], tools: Sequence[Json] = ()) -> list[Segment]:
    """Write out a conversation; thoughts are kept only after the last question of the user."""
    segments: list[Segment] = []
    rest = list(turns)
    if tools:
        system = rest.pop(0).content + "\n\n" if rest and rest[0].role == "system" else ""
        listed = "".join("\n" + tool_json(tool) for tool in tools)
        segments.append(
            Segment(f"<|im_start|>system\n{system}{TOOL_INTRODUCTION}{listed}{TOOL_INSTRUCTION}<|im_end|>\n", 0)
        )
    last_question = max((i for i, turn in enumerate(rest) if turn.role == "user"), default=-1)
    for index, turn in enumerate(rest):
        if turn.role == "assistant":
            segments.append(Segment("<|im_start|>assistant\n", 0))
            body = turn.content
            for call in turn.calls:
                body += ("\n" if body else "") + f"<tool_call>\n{tool_json(call)}\n</tool_call>"
            if turn.thought and index > last_question:
                segments.append(Segment(f"<think>\n{turn.thought}\n</think>\n\n", turn.weight))
            else:
                segments.append(Segment(NO_THOUGHT, 0))
            segments.append(Segment(f"{body}<|im_end|>", turn.weight))
            segments.append(Segment("\n", 0))
        elif turn.role == "tool":
            first = index == 0 or rest[index - 1].role != "tool"
            last = index + 1 == len(rest) or rest[index + 1].role != "tool"
            text = ("<|im_start|>user" if first else "") + f"\n<tool_response>\n{turn.content}\n</tool_response>"
            segments.append(Segment(text + ("<|im_end|>\n" if last else ""), 0))
        else:
            segments.append(Segment(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n", 0))
    return segments
