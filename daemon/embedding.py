"""The one path of an embedding and of a rerank: texts to token ids, to the engine, to vectors or scores.

    inputs -> token ids, cut to the context (in a thread) -> the engine, in slices -> vectors

Every protocol translates its request into an EmbedJob or a RerankJob. Texts of all requests are batched in the worker
(`engine.embedding_queue`); here a request of many texts is sent in slices, so that no frame grows large. A caller that
leaves is cancelled where it waits, and its texts are forgotten.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import mul
from typing import Any, TypeVar

from daemon.clock import Clock
from daemon.embedding_inputs import Encoded, TextInput, encode_inputs, encode_pairs, text_limit
from daemon.model_manager import ModelManager
from daemon.workers import LoadedModel
from engine.encoder_config import EncoderConfig
from engine.errors import EngineDied
from registry.stored_model import StoredModel

MAX_INPUTS = 8192
"""Texts of a request: with 4096 elements each, a reply of that many has some 700 MB as JSON."""
SLICE_INPUTS, SLICE_TOKENS = 256, 1 << 20
"""Texts of one message to the worker, and their tokens."""
SLICES_AT_ONCE = 2

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """One request for vectors, in no protocol's words."""

    stored: StoredModel
    inputs: Sequence[TextInput]
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive_s: float | None = None
    truncate: bool = True
    dimensions: int = 0
    """Elements to keep of each vector; 0, or more than there are, is all."""
    normalize: bool = True


@dataclass(frozen=True)
class Embeddings:
    """What came of it. Durations are nanoseconds and never 0."""

    vectors: list[bytes]
    """One an input, little-endian float32."""
    num_tokens: int
    """Of all inputs, those around a text included."""
    is_truncated: bool
    """Whether any input was cut."""
    total_ns: int
    load_ns: int


@dataclass(frozen=True, kw_only=True)
class RerankJob:
    """One request for the order of documents."""

    stored: StoredModel
    query: str
    documents: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive_s: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class Ranking:
    """What came of it; see Embeddings."""

    scores: list[float]
    """One a document, in the order of the request. Of a cross-encoder, between 0 and 1; of a model that embeds, the
    cosine of the two texts' vectors."""
    num_tokens: int
    is_truncated: bool
    total_ns: int
    load_ns: int


class Embedder:
    """What every embedding needs."""

    def __init__(self, models: ModelManager, clock: Clock) -> None:
        self._models = models
        self._clock = clock

    async def embed(self, job: EmbedJob) -> Embeddings:
        """
        Raises:
            DaemonError: the request cannot be served as it stands, or not now.
            EngineError: the model could not be loaded, its worker died, or a vector is not finite.
        """
        started_ns = self._clock.monotonic_ns()

        async def with_model(model: LoadedModel) -> Embeddings:
            loaded_ns = self._clock.monotonic_ns()
            limit = text_limit(model, job.options)
            encoded = await asyncio.to_thread(encode_inputs, job.inputs, model, limit, truncate=job.truncate)
            dimensions = job.dimensions if job.dimensions < model.config.hidden_size else 0
            vectors = await _in_slices(
                encoded,
                lambda start, stop: model.engine.embed(
                    encoded.prompts[start:stop],
                    normalize=job.normalize,
                    dimensions=dimensions,
                    adapter=model.adapter,
                ),
            )
            return Embeddings(
                vectors=vectors,
                num_tokens=encoded.num_tokens,
                is_truncated=encoded.is_truncated,
                total_ns=max(1, self._clock.monotonic_ns() - started_ns),
                load_ns=max(1, loaded_ns - started_ns),
            )

        return await self._with_model(job.stored, job.keep_alive_s, with_model)

    async def rerank(self, job: RerankJob) -> Ranking:
        """As `embed`: scores of pairs by a cross-encoder, or by a model that embeds, the cosine of their vectors."""
        started_ns = self._clock.monotonic_ns()

        async def with_model(model: LoadedModel) -> Ranking:
            loaded_ns = self._clock.monotonic_ns()
            config = model.config
            score = _scores_of_pairs if isinstance(config, EncoderConfig) and config.is_ranker else _cosines
            scores, encoded = await score(model, job)
            return Ranking(
                scores=scores,
                num_tokens=encoded.num_tokens,
                is_truncated=encoded.is_truncated,
                total_ns=max(1, self._clock.monotonic_ns() - started_ns),
                load_ns=max(1, loaded_ns - started_ns),
            )

        return await self._with_model(job.stored, job.keep_alive_s, with_model)

    async def _with_model(
        self, stored: StoredModel, keep_alive_s: float | None, work: Callable[[LoadedModel], Awaitable[T]]
    ) -> T:
        """Runs `work` with the model, a second time where its worker turns out to be dead."""
        with self._models.queue():
            try:
                async with self._models.acquire(stored, keep_alive_s) as model:
                    return await work(model)
            except EngineDied:
                async with self._models.acquire(stored, keep_alive_s) as model:
                    return await work(model)


async def _scores_of_pairs(model: LoadedModel, job: RerankJob) -> tuple[list[float], Encoded]:
    limit = text_limit(model, job.options)
    encoded = await asyncio.to_thread(
        encode_pairs, job.query, job.documents, model.tokenizer, limit, truncate=job.truncate
    )
    scores = await _in_slices(
        encoded,
        lambda start, stop: model.engine.score(encoded.prompts[start:stop], encoded.second_starts[start:stop]),
    )
    return [floats(score)[0] for score in scores], encoded


async def _cosines(model: LoadedModel, job: RerankJob) -> tuple[list[float], Encoded]:
    limit = text_limit(model, job.options)
    inputs = [job.query, *job.documents]
    encoded = await asyncio.to_thread(encode_inputs, inputs, model, limit, truncate=job.truncate)
    vectors = await _in_slices(
        encoded, lambda start, stop: model.engine.embed(encoded.prompts[start:stop], adapter=model.adapter)
    )

    def compare() -> list[float]:
        query = floats(vectors[0])
        return [sum(map(mul, query, floats(vector))) for vector in vectors[1:]]

    return await asyncio.to_thread(compare), encoded


async def _in_slices(encoded: Encoded, send: Callable[[int, int], Awaitable[list[bytes]]]) -> list[bytes]:
    """A few slices at once: the worker always has a next one, and who comes later need not wait for them all. The first
    error ends the others."""
    places = asyncio.Semaphore(SLICES_AT_ONCE)

    async def send_one(start: int, stop: int) -> list[bytes]:
        async with places:
            return await send(start, stop)

    tasks = [asyncio.create_task(send_one(*ends)) for ends in slice_ends([len(ids) for ids in encoded.prompts])]
    try:
        return [vector for vectors in await asyncio.gather(*tasks) for vector in vectors]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def slice_ends(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """[start, stop) of consecutive inputs that go in one message; an input of more than SLICE_TOKENS goes alone."""
    ends: list[tuple[int, int]] = []
    start, num_tokens = 0, 0
    for index, length in enumerate(lengths):
        num_tokens += length
        if index > start and (index - start == SLICE_INPUTS or num_tokens > SLICE_TOKENS):
            ends.append((start, index))
            start, num_tokens = index, length
    return [*ends, (start, len(lengths))] if lengths else []


def floats(vector: bytes) -> list[float]:
    """The elements of a vector."""
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
