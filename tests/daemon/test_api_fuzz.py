"""Some requests to every operation of /openapi.json, right and wrong ones: none fails, each reply is as described.

`make fuzz-api` sends many more, to a daemon with a worker.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.daemon.api_cases import Described
from tests.daemon.conftest import World

pytestmark = pytest.mark.anyio

EXAMPLES = 5
"""Of each operation and mode."""


async def test_every_reply_is_as_described(world: World) -> None:
    described = Described((await world.http.get("/openapi.json")).json())
    statuses: Counter[tuple[str, int]] = Counter()
    wrong = []
    for case in await asyncio.to_thread(lambda: list(described.cases(EXAMPLES, ["tiny", "thinker"], derandomize=True))):
        response = await world.http.request(case.row.method, case.path, content=case.body, headers=case.headers)
        statuses[case.mode, response.status_code] += 1
        complaint = described.complaint(
            case, response.status_code, response.headers.get("content-type", ""), response.content
        )
        if complaint:
            wrong.append((case.row.method, case.path, case.body[:300], complaint))
    assert wrong == []
    assert statuses["valid", 200] > 20
    assert statuses["invalid", 400] > 50, statuses
