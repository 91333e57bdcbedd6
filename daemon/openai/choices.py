"""Several answers at once: jobs that run side by side in the engine's batch, and what they yield, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple

from daemon.generation import Generator, Job, Summary
from daemon.output import Chunk

MAX_AT_ONCE = 64
"""Jobs of one request that run at once; the others wait, so that one request does not fill the engine."""


class Piece(NamedTuple):
    """What the job of this choice yielded."""

    choice: int
    item: Chunk | Summary


async def generate_all(generator: Generator, groups: Sequence[Sequence[Job]]) -> AsyncGenerator[Piece]:
    """Run jobs and yield what they yield, in the order in which it comes. Closing it aborts all.

    Args:
        groups: jobs of the same prompt stand together. The first of a group goes ahead: once it has its first token,
            the others find the prompt in the prefix cache instead of computing it once each.

    Raises:
        DaemonError, EngineError: as Generator.generate, of the first job that fails; the others are aborted.
    """
    if sum(map(len, groups)) == 1:  # nearly every request: no task and no queue between the engine and the client
        async with aclosing(generator.generate(next(job for group in groups for job in group))) as items:
            async for item in items:
                yield Piece(0, item)
        return
    async with aclosing(_Jobs(generator).run(groups)) as pieces:
        async for piece in pieces:
            yield piece


class _Jobs:
    """The jobs of one request, each in a task of its own."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._queue: asyncio.Queue[Piece | Exception] = asyncio.Queue(maxsize=MAX_AT_ONCE)
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    async def run(self, groups: Sequence[Sequence[Job]]) -> AsyncGenerator[Piece]:
        tasks: list[asyncio.Task[None]] = []
        try:
            for group in groups:
                prompt_read = asyncio.Event()
                for place, job in enumerate(group):
                    work = self._follow if place else self._lead
                    # One request takes one place in the queue, or many answers would be too many for an idle daemon.
                    job = replace(job, counts=not tasks)
                    tasks.append(asyncio.create_task(work(len(tasks), job, prompt_read)))
            num_running = len(tasks)
            while num_running:
                piece = await self._queue.get()
                if isinstance(piece, Exception):
                    raise piece
                num_running -= isinstance(piece.item, Summary)
                yield piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _lead(self, index: int, job: Job, prompt_read: asyncio.Event) -> None:
        await self._generate(index, replace(job, on_start=lambda num_prompt, num_cached: prompt_read.set()))
        prompt_read.set()  # an answer without a token never starts; one that fails ends the others anyway

    async def _follow(self, index: int, job: Job, prompt_read: asyncio.Event) -> None:
        await prompt_read.wait()
        await self._generate(index, job)

    async def _generate(self, index: int, job: Job) -> None:
        try:
            async with self._slots, aclosing(self._generator.generate(job)) as items:
                async for item in items:
                    await self._queue.put(Piece(index, item))
        except Exception as error:
            await self._queue.put(error)
            raise
