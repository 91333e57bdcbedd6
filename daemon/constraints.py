"""What a request says its answer must look like -> a Constraint. Pure; whether it can be enforced is asked later.

"format": "json" | a JSON schema                                Ollama's
"options": {"regex": ...} | {"grammar": ...} | {"choice": [...]}    Hob's own
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from daemon.errors import BadRequest
from engine.constraint import Constraint

OPTIONS = ("regex", "grammar", "choice")
GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)


def read_constraint(format: Any, options: Mapping[str, Any] | None) -> Constraint | None:
    """
    Args:
        format: the request's field, as it was decoded.
        options: the request's.

    Raises:
        BadRequest: it is nothing of the kind, or there are two of them.
    """
    found = [
        constraint for constraint in (_format(format), *map(constraint_of, *_given(options))) if constraint is not None
    ]
    if len(found) > 1:
        raise BadRequest("an answer can have one constraint: give one of format, and options regex, grammar and choice")
    return found[0] if found else None


def _given(options: Mapping[str, Any] | None) -> tuple[list[str], list[Any]]:
    names = [name for name in OPTIONS if (options or {}).get(name) is not None]
    return names, [(options or {})[name] for name in names]


def _format(format: Any) -> Constraint | None:
    if format in (None, ""):
        return None
    if format == "json":
        return Constraint(kind="json")
    if isinstance(format, dict):
        return Constraint(kind="json_schema", value=msgspec.json.encode(format).decode())
    raise BadRequest(f'invalid format: {_shown(format)}; expected "json" or a valid JSON Schema object')


def constraint_of(name: str, value: Any) -> Constraint:
    """What one of the options asks for; all protocols have them.

    Raises:
        BadRequest: it is nothing of the kind.
    """
    param = f"options.{name}"
    if name == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
            raise BadRequest(f"{param} must be a list of strings, at least one and none of them empty", param)
        return Constraint(kind="choice", value=msgspec.json.encode(value).decode())
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{param} must be a string, and not an empty one", param)
    if name == "regex":
        return Constraint(kind="regex", value=value)
    return Constraint(kind="gbnf" if GBNF_RULE.search(value) else "lark", value=value)


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool) else type(value).__name__
    return text if len(text) <= 80 else text[:80] + "..."
