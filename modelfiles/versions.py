"""Versions as REQUIRES names them: 0.32, v0.32.15, 1.0.0-rc1. Only the numbers are compared."""

from __future__ import annotations

import re

NUMBER = r"(0|[1-9][0-9]{0,8})"
TAG = r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
VERSION = re.compile(rf"v?{NUMBER}(?:\.{NUMBER}(?:\.{NUMBER}(?:-{TAG})?(?:\+{TAG})?)?)?")


def parse_version(text: str) -> tuple[int, int, int]:
    """Major, minor and patch; what is left out is 0.

    Raises:
        ValueError: it is no version.
    """
    found = VERSION.fullmatch(text)
    if found is None:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise ValueError(f"'{shown}' is no version; write it as 0.32.0")
    major, minor, patch = found.groups(default="0")
    return int(major), int(minor), int(patch)
