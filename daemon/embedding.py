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
from dataclasses import dataclass, field, replace
from operator import mul
from typing import Any, TypeVar

from daemon.clock import Clock
from daemon.errors import BadRequest, PromptTooLong
from daemon.model_manager import ModelManager
from daemon.workers import LoadedModel
from engine.encoder_config import EncoderConfig
from engine.errors import EngineDied
from engine.text.tokenizer import Tokenizer
from modelfiles.parameters import check_options
from registry.stored_model import StoredModel

MAX_INPUTS = 8192
"""Texts of a request: with 4096 elements each, a reply of that many has some 700 MB as JSON."""
SLICE_INPUTS = 256
"""Texts of one message to the worker."""
SLICES_AT_ONCE = 2
MIN_START_CHARS, CHARS_A_TOKEN, MARGIN_TOKENS = 4096, 16, 256
"""How much of a long text is encoded first, and how many tokens more than needed must come of it."""

TextInput = str | Sequence[int]
"""A text, or token ids of the model's own vocabulary, which are taken as they are."""

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


@dataclass(frozen=True)
class _Encoded:
    """Inputs as the engine takes them."""

    prompts: list[list[int]]
    is_truncated: bool
    second_starts: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.prompts))


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
                    encoded.prompts[start:stop], normalize=job.normalize, dimensions=dimensions
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


async def _scores_of_pairs(model: LoadedModel, job: RerankJob) -> tuple[list[float], _Encoded]:
    limit = text_limit(model, job.options)
    encoded = await asyncio.to_thread(encode_pairs, job, model.tokenizer, limit)
    scores = await _in_slices(
        encoded,
        lambda start, stop: model.engine.score(encoded.prompts[start:stop], encoded.second_starts[start:stop]),
    )
    return [floats(score)[0] for score in scores], encoded


async def _cosines(model: LoadedModel, job: RerankJob) -> tuple[list[float], _Encoded]:
    limit = text_limit(model, job.options)
    inputs = [job.query, *job.documents]
    encoded = await asyncio.to_thread(encode_inputs, inputs, model, limit, truncate=job.truncate)
    vectors = await _in_slices(encoded, lambda start, stop: model.engine.embed(encoded.prompts[start:stop]))

    def compare() -> list[float]:
        query = floats(vectors[0])
        return [sum(map(mul, query, floats(vector))) for vector in vectors[1:]]

    return await asyncio.to_thread(compare), encoded


async def _in_slices(encoded: _Encoded, send: Callable[[int, int], Awaitable[list[bytes]]]) -> list[bytes]:
    """A few slices at once: the worker always has a next one, and who comes later need not wait for them all. The first
    error ends the others."""
    places = asyncio.Semaphore(SLICES_AT_ONCE)

    async def send_one(start: int) -> list[bytes]:
        async with places:
            return await send(start, start + SLICE_INPUTS)

    tasks = [asyncio.create_task(send_one(start)) for start in range(0, len(encoded.prompts), SLICE_INPUTS)]
    try:
        return [vector for vectors in await asyncio.gather(*tasks) for vector in vectors]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def floats(vector: bytes) -> list[float]:
    """The elements of a vector."""
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


# ---- texts to token ids


def text_limit(model: LoadedModel, options: Mapping[str, Any]) -> int:
    """Tokens that a text may have, those around it included: what the model was trained on, or less where the request
    or the Modelfile says so."""
    asked = check_options(options).get("num_ctx")
    if asked is None:
        asked = check_options(model.stored.params).get("num_ctx") or model.default_context
    assert isinstance(asked, int)
    return min(asked, model.config.max_position_embeddings)


