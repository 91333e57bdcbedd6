"""Tests of the engine on a GPU; `make test-gpu` runs them. See CONTRIBUTING.md, "Testing on a GPU".

A GPU machine need not have what the daemon and the CLI need: where a package of NEEDED is missing, the tests are left
out.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

NEEDED = ("jinja2", "msgspec", "numpy", "psutil", "safetensors", "tokenizers", "triton")
MISSING = [name for name in NEEDED if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []

if not MISSING:
    from tests.gpu.engines import MISSING_DEVICE
    from tests.gpu.tiny_models import write_tiny


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and MISSING_DEVICE:
        pytest.skip(MISSING_DEVICE)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that gives the folder of a tiny random model of an architecture."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("tiny") / name
            write_tiny(folders[name], name)
        return folders[name]

    return folder
