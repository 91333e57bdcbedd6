"""ModelRunner: runs the scheduler's batches. Owns the weights, the KV cache and the state of the rows.

    launch(batch):  differences -> RowState;  batch -> tensors (one place, `_context`);  one forward pass over all rows;
                    logits at the sampling positions only;  sample;  write each token to its row's next position

The scheduler may launch step N + 1 before it has read the tokens of step N, because they are read from the rows' state
and not from the batch. On a CPU the work is done when `launch` returns. The runner knows no text, no queue and no end
of a request. Called by `llm_engine` through the protocol `scheduling.batch.Runner`, and by the worker for everything
else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from engine.config import ModelConfig
from engine.execution.device import available_bytes, choose_device, choose_dtype, choose_kv_dtype
from engine.execution.errors import ExecutionError, ModelTooLarge, Unsupported, mebibytes
from engine.execution.kv_cache import KVCache, block_bytes, default_num_blocks, num_blocks_in
from engine.execution.row_state import RowState
from engine.execution.sampler import Sampled, SamplingRow, sample
from engine.execution.weights import Checkpoint, OnProgress, load_weights, weights_bytes
from engine.kernels.reference import plan_attention
from engine.messages import Load, Ready
from engine.models.decoder import Decoder, activation_bytes
from engine.models.forward_context import ForwardContext
from engine.scheduling.batch import RowStep, ScheduledBatch, StepResult
from modelfiles.source import ModelSource

Tensor = torch.Tensor

NOT_FINITE = (
    "the model computed logits that are not finite numbers at position {}; its weights may be damaged, or it may need "
    "dtype float32"
)


class StepHandle:
    """A launched step; see scheduling.batch.Handle."""

    def __init__(self, steps: Sequence[RowStep], sampled: Sampled | None) -> None:
        self._steps = steps
        self._sampled = sampled

    def result(self) -> StepResult:
        if self._sampled is None:
            return StepResult([], [], [])
        token_ids = self._sampled.token_ids.tolist()
        errors: list[str | None] = [
            NOT_FINITE.format(step.start + step.num_tokens - 1) if broken else None
            for step, broken in zip(self._steps, self._sampled.is_broken.tolist(), strict=True)
        ]
        if self._sampled.logprobs is None:
            return StepResult(token_ids, [None] * len(token_ids), errors)
        return StepResult(token_ids, self._sampled.logprobs.to_lists(len(token_ids)), errors)


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
        self.rows: RowState | None = None

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
        self.rows = RowState(
            options.max_num_seqs, self.max_context, len(config.kv_groups), options.block_size, self.device
        )

    def free_kv(self) -> None:
        """Gives the KV cache's memory back. Until `allocate_kv`, nothing can be launched."""
        self.kv_cache = None
        self.rows = None
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

    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch) -> StepHandle:
        """Runs a step. Rows whose logits are not finite get an error of their own; the others are not touched by it."""
        logits = self.compute_logits(batch)
        sampling = [step for step in batch.steps if step.samples]
        if not sampling:
            return StepHandle(sampling, None)
        rows = self._rows
        sampled = sample(logits, [self._sampling_row(step) for step in sampling])
        rows.write(
            torch.tensor([step.row for step in sampling], device=self.device),
            torch.tensor([step.start + step.num_tokens for step in sampling], device=self.device),
            sampled.token_ids,
        )
        return StepHandle(sampling, sampled)

    @torch.inference_mode()
    def compute_logits(self, batch: ScheduledBatch) -> Tensor:
        """The forward pass of a step: float32 [number of sampling rows, vocab_size]."""
        self._rows.apply(batch.admitted, batch.appended)
        if not batch.steps:
            return torch.empty(0, self.config.vocab_size)
        hidden = self.decoder.forward(self._context(batch.steps))
        last, token = [], -1
        for step in batch.steps:
            token += step.num_tokens
            if step.samples:
                last.append(token)
        if not last:
            return torch.empty(0, self.config.vocab_size)
        if len(last) < len(hidden):
            hidden = hidden[torch.tensor(last, device=self.device)]
        return self.decoder.logits(hidden)

    def _context(self, steps: Sequence[RowStep]) -> ForwardContext:
        """The tensors of a step, from the rows' state."""
        state, cache = self._rows, self.kv_cache
        assert cache is not None
        starts = [step.start for step in steps]
        counts = [step.num_tokens for step in steps]
        rows = torch.tensor([step.row for step in steps], device=self.device)  # [num_rows]
        positions = torch.tensor(starts, device=self.device)
        row_of_token = None
        if max(counts) > 1:
            repeats = torch.tensor(counts, device=self.device)
            row_of_token = torch.arange(len(steps), device=self.device).repeat_interleave(repeats)  # [num_tokens]
            first_token = repeats.cumsum(0) - repeats  # [num_rows]
            positions = torch.arange(len(row_of_token), device=self.device) + (positions - first_token)[row_of_token]
        token_ids = state.tokens[rows if row_of_token is None else rows[row_of_token], positions].long()
        plans = [
            plan_attention(
                table[rows],
                starts,
                counts,
                positions,
                row_of_token,
                block_size=cache.block_size,
                num_kv_heads=self.config.num_kv_heads,
                window=group.window,
            )
            for group, table in zip(self.config.kv_groups, state.block_tables, strict=True)
        ]
        return ForwardContext(token_ids, positions, plans, cache.layers)

    def _sampling_row(self, step: RowStep) -> SamplingRow:
        state, position = self._rows, step.start + step.num_tokens
        params = state.params[step.row]
        history = state.history(step.row, position, params.repeat_last_n) if params.needs_history else None
        return SamplingRow(params, position - state.origins[step.row], history)

    @property
    def _rows(self) -> RowState:
        if self.rows is None:
            raise RuntimeError("the KV cache is not allocated (asleep); allocate_kv must come before a step")
        return self.rows

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
