"""FakeEngine: a worker without a process. It answers with what a test tells it to, token by token."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from engine.client import TokenOutput
from engine.constraint import Constraint
from engine.conversion.quantize import quantize_model
from engine.errors import EngineDied
from engine.messages import Load, Quantize, Quantized, Ready
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import TokenLogprobs
from engine.text.tokenizer import Tokenizer
from modelfiles.source import ModelSource


@dataclass
class Answer:
    """What the engine says to one request."""

    text: str = "Once."
    finish_reason: str = "stop"
    tokens_per_step: int = 1
    num_cached_tokens: int = 0
    truncated: bool = False
    pause_after: int | None = None
    """Number of steps after which it waits for `go_on`."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    """Raised where the text ends."""


class FakeStream:
    """One request's tokens."""

    def __init__(self, engine: FakeEngine, token_ids: list[int], num_prompt_tokens: int, answer: Answer) -> None:
        self._engine = engine
        self._answer = answer
        self._num_prompt_tokens = num_prompt_tokens
        size = answer.tokens_per_step
        self._steps = deque(token_ids[start : start + size] for start in range(0, len(token_ids), size))
        self._num_steps = 0
        self.is_over = False

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> TokenOutput:
        if self.is_over:
            raise StopAsyncIteration
        if self._num_steps == self._answer.pause_after:
            self._engine.paused.set()
            go_on = asyncio.ensure_future(self._answer.go_on.wait())
            try:
                await asyncio.wait({go_on, self._engine.death}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                go_on.cancel()
        if self._engine.death.done():
            self.is_over = True
            raise EngineDied(
                "the engine worker was killed by signal 9 (Killed); the next request loads the model again"
            )
        await asyncio.sleep(0)
        if not self._steps and self._answer.error is not None:
            self.is_over = True
            raise self._answer.error
        ids = self._steps.popleft() if self._steps else []
        self._num_steps += 1
        self.is_over = not self._steps and self._answer.error is None
        return TokenOutput(
            token_ids=ids,
            logprobs=[TokenLogprobs(-0.5, [(token_id, -0.5), (0, -1.5)]) for token_id in ids],
            finish_reason=self._answer.finish_reason if self.is_over else None,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._answer.num_cached_tokens,
            truncated=self._answer.truncated,
        )

    async def aclose(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._engine.num_aborted += 1
            self._engine.aborted.set()


class FakeEngine:
    """Fits daemon.engines.Engine."""

    def __init__(self, answer: Callable[[str], Answer]) -> None:
        self._answer = answer
        self.tokenizer: Tokenizer | None = None
        self.loads: list[Load] = []
        self.quantizes: list[Quantize] = []
        self.load_gate = asyncio.Event()
        self.load_gate.set()
        self.load_error: Exception | None = None
        self.embed_gate = asyncio.Event()
        self.embed_gate.set()
        self.embed_error: Exception | None = None
        self.embeds: list[tuple[bool, int]] = []
        """`normalize` and `dimensions` of each call."""
        self.second_starts: list[int] = []
        self.num_embed_calls = 0
        self.prompts: list[list[int]] = []
        self.params: list[SamplingParams] = []
        self.constraints: list[Constraint | None] = []
        self.num_aborted = 0
        self.aborted = asyncio.Event()
        self.paused = asyncio.Event()
        self.closed = asyncio.Event()
        self.death: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.adapters: dict[int, dict[str, str]] = {}
        self.used_adapters: list[int] = []
        self.num_adapter_loads = 0
        self.adapter_gate = asyncio.Event()
        self.adapter_gate.set()
        self.adapter_error: Exception | None = None
        self.ready: Ready | None = None
        self.max_context = 256
        self.device = "cpu"

    @property
    def alive(self) -> bool:
        return not self.death.done() and not self.closed.is_set()

    def die(self) -> None:
        """As a worker that was killed."""
        self.death.set_result(None)

    async def load(self, load: Load) -> Ready:
        self.loads.append(load)
        await self.load_gate.wait()
        if self.load_error is not None:
            raise self.load_error
        source = ModelSource({name: Path(path) for name, path in load.files.items()})
        self.tokenizer = Tokenizer.from_source(source)
        self.ready = Ready(
            num_blocks=16,
            block_size=16,
            weights_bytes=1000,
            kv_cache_bytes=24,
            max_context=self.max_context,
            device=self.device,
            dtype="float32",
            load_s=0.0,
        )
        return self.ready

    async def add_adapter(self, adapter: int, files: Mapping[str, str]) -> Ready:
        self.num_adapter_loads += 1
        await self.adapter_gate.wait()
        if self.adapter_error is not None:
            raise self.adapter_error
        assert self.ready is not None
        self.adapters[adapter] = dict(files)
        return msgspec.structs.replace(self.ready, weights_bytes=1000 + 100 * len(self.adapters))

    async def remove_adapter(self, adapter: int) -> Ready:
        del self.adapters[adapter]
        assert self.ready is not None
        return msgspec.structs.replace(self.ready, weights_bytes=1000 + 100 * len(self.adapters))

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        adapter: int = 0,
        constraint: Constraint | None = None,
    ) -> FakeStream:
        assert self.tokenizer is not None
        assert adapter == 0 or adapter in self.adapters
        self.used_adapters.append(adapter)
        self.prompts.append(list(prompt_ids))
        self.params.append(params)
        self.constraints.append(constraint)
        answer = self._answer(self.tokenizer.decode(prompt_ids, skip_special=False))
        token_ids = self.tokenizer.encode(answer.text, add_special=False)
        if answer.finish_reason == "stop":
            token_ids.append(min(self.tokenizer.eos_ids))
        if params.max_tokens is not None and len(token_ids) > params.max_tokens:
            token_ids = token_ids[: params.max_tokens]
            answer.finish_reason = "length"
        return FakeStream(self, token_ids, len(prompt_ids), answer)

    async def embed(
        self, prompts: Sequence[Sequence[int]], *, normalize: bool = True, dimensions: int = 0, adapter: int = 0
    ) -> list[bytes]:
        """Vectors that tell what was asked: the number of tokens, the first one, whether they were to have length 1."""
        await self._take_texts(prompts)
        self.used_adapters.append(adapter)
        self.embeds.append((normalize, dimensions))
        return [struct.pack("<3f", len(prompt), prompt[0], normalize)[: 4 * dimensions or 12] for prompt in prompts]

    async def score(self, pairs: Sequence[Sequence[int]], second_starts: Sequence[int]) -> list[bytes]:
        """A pair's score is the share of its second text's tokens that its first one has, too."""
        await self._take_texts(pairs)
        self.second_starts += second_starts
        scores = []
        for pair, start in zip(pairs, second_starts, strict=True):
            first, second = set(pair[:start]), pair[start:]
            scores.append(struct.pack("<f", sum(token_id in first for token_id in second) / len(second)))
        return scores

    async def _take_texts(self, prompts: Sequence[Sequence[int]]) -> None:
        self.prompts += [list(prompt) for prompt in prompts]
        self.num_embed_calls += 1
        self.paused.set()
        gate = asyncio.ensure_future(self.embed_gate.wait())
        try:
            await asyncio.wait({gate, self.death}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.num_aborted += 1
            self.aborted.set()
            raise
        finally:
            gate.cancel()
        if self.death.done():
            raise EngineDied("the engine worker was killed by signal 9 (Killed)")
        if self.embed_error is not None:
            raise self.embed_error

    async def quantize(self, quantize: Quantize, on_progress: Callable[[int, int], None]) -> Quantized:
        """What the worker does, in this process; with `load_gate` as for a load."""
        self.quantizes.append(quantize)
        on_progress(1, 2)
        self.paused.set()
        await self.load_gate.wait()
        if self.load_error is not None:
            raise self.load_error
        return await asyncio.to_thread(quantize_model, quantize, on_progress)

    async def close(self, grace: float = 5.0) -> None:
        self.closed.set()
        if not self.death.done():
            self.death.set_result(None)
