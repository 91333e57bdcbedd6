"""Fixtures that every part shares."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# As the daemon does for its workers (engine/client.py): tests run beside daemons and workers of theirs, and torch's
# threads must not wait for each other by spinning then. Before anything imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# Without a GPU, kernels run in Triton's interpreter. Triton reads this once, when any test file first imports it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# No test fails because the machine is busy.
settings.register_profile("hob", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hob")

# A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that; tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real weights, tokenizers and golden outputs that do not ship with Hob."""
    path = Path(os.environ.get("HOB_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "golden").is_dir():
        pytest.skip(f"no test data at {path}; set HOB_TEST_DATA to a folder that has it")
    return path


@pytest.fixture(scope="session")
def tale_dir() -> Path:
    """The built-in model's files."""
    return ROOT / "registry" / "builtin" / "tale"
