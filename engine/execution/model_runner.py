"""ModelRunner: one loaded model on one device. Owns the weights, the KV cache and what executes steps over them.

    launch(batch) -> steps:   `cpu_steps` in plain torch, `gpu_steps` in Triton kernels and CUDA graphs

The runner knows no text, no queue and no end of a request. Called by `llm_engine` through the protocol
`scheduling.batch.Runner`, and by the worker for everything else.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from msgspec import structs

from engine.config import ModelConfig
from engine.embedding_queue import TextJob
from engine.execution.adapters import adapter_bytes, load_adapter
from engine.execution.cpu_steps import CpuSteps
from engine.execution.device import (
    choose_device,
    choose_dtype,
    choose_kv_dtype,
    choose_max_num_seqs,
    choose_weight_dtype,
    device_memory,
)
from engine.execution.kv_cache import KVCache
from engine.execution.memory import (
    MemoryPlan,
    MemoryRequest,
    check_adapter,
    fits_beside,
    plan_memory,
    replan_memory,
)
from engine.execution.pooled import finished, pool
from engine.execution.weight_table import WeightSizes, WeightTable
from engine.execution.weights import Checkpoint, OnProgress, load_weights
from engine.kernels.reference import plan_attention
from engine.messages import Load, Ready
from engine.models.decoder import Decoder
from engine.models.forward_context import ForwardContext
from engine.models.lora import Adapters, AdapterTokens
from engine.models.offload import LayerStream, offloaded_layers
from engine.pooling import Pooling, PoolingMode
from engine.scheduling.batch import Handle, ScheduledBatch, TokenMasks
from modelfiles.adapter_files import group_adapters
from modelfiles.source import ModelSource

if TYPE_CHECKING:
    from engine.execution.gpu_steps import GpuSteps

Tensor = torch.Tensor
LAST_TOKEN = Pooling("last")
"""Of models that are not made for embedding: only the last token has seen the whole text."""


class ModelRunner:
    """One loaded model on one device."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        device: torch.device,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        load: Load,
        plan: MemoryPlan,
        weights: WeightSizes,
    ) -> None:
        """Allocates the KV cache of `plan`, and gets ready for the first step."""
        self.decoder = decoder
        self.config = decoder.config
        self.device = device
        self.dtype = dtype
        self.kv_dtype = kv_dtype
        self.load_options = load
        self.load_s = 0.0
        self.adapters = Adapters()
        self._budget_bytes = load.budget_bytes
        self.kv_cache: KVCache | None = None
        self._steps: CpuSteps | GpuSteps | None = None
        self._plan = plan
        self._weights = weights
        self._allocate(plan.num_blocks)

    @classmethod
    def load(cls, load: Load, on_progress: OnProgress | None = None) -> ModelRunner:
        """Loads weights and allocates the KV cache.

        Args:
            on_progress: called with the bytes read so far and in all, a tensor at a time.

        Raises:
            ConfigError, SourceError, GGUFError, SafetensorsError: the files are no model that Hob runs.
            WeightsError: the tensors are not those of the configuration.
            ModelTooLarge: it does not fit.
            Unsupported: a device, type or feature is not available.
        """
        started = time.perf_counter()
        if load.num_threads > 0:
            torch.set_num_threads(load.num_threads)
        source = ModelSource({name: Path(path) for name, path in load.files.items()})
        config = ModelConfig.from_source(source)
        device = choose_device(load.device)
        memory = device_memory(device)
        load = structs.replace(load, max_num_seqs=choose_max_num_seqs(load.max_num_seqs, memory))
        with torch.inference_mode(), Checkpoint.open(source, config, on_progress) as checkpoint:
            checkpoint.check()
            weight_dtype = choose_weight_dtype(load.weight_type)
            table = WeightTable.of(checkpoint, config, weight_dtype)
            is_packed = table.packed_share(device, torch.bfloat16) > 0.5
            dtype = choose_dtype(load.dtype, device, config.num_parameters, is_packed=is_packed)
            kv_dtype = choose_kv_dtype(load.kv_cache_type, dtype)
            sizes = table.sizes(device, dtype)
            plan = plan_memory(config, _memory_request(load, dtype, kv_dtype), memory, sizes)
            num_resident = config.num_layers - plan.num_offloaded_layers
            offloaded = offloaded_layers(config.num_layers, num_resident)
            weights = load_weights(checkpoint, config, dtype, device, weight_dtype=weight_dtype, offloaded=offloaded)
            plan = replace(plan, notes=(*plan.notes, *table.notes(device, dtype)))
        layers = LayerStream(weights.layers, num_resident, device) if offloaded else weights.layers
        decoder = Decoder(config, weights, device, layers)
        runner = cls(decoder, device=device, dtype=dtype, kv_dtype=kv_dtype, load=load, plan=plan, weights=sizes)
        runner.load_s = time.perf_counter() - started
        return runner

    # ---- memory

    def allocate_kv(self, num_blocks: int = 0, budget_bytes: int = 0) -> None:
        """Allocates the KV cache anew; what it held, and all rows, are lost.

        Args:
            num_blocks: usable blocks of each KV group; 0 computes them.
            budget_bytes: for weights, KV cache and activations together; 0 takes what a shared machine can spare.

        Raises:
            ModelTooLarge: not even one block fits.
        """
        self.free_kv()
        self._budget_bytes = budget_bytes
        # Adapters are there already, so only a budget does not know of them.
        left = max(1, budget_bytes - self.adapters.num_bytes) if budget_bytes else 0
        request = replace(
            _memory_request(self.load_options, self.dtype, self.kv_dtype), num_blocks=num_blocks, budget_bytes=left
        )
        self._plan = replan_memory(self.config, request, device_memory(self.device), self._weights, self._plan)
        self._allocate(self._plan.num_blocks)

    def _allocate(self, num_blocks: int) -> None:
        options = self.load_options
        self.kv_cache = KVCache.allocate(self.config, num_blocks, options.block_size, self.kv_dtype, self.device)
        if self.device.type == "cuda":
            # Not above: Triton is not there without a GPU, and takes a second to import.
            from engine.execution.gpu_steps import GpuSteps

            self._steps = GpuSteps(self.decoder, self.kv_cache, self.max_context, options, self.device, self.adapters)
        else:
            self._steps = CpuSteps(self.decoder, self.kv_cache, self.max_context, options, self.adapters)
        self._steps.warm_up()

    def free_kv(self) -> None:
        """Gives the KV cache's memory back. Until `allocate_kv`, nothing can be launched."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.kv_cache = None
        self._steps = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # ---- adapters

    def has_adapter(self, adapter: int) -> bool:
        """Whether a number is an adapter's; 0 is none, and always there."""
        return adapter in self.adapters

    def has_room_for(self, files: Mapping[str, str]) -> bool:
        """Whether adapters fit beside the KV cache as it is.

        Raises:
            AdapterError, SourceError, GGUFError, SafetensorsError: they cannot be applied to this model.
        """
        num_bytes = adapter_bytes(self.config, _adapter_sources(files), self.dtype)
        request = _memory_request(self.load_options, self.dtype, self.kv_dtype)
        request = replace(request, budget_bytes=self._budget_bytes)
        return fits_beside(num_bytes, self.adapters.num_bytes, self._plan, request, device_memory(self.device))

    def add_adapter(self, adapter: int, files: Mapping[str, str]) -> None:
        """Loads LoRA adapters under one number.

        Args:
            files: name -> path, as modelfiles.adapter_files has them; several adapters add up.

        Raises:
            AdapterError, SourceError, GGUFError, SafetensorsError: they cannot be applied to this model.
            ModelTooLarge: there is no memory for them.
        """
        sources = _adapter_sources(files)
        num_bytes = adapter_bytes(self.config, sources, self.dtype)
        check_adapter(num_bytes, device_memory(self.device))
        with torch.inference_mode():
            self.adapters.put(adapter, load_adapter(self.config, sources, self.dtype, self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # steps run on a stream of their own

    def remove_adapter(self, adapter: int) -> None:
        """Gives an adapter's memory back. No step that uses it may be in flight."""
        if self._steps is not None:
            self._steps.forget_adapter(adapter)
        self.adapters.drop(adapter)

    @property
    def num_blocks(self) -> int:
        """Usable KV blocks of each group, the dummy block not counted."""
        return 0 if self.kv_cache is None else self.kv_cache.num_blocks

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self.config.vocab_size

    @property
    def windows(self) -> tuple[int | None, ...]:
        """One a KV group; position p attends (p - window, p], None: all up to p."""
        return tuple(group.window for group in self.config.kv_groups)

    @property
    def max_context(self) -> int:
        """Longest sequence in tokens that fits both the model and the cache."""
        return min(self.config.max_position_embeddings, self.num_blocks * self.load_options.block_size)

    @property
    def ready(self) -> Ready:
        """What the worker answers to Load, Resize and Wake."""
        return Ready(
            num_blocks=self.num_blocks,
            block_size=self.load_options.block_size,
            weights_bytes=self._plan.weights_bytes + self.adapters.num_bytes,
            kv_cache_bytes=0 if self.kv_cache is None else self.kv_cache.num_bytes,
            max_context=self.max_context,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            load_s=self.load_s,
            max_num_seqs=self.load_options.max_num_seqs,
            notes=list(self._plan.notes),
        )

    # ---- steps

    def launch(self, batch: ScheduledBatch, masks: TokenMasks | None = None) -> Handle:
        """Starts a step. Rows whose logits are not finite get an error of their own; the others are not touched by it.

        On a GPU the step is only queued.
        """
        return self.steps.launch(batch, masks)

    def prepare(self) -> bool:
        """Does a piece of the work that would delay a later step, while nobody waits; False when none is left."""
        return self.steps.prepare()

    @property
    def steps(self) -> CpuSteps | GpuSteps:
        """What executes steps over the present KV cache."""
        if self._steps is None:
            raise RuntimeError("the KV cache is not allocated (asleep); allocate_kv must come before a step")
        return self._steps

    # ---- whole prompts

    @torch.inference_mode()
    def hidden_states(self, prompts: Sequence[Sequence[int]], adapters: Sequence[int] = (0,)) -> Tensor:
        """Runs prompts through the model in a cache of their own, beside whatever else is going on.

        Args:
            adapters: numbers of `add_adapter`, one a prompt, or one for all; 0 is none.

        Returns:
            [tokens of all prompts, hidden_size], before the final norm.
        """
        counts = None if len(adapters) == 1 else [len(prompt) for prompt in prompts]
        adapted = self.adapters.tokens(adapters, counts, self.device)
        return self._forward(self._scratch_cache(prompts, is_shared=True), prompts, 0, adapted)

    def _scratch_cache(self, prompts: Sequence[Sequence[int]], *, is_shared: bool) -> KVCache:
        """Blocks for prompts, each with as many as the longest."""
        block_size = self.load_options.block_size
        most = -(-max(len(prompt) for prompt in prompts) // block_size)
        num_blocks = most * len(prompts)
        return KVCache.allocate(self.config, num_blocks, block_size, self.kv_dtype, self.device, is_shared=is_shared)

    def _forward(
        self, cache: KVCache, pieces: Sequence[Sequence[int]], start: int, adapted: AdapterTokens | None
    ) -> Tensor:
        """Runs a piece of each prompt, whose first token has the position `start`, over a cache of their own."""
        counts = [len(piece) for piece in pieces]
        tables = torch.arange(1, cache.num_blocks + 1, device=self.device).view(len(pieces), -1)
        row_of_token = torch.arange(len(pieces)).repeat_interleave(torch.tensor(counts)).to(self.device)
        positions = torch.cat([torch.arange(start, start + count) for count in counts]).to(self.device)
        token_ids = torch.tensor([token for piece in pieces for token in piece], device=self.device)
        plans = [
            plan_attention(
                tables,
                [start] * len(pieces),
                counts,
                positions,
                row_of_token,
                block_size=cache.block_size,
                num_kv_heads=self.config.num_kv_heads,
                window=group.window,
            )
            for group in self.config.kv_groups
        ]
        with self._between_steps():
            return self.decoder.forward(
                ForwardContext(token_ids, positions, plans, cache.layers, cache.scales, adapted)
            )

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Inside, the device computes behind the steps that are launched, and those to come behind it.

        Layers of the host come to the device through slots that all passes share; nothing else needs an order.
        """
        stream = self._steps.stream if isinstance(self.decoder.layers, LayerStream) and self._steps else None
        if stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(stream)
        try:
            yield
        finally:
            stream.wait_stream(current)

    @torch.inference_mode()
    def prompt_logprobs(self, token_ids: Sequence[int], adapter: int = 0) -> list[float]:
        """Natural-log probability of each token given those before it, from the second one on."""
        logits = self.decoder.logits(self.hidden_states([token_ids], [adapter])[:-1])
        targets = torch.tensor(token_ids[1:], device=self.device)
        logprobs: list[float] = (-F.cross_entropy(logits, targets, reduction="none")).tolist()
        return logprobs

    # ---- embedding

    @property
    def max_text_tokens(self) -> int:
        """The longest text that can be embedded."""
        return self.config.max_position_embeddings

    @property
    def max_pass_tokens(self) -> int:
        """Tokens of texts that are embedded together."""
        return self.load_options.max_num_batched_tokens

    @property
    def gives_scores(self) -> bool:
        """A decoder is no cross-encoder."""
        return False

    @torch.inference_mode()
    def embed(self, jobs: Sequence[TextJob], max_tokens: int) -> Iterator[list[bytes | None] | None]:
        """Computes texts together, one that is longer than `max_tokens` in pieces. See embedding_engine.Embedder.

        Vectors are pooled from states behind the final norm: as the model's files say, or else the last token's.
        """
        pooling = self.config.pooling or LAST_TOKEN
        texts = [job.token_ids for job in jobs]
        if len(texts) == 1 and len(texts[0]) > max_tokens:
            adapted = self.adapters.tokens([jobs[0].adapter], None, self.device)
            pooled = yield from self._pool_in_pieces(texts[0], max_tokens, pooling.mode, adapted)
        else:
            states = self.decoder.normed(self.hidden_states(texts, [job.adapter for job in jobs]))
            pooled = pool(states, [len(text) for text in texts], pooling.mode)
        yield finished(pooled, jobs, normalizes=pooling.normalize)

    def _pool_in_pieces(
        self, text: Sequence[int], max_tokens: int, mode: PoolingMode, adapted: AdapterTokens | None
    ) -> Generator[list[bytes | None] | None, None, Tensor]:
        """What `pool` gives of a text, a piece at a time: float32 [1, hidden_size]."""
        cache = self._scratch_cache([text], is_shared=False)
        parts, shares = [], []
        for start in range(0, len(text), max_tokens):
            if start:
                yield None
            piece = text[start : start + max_tokens]
            parts.append(pool(self.decoder.normed(self._forward(cache, [piece], start, adapted)), [len(piece)], mode))
            shares.append(len(piece) / len(text))
        if mode == "mean":
            return torch.cat([part * share for part, share in zip(parts, shares, strict=True)]).sum(0, keepdim=True)
        return parts[0 if mode == "cls" else -1]


def _memory_request(load: Load, dtype: torch.dtype, kv_dtype: torch.dtype) -> MemoryRequest:
    return MemoryRequest(
        dtype=dtype,
        kv_dtype=kv_dtype,
        block_size=load.block_size,
        max_num_batched_tokens=load.max_num_batched_tokens,
        max_num_seqs=load.max_num_seqs,
        budget_bytes=load.budget_bytes,
        overhead_bytes=load.overhead_bytes,
        num_blocks=load.num_blocks,
        num_gpu_layers=load.num_gpu_layers,
    )


def _adapter_sources(files: Mapping[str, str]) -> list[ModelSource]:
    groups = group_adapters({name: Path(path) for name, path in files.items()})
    return [ModelSource(group) for group in groups]
