"""What the replies of chat and text completions have in common: who answers, usage, log-probabilities, and how a stream
is made of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from msgspec import UNSET, UnsetType

from daemon.api import Logprob, TopLogprob
from daemon.generation import Summary
from daemon.openai import api
from daemon.openai.choices import Piece
from daemon.output import Chunk

MIN_LOGPROB = -9999.0
"""What OpenAI sends for a token that could not have been chosen; JSON has no word for the logarithm of 0."""


@dataclass(frozen=True)
class Header:
    """What all replies to one request begin with."""

    id: str
    created: int
    model: str
    """As the client calls it."""
    fingerprint: str


@dataclass
class Totals:
    """What the answers of one request come to.

    Args:
        num_answers: to each prompt; a prompt counts once.
    """

    num_answers: int = 1
    summaries: dict[int, Summary] = field(default_factory=dict)

    def add(self, index: int, summary: Summary) -> None:
        self.summaries[index] = summary

    def usage(self) -> api.Usage:
        summaries = self.summaries.values()
        num_prompt, num_cached = 0, 0
        for index, summary in self.summaries.items():
            if index % self.num_answers == 0:
                num_prompt += summary.num_prompt_tokens
                num_cached += summary.num_cached_tokens
        num_generated = sum(summary.num_tokens for summary in summaries)
        num_thought = sum(summary.num_thinking_tokens for summary in summaries)
        return api.Usage(
            prompt_tokens=num_prompt,
            completion_tokens=num_generated,
            total_tokens=num_prompt + num_generated,
            prompt_tokens_details=api.PromptTokensDetails(cached_tokens=num_cached),
            completion_tokens_details=api.CompletionTokensDetails(reasoning_tokens=num_thought),
        )

    @property
    def truncated(self) -> bool | UnsetType:
        """True or nothing, as the field of the replies."""
        return any(summary.is_truncated for summary in self.summaries.values()) or UNSET


Part = TypeVar("Part", covariant=True)
Whole = TypeVar("Whole", covariant=True)


class Replies(Protocol[Part, Whole]):
    """The words of one route."""

    totals: Totals
    wants_usage: bool

    def chunk(self, index: int, chunk: Chunk) -> Part:
        """What is new in an answer."""
        ...

    def end(self, index: int, summary: Summary) -> Part:
        """The last one of an answer."""
        ...

    def usage(self) -> Part:
        """The last one of the stream."""
        ...

    def whole(self, chunks: dict[int, list[Chunk]]) -> Whole:
        """All answers, which have ended and are in the totals, as one object."""
        ...


async def stream(pieces: AsyncGenerator[Piece], replies: Replies[Part, Whole]) -> AsyncGenerator[Part]:
    """What a stream consists of."""
    async with aclosing(pieces):
        async for index, item in pieces:
            if isinstance(item, Summary):
                replies.totals.add(index, item)
                yield replies.end(index, item)
            elif item or item.logprobs:
                yield replies.chunk(index, item)
    if replies.wants_usage:
        yield replies.usage()


async def whole(pieces: AsyncGenerator[Piece], replies: Replies[Part, Whole]) -> Whole:
    """All of it as one object."""
    chunks: dict[int, list[Chunk]] = {}
    async with aclosing(pieces):
        async for index, item in pieces:
            if isinstance(item, Summary):
                replies.totals.add(index, item)
            else:
                chunks.setdefault(index, []).append(item)
    return replies.whole(chunks)


def token_logprobs(entries: Iterable[Logprob]) -> list[api.TokenLogprob]:
    """Log-probabilities in the form of chats and responses."""
    return [
        api.TokenLogprob(
            token=entry.token,
            logprob=max(entry.logprob, MIN_LOGPROB),
            bytes=entry.bytes,
            top_logprobs=[
                TopLogprob(token=top.token, logprob=max(top.logprob, MIN_LOGPROB), bytes=top.bytes)
                for top in entry.top_logprobs
            ],
        )
        for entry in entries
    ]


def choice_logprobs(entries: Sequence[Logprob], *, wanted: bool) -> api.ChoiceLogprobs | None:
    """Of a chat's choice: null where they were not asked for."""
    return api.ChoiceLogprobs(content=token_logprobs(entries)) if wanted else None
