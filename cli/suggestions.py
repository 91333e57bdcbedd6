"""Command: a typer command whose "No such option" suggests an option only where one is nearly what was typed."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from typer.core import TyperCommand

CLOSE = 0.8
"""Least likeness, of 1: --formt is --format (0.93), --bogus is not --verbose (0.63, and enough for the parser)."""


class Command(TyperCommand):
    """A command of `hob`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the command line; the types are private to typer, and so is the error."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if possibilities := getattr(error, "possibilities", None):
                error.possibilities = get_close_matches(  # type: ignore[attr-defined]
                    getattr(error, "option_name", ""), possibilities, cutoff=CLOSE
                )
            raise
