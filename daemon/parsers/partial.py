"""The one question of every parser over streamed text: may the end of this piece be the beginning of a tag?"""

from __future__ import annotations


def held_back(text: str, tag: str) -> int:
    """How many characters at the end of `text` are a proper, non-empty prefix of `tag`: those wait for more text."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
