"""format, and the options regex, grammar and choice: what becomes a constraint, and what is refused and how."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.constraints import read_constraint
from daemon.errors import BadRequest
from engine.constraint import Constraint
from tests.daemon.conftest import World

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}, "required": ["b"]}


@pytest.mark.parametrize(
    ("format", "options", "constraint"),
    [
        (None, None, None),
        ("", {"regex": None, "temperature": 0}, None),
        ("json", {}, Constraint(kind="json")),
        ({}, None, Constraint(kind="json_schema", value="{}")),
        (SCHEMA, None, Constraint(kind="json_schema", value=json.dumps(SCHEMA, separators=(",", ":")))),
        (None, {"regex": "a+"}, Constraint(kind="regex", value="a+")),
        (None, {"choice": ["yes", "né"]}, Constraint(kind="choice", value='["yes","né"]')),
        (None, {"grammar": 'start: "a"'}, Constraint(kind="lark", value='start: "a"')),
        (None, {"grammar": '# x\nroot ::= "a"'}, Constraint(kind="gbnf", value='# x\nroot ::= "a"')),
    ],
)
def test_what_is_asked_for(format: Any, options: Any, constraint: Constraint | None) -> None:
    assert read_constraint(format, options) == constraint


@pytest.mark.parametrize(
    ("format", "options", "error"),
    [
        ("yaml", None, "invalid format: 'yaml'; expected \"json\" or a valid JSON Schema object"),
        ([], None, "invalid format: list; expected"),
        (True, None, "invalid format: True; expected"),
        ("json", {"regex": "a"}, "an answer can have one constraint"),
        (None, {"regex": "a", "choice": ["b"]}, "an answer can have one constraint"),
        (None, {"regex": 7}, "options.regex must be a string, and not an empty one"),
        (None, {"grammar": ""}, "options.grammar must be a string, and not an empty one"),
        (None, {"choice": "a"}, "options.choice must be a list of strings, at least one and none of them empty"),
        (None, {"choice": []}, "options.choice must be a list of strings"),
        (None, {"choice": ["a", ""]}, "options.choice must be a list of strings"),
    ],
)
def test_what_is_no_constraint(format: Any, options: Any, error: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_constraint(format, options)
    assert str(caught.value)[: len(error)] == error


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"format": {"not": {}}}, 'the JSON schema uses "not", which cannot be enforced; leave it out'),
        ({"format": {"type": "strnig"}}, "the JSON schema cannot be enforced: Invalid type: strnig"),
        ({"options": {"regex": "(?=a)"}}, "the regular expression cannot be enforced: "),
        ({"options": {"grammar": "start: b"}}, 'the grammar cannot be enforced: at 1(8): unknown name: "b"'),
        ({"options": {"grammar": "root ::= b"}}, "the GBNF grammar cannot be read: Rule 'b' not found"),
        ({"options": {"choice": ["a" * 300_000]}}, "the choice has 300004 characters but may have at most 262144"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_cannot_be_enforced_is_told_before_a_load(
    world: World, request_: dict[str, Any], error: str, stream: bool
) -> None:
    for path, body in (("/api/generate", {"prompt": "x"}), ("/api/chat", {"messages": [{"role": "user"}]})):
        response = await world.post(path, model="tiny", stream=stream, **body, **request_)
        assert (response.status_code, response.json()["error"][: len(error)]) == (400, error)
    assert not world.engines


async def test_the_engine_is_told(world: World) -> None:
    await world.whole("/api/generate", model="tiny", prompt="Hi", format=SCHEMA)
    await world.whole("/api/chat", model="tiny", messages=[{"role": "user", "content": "Hi"}], format="json")
    await world.whole("/api/generate", model="tiny", prompt="Hi", raw=True, options={"regex": "[a-z]+"})
    await world.whole("/api/generate", model="tiny", prompt="Hi")
    kinds = [constraint and constraint.kind for constraint in world.engine.constraints]
    assert kinds == ["json_schema", "json", "regex", None]


async def test_a_thought_before_the_answer_is_free(world: World) -> None:
    """The model may open one, unless thinking is switched off."""
    messages = [{"role": "user", "content": "Hi"}]
    await world.whole("/api/chat", model="thinker", messages=messages, format="json")
    await world.whole("/api/chat", model="thinker", messages=messages, format="json", think=False)
    assert world.engine.constraints == [
        Constraint(kind="json", open_tag="<think>", close_tag="</think>"),
        Constraint(kind="json"),
    ]
