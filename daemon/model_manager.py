"""ModelManager: which models are loaded, who uses them, and when they go.

A worker process holds the base weights of one model; two Modelfiles over one base share it and differ in what the
daemon keeps beside it (template, SYSTEM, parameters) and in their LoRA adapters (`daemon.adapters`). So there are two
levels: a Worker for each set of weight files, and a Session for each name that uses it. A session's clock runs while
nobody uses it; the last session closes the worker.

    acquire(stored)   enters a session, waits for the one load that all callers share, leaves on the way out
    unload(name)      ends a session now, or as soon as its last user is done
    keep-alive        restarts whenever the last user leaves; a request may bring its own

A request waits for its own model only: loading one model never delays those that are loaded. State changes happen
between awaits, on one event loop, so no lock is needed.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from daemon.adapters import adapter_key
from daemon.clock import Clock
from daemon.engines import Engine, EngineFactory
from daemon.errors import ServerBusy, ShuttingDown
from daemon.workers import LoadedModel, RunningSession, Session, Weights, Worker, WorkerKey
from engine.any_config import read_config
from engine.errors import EngineError, LoadFailed
from engine.messages import Load, Ready
from engine.text.tokenizer import Tokenizer
from modelfiles.prompt import PromptTemplate
from modelfiles.source import ModelSource
from modelfiles.template_choice import choose_template
from registry.name import ModelName
from registry.stored_model import StoredModel

logger = logging.getLogger("hob.models")

FOREVER_S = 100 * 365 * 24 * 3600.0
"""A keep-alive of this many seconds or more has no timer."""
AUTO_CONTEXT = 32768
"""Tokens of context of a request where nobody chose: KV memory is paged, so this costs nothing until it is used."""


@dataclass(frozen=True)
class ManagerConfig:
    """What the manager needs of the settings."""

    keep_alive_s: float = 300.0
    load_timeout_s: float = math.inf
    context_length: int = 0
    """0 is AUTO_CONTEXT."""
    max_queue: int = 512
    max_loaded: int = 0
    """0 is no limit."""
    num_threads: int = 0
    device: str = "auto"
    dtype: str = "auto"
    weight_type: str = "auto"
    kv_cache_type: str = "auto"
    model_memory_bytes: int = 0
    gpu_overhead_bytes: int = 0
    spare_worker: bool = False
    """Keep one empty worker waiting, so that a load need not wait for torch to be imported."""


class Place:
    """A request's place in the queue, a context manager: it counts as waiting until its first token."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager: ModelManager | None = manager
        manager.num_waiting += 1

    def served(self) -> None:
        """The request has its first token, or has ended; further calls do nothing."""
        if self._manager is not None:
            self._manager.num_waiting -= 1
            self._manager = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.served()


