"""Histories of a daemon's store by several clients at once; `tools/store_history.py` runs ten thousand operations."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.store import Store
from tests.daemon.tiny_model import write_tiny_model
from tests.e2e.conftest import StartDaemon
from tests.e2e.history import KINDS, Operation, operations, run_history

pytestmark = pytest.mark.e2e

NUM_WORKERS = 8


def test_workers_at_once_find_what_they_stored(start_daemon: StartDaemon, tmp_path: Path) -> None:
    bases = []
    for seed in range(2):
        folder = tmp_path / f"base{seed}"
        write_tiny_model(folder, seed=seed)
        bases.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    daemon = start_daemon()
    store = Store(daemon.home / "models")
    builtin = {path.name for path in store.blobs.iterdir()}

    @settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.tuples(*[operations(KINDS, 12)] * NUM_WORKERS))
    def history(histories: tuple[list[Operation], ...]) -> None:
        assert run_history(daemon.base_url, histories, bases) == []
        assert store.check() == []
        # Uploads that nobody used are all that may be left over: each of the bases' files, once.
        left = {path.name for path in store.blobs.iterdir()} - builtin
        assert left <= {f"sha256-{_hex(data)}" for base in bases for data in base.values()}

    history()


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
