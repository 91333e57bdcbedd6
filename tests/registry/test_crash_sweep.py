"""A sample of the sweeps of tools/store_sweep.py, in a process of its own that has no threads and may fork.

Everything is swept by `make sweep`. Here, deaths come from fail points, every third one of each operation; and strace
strikes a few operations that make few calls, where it is there and may trace.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.registry.sweep import strace_works
from tests.registry.sweep_operations import OPERATIONS

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 600


def sweep(*words: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "store_sweep.py"), "--json", *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=ROOT,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    problems = [result for result in results if result["problem"]]
    assert problems == []
    assert done.returncode == 0, done.stderr
    return results


def test_death_leaves_the_store_whole() -> None:
    results = sweep("--fail-points", "--stride", "3")
    assert {result["operation"] for result in results} == set(OPERATIONS)
    assert len(results) >= 80, "next to nothing was swept"


@pytest.mark.skipif(not strace_works(), reason="strace is missing or may not trace")
def test_death_and_refusal_at_single_system_calls() -> None:
    results = sweep("--operation", "delete", "--operation", "upload")
    points = {result["point"] for result in results}
    assert {"fsync 1", "rename 1", "unlink 1", "fsync 1 EIO", "write 1 ENOSPC", "openat 3 EMFILE"} <= points


PLANTED = """
from registry.manifest import Digest
from tests.registry import sweep_operations as table

def in_place(sandbox, store):
    # What Ollama does: the manifest is truncated and written again.
    path = store.tree.path(table.name("b"))
    data = store.tree.path(table.name("a")).read_bytes()
    path.unlink()
    store.disk.write(fd := store.disk.create(path), data)
    store.disk.sync(fd)

def unverified(sandbox, store):
    # And what it did: bytes get a digest's name before they are hashed.
    path = store.blobs / Digest.of(b"good").file_name
    if not store.has_blob(Digest.of(b"good")):
        store.disk.write(store.disk.create(path), b"bad")
        store.disk.sync_directory(path.parent)
        store.write_blob([b"good"])

table.OPERATIONS.clear()
table.OPERATIONS["in place"] = table.Operation(in_place)
table.OPERATIONS["unverified"] = table.Operation(unverified)
"""


def test_the_sweep_sees_what_is_wrong() -> None:
    """Two stores that would be harmed: else a clean sweep says nothing."""
    code = f"{PLANTED}\nimport runpy, sys\nsys.argv = ['sweep', '--json', '--fail-points']\n"
    code += f"runpy.run_path({str(ROOT / 'tools' / 'store_sweep.py')!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S, cwd=ROOT, check=False
    )
    assert done.returncode == 1, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]

    def problems(operation: str) -> str:
        return "\n".join(result["problem"] for result in results if result["operation"] == operation)

    assert "lost b:latest" in problems("in place")
    assert max(result["models_lost"] for result in results) == 1
    assert "does not hold the bytes that its digest names" in problems("unverified")
