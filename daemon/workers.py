"""What ModelManager keeps of each worker process and of each name that uses one, and what it shows of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from daemon.adapters import WorkerAdapters
from daemon.engines import Engine
from engine.any_config import AnyConfig
from engine.messages import Ready
from engine.text.tokenizer import Tokenizer
from modelfiles.prompt import PromptTemplate
from registry.name import ModelName
from registry.stored_model import StoredModel

WorkerKey = frozenset[tuple[str, str]]
"""(file name, path of the blob) of the weights: blobs are named by digest, so this is the weights' identity."""


@dataclass(frozen=True)
class LoadedModel:
    """A model as its users see it while they hold it."""

    stored: StoredModel
    config: AnyConfig
    tokenizer: Tokenizer
    template: PromptTemplate
    engine: Engine
    ready: Ready
    default_context: int
    """Tokens of context where neither request nor Modelfile says."""
    max_context: int
    """The most that a request can have."""
    adapter: int = 0
    """What requests to the engine name; 0: the model has no LoRA adapter."""


@dataclass(frozen=True)
class RunningSession:
    """A row of `ps`."""

    stored: StoredModel
    size_bytes: int
    vram_bytes: int
    remaining_s: float
    """Until it is unloaded if nobody uses it; infinity is for ever."""
    context_length: int


@dataclass(eq=False)
class Session:
    """One name's use of a worker."""

    stored: StoredModel
    keep_alive_s: float
    num_users: int = 0
    expires_ns: int = 0
    """On the monotonic clock; meaningful while `timer` is set."""
    timer: asyncio.TimerHandle | None = None
    templates: dict[str, PromptTemplate] = field(default_factory=dict)
    """By manifest digest: a name may be created anew while it is loaded."""


@dataclass(eq=False)
class Weights:
    """What a load yields."""

    engine: Engine
    config: AnyConfig
    tokenizer: Tokenizer
    ready: Ready
    """Changes when an adapter comes or goes."""

    def set_ready(self, ready: Ready) -> None:
        self.ready = ready


@dataclass(eq=False)
class Worker:
    """One worker process, loading or loaded."""

    key: WorkerKey
    loading: asyncio.Task[Weights]
    sessions: dict[ModelName, Session] = field(default_factory=dict)
    last_used_ns: int = 0
    adapters: WorkerAdapters = field(default_factory=WorkerAdapters)

    @property
    def is_busy(self) -> bool:
        return not self.loading.done() or any(session.num_users for session in self.sessions.values())

    @property
    def weights(self) -> Weights | None:
        """What was loaded, or None while it loads or where that failed."""
        done = self.loading.done() and not self.loading.cancelled() and self.loading.exception() is None
        return self.loading.result() if done else None

    @property
    def is_usable(self) -> bool:
        """Whether it is loading or alive."""
        return not self.loading.done() or (self.weights is not None and self.weights.engine.alive)
