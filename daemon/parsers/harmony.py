"""HarmonyParser: the messages and channels in which gpt-oss answers: thoughts, text and calls of tools in one. Pure.

    <|channel|>analysis<|message|>The user wants the weather.<|end|>
    <|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>
    <|start|>assistant<|channel|>final<|message|>It rains.<|return|>

A message has a header, up to <|message|>, and content, up to the next tag. The channel "analysis" is thought; what has
a recipient is a call; all else is text. Where no header begins, what comes is text, so that an answer of another form
is not lost. Several messages of one kind are separated by a line end.
"""

from __future__ import annotations

import re

from daemon.parsers.partial import first_tag, held_back
from daemon.parsers.reading import Reading
from daemon.parsers.tool_calls import ParsedCall
from daemon.parsers.values import read_value

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
LAST_TAGS = ("<|end|>", "<|call|>", "<|return|>")
ENDS = (*LAST_TAGS, START, CHANNEL)
"""What ends a content; the last two belong to the next header."""
HEADER_BEGINS = (START, CHANNEL, MESSAGE, CONSTRAIN, "to=")
RECIPIENT = re.compile(r"to=([^\s<]+)")
CHANNEL_NAME = re.compile(r"<\|channel\|>\s*([A-Za-z]+)")
CUT_HEADER = re.compile(
    r"\s*(?:<\|start\|>\w*+)?+\s*+(?:(?:to=[^\s<]*+|<\|channel\|>\s*+\w*+|<\|constrain\|>\w*+|json)\s*+)*+(?:<\|?\w*+\|?)?+"
)
"""A header without its end, where the text was cut."""
MAX_HEADER_CHARS = 500


class HarmonyParser:
    """Feed text with `push`, end with `flush`.

    Args:
        prompt: the text that the answer continues, which may have begun a message already.
        takes_calls: whether a message to a tool is a call; else its content is text.
    """

    def __init__(self, prompt: str = "", *, takes_calls: bool = True) -> None:
        self._takes_calls = takes_calls
        self._held = ""
        self._content: list[str] = []
        """Of a message to a tool, so far."""
        self._kind = "text"
        """What the content of the message is: "thinking", "text" or "call"."""
        self._fallback = "text"
        """What a content is that was to be a call and is none."""
        self._tool = ""
        self._said: set[str] = set()
        self._num_literal = 0
        """Characters of `_held` that are content even where they look like a tag."""
        self._gap = ""
        """What separates the message from an earlier one of its kind."""
        _, mark, tail = prompt.rpartition(START)
        header, message, content = tail.partition(MESSAGE)
        self._in_header = not message or any(tag in content for tag in ENDS)
        self._begun = header if mark and self._in_header and not message else ""
        """The part of a header that the prompt has."""
        if not self._in_header:
            self._open(header)

    def push(self, text: str) -> Reading:
        """Take a piece of text; returns what is certain by now."""
        return self._read(text, is_whole=False)

    def flush(self) -> Reading:
        """The text has ended."""
        return self._read("", is_whole=True)

    def _read(self, text: str, *, is_whole: bool) -> Reading:
        self._held += text
        out: dict[str, list[str]] = {"thinking": [], "text": []}
        calls: list[ParsedCall] = []
        while self._held or is_whole:
            if self._in_header and not self._read_header(is_whole=is_whole):
                break
            ended = self._read_content(out, is_whole=is_whole)
            if (ended or is_whole) and self._kind == "call":
                self._close_call(out, calls)
            self._in_header = ended
            if not ended:
                break
        return Reading("".join(out["thinking"]), "".join(out["text"]), tuple(calls))

    def _read_header(self, *, is_whole: bool) -> bool:
        """Whether a message has been opened: by its header, or by text that is none."""
        visible = self._held.lstrip()
        if not is_whole and (not visible or any(begin.startswith(visible) for begin in HEADER_BEGINS)):
            return False
        header, message, rest = self._held.partition(MESSAGE)
        is_header = visible.startswith(HEADER_BEGINS) and len(header) <= MAX_HEADER_CHARS
        if is_header and message:
            self._open(self._begun + header)
            self._held = rest
        elif is_header and not is_whole:
            return False
        elif is_whole and CUT_HEADER.fullmatch(self._held):
            self._held = ""
            return False
        else:
            self._open("")
            self._num_literal = len(self._held) - len(visible) + 1
        self._begun = ""
        return True

    def _open(self, header: str) -> None:
        channels, recipient = CHANNEL_NAME.findall(header), RECIPIENT.search(header)
        self._fallback = "thinking" if "analysis" in channels[-1:] else "text"
        self._kind = "call" if recipient and self._takes_calls else self._fallback
        self._tool = recipient[1].removeprefix("functions.") if recipient else ""
        self._gap = "\n" if self._kind in self._said else ""

    def _read_content(self, out: dict[str, list[str]], *, is_whole: bool) -> bool:
        """Take the content as far as it is certain; returns whether the message has ended."""
        text = self._held[self._num_literal :]
        place, tag = first_tag(text, ENDS)
        if not tag and not is_whole:
            place -= max(held_back(text, end) for end in ENDS)
        place, self._num_literal = place + self._num_literal, 0
        self._say(self._kind, self._held[:place], out)
        self._held = self._held[place:].removeprefix(tag if tag in LAST_TAGS else "")
        return bool(tag)

    def _say(self, kind: str, text: str, out: dict[str, list[str]]) -> None:
        if kind == "call":
            self._content.append(text)
        elif text:
            out[kind].append(self._gap + text)
            self._gap = ""
            self._said.add(kind)

    def _close_call(self, out: dict[str, list[str]], calls: list[ParsedCall]) -> None:
        content, self._content = "".join(self._content), []
        try:
            arguments = read_value(content) if content.strip() else {}
        except ValueError:
            arguments = None
        if isinstance(arguments, dict):
            calls.append(ParsedCall(self._tool, arguments))
        else:
            self._gap = "\n" if self._fallback in self._said else ""
            self._say(self._fallback, content, out)
        self._kind = "text"
