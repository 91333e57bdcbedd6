"""ConversionError: the one exception of this folder, beside those of the file formats."""

from __future__ import annotations


class ConversionError(ValueError):
    """A model that cannot be converted or quantised as asked. The message says why, and what can be done."""