def encode_inputs(inputs: Sequence[TextInput], model: LoadedModel, limit: int, *, truncate: bool) -> _Encoded:
    """Token ids of texts. Slow for long texts: call it off the event loop.

    Raises:
        BadRequest: a text is too long and may not be cut, or there is no token in it.
    """
    prompts, is_truncated = [], False
    prefix, suffix = model.tokenizer.affixes
    for index, one in enumerate(inputs):
        is_text = isinstance(one, str)
        around = (prefix, suffix) if is_text else ((), ())
        room = limit - len(around[0]) - len(around[1])
        ids, is_whole = _start_of(one, model.tokenizer, room) if isinstance(one, str) else (list(one), True)
        if len(ids) > room:
            _check_room(room, index, len(ids), is_whole=is_whole, truncate=truncate)
            ids, is_truncated = ids[:room], True
        prompt = [*around[0], *ids, *around[1]]
        if not prompt:
            raise BadRequest(f"input {index} has no tokens; there is nothing in it to embed", "input")
        if not is_text:
            _check_ids(prompt, index, model.config.vocab_size)
        prompts.append(prompt)
    return _Encoded(prompts, is_truncated)


def encode_pairs(job: RerankJob, tokenizer: Tokenizer, limit: int) -> _Encoded:
    """Token ids of the query with each document. As `encode_inputs`; where both are too long together, the longer one
    is cut until they are equally long, then both, as cross-encoders are trained."""
    prefix, suffix = tokenizer.affixes
    room = limit - len(prefix) - len(tokenizer.between_ids) - len(suffix)
    query, query_is_whole = _start_of(job.query, tokenizer, room)
    encoded = _Encoded([], is_truncated=False)
    for index, document in enumerate(job.documents):
        first, (second, is_whole) = query, _start_of(document, tokenizer, room)
        if (num_tokens := len(first) + len(second)) > room:
            is_whole = is_whole and query_is_whole
            _check_room(room - 1, index, num_tokens, is_whole=is_whole, truncate=job.truncate)
            num_first, num_second = longest_first(len(first), len(second), room)
            first, second = first[:num_first], second[:num_second]
            encoded = replace(encoded, is_truncated=True)
        head = [*prefix, *first, *tokenizer.between_ids]
        encoded.prompts.append([*head, *second, *suffix])
        encoded.second_starts.append(len(head))
    return encoded


def longest_first(num_first: int, num_second: int, room: int) -> tuple[int, int]:
    """How many tokens to keep of two texts that have more than `room` together: the longer one gives first, as in
    `tokenizers`."""
    half = room // 2
    shorter = min(num_first, num_second, half)
    return (shorter, room - shorter) if num_first <= num_second else (room - shorter, shorter)


def _start_of(text: str, tokenizer: Tokenizer, room: int) -> tuple[list[int], bool]:
    """Ids of a text, or of its beginning where that alone has far more than `room` tokens; and whether they are all.

    Of a book that is cut to 512 tokens, the first pages are encoded and not the rest. The last tokens of a beginning
    may be others than in the whole, for which the margin is.
    """
    num_chars = MIN_START_CHARS + CHARS_A_TOKEN * max(room, 0)
    while num_chars < len(text):
        ids = tokenizer.encode(text[:num_chars], add_special=False)
        if len(ids) > room + MARGIN_TOKENS:
            return ids, False
        num_chars *= 4
    return tokenizer.encode(text, add_special=False), True


def _check_room(room: int, index: int, num_tokens: int, *, is_whole: bool, truncate: bool) -> None:
    if not truncate:
        has = f"{num_tokens} tokens" if is_whole else f"more than {num_tokens} tokens"
        raise PromptTooLong(
            f"the input length exceeds the context length: input {index} has {has}, and there is room for "
            f"{max(room, 0)}; shorten it, raise num_ctx where the model allows it, or allow truncation",
            "input",
        )
    if room < 1:
        raise PromptTooLong(
            f"input after truncation exceeds maximum context length: of input {index} there is room for no token; "
            "raise num_ctx",
            "input",
        )


def _check_ids(prompt: Sequence[int], index: int, vocab_size: int) -> None:
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        wrong = next(token_id for token_id in prompt if not 0 <= token_id < vocab_size)
        raise BadRequest(
            f"input {index} holds token id {wrong}, but the model's ids are 0 to {vocab_size - 1}; send texts, unless "
            "the ids are made by the model's own tokenizer",
            "input",
        )
