"""A store in a fresh folder, and servers to pull from and push to."""

from __future__ import annotations

import ssl
import subprocess
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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    try:
        subprocess.run(
            [*words.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", f"{path}.crt"],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    with path.open("a") as file:
        file.write(Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the certificate one that transports of this environment trust."""
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")


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
def hub_source(hub: HubServer, transport: Transport) -> HubSource:
    """Asks the hub as nobody in particular."""
    return HubSource(transport, endpoint=hub.endpoint, token="", policy=NO_RETRIES)
