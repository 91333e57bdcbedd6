"""Forty ways in which a server goes wrong: right bytes or a clean error, and nothing is fetched twice.

`make faults` runs them with 25 seeds each.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.registry.fault_case import run_case
from tests.registry.fault_server import KINDS


@pytest.mark.parametrize("seed", [0, 1], ids=["to the end", "server vanishes"])
@pytest.mark.parametrize("kind", KINDS)
def test_right_bytes_or_a_clean_error(tmp_path: Path, kind: str, seed: int) -> None:
    result = run_case(kind, seed, tmp_path)
    assert not result.problem, result


def test_there_are_forty_kinds() -> None:
    assert len(KINDS) == 40
