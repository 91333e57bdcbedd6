"""GET /openapi.json: whether it describes the routes, all of them and nothing else, and what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon.app import all_routes
from daemon.openapi import REASONS, openapi_document
from daemon.operations import OPERATIONS
from tests.daemon.conftest import World

pytestmark = pytest.mark.anyio


async def test_every_route_has_a_row_and_every_row_a_route(world: World) -> None:
    routed = {
        (method, route.path_format)
        for route in all_routes(world.services)
        for method in route.methods or ()
        if method != "HEAD" or "GET" not in (route.methods or ())
    }
    rows = [(row.method, row.path) for row in OPERATIONS]
    assert len(rows) == len(set(rows))
    assert routed - set(rows) == set(), "routes without a row in daemon/operations.py"
    assert set(rows) - routed == set(), "rows of daemon/operations.py without a route"


async def test_the_description_is_served(world: World) -> None:
    response = await world.http.get("/openapi.json")
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    document = response.json()
    assert document["openapi"] == "3.1.0"
    assert document == msgspec.json.decode(
        msgspec.json.encode(openapi_document(OPERATIONS, document["info"]["version"]))
    )
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids)) == len(OPERATIONS)
    generate = document["paths"]["/api/generate"]["post"]
    assert set(generate["responses"]["200"]["content"]) == {"application/json", "application/x-ndjson"}
    assert set(generate["responses"]) == {"200", "400", "403", "404", "413", "415", "500", "503"}
    assert "content" not in document["paths"]["/api/blobs/{digest}"]["head"]["responses"]["404"]


def _refs(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(_refs(item) for item in value.values()))
    return set().union(*(_refs(item) for item in value)) if isinstance(value, list) else set()


def test_every_reference_of_the_description_leads_somewhere() -> None:
    document = msgspec.json.decode(msgspec.json.encode(openapi_document(OPERATIONS, "0")))
    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert _refs(document) == names


def test_the_page_on_the_api_names_every_path(root: Path) -> None:
    page = (root / "docs/api.md").read_text("utf-8")
    paths = {row.path.replace("{digest}", "sha256:…").replace("{response_id}", "…") for row in OPERATIONS}
    assert [path for path in sorted(paths) if not re.search(re.escape(path) + "[`\n]", page)] == []


def test_every_status_of_the_table_has_its_meaning() -> None:
    assert {status for row in OPERATIONS for status in (*row.errors, *row.successes)} <= set(REASONS)
