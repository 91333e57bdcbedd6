"""Quantizer: a worker process that writes a model anew, as a blocking generator for whoever makes a model.

`create` runs in a thread and the worker is spoken to on the event loop, so progress crosses in a queue. The worker is
one of its own, not one that serves: it ends with the job. When the client leaves, the generator is closed and the
worker ended where it stands; only then does `close` return, so that the caller may remove the folder.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from queue import Empty, SimpleQueue

from daemon.engines import EngineFactory
from engine.errors import LoadFailed
from engine.messages import Quantize, Quantized
from registry.create import CreateStatus, QuantizeOrder
from registry.errors import CreateError

ZERO_DIGEST = "sha256:" + 64 * "0"
"""Marks lines of one bar: clients draw one for each digest, and the new file has none yet."""
HEARTBEAT_S = 1.0
"""A status is repeated after so long a silence: between two items a client that left is noticed."""
GRACE_S = 0.0
"""How long a worker is given to end by itself: it holds nothing that matters."""

Updates = SimpleQueue[tuple[int, int] | None]
"""(bytes done, bytes in all); None is the end."""


class Quantizer:
    """Starts a worker for each job."""

    def __init__(self, start_engine: EngineFactory, *, num_threads: int = 0) -> None:
        self._start_engine = start_engine
        self._num_threads = num_threads

    def run(self, loop: asyncio.AbstractEventLoop, order: QuantizeOrder) -> Iterator[CreateStatus]:
        """Do it, yielding progress; for a thread that is not the loop's. As registry.create.QuantizeModel.

        Args:
            loop: where workers are spoken to.

        Raises:
            CreateError: the model cannot be quantised so.
            EngineError: the worker failed or died.
        """
        updates: Updates = SimpleQueue()
        is_over = threading.Event()
        status = f"quantizing {order.source_type} model to {order.file_type}"
        job = asyncio.run_coroutine_threadsafe(self._run(order, updates, is_over), loop)
        # The job's first update comes before the first `yield`: it has begun, so its end will set `is_over`.
        update = updates.get()
        try:
            while update is not None:
                done, total = update
                yield CreateStatus(status, digest=ZERO_DIGEST, completed=done, total=total)
                try:
                    update = updates.get(timeout=HEARTBEAT_S)
                except Empty:
                    continue
            yield from (CreateStatus(note) for note in job.result().notes)
        except LoadFailed as error:
            if error.kind != "invalid":
                raise
            raise CreateError(str(error)) from error
        finally:
            job.cancel()
            is_over.wait()

    async def _run(self, order: QuantizeOrder, updates: Updates, is_over: threading.Event) -> Quantized:
        updates.put((0, 0))
        try:
            engine = await self._start_engine()
            try:
                message = Quantize(
                    files={name: str(path) for name, path in order.source.files.items()},
                    folder=str(order.folder),
                    file_type=order.file_type,
                    num_threads=self._num_threads,
                )
                return await engine.quantize(message, lambda done, total: updates.put((done, total)))
            finally:
                await engine.close(GRACE_S)
        finally:
            updates.put(None)
            is_over.set()
