"""The questions of every parser over streamed text: where is a tag, and may this piece end in the beginning of one?"""

from __future__ import annotations

from collections.abc import Iterable


def held_back(text: str, tag: str) -> int:
    """How many characters at the end of `text` are a proper, non-empty prefix of `tag`: those wait for more text."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


def first_tag(text: str, tags: Iterable[str]) -> tuple[int, str]:
    """The first place of any of the tags, and which it is; the text's length and "" where there is none."""
    found = [(place, tag) for tag in tags if (place := text.find(tag)) >= 0]
    return min(found, default=(len(text), ""))
