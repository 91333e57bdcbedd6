"""Whatever a body holds, no route fails, stalls or says what it should not: each field of each route, wrong in turn."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon.bodies import MAX_VALUES
from daemon.operations import OPERATIONS, Operation
from daemon.prompt_sources import MAX_MESSAGES
from tests.daemon.conftest import World, add_model
from tests.daemon.tiny_model import write_tiny_model

pytestmark = pytest.mark.anyio

LIMIT_S = 20.0
"""For one request; all but the largest take a few milliseconds, and a loaded machine takes longer."""

BASE = {
    "model": "tiny",
    "prompt": "Hi",
    "messages": [{"role": "user", "content": "Hi"}],
    "input": "Hi",
    "max_tokens": 9,
}
BASES: dict[str, dict[str, Any]] = {
    "/api/create": {"model": "new", "from": "tiny"},
    "/api/delete": {"model": "gone"},
    "/api/copy": {"source": "tiny", "destination": "twin"},
    "/api/import": {"model": "gone", "source": "ollama"},
    "/api/importable": {"source": "ollama"},
}
"""What makes a request right where BASE does not, or spares the models that the others need."""

WRONG = [
    "0", "-1", "2147483648", "-9223372036854775809", "1e308", "-1e308", "1e400", "-1e400", "1e-320", "0.5", "9" * 400,
    "NaN", "Infinity", "true", "false", '""', '"x"', '"\\u0000"', '"\\ud83e\\udd8a"', '"../../etc/passwd"',
    '"' + "x" * 100_000 + '"', "[]", "[null]", "[[]]", '[""]', "[{}]", "{}", '{"":null}', '{"a":{"b":[1,"x",null]}}',
    "[" * 2000 + "]" * 2000, '[{"role":"user","content":[]}]', '[{"role":"user","content":"\\u0000"}]', "null",
]  # fmt: skip

BODIES = [
    b"", b" ", b"{", b"[]", b"null", b"1", b'""', b"\xff", b'{"model":"\xff"}', b"\xef\xbb\xbf{}", b"\x00",
    b'{"model":"tiny"}x', b'{"model":"\\ud800"}', b"[" * 100_000,
    b'{"x":' * 100_000 + b"1" + b"}" * 100_000, "{}".encode("utf-16"), b"a=b&c=d", b"\x1f\x8b\x08\x00",
]  # fmt: skip

JSON_OPERATIONS = [row for row in OPERATIONS if row.body not in (None, bytes)]


async def send(world: World, row: Operation, body: bytes) -> int:
    """The status of a reply, whose errors are sentences."""
    async with asyncio.timeout(LIMIT_S):
        response = await world.http.request(row.method, row.path, content=body)
    shown = (row.path, body[:200], response.text[:300])
    assert response.status_code < 500 or response.status_code in (503, 504), shown
    assert "internal error" not in response.text, shown
    assert "Traceback" not in response.text, shown
    assert response.status_code < 400 or len(response.content) < 20_000, shown
    return response.status_code


@pytest.mark.parametrize("row", JSON_OPERATIONS, ids=lambda row: row.path)
async def test_wrong_fields(world: World, row: Operation) -> None:
    assert row.body is not None
    base = {name: json.dumps(value) for name, value in BASES.get(row.path, BASE).items()}
    statuses = set()
    for field in msgspec.structs.fields(row.body):
        for value in WRONG:
            fields = {**base, "stream": "false", field.encode_name: value}
            body = "{" + ",".join(f'"{name}":{text}' for name, text in fields.items()) + "}"
            statuses.add(await send(world, row, body.encode()))
    assert 400 in statuses


async def test_wrong_bodies(world: World) -> None:
    for row in JSON_OPERATIONS:
        for body in BODIES:
            assert await send(world, row, body) >= 400, (row.path, body[:100])


async def test_a_body_of_too_many_values_is_refused_unread(world: World) -> None:
    many = b",".join([b"[]"] * (MAX_VALUES + 2))
    for body in (b'{"options":{"x":[' + many + b"]}}", b'{"format":["' + b'","' * (MAX_VALUES + 2) + b'"]}'):
        response = await world.http.post("/api/chat", content=body)
        assert (response.status_code, response.json()["error"]) == (
            400,
            f"the request body has more than {MAX_VALUES} values, the limit",
        )
    text = json.dumps({"model": "tiny", "prompt": 'a,\\",' * MAX_VALUES, "truncate": False}).encode()
    response = await world.http.post("/api/show", content=text)  # commas in a text are no values
    assert response.status_code == 200
    body = {"model": "tiny", "messages": [{"role": "user"}] * (MAX_MESSAGES + 1)}
    response = await world.post("/api/chat", **body)
    assert response.json() == {"error": f"messages has {MAX_MESSAGES + 1} messages; {MAX_MESSAGES} are allowed"}


GO_LOOP = '{{ define "x" }}{{ template "x" . }}{{ template "x" . }}{{ end }}{{ template "x" . }}'
GO_GROWTH = "{{ $x := .Prompt }}" + '{{ $x = printf "%s%s%s%s" $x $x $x $x }}' * 30 + "{{ $x }}"
HOSTILE_GO = [
    GO_LOOP,
    GO_GROWTH,
    "{{ range .Messages }}" * 60 + "{{ end }}" * 60 + "{{ .Prompt",
    "{{ if .Prompt }}" * 500 + "{{ end }}" * 500,
    "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    '{{ printf "%999999999d" 1 }}{{ .Prompt }}',
    "{{ index .Messages 99999999999999999999 }}",
    "{{ slice .Prompt 1 9999999 }}",
    "{{ call .Prompt }}",
    "{{ .Prompt.Prompt.Prompt }}",
    "{{" * 100_000,
    "x" * 2_000_000 + "{{ .Prompt }}",
]


async def test_hostile_templates_of_a_request(world: World) -> None:
    for template in HOSTILE_GO:
        for path, body in (
            ("/api/generate", {"model": "tiny", "prompt": "Hi" * 500, "template": template}),
            ("/api/create", {"model": "new", "from": "tiny", "template": template}),
        ):
            async with asyncio.timeout(LIMIT_S):
                response = await world.post(path, **body)
            assert response.status_code in (200, 400), (template[:60], response.text)
            assert path == "/api/create" or response.status_code == 400, (template[:60], response.text[:200])
            assert "internal error" not in response.text, template[:60]


HOSTILE_JINJA = [
    "{% for i in range(10 ** 9) %}x{% endfor %}",
    "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='xxxx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{{ 2 ** 1000000 }}",
    "{{ 'x' * 10 ** 12 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages[0].content.format.__globals__ }}",
    "{{ raise_exception('no') }}",
]


async def test_hostile_templates_of_a_model(world: World, tmp_path: Path) -> None:
    for number, template in enumerate(HOSTILE_JINJA):
        folder = tmp_path / str(number)
        write_tiny_model(folder, chat_template=template)
        add_model(world.store, f"m{number}", folder)
        async with asyncio.timeout(LIMIT_S):
            response = await world.post("/api/chat", model=f"m{number}", messages=BASE["messages"], keep_alive=0)
        assert response.status_code == 400, (template, response.text)
        assert "internal error" not in response.text
