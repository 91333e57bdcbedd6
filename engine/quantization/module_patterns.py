"""ModulePattern: which modules an entry of a checkpoint's ignore or target list means.

Expressions come from a stranger's file, and Python's `re` can be made to search for hours. So only those are taken
whose work is bounded by their form: few repetitions, none of them of a group, and no look-around or reference back.
That covers what quantising tools write ("re:.*self_attn\\.(q|k|v)_proj$").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

MAX_LENGTH = 256
MAX_REPEATS = 4
MAX_CHOICES = 2
FORBIDDEN = re.compile(r"\)[*+?{]|\(\?(?!:)|\\[1-9gGk]|\{|[*+]\+")


@dataclass(frozen=True)
class ModulePattern:
    """Made by one of its class methods."""

    kind: Literal["everything", "part", "expression"]
    text: str = ""

    @classmethod
    def everything(cls) -> ModulePattern:
        return cls("everything")

    @classmethod
    def part(cls, text: str) -> ModulePattern:
        """Modules whose dotted name is, begins with, ends in or contains `text`, in whole parts: "layers.1" is not in
        "layers.10"."""
        return cls("part", text.strip("."))

    @classmethod
    def expression(cls, text: str) -> ModulePattern:
        """Modules whose name begins with what a regular expression matches.

        Raises:
            ValueError: it is none, or one that could take long.
        """
        plain = re.sub(r"\\.", "x", text)
        if len(text) > MAX_LENGTH:
            raise ValueError(f"it has {len(text)} characters; {MAX_LENGTH} are allowed")
        is_bounded = sum(plain.count(sign) for sign in "*+?") <= MAX_REPEATS and plain.count("(") <= MAX_CHOICES
        if FORBIDDEN.search(text) or not is_bounded:
            raise ValueError("it repeats or refers to too much to be matched in bounded time; name the modules instead")
        try:
            re.compile(text)
        except (re.error, RecursionError) as error:
            raise ValueError(f"it is no regular expression ({error})") from error
        return cls("expression", text)

    def matches(self, module: str) -> bool:
        if self.kind == "everything":
            return True
        if self.kind == "part":
            return f".{self.text}." in f".{module}."
        return re.match(self.text, module) is not None
