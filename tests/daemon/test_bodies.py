"""Request bodies: what is JSON, how large, and that no body at all makes the daemon fail."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon import api
from daemon.bodies import MAX_BODY_BYTES, decode
from daemon.errors import BadRequest
from tests.daemon.conftest import World


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "missing request body"),
        (b" \n", "missing request body"),
        (b"{", "the request body is not valid JSON"),
        (b"{} x", "the request body is not valid JSON"),
        (b"\xef\xbb\xbf{}", "the request body is not valid JSON"),
        ('{"model": "a"}'.encode("utf-16"), "the request body is not UTF-8 (byte 0)"),
        (b'{"model": "\xff"}', "the request body is not UTF-8 (byte 11)"),
        (b'{"other": "\xff"}', "the request body is not UTF-8 (byte 11)"),
        (b'{"model": "\\ud800"}', "the request body is not valid JSON: \\ud800 is a lone surrogate (byte 11)"),
        (
            b'{"a": "\\uD83D\\uDE00 \\uDE00"}',
            "the request body is not valid JSON: \\uDE00 is a lone surrogate (byte 20)",
        ),
        (b'{"a": "\\\\ud800 \\ud801x"}', "the request body is not valid JSON: \\ud801 is a lone surrogate (byte 15)"),
        (b'{"a": "%s\\udead%s"}' % (b"a" * 1000, b"b" * 1000), "the request body is not valid JSON: \\udead is a lone"),
        (b'{"a": "\\\\ud800', "the request body is not valid JSON: Input data was truncated"),
        (b'{"a": "\\ud83d\\ude00', "the request body is not valid JSON: Input data was truncated"),
        (b"[]", "invalid request: expected object, got array"),
        (b"null", "invalid request: expected object, got null"),
        (b'{"model": 7}', "invalid request: field model: expected str, got int"),
        (b'{"stream": "no"}', "invalid request: field stream: expected bool, got str"),
        (b'{"options": {"temperature": NaN}}', "the request body is not valid JSON"),
        (b'{"options": {"temperature": -Infinity}}', "the request body is not valid JSON"),
        (b'{"other": NaN}', "the request body is not valid JSON"),
        (b'{"options": {"temperature": 1e999}}', "invalid request: field options.temperature: number out of range"),
        (
            b'{"options": {"seed": %s}}' % (b"1" * 5000),
            "invalid request: field options.seed: integer value out of range",
        ),
        (
            b'{"options": {"top_k": 1, "stop": ["a", 1e400]}}',
            "invalid request: field options.stop: number out of range",
        ),
        (
            b'{"options": {"top_p": 1e400}, "other": %s%s}' % (b"[" * 100_000, b"]" * 100_000),
            "invalid request: field options[...]: number out of range",
        ),
        (b'{"options": %s%s}' % (b"[" * 100_000, b"]" * 100_000), "invalid request: field options: expected object"),
        (b'{"format": %s%s}' % (b"[" * 100_000, b"]" * 100_000), "the request body is nested too deeply"),
        (b'{"other": %s%s}' % (b"[" * 100_000, b"]" * 100_000), "the request body is nested too deeply"),
        (b'{"keep_alive": true}', "invalid request: field keep_alive: expected int | float | str, got bool"),
        (b'{"keep_alive": []}', "invalid request: field keep_alive: expected int | float | str, got array"),
        (b'{"context": [1.5]}', "invalid request: field context[0]: expected int, got float"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(body: bytes, error: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(body, api.GenerateRequest)
    assert str(caught.value).startswith(error)


def test_what_is_tolerated() -> None:
    request = decode(
        b' {"model":null,"unknown":{"a":[1]},"prompt":"a","prompt":"b","think":"low"} ', api.GenerateRequest
    )
    assert (request.model, request.prompt, request.think, request.stream) == (None, "b", "low", None)


@pytest.mark.anyio
async def test_forms_are_refused(world: World) -> None:
    for media_type in ("multipart/form-data; boundary=x", "Multipart/Mixed", "application/x-www-form-urlencoded"):
        headers = {"content-type": media_type}
        response = await world.http.post("/api/generate", content=b"model=tiny", headers=headers)
        assert (response.status_code, list(response.json())) == (415, ["error"])


@pytest.mark.anyio
async def test_a_body_that_is_too_large_is_not_read(world: World) -> None:
    response = await world.http.post("/api/chat", content=b"", headers={"content-length": str(MAX_BODY_BYTES + 1)})
    assert (response.status_code, response.headers["connection"]) == (413, "close")
    num_pieces = 0

    async def endless() -> AsyncGenerator[bytes]:
        nonlocal num_pieces
        while num_pieces < 1000:
            num_pieces += 1
            yield b" " * 2**20

    response = await world.http.post("/api/chat", content=endless())
    assert response.status_code == 413
    assert num_pieces <= 66


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
OPTION = st.sampled_from(
    ["temperature", "top_k", "seed", "num_predict", "num_ctx", "stop", "num_keep", "repeat_last_n"]
)
NUMBER = st.sampled_from([-1, 0, 1, 2**31, 2**63, -(2**63), 1e308, -1e308, 0.5, 1e-320])
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool", "USER"]), "content": st.text(max_size=20)},
    optional={"thinking": JSON, "tool_calls": JSON, "images": JSON, "tool_name": st.text(max_size=3)},
)
FIELDS = st.fixed_dictionaries(
    {"model": st.sampled_from(["tiny", "thinker", "TINY:latest"]) | JSON},
    optional={
        "prompt": st.text(max_size=40) | JSON,
        "suffix": st.just("") | JSON,
        "messages": st.lists(MESSAGE, max_size=4) | JSON,
        "options": st.dictionaries(OPTION, NUMBER | JSON, max_size=4) | JSON,
        "keep_alive": NUMBER | st.sampled_from(["5m", "-1s", "0", "1e9h"]) | JSON,
        "raw": st.booleans(),
        "think": JSON,
        "format": JSON,
        "context": st.lists(st.integers(-2, 300), max_size=3) | JSON,
        "template": st.just("{{ .Prompt }}") | JSON,
        "system": JSON,
        "tools": JSON,
        "truncate": st.booleans(),
        "shift": st.booleans(),
        "logprobs": st.booleans(),
        "top_logprobs": st.integers(-1, 30),
        "verbose": st.booleans(),
        "from": st.just("tiny") | JSON,
        "source": JSON,
        "destination": JSON,
    },
)
PATHS = st.sampled_from(["/api/generate", "/api/chat", "/api/show", "/api/copy", "/api/pull", "/api/embed"])


@pytest.mark.anyio
async def test_no_body_makes_the_daemon_fail(world: World) -> None:
    bodies: list[tuple[str, dict[str, Any], bool]] = []

    @settings(max_examples=300, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(PATHS, FIELDS, st.booleans())
    def collect(path: str, fields: dict[str, Any], streams: bool) -> None:
        bodies.append((path, fields, streams))

    collect()
    statuses = set()
    for path, fields, streams in bodies:
        body = json.dumps({**fields, "stream": streams}).replace("Infinity", "1e999")
        response = await world.http.post(path, content=body)
        statuses.add(response.status_code)
        assert response.status_code < 500, (path, body, response.text)
        for line in response.text.splitlines():
            assert "internal error" not in line, (path, body)
    assert {200, 400, 404} <= statuses


@pytest.mark.anyio
async def test_a_compressed_body_is_refused(world: World) -> None:
    for coding, status in (("zstd", 415), ("gzip", 415), ("identity", 404)):
        response = await world.http.post(
            "/api/chat", content=b'{"model": "nope"}', headers={"content-encoding": coding}
        )
        assert response.status_code == status
    response = await world.http.post("/api/chat", content=b"\x28\xb5", headers={"content-encoding": "zstd"})
    assert response.json() == {"error": "the request body is compressed (zstd); send it as it is"}
