"""Constraint: what a generated text must look like, in plain values that cross the channel. Compiled in the worker."""

from __future__ import annotations

from typing import Literal

import msgspec

MAX_CONSTRAINT_CHARS = 1 << 18
"""Longest schema, expression, list or grammar that is looked at."""


class ConstraintError(ValueError):
    """A constraint that cannot be enforced: the request's fault, in a sentence that names what is not supported."""


class Constraint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request's constraint on its text."""

    kind: Literal["json", "json_schema", "regex", "choice", "lark", "gbnf"]
    value: str = ""
    """Nothing for "json" (any JSON object), a schema's JSON, a regular expression, a JSON array of strings for
    "choice", or a grammar's text."""
    open_tag: str = ""
    """What opens a thought at the answer's beginning, if the model wants to think; "": it cannot open one."""
    close_tag: str = ""
    """What ends a thought; "": there is none. With a `close_tag` and no `open_tag` the prompt ends inside a thought.
    Thoughts are free, the constraint begins behind them."""
