"""Go templates: how Go sees, prints and compares the values of a template.

Values are plain Python: None, bool, int, float, str, list, dict (an ordered map, printed as JSON) and GoStruct.
Source: Go's fmt, encoding/json and text/template (printValue, isTrue, eq, lt).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

NO_VALUE = "<no value>"


class GoError(ValueError):
    """What a function or a value cannot do, as the end of a sentence; the runner adds the line."""


@dataclass(frozen=True)
class GoStruct:
    """A struct of Ollama's: fixed fields for templates, and the JSON that it prints as."""

    name: str
    fields: Mapping[str, object]
    json: object


def is_true(value: object) -> bool:
    """Go's truth: not zero and not empty. A struct is always true."""
    if isinstance(value, GoStruct):
        return True
    return bool(value)


def to_text(value: object) -> str:
    """What `{{ value }}` prints."""
    if value is None:
        return NO_VALUE
    return print_value(value)


def print_value(value: object) -> str:
    """fmt's %v; None inside of other values is <nil>."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "<nil>"
    if isinstance(value, float):
        return _float_text(value, range(-4, 6))
    if isinstance(value, GoStruct | Mapping):
        return to_json(value)
    if isinstance(value, list | tuple):
        if value and all(isinstance(item, GoStruct | Mapping) for item in value):
            return to_json(value)  # Tools and messages print as JSON
        return "[" + " ".join(print_value(item) for item in value) + "]"
    return str(value)


def to_json(value: object) -> str:
    """encoding/json's text: no blanks, and <, > and & escaped for HTML, which Ollama's templates do not switch off."""
    parts: list[str] = []
    _write_json(value, parts)
    return "".join(parts)


def _write_json(value: object, parts: list[str]) -> None:
    if isinstance(value, GoStruct):
        _write_json(value.json, parts)
    elif isinstance(value, Mapping):
        parts.append("{")
        for index, (key, item) in enumerate(value.items()):
            parts.append(("," if index else "") + _json_string(str(key)) + ":")
            _write_json(item, parts)
        parts.append("}")
    elif isinstance(value, list | tuple):
        parts.append("[")
        for index, item in enumerate(value):
            parts.append("," if index else "")
            _write_json(item, parts)
        parts.append("]")
    elif isinstance(value, str):
        parts.append(_json_string(value))
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise GoError(f"{value} cannot be written as JSON")
        parts.append(_float_text(value, range(-6, 21)).replace("e-0", "e-"))
    else:
        parts.append(json.dumps(value))


def _json_string(text: str) -> str:
    escaped = json.dumps(text, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        escaped = escaped.replace(character, f"\\u{ord(character):04x}")
    return escaped


def _float_text(value: float, plain: range) -> str:
    """The shortest digits that read back; with an exponent, unless that is in the range where they stand plain."""
    if not math.isfinite(value):
        return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, "NaN")
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    point = exponent + len(digits) - 1
    if value and point not in plain:
        text = "".join(map(str, digits))
        fraction = f".{text[1:]}" if len(text) > 1 else ""
        return f"{'-' if sign else ''}{text[0]}{fraction}e{'-' if point < 0 else '+'}{abs(point):02d}"
    fixed = format(Decimal(repr(value)), "f")
    return fixed.removesuffix(".0") if "." in fixed else fixed


def equal(first: object, second: object) -> bool:
    """Go's eq.

    Raises:
        GoError: the two are of kinds that cannot be compared.
    """
    kinds = (_kind(first), _kind(second))
    if kinds[0] != kinds[1]:
        if first is None or second is None:
            return False
        raise GoError("incompatible types for comparison")
    if kinds[0] == "other":
        raise GoError(f"{_type_name(first)} and {_type_name(second)} cannot be compared")
    return first == second


def less(first: object, second: object) -> bool:
    """Go's lt, for numbers and texts.

    Raises:
        GoError: as in `equal`.
    """
    if _kind(first) in ("bool", "nil", "other") or _kind(second) in ("bool", "nil", "other"):
        raise GoError("invalid type for comparison")
    if _kind(first) != _kind(second):
        raise GoError("incompatible types for comparison")
    if isinstance(first, str) and isinstance(second, str):
        return first.encode("utf-8", "surrogatepass") < second.encode("utf-8", "surrogatepass")
    assert isinstance(first, int | float)
    assert isinstance(second, int | float)
    return first < second


def field_of(value: object, name: str) -> object:
    """`value.name`: a field of a struct, or a key of a map, which may be missing.

    Raises:
        GoError: there is no such field, or the value has none.
    """
    if isinstance(value, GoStruct):
        if name not in value.fields:
            if name == "String":
                return to_json(value)
            raise GoError(f"can't evaluate field {name} in type {value.name}")
        return value.fields[name]
    if isinstance(value, Mapping):
        return value.get(name)
    if value is None:
        raise GoError(f"nil pointer evaluating interface {{}}.{name}")
    raise GoError(f"can't evaluate field {name} in type {_type_name(value)}")


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    for kind, type in (("int", int), ("float", float), ("string", str)):
        if isinstance(value, type):
            return kind
    return "nil" if value is None else "other"


def _type_name(value: object) -> str:
    if isinstance(value, GoStruct):
        return value.name
    if isinstance(value, Mapping):
        return "map[string]interface {}"
    if isinstance(value, list | tuple):
        return "[]interface {}"
    return {"nil": "nil", "float": "float64"}.get(_kind(value), _kind(value))
