"""WordWrap: breaks streamed text between words at the terminal's width, though words arrive in pieces.

The start of a word is shown at once; when the word turns out not to fit, it is erased and set again on the next line.
Pure: text in, text with control sequences out. Only for terminals; piped output never comes here.
"""

from __future__ import annotations

import unicodedata

MARGIN = 1
"""Columns left free at the right. A cursor that stands beyond the last column is where terminals disagree."""
TAB = 8


class WordWrap:
    """The state between two pieces: where the cursor stands, and which word it stands in."""

    def __init__(self, columns: int) -> None:
        self.limit = max(columns - MARGIN, 1)
        self.column = 0
        self.word = ""

    def feed(self, text: str) -> str:
        """What to write to the terminal for the next piece of text."""
        return "".join(self._place(character) for character in text)

    def _place(self, character: str) -> str:
        if character == "\n":
            self.column, self.word = 0, ""
            return "\n"
        width = TAB - self.column % TAB if character == "\t" else cells(character)
        if self.column + width <= self.limit:
            return self._put(character, width)
        if character in " \t":  # the space at which the line breaks is not shown
            self.column, self.word = 0, ""
            return "\n"
        carried = cells(self.word)
        if 0 < carried < self.column and carried + width <= self.limit:
            erase = f"\x1b[{carried}D\x1b[K\n{self.word}"
            self.column = carried
            return erase + self._put(character, width)
        self.column, self.word = 0, ""  # a word that is longer than a line is cut where the line ends
        return "\n" + self._put(character, width)

    def _put(self, character: str, width: int) -> str:
        self.column += width
        # One may break after a space, and after a wide character: Chinese and Japanese have no spaces. What has no
        # width of its own belongs to the character before it, so it begins no word.
        breaks = character in " \t" or width > 1 or (width == 0 and not self.word)
        self.word = "" if breaks else self.word + character
        return character


def cells(text: str) -> int:
    """Columns that text takes on a terminal: two for wide characters, none for combining ones and joiners."""
    return sum(_character_cells(character) for character in text)


def _character_cells(character: str) -> int:
    if character.isascii():
        return 1
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
