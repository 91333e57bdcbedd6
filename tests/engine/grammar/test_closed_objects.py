"""Which objects are closed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.grammar.closed_objects import close_objects

A: dict[str, Any] = {"properties": {"a": {}}}
CLOSED = {**A, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (A, CLOSED),
        ({**A, "required": ["a"]}, {**CLOSED, "required": ["a"]}),
        ({"items": A}, {"items": CLOSED}),
        ({"items": [A], "additionalItems": A}, {"items": [CLOSED], "additionalItems": CLOSED}),
        ({"anyOf": [A, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"$defs": {"x": A}, "$ref": "#/$defs/x"}, {"$defs": {"x": CLOSED}, "$ref": "#/$defs/x"}),
        ({"properties": {"properties": A}}, {"properties": {"properties": CLOSED}, "additionalProperties": False}),
        ({"additionalProperties": A}, {"additionalProperties": CLOSED}),
        ({"allOf": [A]}, {"allOf": [CLOSED]}),
    ],
)
def test_closed(schema: Any, expected: Any) -> None:
    assert json.loads(close_objects(json.dumps(schema))) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"properties": {}},
        {**A, "additionalProperties": True},
        {**A, "additionalProperties": {"type": "string"}},
        {**A, "patternProperties": {"^b": {}}},
        {**A, "minProperties": 2},
        {**A, "required": ["b"]},
        {**A, "required": [["a"]]},
        {"allOf": [A, {"properties": {"b": {}}}]},
        {**A, "anyOf": [{"required": ["a"]}, {"properties": {"b": {}}}]},
        {"items": A, "properties": {"b": {"$ref": "#/items", "properties": {}}}},
        {"const": A, "enum": [A], "default": A},
        [A],
        1e400,
    ],
)
def test_left_alone(schema: Any) -> None:
    text = json.dumps(schema)
    assert json.loads(close_objects(text)) == json.loads(text)


def test_what_is_no_json_stays() -> None:
    for text in ("{", '{"a": 1e999, "properties": {"b": {}}}', "[" * 100_000):
        assert close_objects(text) == text
