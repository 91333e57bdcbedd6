"""ModelRunner: one loaded model on one device. Owns the weights, the KV cache and what executes steps over them.

    launch(batch) -> steps:   `cpu_steps` in plain torch, `gpu_steps` in Triton kernels and CUDA graphs

The runner knows no text, no queue and no end of a request. Called by `llm_engine` through the protocol
`scheduling.batch.Runner`, and by the worker for everything else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from engine.config import ModelConfig
from engine.execution.cpu_steps import CpuSteps
from engine.execution.device import available_bytes, choose_device, choose_dtype, choose_kv_dtype
from engine.execution.errors import ExecutionError, ModelTooLarge, Unsupported, mebibytes
from engine.execution.kv_cache import KVCache, block_bytes, default_num_blocks, num_blocks_in
from engine.execution.weights import Checkpoint, OnProgress, load_weights, weights_bytes
from engine.kernels.reference import plan_attention
from engine.messages import Load, Ready
from engine.models.decoder import Decoder, activation_bytes
from engine.models.forward_context import ForwardContext
from engine.scheduling.batch import Handle, ScheduledBatch
from modelfiles.source import ModelSource

if TYPE_CHECKING:
    from engine.execution.gpu_steps import GpuSteps

Tensor = torch.Tensor


class ModelRunner:
    """One loaded model on one device."""

    def __init__(
        self, decoder: Decoder, *, device: torch.device, dtype: torch.dtype, kv_dtype: torch.dtype, load: Load
    ) -> None:
        self.decoder = decoder
        self.config = decoder.config
        self.device = device
        self.dtype = dtype
        self.kv_dtype = kv_dtype
        self.load_options = load
        self.load_s = 0.0
        self.kv_cache: KVCache | None = None
        self._steps: CpuSteps | GpuSteps | None = None

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
        if load.adapters:
            raise Unsupported(f"{len(load.adapters)} adapters were given, but LoRA adapters cannot be loaded yet")
        if load.num_threads > 0:
            torch.set_num_threads(load.num_threads)
        source = ModelSource({name: Path(path) for name, path in load.files.items()})
        config = ModelConfig.from_source(source)
        device = choose_device(load.device)
        dtype = choose_dtype(load.dtype, device, config.num_parameters)
        kv_dtype = choose_kv_dtype(load.kv_cache_type, dtype)
        _check_fits(config, dtype, device, load)
        with torch.inference_mode(), Checkpoint.open(source, config, on_progress) as checkpoint:
            weights = load_weights(checkpoint, config, dtype, device)
        runner = cls(Decoder(config, weights, device), device=device, dtype=dtype, kv_dtype=kv_dtype, load=load)
        runner.allocate_kv(num_blocks=load.num_blocks, budget_bytes=load.budget_bytes)
        runner.steps.warm_up()
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
        options, config = self.load_options, self.config
        if num_blocks <= 0 and budget_bytes > 0:
            left = budget_bytes - self.decoder.weights.num_bytes - self._activation_bytes()
            num_blocks = num_blocks_in(left, config, options.block_size, self.kv_dtype)
        elif num_blocks <= 0:
            num_blocks = default_num_blocks(
                available_bytes(self.device), config, options.block_size, self.kv_dtype, config.max_position_embeddings
            )
        self.kv_cache = KVCache.allocate(config, num_blocks, options.block_size, self.kv_dtype, self.device)
        if self.device.type == "cuda":
            # Not above: Triton is not there without a GPU, and takes a second to import.
            from engine.execution.gpu_steps import GpuSteps

            self._steps = GpuSteps(self.decoder, self.kv_cache, self.max_context, options, self.device)
        else:
            self._steps = CpuSteps(self.decoder, self.kv_cache, self.max_context, options)

    def free_kv(self) -> None:
        """Gives the KV cache's memory back. Until `allocate_kv`, nothing can be launched."""
        self.kv_cache = None
        self._steps = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

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
            weights_bytes=self.decoder.weights.num_bytes,
            kv_cache_bytes=0 if self.kv_cache is None else self.kv_cache.num_bytes,
            max_context=self.max_context,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            load_s=self.load_s,
        )

    def _activation_bytes(self) -> int:
        options = self.load_options
        return activation_bytes(self.config, options.max_num_batched_tokens, options.max_num_seqs, self.dtype.itemsize)

    # ---- steps

    def launch(self, batch: ScheduledBatch) -> Handle:
        """Starts a step. Rows whose logits are not finite get an error of their own; the others are not touched by it.

        On a GPU the step is only queued.
        """
        return self.steps.launch(batch)

    @property
    def steps(self) -> CpuSteps | GpuSteps:
        """What executes steps over the present KV cache."""
        if self._steps is None:
            raise RuntimeError("the KV cache is not allocated (asleep); allocate_kv must come before a step")
        return self._steps

    # ---- whole prompts

    @torch.inference_mode()
    def hidden_states(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Runs prompts through the model in a cache of their own, beside whatever else is going on.

        Returns:
            [tokens of all prompts, hidden_size], before the final norm.
        """
        block_size = self.load_options.block_size
        counts = [len(prompt) for prompt in prompts]
        most = -(-max(counts) // block_size)
        cache = KVCache.allocate(self.config, most * len(prompts), block_size, self.kv_dtype, self.device)
        tables = torch.arange(1, cache.num_blocks + 1, device=self.device).view(len(prompts), most)
        row_of_token = torch.arange(len(prompts)).repeat_interleave(torch.tensor(counts)).to(self.device)
        positions = torch.cat([torch.arange(count) for count in counts]).to(self.device)
        token_ids = torch.tensor([token for prompt in prompts for token in prompt], device=self.device)
        plans = [
            plan_attention(
                tables,
                [0] * len(prompts),
                counts,
                positions,
                row_of_token,
                block_size=block_size,
                num_kv_heads=self.config.num_kv_heads,
                window=group.window,
            )
            for group in self.config.kv_groups
        ]
        return self.decoder.forward(ForwardContext(token_ids, positions, plans, cache.layers))

    @torch.inference_mode()
    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Natural-log probability of each token given those before it, from the second one on."""
        logits = self.decoder.logits(self.hidden_states([token_ids])[:-1])
        targets = torch.tensor(token_ids[1:], device=self.device)
        logprobs: list[float] = (-F.cross_entropy(logits, targets, reduction="none")).tolist()
        return logprobs

    @torch.inference_mode()
    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """One L2-normalised vector a prompt: the final hidden state of its last token, as decoders are pooled.

        Prompts are computed together, up to `max_num_batched_tokens` a pass. None may be empty.

        Raises:
            ExecutionError: a vector is not finite.
        """
        vectors: list[list[float]] = []
        for group in _groups_of(prompts, self.load_options.max_num_batched_tokens):
            last = torch.tensor([len(prompt) for prompt in group], device=self.device).cumsum(0) - 1
            pooled = self.decoder.normed(self.hidden_states(group)[last]).float()
            if not pooled.isfinite().all():
                raise ExecutionError("the model computed an embedding that is not finite; its weights may be damaged")
            vectors += F.normalize(pooled, dim=-1).tolist()
        return vectors


def _groups_of(prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[Sequence[int]]]:
    """Prompts in order, in groups of at most `max_tokens` tokens; a longer prompt is a group of its own."""
    groups: list[list[Sequence[int]]] = []
    left = 0
    for prompt in prompts:
        if not groups or len(prompt) > left:
            groups.append([])
            left = max_tokens
        groups[-1].append(prompt)
        left -= len(prompt)
    return groups


def _check_fits(config: ModelConfig, dtype: torch.dtype, device: torch.device, load: Load) -> None:
    """
    Raises:
        ModelTooLarge: weights, one KV block and the activations exceed the budget, or what is free.
    """
    activations = activation_bytes(config, load.max_num_batched_tokens, load.max_num_seqs, dtype.itemsize)
    needs = weights_bytes(config, dtype) + 2 * block_bytes(config, load.block_size, dtype)
    has = available_bytes(device)
    if load.budget_bytes:
        needs, has = needs + activations, min(has, load.budget_bytes)
    if needs > has:
        name = str(dtype).removeprefix("torch.")
        raise ModelTooLarge(
            f"the model ({mebibytes(weights_bytes(config, dtype))} of weights in {name})",
            needs,
            has,
            "stop other models, choose a smaller one" + (", or dtype bfloat16" if dtype.itemsize == 4 else ""),
        )
