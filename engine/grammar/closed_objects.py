"""Objects of a schema that name their properties are closed where the schema leaves it open. Pure, without llguidance.

JSON Schema lets an object have any further properties unless it says `additionalProperties`. Programs hardly mean that,
and small models that may invent properties do so until their context is full. What is written under the closed schema
is an instance of the open one, too. Schemas that put objects together out of parts (`allOf`, a reference beside
properties) are left alone: their parts, each closed, would contradict each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

OF_ONE = ("items", "additionalProperties", "additionalItems")
OF_SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
OPENING = (
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "minProperties",
    "$ref",
    *OF_SEVERAL[:3],
)
"""An object with one of these says by itself what else it has, or its other parts do."""


def close_objects(schema_json: str) -> str:
    """The schema with its objects closed; as it was, where it is no JSON or has objects of several parts."""
    try:
        schema = json.loads(schema_json)
        if any(_has_parts(part) for part in _parts(schema)):
            return schema_json
        for part in _parts(schema):
            _close(part)
        return json.dumps(schema, allow_nan=False, ensure_ascii=False)
    except (ValueError, RecursionError):
        return schema_json


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all that are within it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for key in OF_ONE:
        yield from _parts(schema.get(key))
    for key in OF_SEVERAL:
        if isinstance(several := schema.get(key), list):
            for part in several:
                yield from _parts(part)
    for key in BY_NAME:
        if isinstance(named := schema.get(key), dict):
            for part in named.values():
                yield from _parts(part)


def _has_parts(schema: dict[str, Any]) -> bool:
    all_of = schema.get("allOf")
    has_others = any(key in schema for key in ("$ref", "allOf", "anyOf", "oneOf"))
    return (isinstance(all_of, list) and len(all_of) > 1) or (has_others and "properties" in schema)


def _close(schema: dict[str, Any]) -> None:
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not properties or any(key in schema for key in OPENING):
        return
    if isinstance(required, list) and all(isinstance(name, str) and name in properties for name in required):
        schema["additionalProperties"] = False
