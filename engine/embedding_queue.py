"""EmbeddingQueue: which texts are embedded together, and which requests are then whole. No torch, no clock.

Texts of all requests wait in one queue. A pass takes the one that has waited longest and those nearest to it in length,
up to the pass's budget of tokens, so that hardly any of attention is spent on padding and nobody waits for ever. Many
requests of one text each are batched like one of many texts. Owned by `embedding_engine`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from engine.messages import Embed, Embedded, Failed

MAX_TEXTS = 1024
"""Of a pass: what comes from one token each is bounded by this."""
NOT_FINITE = (
    "the model computed an embedding that is not finite (NaN or infinity) for input {}; its weights may be damaged, or "
    "it may need dtype float32"
)


@dataclass(frozen=True)
class TextJob:
    """One text of a request."""

    request_id: int
    index: int
    """Its place in the request."""
    token_ids: Sequence[int]
    second_start: int
    """Position of a pair's second text; 0 for a text alone."""
    normalize: bool
    dimensions: int
    """Elements to keep of the vector; 0 is all."""
    adapter: int = 0


@dataclass
class _Request:
    """What has come of a request."""

    vectors: list[bytes]
    num_missing: int


@dataclass
class EmbeddingQueue:
    """Texts that wait, and requests that are not whole."""

    _waiting: dict[int, TextJob] = field(default_factory=dict)
    """Number of arrival -> text."""
    _by_length: list[tuple[int, int]] = field(default_factory=list)
    """(tokens, number of arrival), sorted."""
    _arrivals: deque[int] = field(default_factory=deque)
    """Numbers of arrival in their order; some are gone already."""
    _requests: dict[int, _Request] = field(default_factory=dict)
    _num_arrivals: int = 0

    @property
    def has_waiting(self) -> bool:
        """Whether any text waits."""
        return bool(self._waiting)

    def add(self, embed: Embed) -> None:
        """Takes in a request with at least one text."""
        self._requests[embed.request_id] = _Request([b""] * len(embed.prompts), len(embed.prompts))
        for index, token_ids in enumerate(embed.prompts):
            start = embed.second_starts[index] if embed.second_starts else 0
            job = TextJob(embed.request_id, index, token_ids, start, embed.normalize, embed.dimensions, embed.adapter)
            self._num_arrivals += 1
            self._waiting[self._num_arrivals] = job
            self._arrivals.append(self._num_arrivals)
            insort(self._by_length, (len(token_ids), self._num_arrivals))

    def abort(self, request_ids: Iterable[int]) -> None:
        """Forgets requests; what a running pass computes of them is thrown away."""
        gone = set(request_ids) & self._requests.keys()
        for request_id in gone:
            del self._requests[request_id]
        if gone:
            self._waiting = {number: job for number, job in self._waiting.items() if job.request_id not in gone}
            self._by_length = [entry for entry in self._by_length if entry[1] in self._waiting]

    def requests_with(self, adapter: int) -> list[int]:
        """Numbers of the requests of which texts wait for an adapter."""
        return list(dict.fromkeys(job.request_id for job in self._waiting.values() if job.adapter == adapter))

    def wants_any(self, jobs: Iterable[TextJob]) -> bool:
        """Whether somebody still waits for one of these texts."""
        return any(job.request_id in self._requests for job in jobs)

    def next_pass(self, max_tokens: int) -> list[TextJob]:
        """The texts to be computed together; a text of more than `max_tokens` comes alone. Empty where none waits.

        As rows of the longest one's length they are at most twice `max_tokens`.
        """
        while self._arrivals and self._arrivals[0] not in self._waiting:
            self._arrivals.popleft()
        if not self._arrivals:
            return []
        oldest = self._arrivals[0]
        length = len(self._waiting[oldest].token_ids)
        low = bisect_left(self._by_length, (length, oldest))
        high, left = low + 1, max_tokens - length
        while high - low < MAX_TEXTS:
            # The nearer in length of the next shorter and the next longer one.
            below = length - self._by_length[low - 1][0] if low > 0 else None
            above = self._by_length[high][0] - length if high < len(self._by_length) else None
            takes_above = above is not None and (below is None or above <= below)
            if not takes_above and below is None:
                break
            step = self._by_length[high if takes_above else low - 1][0]
            longest = max(step, self._by_length[high - 1][0])
            if step > left or (high - low + 1) * longest > 2 * max_tokens:
                break
            left -= step
            low, high = (low, high + 1) if takes_above else (low - 1, high)
        taken = self._by_length[low:high]
        del self._by_length[low:high]
        return [self._waiting.pop(number) for _, number in taken]

    def take(self, jobs: Sequence[TextJob], vectors: Sequence[bytes | None]) -> list[Embedded | Failed]:
        """Takes in what a pass gave, None for a vector that is not finite; the answers that are now whole."""
        answers: list[Embedded | Failed] = []
        for job, vector in zip(jobs, vectors, strict=True):
            request = self._requests.get(job.request_id)
            if request is None:
                continue
            if vector is None:
                answers.append(Failed(error=NOT_FINITE.format(job.index), request_id=job.request_id))
                self.abort([job.request_id])
                continue
            request.vectors[job.index] = vector
            request.num_missing -= 1
            if not request.num_missing:
                answers.append(Embedded(request_id=job.request_id, vectors=request.vectors))
                del self._requests[job.request_id]
        return answers

    def fail(self, jobs: Sequence[TextJob], error: str, kind: str) -> list[Failed]:
        """A pass has failed: its requests end."""
        ended = dict.fromkeys(job.request_id for job in jobs if job.request_id in self._requests)
        self.abort(ended)
        return [Failed(error=error, kind=kind, request_id=request_id) for request_id in ended]
