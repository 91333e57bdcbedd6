"""StopMatcher: finds stop strings in text that comes in pieces, and holds back no more than it must.

One Knuth-Morris-Pratt automaton for each string, so that a character costs the same however the text was cut and
however often a string almost occurs. The longest state of all automata is the number of characters to hold back.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Lets text through up to the first stop string.

    "First" is the one that ends first; of several that end at the same character, the one that starts first.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(dict.fromkeys(string for string in strings if string))
        self._failures = [_failures(string) for string in self.strings]
        self._states = [0] * len(self.strings)
        self._first_characters = frozenset(string[0] for string in self.strings)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """(text that is certain, the stop string that was found or None). Nothing may be fed after a stop string."""
        if not self._held and self._first_characters.isdisjoint(text):
            return text, None
        text = self._held + text
        for position in range(len(self._held), len(text)):
            found = self._advance(text[position])
            if found is not None:
                return text[: position + 1 - len(found)], found
        certain = len(text) - max(self._states)
        self._held = text[certain:]
        return text[:certain], None

    def flush(self) -> str:
        """What was held back, at the end of the text or where a stop string can no longer go on."""
        held, self._held = self._held, ""
        self._states = [0] * len(self.strings)
        return held

    def _advance(self, character: str) -> str | None:
        """Moves every automaton by one character; the string that is now complete, the longest of several."""
        found: str | None = None
        for index, string in enumerate(self.strings):
            state, failures = self._states[index], self._failures[index]
            while state and string[state] != character:
                state = failures[state - 1]
            state += string[state] == character
            self._states[index] = state
            if state == len(string) and (found is None or len(string) > len(found)):
                found = string
        return found


def _failures(string: str) -> list[int]:
    """Entry i: length of the longest proper prefix of string[: i + 1] that is also its suffix."""
    failures = [0] * len(string)
    length = 0
    for index in range(1, len(string)):
        while length and string[index] != string[length]:
            length = failures[length - 1]
        length += string[index] == string[length]
        failures[index] = length
    return failures
