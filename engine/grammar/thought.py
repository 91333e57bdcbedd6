"""Where a thought begins and ends in what a model writes, byte by byte, by the rules of the daemon's parser. Pure.

Only a tag at the very beginning (white space aside) opens a thought; the first closing tag ends it; white space around
tags belongs to neither side.
"""

from __future__ import annotations


def continues_opening(tag: bytes, held: bytes, data: bytes) -> bool:
    """Whether an answer that began with `held`, the beginning of a tag, may still open a thought with `data` behind."""
    visible = (held + data).lstrip()
    return tag.startswith(visible) or visible.startswith(tag)


def closes_badly(tag: bytes, matched: bytes, data: bytes) -> bool:
    """Whether `data` ends a thought and goes on with something else than white space.

    Args:
        matched: the beginning of the tag that the thought ends with.
    """
    _, found, rest = (matched + data).partition(tag)
    return bool(found) and bool(rest.strip())


def longest_match(tag: bytes, data: bytes) -> bytes:
    """The longest beginning of `tag`, but not all of it, that `data` ends with."""
    for length in range(min(len(tag) - 1, len(data)), 0, -1):
        if data.endswith(tag[:length]):
            return tag[:length]
    return b""
