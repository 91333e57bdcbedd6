"""What stands between the tags of a call, in the forms of daemon.parsers.families. Pure.

Each reader gives the calls, or None for what is no call. Forms that write arguments as plain text need the tools of the
request, which say what type a text stands for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from daemon.parsers.tool_calls import ParsedCall, as_calls
from daemon.parsers.values import Reader, ValueScanner, read_value

Tools = Mapping[str, Mapping[str, Any]]
"""Name of a tool -> the schemas of its arguments by their names."""

FUNCTION = re.compile(r"\s*(?:<function=)?([^<>{}\s]+)>")
FUNCTION_END = "</function>"
PARAMETER = re.compile(r"\s*<parameter=([^<>\n]+)>")
PARAMETER_END = re.compile(r"</parameter>(?=\s*(?:<parameter=|</function>|\Z))")
ARG_PAIR = re.compile(r"\s*<arg_key>([^<]*)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
NAME = re.compile(r"[^\s<>{}]+")
SEPARATOR = "<｜tool▁sep｜>"
FENCE = "```"

TYPES = {"dict": "object", "float": "number", "tuple": "array", "int": "integer", "bool": "boolean", "str": "string"}
"""Python's names, which some tools have in their schemas."""


def tool_schemas(tools: Any) -> dict[str, Mapping[str, Any]]:
    """What `Tools` needs of tools in OpenAI's format; what is not in that format counts for nothing."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = _mapping(_mapping(tool).get("function"))
        if isinstance(name := function.get("name"), str):
            found[name] = _mapping(_mapping(function.get("parameters")).get("properties"))
    return found


def json_body(body: str) -> list[ParsedCall] | None:
    """{"name": "f", "arguments": {...}}, or a list of them."""
    try:
        return as_calls(read_value(body))
    except ValueError:
        return None


def is_open_json(body: str) -> bool:
    """Whether the end of the body stands inside of a text of JSON."""
    if not body.lstrip().startswith(("{", "[")):
        return False
    scanner = ValueScanner()
    return scanner.find_end(body) is None and bool(scanner.quote)


def xml_body(body: str, tools: Tools) -> list[ParsedCall] | None:
    """<function=f><parameter=a>text</parameter></function>, or <function=f>{...}</function>."""
    if (function := FUNCTION.match(body)) is None:
        return None
    name, place = function[1], function.end()
    arguments: dict[str, Any] = {}
    while parameter := PARAMETER.match(body, place):
        end = PARAMETER_END.search(body, parameter.end())
        if end is None:
            return None
        text = body[parameter.end() : end.start()].removeprefix("\n").removesuffix("\n")
        arguments[parameter[1].strip()] = typed(text, _mapping(tools.get(name)).get(parameter[1].strip()))
        place = end.end()
    rest = body[place:].strip().removesuffix(FUNCTION_END).strip()
    if rest and not arguments:
        try:
            arguments = read_value(rest)
        except ValueError:
            return None
        return [ParsedCall(name, arguments)] if isinstance(arguments, dict) else None
    return None if rest else [ParsedCall(name, arguments)]


def is_open_xml(body: str) -> bool:
    """Whether a function has begun and not ended, so that a closing tag belongs to the text of an argument."""
    return FUNCTION.match(body) is not None and not body.rstrip().endswith(FUNCTION_END)


def arg_keys_body(body: str, tools: Tools) -> list[ParsedCall] | None:
    """f<arg_key>a</arg_key><arg_value>text or JSON</arg_value>."""
    name, mark, rest = body.partition("<arg_key>")
    name, place, arguments = name.strip(), 0, {}
    pairs = mark + rest
    while pair := ARG_PAIR.match(pairs, place):
        arguments[pair[1].strip()] = typed(pair[2].strip("\n"), _mapping(tools.get(name)).get(pair[1].strip()))
        place = pair.end()
    is_call = NAME.fullmatch(name) and not pairs[place:].strip()
    return [ParsedCall(name, arguments)] if is_call else None


def separated_body(body: str) -> list[ParsedCall] | None:
    """f<｜tool▁sep｜>{...}, or function<｜tool▁sep｜>f and {...} in a fence."""
    name, mark, text = (part.strip() for part in body.partition(SEPARATOR))
    if text.endswith(FENCE):
        name, _, text = text.removesuffix(FENCE).partition(FENCE)
        name, text = name.strip(), text.removeprefix("json")
    try:
        arguments = read_value(text)
    except ValueError:
        return None
    return [ParsedCall(name, arguments)] if mark and name and isinstance(arguments, dict) else None


def braced_body(body: str, quote: str) -> list[ParsedCall] | None:
    """call:f{a:<quote>text<quote>}."""
    reader = Reader(body, quote)
    try:
        reader.expect("call:")
        name = reader.word()
        reader.expect("{")
        arguments = reader.pairs(":", "}")
    except ValueError:
        return None
    return [ParsedCall(name, arguments)] if reader.is_at_end() else None


def python_call(reader: Reader) -> ParsedCall:
    """f(a=1) at the cursor; raises ValueError for what is none, such as arguments without a name."""
    name = reader.word()
    reader.expect("(")
    return ParsedCall(name.removesuffix(".call"), reader.pairs("=", ")"))


def fenced_body(body: str) -> list[ParsedCall] | None:
    """Calls in Python, one after another and each perhaps in print(), in a list or not; or JSON."""
    if body.lstrip().startswith(("{", "[{")):
        return json_body(body)
    reader = Reader(body)
    calls = []
    try:
        is_list = reader.take("[")
        while not reader.is_at_end() and not (is_list and reader.take("]")):
            is_printed = reader.take("print(")
            calls.append(python_call(reader))
            if is_printed:
                reader.expect(")")
            reader.take(",")
            reader.take(";")
    except ValueError:
        return None
    return calls if reader.is_at_end() and calls else None


def typed(text: str, schema: Any) -> Any:
    """The value that a text stands for: what its schema says, and without one what it looks like."""
    kinds = _kinds(_mapping(schema))
    if kinds == {"string"}:
        return text
    try:
        value = read_value(text)
    except ValueError:
        return text
    if isinstance(value, str):  # quotes belong to the text where nothing asks for JSON
        return text
    if isinstance(value, float) and value.is_integer() and kinds == {"integer"}:
        return int(value)
    return value if not kinds or _kind(value) & kinds else text


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """The types that a schema allows; empty where it does not say."""
    given = schema.get("type")
    names = given if isinstance(given, list) else [given]
    kinds = {TYPES.get(name, name) for name in names if isinstance(name, str)}
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list):
            kinds |= {kind for option in options for kind in _kinds(_mapping(option))}
    enum = schema.get("enum")
    if not kinds and isinstance(enum, list) and all(isinstance(item, str) for item in enum):
        return {"string"}
    return set() if "any" in kinds else kinds


def _kind(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    return {"number"} if isinstance(value, float) else {"array"} if isinstance(value, list) else {"object"}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
