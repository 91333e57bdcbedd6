"""VERSION: the installed distribution's version, asked once."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("hob-llm")
except PackageNotFoundError:  # a source tree on the path that nobody installed
    VERSION = "0.0.0"

NOT_YET = "Not available in this version."
"""For the help of what Ollama's command line has, and the daemon of this version refuses."""
