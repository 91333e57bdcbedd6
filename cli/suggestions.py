"""Command: a typer command whose help and errors say less of how it is programmed.

"No such option" suggests an option only where one is nearly what was typed; help leaves out Python's types.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from typer.core import TyperCommand

CLOSE = 0.8
"""Least likeness, of 1: --formt is --format (0.93), --bogus is not --verbose (0.63, and enough for the parser)."""


class Command(TyperCommand):
    """A command of `hob`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        argument: Any  # its type is private to typer
        for argument in self.params:
            if argument.param_type_name == "argument":
                argument.display_type_rich = lambda ctx: ""  # "MODEL", where typer has "MODEL <str>"

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line, "MODEL" where typer has "{MODEL}"."""
        return [piece.strip("{}").replace("}...", "...") for piece in super().collect_usage_pieces(ctx)]

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