class ModelManager:
    """Owns all workers. Everything runs on one event loop."""

    def __init__(self, start_engine: EngineFactory, config: ManagerConfig, clock: Clock) -> None:
        self._start_engine = start_engine
        self._config = config
        self._clock = clock
        self._workers: dict[WorkerKey, Worker] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._spare: asyncio.Task[Engine] | None = None
        self._changed = asyncio.Event()
        self._closed = False
        self.num_waiting = 0

    # ---- using a model

    def queue(self) -> Place:
        """A place in the queue.

        Raises:
            ServerBusy: there is none left.
            ShuttingDown: no more requests are taken.
        """
        if self._closed:
            raise ShuttingDown
        if self.num_waiting >= self._config.max_queue:
            raise ServerBusy
        return Place(self)

    @asynccontextmanager
    async def acquire(self, stored: StoredModel, keep_alive_s: float | None = None) -> AsyncGenerator[LoadedModel]:
        """Hold a model for the length of the block, loading it first where needed.

        Args:
            keep_alive_s: how long it stays afterwards; None is what it had, or the default.

        Raises:
            EngineError: it, or its adapter, could not be loaded.
            ValueError: its files are broken or of a kind that Hob does not run.
        """
        key = _key(stored)
        worker = await self._worker(key, stored)
        session = self._enter(worker, stored, keep_alive_s)
        try:
            with worker.adapters.held(adapter_key(stored)):
                # Shielded: a caller that leaves must not end the load that others wait for.
                weights = await self._wait_for(worker)
                adapter = await self._load_adapter(worker, session, stored, weights)
                yield await self._as_loaded(stored, session, weights, adapter)
        finally:
            self._leave(worker, session)

    async def unload(self, name: ModelName) -> None:
        """End a name's session: now where it is idle (and then it is gone on return), else when its users are done."""
        for worker in list(self._workers.values()):
            session = worker.sessions.get(name)
            if session is not None:
                session.keep_alive_s = 0.0
                if not session.num_users:
                    self._end_session(worker, session)
        await self._all_closed()

    def running(self) -> list[RunningSession]:
        """What is loaded, the one with the longest time left first."""
        rows = []
        for worker in self._workers.values():
            weights = worker.weights
            if weights is None or not weights.engine.alive:
                continue
            size = weights.ready.weights_bytes + weights.ready.kv_cache_bytes
            vram = size if weights.ready.device.startswith("cuda") else 0
            context = self._context(weights)
            for session in worker.sessions.values():
                rows.append(RunningSession(session.stored, size, vram, self._remaining_s(session), context))
        return sorted(rows, key=lambda row: -row.remaining_s)

    def loaded_tokenizer(self, stored: StoredModel) -> Tokenizer | None:
        """The tokenizer of a model, or None where its weights are not loaded."""
        worker = self._workers.get(_key(stored))
        return worker.weights.tokenizer if worker is not None and worker.weights is not None else None

    def start_spare(self) -> None:
        """Start an empty worker in the background, where the settings want one and none waits."""
        if self._config.spare_worker and self._spare is None and not self._closed:
            self._spare = asyncio.ensure_future(self._start_engine())

    async def close(self) -> None:
        """End all workers; streams that still run end with an error. No model can be acquired afterwards."""
        self._closed = True
        for worker in list(self._workers.values()):
            self._drop(worker)
        if self._spare is not None:
            spare, self._spare = self._spare, None
            self._closing.add(asyncio.create_task(_close_started(spare)))
        self._wake_waiters()
        await self._all_closed()

    # ---- loading

    async def _worker(self, key: WorkerKey, stored: StoredModel) -> Worker:
        """The worker of these weights; a new one once there is room for it."""
        while True:
            if self._closed:
                raise ShuttingDown
            worker = self._workers.get(key)
            if worker is not None and worker.is_usable:
                return worker
            if worker is not None:
                self._drop(worker)
            limit = self._config.max_loaded
            if not limit or len(self._workers) < limit:
                return self._start_worker(key, stored)
            idle = [other for other in self._workers.values() if not other.is_busy]
            if idle:
                self._drop(min(idle, key=lambda other: other.last_used_ns))
            else:
                await self._changed.wait()

    def _start_worker(self, key: WorkerKey, stored: StoredModel) -> Worker:
        worker = self._workers[key] = Worker(key, asyncio.create_task(self._load(stored)))
        worker.loading.add_done_callback(lambda task: self._loaded(worker))
        return worker

    async def _load(self, stored: StoredModel) -> Weights:
        """Start a worker, or take the spare one, and load the weights while the tokenizer is built in a thread."""
        started_ns = self._clock.monotonic_ns()
        limit_s = self._config.load_timeout_s
        try:
            source = stored.source
            config = await asyncio.to_thread(read_config, source)
        except ValueError as error:
            raise LoadFailed(str(error), "invalid") from error
        await self._all_closed()  # memory that is about to come back
        engine = await self._take_engine()
        try:
            async with asyncio.timeout(limit_s if math.isfinite(limit_s) else None):
                ready, tokenizer = await _both(
                    engine.load(self._load_message(stored, source)),
                    asyncio.to_thread(Tokenizer.from_source, source),
                )
        except TimeoutError as error:
            await engine.close()
            sentence = f"loading {stored.name.short} took longer than {limit_s:g} s; HOB_LOAD_TIMEOUT sets the limit"
            raise LoadFailed(sentence) from error
        except ValueError as error:  # a broken tokenizer, say: the sentence is the reader's
            await engine.close()
            raise LoadFailed(str(error), "invalid") from error
        except BaseException:
            await engine.close()
            raise
        seconds = (self._clock.monotonic_ns() - started_ns) / 1e9
        logger.info("loaded %s on %s in %.2f s", stored.name.short, ready.device, seconds)
        for note in ready.notes:
            logger.info("%s: %s", stored.name.short, note)
        return Weights(engine, config, tokenizer, ready)

    def _load_message(self, stored: StoredModel, source: ModelSource) -> Load:
        num_gpu = stored.params.get("num_gpu")  # unchecked where Ollama wrote the model
        return Load(
            files={name: str(path) for name, path in source.files.items()},
            device=self._config.device,
            dtype=self._config.dtype,
            weight_type=self._config.weight_type,
            kv_cache_type=self._config.kv_cache_type,
            budget_bytes=self._config.model_memory_bytes,
            overhead_bytes=self._config.gpu_overhead_bytes,
            num_gpu_layers=num_gpu if isinstance(num_gpu, int) else -1,
            num_threads=self._config.num_threads,
        )

    async def _take_engine(self) -> Engine:
        spare, self._spare = self._spare, None
        if spare is not None:
            try:
                engine = await spare
                if engine.alive:
                    return engine
                await engine.close()
            except EngineError as error:
                logger.warning("the spare worker could not be used: %s", error)
        return await self._start_engine()

    @staticmethod
    async def _wait_for(worker: Worker) -> Weights:
        try:
            return await asyncio.shield(worker.loading)
        except asyncio.CancelledError:
            if worker.loading.cancelled():  # by `close`; this caller itself was not cancelled
                raise ShuttingDown from None
            raise

    def _loaded(self, worker: Worker) -> None:
        """The load has ended, well or not. Retrieving the exception here tells asyncio that somebody has seen it."""
        if worker.loading.cancelled() or (error := worker.loading.exception()) is None:
            return
        logger.warning("a model could not be loaded: %s", error)
        if self._workers.get(worker.key) is worker:
            self._drop(worker)

    # ---- sessions

    def _enter(self, worker: Worker, stored: StoredModel, keep_alive_s: float | None) -> Session:
        for other in list(self._workers.values()):  # the name was created anew over other weights
            stale = other.sessions.get(stored.name)
            if other is not worker and stale is not None:
                stale.keep_alive_s = 0.0
                if not stale.num_users:
                    self._end_session(other, stale)
        session = worker.sessions.get(stored.name)
        if session is None:
            session = worker.sessions[stored.name] = Session(stored, self._config.keep_alive_s)
        session.stored = stored
        session.num_users += 1
        if keep_alive_s is not None:
            session.keep_alive_s = keep_alive_s
        if session.timer is not None:
            session.timer.cancel()
            session.timer = None
        return session

    def _leave(self, worker: Worker, session: Session) -> None:
        session.num_users -= 1
        worker.last_used_ns = self._clock.monotonic_ns()
        if session.num_users or self._workers.get(worker.key) is not worker:
            return
        if not worker.is_usable:
            self._drop(worker)
        elif session.keep_alive_s <= 0:
            self._end_session(worker, session)
        elif session.keep_alive_s < FOREVER_S:
            loop = asyncio.get_running_loop()
            session.expires_ns = worker.last_used_ns + int(session.keep_alive_s * 1e9)
            session.timer = loop.call_later(session.keep_alive_s, self._end_session, worker, session)
        if not any(other.is_busy for other in self._workers.values()):
            self.start_spare()  # only now, so that importing torch takes no time from anybody's tokens
        if self._workers.get(worker.key) is worker:
            self._release_adapters(worker)
        self._wake_waiters()

    def _end_session(self, worker: Worker, session: Session) -> None:
        if session.timer is not None:
            session.timer.cancel()
        if worker.sessions.get(session.stored.name) is session:
            del worker.sessions[session.stored.name]
        if worker.sessions:
            self._release_adapters(worker)
        else:
            self._drop(worker)

    @staticmethod
    async def _load_adapter(worker: Worker, session: Session, stored: StoredModel, weights: Weights) -> int:
        try:
            return await worker.adapters.load(stored, weights.engine, weights.set_ready)
        except LoadFailed:
            session.keep_alive_s = 0.0  # the base runs, but not what the name stands for
            raise

    @staticmethod
    def _release_adapters(worker: Worker) -> None:
        """Those of names that are gone, or that were created anew with others."""
        if (weights := worker.weights) is not None:
            wanted = {adapter_key(session.stored) for session in worker.sessions.values()}
            worker.adapters.release(wanted, weights.engine, weights.set_ready)

    def _drop(self, worker: Worker) -> None:
        """Forget a worker and end its process in the background."""
        if self._workers.get(worker.key) is worker:
            del self._workers[worker.key]
        for session in worker.sessions.values():
            if session.timer is not None:
                session.timer.cancel()
        closing = asyncio.create_task(_close_loaded(worker))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._wake_waiters()

    async def _all_closed(self) -> None:
        current = asyncio.current_task()
        pending = [task for task in self._closing if task is not current]
        if pending:
            await asyncio.wait(pending)

    def _wake_waiters(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _as_loaded(self, stored: StoredModel, session: Session, weights: Weights, adapter: int) -> LoadedModel:
        digest = stored.digest.hex
        if digest not in session.templates:
            session.templates = {digest: await asyncio.to_thread(prompt_template, stored, weights.tokenizer)}
        return LoadedModel(
            stored=stored,
            config=weights.config,
            tokenizer=weights.tokenizer,
            template=session.templates[digest],
            engine=weights.engine,
            ready=weights.ready,
            default_context=self._context(weights),
            max_context=min(weights.config.max_position_embeddings, weights.ready.max_context),
            adapter=adapter,
        )

    def _context(self, weights: Weights) -> int:
        wanted = self._config.context_length or AUTO_CONTEXT
        return min(wanted, weights.config.max_position_embeddings, weights.ready.max_context)

    def _remaining_s(self, session: Session) -> float:
        if session.keep_alive_s >= FOREVER_S:
            return math.inf
        if session.timer is None:
            return session.keep_alive_s
        return max(0.0, (session.expires_ns - self._clock.monotonic_ns()) / 1e9)


def _key(stored: StoredModel) -> WorkerKey:
    return frozenset((name, str(path)) for name, path in stored.files.items())


def prompt_template(stored: StoredModel, tokenizer: Tokenizer) -> PromptTemplate:
    """The template that renders the model's prompts. Raises TemplateError where it does not parse."""
    return choose_template(
        stored.template,
        tokenizer.chat_template or "",
        tokenizer.special_tokens,
        is_explicit=stored.has_own_template,
        renderer=stored.renderer,
    )


async def _both(load: Awaitable[Ready], tokenizer: Awaitable[Tokenizer]) -> tuple[Ready, Tokenizer]:
    """Wait for both; when one fails the other is not left behind."""
    tasks = asyncio.ensure_future(load), asyncio.ensure_future(tokenizer)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _close_loaded(worker: Worker) -> None:
    worker.loading.cancel()
    await asyncio.wait({worker.loading})
    if worker.weights is not None:
        await worker.weights.engine.close()


async def _close_started(spare: asyncio.Task[Engine]) -> None:
    spare.cancel()
    await asyncio.wait({spare})
    if not spare.cancelled() and spare.exception() is None:
        await spare.result().close()
