"""Go templates: the functions that a template may call. Go's own, and Ollama's json, currentDate and so on.

Texts are indexed, cut and measured in bytes of UTF-8, as in Go. `and` and `or` are the runner's, because they do not
evaluate all their arguments.
Source: Go's text/template/funcs.go, fmt/doc.go; ollama/ollama template/template.go (funcs).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote_plus

from modelfiles.gotemplate_values import GoError, GoStruct, equal, field_of, is_true, less, print_value, to_json

MAX_WIDTH = 1000
VERB = re.compile(r"%([-+# 0]*)([0-9]*)(?:\.([0-9]*))?(.?)", re.DOTALL)

HTML = {'"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;", "\0": "\ufffd"}
JS = {
    "\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\u003C", ">": "\\u003E", "&": "\\u0026", "=": "\\u003D"
}  # fmt: skip

LAZY = frozenset({"and", "or"})


def call(name: str, arguments: list[Any], now: datetime | None) -> Any:
    """Call a function.

    Raises:
        GoError: wrong arguments.
    """
    if name in ("currentDate", "yesterdayDate"):
        if now is None:
            raise GoError(f"{name} has no clock here")
        return (now - timedelta(days=name == "yesterdayDate")).strftime("%Y-%m-%d")
    function, least, most = FUNCTIONS[name]
    if not least <= len(arguments) <= (len(arguments) if most is None else most):
        raise GoError(f"wrong number of args for {name}: want {least}, got {len(arguments)}")
    return function(*arguments)


def _eq(first: object, *others: object) -> bool:
    return any(equal(first, other) for other in others)


def _index(value: object, *keys: object) -> object:
    for key in keys:
        if isinstance(value, Mapping):
            if not isinstance(key, str):
                raise GoError(f"a map is indexed with {print_value(key)}, which is no string")
            value = value.get(key)
        elif isinstance(value, str | list | tuple):
            if not isinstance(key, int) or isinstance(key, bool):
                raise GoError(f"cannot index a list with {print_value(key)}")
            items = value.encode() if isinstance(value, str) else value
            if not 0 <= key < len(items):
                raise GoError(f"index out of range: {key}")
            value = items[key]
        else:
            raise GoError("index of untyped nil" if value is None else f"can't index item {print_value(value)}")
    return value


def _slice(value: object, *bounds: object) -> object:
    if not isinstance(value, str | list | tuple):
        raise GoError(f"can't slice item {print_value(value)}")
    items = value.encode() if isinstance(value, str) else value
    ends = [bound for bound in bounds if isinstance(bound, int) and not isinstance(bound, bool)]
    low, high = [*ends, 0][0], [*ends[1:], len(items)][0]
    if len(ends) != len(bounds) or not 0 <= low <= high <= len(items):
        raise GoError(f"slice bounds out of range: {', '.join(map(print_value, bounds))} of {len(items)}")
    part = items[low:high]
    return part.decode("utf-8", "replace") if isinstance(part, bytes) else list(part)


def _len(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list | tuple | Mapping):
        return len(value)
    raise GoError("len of nil pointer" if value is None else f"len of type {type(value).__name__}")


def _print(*values: object) -> str:
    """fmt.Sprint: a blank between two values of which neither is a text."""
    text = ""
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            text += " "
        text += print_value(value)
    return text


def _println(*values: object) -> str:
    return " ".join(map(print_value, values)) + "\n"


def _printf(form: object, *values: object) -> str:
    """fmt.Sprintf with the verbs that make sense in a prompt."""
    if not isinstance(form, str):
        raise GoError("printf wants a format as its first argument")
    given = list(values)
    num_used = 0

    def verb(found: re.Match[str]) -> str:
        nonlocal num_used
        flags, width, precision, letter = found.groups()
        if any(len(digits) > 4 or int(digits or 0) > MAX_WIDTH for digits in (width, precision or "")):
            raise GoError(f"printf with the width {width or precision}; {MAX_WIDTH} is allowed")
        if letter == "%":
            return "%"
        if not letter:
            return "%!(NOVERB)"
        if num_used == len(given):
            return f"%!{letter}(MISSING)"
        num_used += 1
        return _format(given[num_used - 1], flags, int(width or 0), precision, letter)

    text = VERB.sub(verb, form)
    if num_used < len(given):
        extra = ", ".join(f"{_go_type(value)}={print_value(value)}" for value in given[num_used:])
        text += f"%!(EXTRA {extra})"
    return text


def _format(value: object, flags: str, width: int, precision: str | None, letter: str) -> str:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if letter in "vs" and (letter == "v" or not isinstance(value, int | float) or value is None):
        text = print_value(value) if value is not None or letter == "v" else "%!s(<nil>)"
        if isinstance(value, str) and precision is not None:
            text = text[: int(precision or 0)]
    elif letter == "q" and isinstance(value, str):
        text = _quoted(value)
    elif letter in "dxXobc" and is_integer:
        assert isinstance(value, int)
        text = chr(value) if letter == "c" and 0 <= value < 0x110000 else format(value, letter)
        text = f"+{text}" if "+" in flags and value >= 0 else text
    elif letter == "t" and isinstance(value, bool):
        text = print_value(value)
    elif letter in "feEgG" and isinstance(value, float):
        text = format(value, f".{int(precision) if precision else 6 if precision is None else 0}{letter}")
        text = print_value(value) if letter in "gG" and precision is None else text
        text = f"+{text}" if "+" in flags and value >= 0 else text
    elif letter in "xX" and isinstance(value, str):
        text = format(value.encode().hex(), "")
        text = text.upper() if letter == "X" else text
    else:
        text = f"%!{letter}({_go_type(value)}={print_value(value)})" if value is not None else f"%!{letter}(<nil>)"
    if "-" in flags:
        return text.ljust(width)
    if "0" in flags and isinstance(value, int | float) and not isinstance(value, bool):
        sign = text[:1] if text[:1] in "+-" else ""
        return sign + text[len(sign) :].rjust(width - len(sign), "0")
    return text.rjust(width)


def _quoted(text: str) -> str:
    """A text in double quotes with Go's escapes (strconv.Quote)."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\a": "\\a", "\b": "\\b"}
    escapes |= {"\f": "\\f", "\v": "\\v"}
    return '"' + "".join(escapes.get(c) or (c if c.isprintable() else _numbered(c)) for c in text) + '"'


