"""Services: what the routes work with. Built once by app.build_app, frozen, handed to every route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from daemon.clock import Clock, rfc3339
from daemon.embedding import Embedder
from daemon.generation import Generator
from daemon.library import Library
from daemon.model_manager import ModelManager
from daemon.quantizing import Quantizer
from daemon.text_models import TextModels
from daemon.transfers import Transfers
from registry.store import Store


@dataclass(frozen=True)
class Services:
    """The daemon's parts, as the routes see them."""

    store: Store
    library: Library
    models: ModelManager
    texts: TextModels
    quantizer: Quantizer
    transfers: Transfers
    generator: Generator
    embedder: Embedder
    clock: Clock
    shut_down: Callable[[], None] | None
    """Begins the daemon's end; None where it runs in somebody's terminal or under a service manager."""

    def now(self) -> str:
        """For `created_at`."""
        return rfc3339(self.clock.time_ns())

    def local_now(self) -> datetime:
        """What templates call now: the date where the daemon runs."""
        return datetime.fromtimestamp(self.clock.time_ns() / 1e9, UTC).astimezone()
