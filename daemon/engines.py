"""The seam between the daemon and its workers: engine.client fits these protocols, and the fake of the tests does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from engine.constraint import Constraint
from engine.messages import Load, Quantize, Quantized, Ready
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import TokenLogprobs


class TokenOutput(Protocol):
    """What a stream yields: the tokens of one step, or of several when the reader was slow."""

    @property
    def token_ids(self) -> list[int]: ...
    @property
    def logprobs(self) -> list[TokenLogprobs]: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def truncated(self) -> bool: ...


class TokenStream(Protocol):
    """One sequence's tokens; closing it aborts the sequence."""

    def __aiter__(self) -> AsyncIterator[TokenOutput]: ...
    async def aclose(self) -> None: ...


OnProgress = Callable[[int, int], None]
"""Called with the bytes done and in all."""


class Engine(Protocol):
    """The seam between daemon and worker: engine.client.EngineClient, or a fake in tests."""

    @property
    def alive(self) -> bool: ...
    async def load(self, load: Load) -> Ready: ...
    async def add_adapter(self, adapter: int, files: Mapping[str, str]) -> Ready: ...
    async def remove_adapter(self, adapter: int) -> Ready: ...
    def submit(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        adapter: int = ...,
        constraint: Constraint | None = None,
    ) -> TokenStream: ...
    async def embed(
        self, prompts: Sequence[Sequence[int]], *, normalize: bool = True, dimensions: int = 0, adapter: int = 0
    ) -> list[bytes]: ...
    async def score(self, pairs: Sequence[Sequence[int]], second_starts: Sequence[int]) -> list[bytes]: ...
    async def quantize(self, quantize: Quantize, on_progress: OnProgress) -> Quantized: ...
    async def close(self, grace: float = ...) -> None: ...


EngineFactory = Callable[[], Awaitable[Engine]]
"""Starts an empty worker, with its libraries imported by the time it answers."""