def _numbered(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _go_type(value: object) -> str:
    names: list[tuple[type, str]] = [(bool, "bool"), (int, "int"), (float, "float64"), (str, "string")]
    return next((name for type, name in names if isinstance(value, type)), "interface {}")


def _html(*values: object) -> str:
    return _print(*values).translate({ord(key): text for key, text in HTML.items()})


def _js(*values: object) -> str:
    return "".join(
        JS.get(c) or (f"\\u{ord(c):04X}" if ord(c) < 0x20 or not c.isprintable() else c) for c in _print(*values)
    )


def _urlquery(*values: object) -> str:
    return quote_plus(_print(*values), safe="-_.~")


def _call(*_: object) -> object:
    raise GoError("call has no function to call: no value of a prompt is one")


def _type_script_type(value: object) -> object:
    return (
        field_of(value, "ToTypeScriptType") if isinstance(value, GoStruct) and value.name == "ToolProperty" else "any"
    )


FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int | None]] = {
    "and": (lambda *values: values, 1, None),
    "or": (lambda *values: values, 1, None),
    "not": (lambda value: not is_true(value), 1, 1),
    "eq": (_eq, 2, None),
    "ne": (lambda first, second: not equal(first, second), 2, 2),
    "lt": (less, 2, 2),
    "le": (lambda first, second: less(first, second) or equal(first, second), 2, 2),
    "gt": (lambda first, second: less(second, first), 2, 2),
    "ge": (lambda first, second: less(second, first) or equal(first, second), 2, 2),
    "len": (_len, 1, 1),
    "index": (_index, 1, None),
    "slice": (_slice, 1, 3),
    "print": (_print, 0, None),
    "println": (_println, 0, None),
    "printf": (_printf, 1, None),
    "html": (_html, 1, None),
    "js": (_js, 1, None),
    "urlquery": (_urlquery, 1, None),
    "call": (_call, 1, None),
    "json": (to_json, 1, 1),
    "currentDate": (lambda: "", 0, None),
    "yesterdayDate": (lambda: "", 0, None),
    "toTypeScriptType": (_type_script_type, 1, 1),
}
"""Name -> function, fewest and most arguments."""
