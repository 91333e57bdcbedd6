"""EmbeddingEngine: requests for embeddings and scores, and the passes that serve them; the counterpart of LLMEngine.

A pass is computed in pieces. The worker's loop asks for one piece between two steps, of half as many tokens while
somebody generates, so that neither keeps the other waiting for long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from engine.embedding_queue import EmbeddingQueue, TextJob
from engine.errors import EngineError
from engine.messages import Embed, Embedded, Failed, Ready


class Embedder(Protocol):
    """A model on a device that makes vectors or scores of texts."""

    @property
    def ready(self) -> Ready:
        """What Load is answered with."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        ...

    @property
    def max_text_tokens(self) -> int:
        """The longest text."""
        ...

    @property
    def max_pass_tokens(self) -> int:
        """Tokens of a pass, of one longer text more."""
        ...

    @property
    def gives_scores(self) -> bool:
        """Whether it is a cross-encoder: what it gives is one number a pair."""
        ...

    def embed(self, jobs: Sequence[TextJob], max_tokens: int) -> Iterator[list[bytes | None] | None]:
        """Computes a pass: None after each piece of about `max_tokens`, and at the end each text's vector as
        little-endian float32, None for one that is not finite."""
        ...


class EmbeddingEngine:
    """Requests and passes over one model."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._queue = EmbeddingQueue()
        self._jobs: list[TextJob] = []
        self._pass: Iterator[list[bytes | None] | None] | None = None

    @property
    def has_work(self) -> bool:
        """Whether `advance` has anything to do."""
        return self._pass is not None or self._queue.has_waiting

    def add(self, embed: Embed) -> list[Embedded]:
        """Queues a request; the answer where there is nothing to compute.

        Raises:
            EngineError: it can never be served.
        """
        self._check(embed)
        if not embed.prompts:
            return [Embedded(request_id=embed.request_id, vectors=[])]
        self._queue.add(embed)
        return []

    def abort(self, request_ids: Iterable[int]) -> None:
        """Forgets requests that nobody waits for; a pass of nothing else ends, so that others need not wait for it."""
        self._queue.abort(request_ids)
        if self._pass is not None and not self._queue.wants_any(self._jobs):
            self._pass = None

    def end_adapter(self, adapter: int) -> list[Failed]:
        """Ends requests that wait for an adapter that goes. A running pass has it, and goes on."""
        ended = self._queue.requests_with(adapter)
        self._queue.abort(ended)
        error = f"the adapter {adapter} was removed while the texts waited; load it again"
        return [Failed(error=error, kind="invalid", request_id=request_id) for request_id in ended]

    def advance(self, *, is_shared: bool) -> list[Embedded | Failed]:
        """Computes a piece; the requests that are now answered.

        Args:
            is_shared: somebody generates in between.

        Raises:
            Exception: whatever the model raises; then call `fail`.
        """
        max_tokens = max(1, self._embedder.max_pass_tokens // (2 if is_shared else 1))
        if self._pass is None:
            self._jobs = self._queue.next_pass(max_tokens)
            if not self._jobs:
                return []
            self._pass = self._embedder.embed(self._jobs, max_tokens)
        vectors = next(self._pass)
        if vectors is None:
            return []
        self._pass = None
        return self._queue.take(self._jobs, vectors)

    def fail(self, error: str, kind: str) -> list[Failed]:
        """After an exception of `advance`: ends the requests of the pass."""
        self._pass = None
        return self._queue.fail(self._jobs, error, kind)

    def _check(self, embed: Embed) -> None:
        embedder = self._embedder
        if embed.is_pairs != embedder.gives_scores:
            raise EngineError(
                "this model scores pairs of texts and gives no vectors"
                if embedder.gives_scores
                else "this model gives vectors and has no head that scores pairs of texts"
            )
        if embed.second_starts and len(embed.second_starts) != len(embed.prompts):
            raise EngineError(f"{len(embed.second_starts)} second texts were given for {len(embed.prompts)} texts")
        limit = embedder.vocab_size
        for index, token_ids in enumerate(embed.prompts):
            if not 1 <= len(token_ids) <= embedder.max_text_tokens:
                raise EngineError(
                    f"input {index} has {len(token_ids)} tokens; the model takes 1 to {embedder.max_text_tokens}"
                )
            # Out of range they would take the device down; min and max run in C.
            if min(token_ids) < 0 or max(token_ids) >= limit:
                wrong = next(token_id for token_id in token_ids if not 0 <= token_id < limit)
                raise EngineError(f"input {index} holds token id {wrong}, but the model's ids are 0 to {limit - 1}")
