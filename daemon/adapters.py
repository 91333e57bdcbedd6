"""WorkerAdapters: which LoRA adapters a worker holds beside its base, for whom, and when they go.

Names over one base share its worker, whatever adapters they have; names with the same adapter share that. An adapter
is loaded when it is first asked for, by one load that all who want it wait for, and goes when neither a request uses it
nor a name that is still loaded has it. Owned by daemon.workers.Worker; everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

from daemon.engines import Engine
from engine.errors import EngineError
from engine.messages import Ready
from registry.stored_model import StoredModel

logger = logging.getLogger("hob.models")

AdapterKey = frozenset[tuple[str, str]]
"""(file name, path of the blob) of all adapters of a model, which add up; empty: it has none."""
OnReady = Callable[[Ready], None]
"""Called with what the worker holds whenever an adapter came or went."""


def adapter_key(stored: StoredModel) -> AdapterKey:
    """Names with the same key share an adapter."""
    return frozenset((name, str(path)) for name, path in stored.adapter_files.items())


class WorkerAdapters:
    """The adapters of one worker."""

    def __init__(self) -> None:
        self._loads: dict[AdapterKey, tuple[int, asyncio.Task[None]]] = {}
        self._removals: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        """Never given twice: cached prefixes belong to a number."""
        self._users: Counter[AdapterKey] = Counter()

    @contextmanager
    def held(self, key: AdapterKey) -> Iterator[None]:
        """Inside, `release` leaves an adapter where it is."""
        self._users[key] += 1
        try:
            yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]

    async def load(self, stored: StoredModel, engine: Engine, on_ready: OnReady) -> int:
        """The number of a model's adapter, loading it first where needed; 0 where it has none.

        Raises:
            LoadFailed: it cannot be applied to the base, or there is no memory for it.
            EngineDied: the worker ended.
        """
        key = adapter_key(stored)
        if not key:
            return 0
        if key not in self._loads:
            number = next(self._numbers)
            task = asyncio.create_task(_add(number, stored, engine, on_ready))
            task.add_done_callback(lambda task: self._loaded(key, task))
            self._loads[key] = number, task
        number, load = self._loads[key]
        # Shielded: a caller that leaves must not end the load that others wait for.
        await asyncio.shield(load)
        return number

    def release(self, wanted: Collection[AdapterKey], engine: Engine, on_ready: OnReady) -> None:
        """Gives the memory of adapters back that are neither held nor among those that are wanted."""
        for key, (number, load) in list(self._loads.items()):
            if key not in wanted and not self._users[key] and load.done():
                del self._loads[key]
                removal = asyncio.create_task(_remove(number, engine, on_ready))
                self._removals.add(removal)
                removal.add_done_callback(self._removals.discard)

    def _loaded(self, key: AdapterKey, task: asyncio.Task[None]) -> None:
        """A load that failed may be tried again. Retrieving the exception tells asyncio that somebody has seen it."""
        if task.cancelled() or task.exception() is not None:
            self._loads.pop(key, None)


async def _add(number: int, stored: StoredModel, engine: Engine, on_ready: OnReady) -> None:
    on_ready(await engine.add_adapter(number, {name: str(path) for name, path in stored.adapter_files.items()}))
    logger.info("loaded the adapter of %s beside its base", stored.name.short)


async def _remove(number: int, engine: Engine, on_ready: OnReady) -> None:
    with suppress(EngineError):  # the worker is gone, and the adapter with it
        on_ready(await engine.remove_adapter(number))
