"""A store in a fresh folder, and a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from registry.hub import HubSource
from registry.retries import NO_RETRIES
from registry.store import Store
from registry.transport import Transport
from tests.registry.hub_server import HubServer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def transport() -> Iterator[Transport]:
    with Transport(use_environment=False) as transport:
        yield transport


@pytest.fixture
def source(hub: HubServer, transport: Transport) -> HubSource:
    """Asks the hub as nobody in particular."""
    return HubSource(transport, endpoint=hub.endpoint, token="", policy=NO_RETRIES)
