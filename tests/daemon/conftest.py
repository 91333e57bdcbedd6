"""The daemon without processes and sockets: a real store and real model files, a fake engine, an ASGI client."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from daemon.app import build_app
from daemon.embedding import Embedder
from daemon.generation import Generator
from daemon.library import Library
from daemon.model_manager import ManagerConfig, ModelManager
from daemon.quantizing import Quantizer
from daemon.remote import Remote
from daemon.services import Services
from daemon.text_models import TextModels
from daemon.transfers import Transfers
from registry.catalog import Catalog
from registry.create import CreateRequest, create_model
from registry.download import Downloads
from registry.name import ModelName
from registry.registry_client import Access
from registry.sources import Sources
from registry.store import Store
from registry.transport import Transport
from tests.daemon.fake_engine import Answer, FakeEngine
from tests.daemon.shelf import Shelf
from tests.daemon.tiny_model import CHAT_TEMPLATE, THINKING_TEMPLATE, write_tiny_model

SEED = 4711


class TickingClock:
    """Every look at it is a millisecond later than the last."""

    def __init__(self) -> None:
        self._ticks = itertools.count(1)

    def monotonic_ns(self) -> int:
        return next(self._ticks) * 1_000_000

    def time_ns(self) -> int:
        return 1_767_225_600_000_000_000 + next(self._ticks)  # 2026-01-01


@dataclass
class World:
    """Everything that a test may look at or change."""

    app: ASGIApp
    store: Store
    manager: ModelManager
    services: Services
    http: httpx.AsyncClient
    shelf: Shelf
    """Where models are pulled from, whatever their names."""
    engines: list[FakeEngine] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    """What the next requests are answered with, in their order."""
    answer_to: Callable[[str], Answer] = lambda prompt: Answer()
    """The default: what a prompt is answered with that none of `answers` is left for."""
    prompts: list[str] = field(default_factory=list)
    """Text of every prompt that reached an engine."""
    prepare: Callable[[FakeEngine], None] = lambda engine: None
    """Sees every new engine before it is used."""
    is_shut_down: bool = False

    @property
    def engine(self) -> FakeEngine:
        return self.engines[-1]

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, json=body)

    async def lines(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The objects of a streamed reply."""
        response = await self.post(path, **body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in response.text.splitlines()]

    async def whole(self, path: str, **body: Any) -> dict[str, Any]:
        """The object of a reply that is not streamed."""
        response = await self.post(path, stream=False, **body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/json; charset=utf-8"
        reply: dict[str, Any] = response.json()
        return reply


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model files by the name under which every store has them."""
    root = tmp_path_factory.mktemp("models")
    write_tiny_model(root / "tiny", chat_template=CHAT_TEMPLATE)
    write_tiny_model(root / "thinker", chat_template=THINKING_TEMPLATE, seed=1)
    return {"tiny": root / "tiny", "thinker": root / "thinker"}


@pytest.fixture(scope="session")
def filled_store(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> Path:
    """A models folder that tests copy: each creation waits for the disk many times."""
    root = tmp_path_factory.mktemp("store") / "models"
    for name, folder in model_folders.items():
        add_model(Store(root), name, folder)
    add_model(Store(root), "plain", model_folders["tiny"], template="{{ .Prompt }}")
    return root


def add_model(store: Store, name: str, folder: Path, **words: Any) -> None:
    """Create a model from a folder's files."""
    files = {path.name: str(store.write_blob([path.read_bytes()])) for path in folder.iterdir()}
    for _ in create_model(store, CreateRequest(ModelName.parse(name), files=files, **words)):
        pass


@pytest.fixture
def manager_config() -> ManagerConfig:
    """Overridden by tests that want another one."""
    return ManagerConfig()


@pytest.fixture
async def world(tmp_path: Path, filled_store: Path, manager_config: ManagerConfig) -> AsyncGenerator[World]:
    store = Store(shutil.copytree(filled_store, tmp_path / "models"))
    clock = TickingClock()
    world: World

    def answer(prompt: str) -> Answer:
        world.prompts.append(prompt)
        return world.answers.pop(0) if world.answers else world.answer_to(prompt)

    async def start_engine() -> FakeEngine:
        engine = FakeEngine(answer)
        world.engines.append(engine)
        world.prepare(engine)
        return engine

    def shut_down() -> None:
        world.is_shut_down = True

    manager = ModelManager(start_engine, manager_config, clock)
    call_ids = (f"call_{number:08x}" for number in itertools.count(1))
    generator = Generator(manager, clock, lambda: SEED, lambda: next(call_ids))
    shelf = Shelf(tmp_path / "shelf")
    transport = Transport(use_environment=False)
    downloads = Downloads(store)
    remote = Remote(store, Sources(shelf, shelf, shelf), Catalog.load(), downloads, Access(transport))
    transfers = Transfers(store, lambda: remote)
    quantizer = Quantizer(start_engine)
    texts = TextModels(manager.loaded_tokenizer)
    services = Services(
        store,
        Library(store),
        manager,
        texts,
        quantizer,
        transfers,
        generator,
        Embedder(manager, clock),
        clock,
        shut_down,
    )
    app = build_app(services)
    in_process = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=in_process, base_url="http://localhost:11434") as http:
        world = World(app, store, manager, services, http, shelf)
        yield world
        await manager.close()
        generator.close()
    remote.close(timeout_s=60)
    assert all(engine.closed.is_set() for engine in world.engines)


class RawClient:
    """One request on the bare ASGI interface: the test decides what the client sends, reads, and when it leaves."""

    def __init__(self, app: ASGIApp, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        head = {"host": "localhost:11434", **{name.replace("_", "-"): value for name, value in headers.items()}}
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in head.items()],
            "state": {},
        }
        self._app = app
        self._body: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._body.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reads = asyncio.Event()
        self.reads.set()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await self._app(self.scope, self._body.get, self._send)

    async def _send(self, message: Any) -> None:
        await self.reads.wait()  # a client that does not read fills the socket, and the server's send waits
        await self.sent.put(message)

    def leave(self) -> None:
        """Close the connection."""
        self._body.put_nowait({"type": "http.disconnect"})

    async def next_line(self) -> dict[str, Any]:
        """The next object of a stream."""
        while True:
            message = await self.sent.get()
            if message["type"] == "http.response.body" and message["body"]:
                reply: dict[str, Any] = json.loads(message["body"])
                return reply
