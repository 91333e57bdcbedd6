"""ThinkingParser: splits a model's text into its thoughts, between <think> and </think>, and its answer. Pure.

Only a tag at the very beginning (white space aside) opens a thought, so an answer that mentions the tag is left
alone. White space around the tags is dropped, as it belongs to neither side. However the text is cut into pieces, the
concatenation of what comes out is the same.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from daemon.parsers.partial import held_back

OPEN_TAG = "<think>"
CLOSE_TAG = "</think>"


class Split(NamedTuple):
    """What became certain with a piece of text."""

    thinking: str
    answer: str


class _State(Enum):
    START = auto()  # nothing but white space so far
    OPENED = auto()  # inside the thought, before its first visible character
    THINKING = auto()
    CLOSED = auto()  # after the thought, before the answer's first visible character
    ANSWER = auto()


class ThinkingParser:
    """Feed text with `push`, end with `flush`.

    Args:
        inside: the prompt already ended with the opening tag, so the first character is a thought's.
        open_tag, close_tag: the model's tags.
    """

    def __init__(self, *, inside: bool = False, open_tag: str = OPEN_TAG, close_tag: str = CLOSE_TAG) -> None:
        self._open_tag = open_tag
        self._close_tag = close_tag
        self._state = _State.OPENED if inside else _State.START
        self._held = ""

    def push(self, text: str) -> Split:
        """Take a piece of text; returns what is certain by now."""
        self._held += text
        thinking = ""
        if self._state is _State.START:
            self._find_open_tag()
        if self._state is _State.OPENED and self._drop_white_space():
            self._state = _State.THINKING
        if self._state is _State.THINKING:
            thinking = self._take_thought()
        if self._state is _State.CLOSED and self._drop_white_space():
            self._state = _State.ANSWER
        return Split(thinking, self._take_all() if self._state is _State.ANSWER else "")

    def flush(self) -> Split:
        """The text has ended: what was held back is what it looks like."""
        held = self._take_all()
        if self._state is _State.START:
            return Split("", held)
        return Split(held.rstrip(), "")  # a thought's end; in the other states only white space was held

    def _find_open_tag(self) -> None:
        visible = self._held.lstrip()
        if visible.startswith(self._open_tag):
            self._held = visible[len(self._open_tag) :]
            self._state = _State.OPENED
        elif not self._open_tag.startswith(visible):
            self._state = _State.ANSWER

    def _take_thought(self) -> str:
        thought, tag, rest = self._held.partition(self._close_tag)
        if tag:
            self._held = rest
            self._state = _State.CLOSED
            return thought.rstrip()
        # White space may turn out to stand before the closing tag, so it waits together with a part of the tag.
        certain = self._held[: len(self._held) - held_back(self._held, self._close_tag)].rstrip()
        self._held = self._held[len(certain) :]
        return certain

    def _drop_white_space(self) -> bool:
        """Drop it from the front of what is held; returns whether something is left."""
        self._held = self._held.lstrip()
        return bool(self._held)

    def _take_all(self) -> str:
        held, self._held = self._held, ""
        return held
