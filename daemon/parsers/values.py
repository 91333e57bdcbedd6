"""Values as models write them: where one ends in text that still comes, and what it means. Pure.

JSON is read by msgspec. What it refuses may be Python (single quotes, True, None, a comma at the end), or Gemma's
notation (keys without quotes, texts between tags): `read_value` takes all of them, so that a call is not lost over a
quote.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

MAX_DEPTH = 100
"""Nesting of brackets in the arguments of a call; far more than any tool has."""

KEYWORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
WHITE_SPACE = re.compile(r"\s*")
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
WORD = re.compile(r"[A-Za-z_][\w.-]*")
PLAIN_TEXT = {quote: re.compile(rf"[^{quote}\\]*") for quote in "\"'"}
ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": "", **{sign: sign for sign in "\"'\\/"}}
"""Others stand for themselves with their backslash, as in Python."""
SIGNIFICANT = re.compile(r"[\"'\\{}()\[\]]")
INSIDE = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}


class ValueScanner:
    """Finds the end of a value in brackets, in text that grows; each character is looked at once."""

    def __init__(self) -> None:
        self.quote = ""
        """The quote of the text that the scan stands in, "" outside of texts."""
        self._depth = 0
        self._position = 0

    def restart(self, position: int) -> None:
        """Begin anew, at the bracket that opens a value."""
        self.quote, self._depth, self._position = "", 0, position

    def find_end(self, text: str) -> int | None:
        """Where the value ends, behind its last bracket, or None while it has not ended.

        `text` is what was given before with more behind it.
        """
        while found := (INSIDE[self.quote] if self.quote else SIGNIFICANT).search(text, self._position):
            character, end = found.group(), found.end()
            if character == "\\" and self.quote:
                if end == len(text):  # what it escapes has not come yet
                    self._position = found.start()
                    return None
                end += 1
            elif character == self.quote:
                self.quote = ""
            elif character in "\"'":
                self.quote = character
            elif character in "{[(":
                self._depth += 1
            elif character in "}])":
                self._depth -= 1
            self._position = end
            if not self.quote and self._depth <= 0 and character in "}])":
                return end
        self._position = len(text)
        return None


def read_value(text: str, quote: str = "") -> Any:
    """A whole value.

    Args:
        quote: a tag that stands around texts, beside the quotes of JSON and Python.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        reader = Reader(text, quote)
        value = reader.value()
        if not reader.is_at_end():
            raise ValueError("something stands behind the value") from None
        return value


class Reader:
    """A cursor over text in loose notation. All methods raise ValueError for what is not there."""

    def __init__(self, text: str, quote: str = "") -> None:
        self.text = text
        self.position = 0
        self._tag = quote
        self._depth = 0

    def is_at_end(self) -> bool:
        self._skip(WHITE_SPACE)
        return self.position == len(self.text)

    def take(self, sign: str) -> bool:
        """Skip white space and, where it comes next, the sign."""
        self._skip(WHITE_SPACE)
        is_there = self.text.startswith(sign, self.position)
        self.position += len(sign) * is_there
        return is_there

    def expect(self, sign: str) -> None:
        if not self.take(sign):
            raise ValueError(f"{sign} is missing")

    def word(self) -> str:
        """A name, dots and hyphens included."""
        self._skip(WHITE_SPACE)
        if not (word := self._skip(WORD)):
            raise ValueError("a name is missing")
        return word

    def value(self) -> Any:
        self._skip(WHITE_SPACE)
        if self._tag and self.take(self._tag):
            return self._until(self._tag)
        first = self.text[self.position : self.position + 1]
        if first and first in "\"'":
            return self._string(first)
        if first and first in "{[(":
            return self._nested(first)
        if number := self._skip(NUMBER):
            return _number(number)
        word = self._skip(WORD)
        if word not in KEYWORDS:
            raise ValueError("no value begins here")
        return KEYWORDS[word]

    def pairs(self, separator: str, close: str) -> dict[str, Any]:
        """`key separator value`, between commas, up to the closing sign."""
        found: dict[str, Any] = {}
        while not self.take(close):
            key = self._key()
            self.expect(separator)
            found[key] = self.value()
            if not self.take(","):
                self.expect(close)
                break
        return found

    def _nested(self, bracket: str) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        self.position += 1
        value = self.pairs(":", "}") if bracket == "{" else self._items("]" if bracket == "[" else ")")
        self._depth -= 1
        return value

    def _items(self, close: str) -> list[Any]:
        found = []
        while not self.take(close):
            found.append(self.value())
            if not self.take(","):
                self.expect(close)
                break
        return found

    def _key(self) -> str:
        self._skip(WHITE_SPACE)
        if self._tag and self.take(self._tag):
            return self._until(self._tag)
        first = self.text[self.position : self.position + 1]
        return self._string(first) if first and first in "\"'" else self.word()

    def _string(self, quote: str) -> str:
        self.position += 1
        parts = [self._skip(PLAIN_TEXT[quote])]
        while not self.text.startswith(quote, self.position):
            escape = ESCAPE.match(self.text, self.position)
            if escape is None:
                raise ValueError("a text does not end")
            self.position = escape.end()
            code, sign = escape[1] or escape[2] or escape[3], escape[4]
            parts += [chr(int(code, 16)) if code else ESCAPED.get(sign, f"\\{sign}"), self._skip(PLAIN_TEXT[quote])]
        self.position += 1
        # Halves of a pair make a character; a half alone is none, and no reply could carry it.
        return "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _until(self, tag: str) -> str:
        end = self.text.find(tag, self.position)
        if end < 0:
            raise ValueError("a text does not end")
        found = self.text[self.position : end]
        self.position = end + len(tag)
        return found

    def _skip(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.position)
        if found is None:
            return ""
        self.position = found.end()
        return found.group()


def _number(text: str) -> int | float:
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number
