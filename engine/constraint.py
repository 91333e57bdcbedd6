"""Constraint: what a generated text must look like, in plain values that cross the channel. Compiled in the worker."""

from __future__ import annotations

from typing import Literal

import msgspec


class Constraint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request's constraint on its text."""

    kind: Literal["json", "json_schema", "regex", "choice", "lark", "gbnf"]
    value: str = ""
    """Nothing for "json" (any JSON object), a schema's JSON, a regular expression, a JSON array of strings for
    "choice", or a grammar's text."""
