"""VERSION: the installed distribution's version, asked once."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("hob-llm")
except PackageNotFoundError:  # a source tree on the path that nobody installed
    VERSION = "0.0.0"
