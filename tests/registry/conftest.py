"""A store in a fresh folder, servers to pull from and push to, and a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from registry.hub import HubSource
from registry.registry_client import Access
from registry.retries import NO_RETRIES, RetryPolicy
from registry.store import Store
from registry.transport import Transport
from tests.registry.docker_registry import PROGRAM, DockerRegistry
from tests.registry.hub_server import HubServer
from tests.registry.local_server import far


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def access() -> Iterator[Access]:
    """Asks servers of this machine as if they were elsewhere, knows no logins, and does not wait between tries."""
    with far() as transport:
        yield Access(transport, lambda _: None, RetryPolicy(max_attempts=3), sleep=lambda _: None)


@pytest.fixture
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    if not PROGRAM.exists():
        pytest.skip("docker-registry is not installed; on Debian: apt-get install docker-registry")
    with DockerRegistry(tmp_path_factory.mktemp("docker")) as registry:
        yield registry


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
