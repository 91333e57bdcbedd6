"""CpuSteps: runs the scheduler's batches in plain torch. What a CPU does, and the measure of what a GPU must do.

    launch(batch):  differences -> RowState;  batch -> tensors (one place, `_context`);  one forward pass over all rows;
                    logits at the sampling positions only;  sample;  write each token to its row's next position

Masks of constrained rows are filled in other threads during the forward pass, and waited for behind it.

The scheduler may launch step N + 1 before it has read the tokens of step N, because they are read from the rows' state
and not from the batch. The work is done when `launch` returns. Owned by the runner.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.execution.errors import NOT_FINITE
from engine.execution.kv_cache import KVCache
from engine.execution.row_state import RowState
from engine.execution.sampler import MaskedRows, Sampled, SamplingRow, sample
from engine.kernels.reference import plan_attention
from engine.messages import Load
from engine.models.decoder import Decoder
from engine.models.forward_context import ForwardContext
from engine.models.lora import Adapters, AdapterTokens
from engine.scheduling.batch import RowStep, ScheduledBatch, StepResult, TokenMasks

Tensor = torch.Tensor


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


class CpuSteps:
    """The execution of steps over one KV cache."""

    def __init__(self, decoder: Decoder, kv_cache: KVCache, max_context: int, load: Load, adapters: Adapters) -> None:
        self._decoder = decoder
        self._adapters = adapters
        self._kv_cache = kv_cache
        self._device = kv_cache.layers[0][0].device
        self.rows = RowState(
            load.max_num_seqs, max_context, len(decoder.config.kv_groups), kv_cache.block_size, self._device
        )

    stream: None = None
    """Everything is done in its order."""

    def warm_up(self) -> None:
        """There is nothing to compile."""

    def prepare(self) -> bool:
        """Nor later."""
        return False

    def forget_adapter(self, adapter: int) -> None:
        """Nothing is kept of one."""

    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch, masks: TokenMasks | None = None) -> StepHandle:
        """Runs a step."""
        logits = self.compute_logits(batch)
        sampling = [step for step in batch.steps if step.samples]
        if not sampling:
            return StepHandle(sampling, None)
        words = None
        if masks is not None:
            number_of = {step.row: number for number, step in enumerate(sampling)}
            words = MaskedRows([number_of[row] for row in masks.rows], torch.from_numpy(masks.words()))
        sampled = sample(logits, [self._sampling_row(step) for step in sampling], words)
        self.rows.write(
            torch.tensor([step.row for step in sampling], device=self._device),
            torch.tensor([step.start + step.num_tokens for step in sampling], device=self._device),
            sampled.token_ids,
        )
        return StepHandle(sampling, sampled)

    @torch.inference_mode()
    def compute_logits(self, batch: ScheduledBatch) -> Tensor:
        """The forward pass of a step: float32 [number of sampling rows, vocab_size]."""
        self.rows.apply(batch.admitted, batch.appended)
        vocab_size = self._decoder.config.vocab_size
        if not batch.steps:
            return torch.empty(0, vocab_size)
        hidden = self._decoder.forward(self._context(batch.steps))
        last, token = [], -1
        for step in batch.steps:
            token += step.num_tokens
            if step.samples:
                last.append(token)
        if not last:
            return torch.empty(0, vocab_size)
        if len(last) < len(hidden):
            hidden = hidden[torch.tensor(last, device=self._device)]
        return self._decoder.logits(hidden)

    def _context(self, steps: Sequence[RowStep]) -> ForwardContext:
        """The tensors of a step, from the rows' state."""
        state, cache, device = self.rows, self._kv_cache, self._device
        starts = [step.start for step in steps]
        counts = [step.num_tokens for step in steps]
        rows = torch.tensor([step.row for step in steps], device=device)  # [num_rows]
        positions = torch.tensor(starts, device=device)
        row_of_token = None
        if max(counts) > 1:
            repeats = torch.tensor(counts, device=device)
            row_of_token = torch.arange(len(steps), device=device).repeat_interleave(repeats)  # [num_tokens]
            first_token = repeats.cumsum(0) - repeats  # [num_rows]
            positions = torch.arange(len(row_of_token), device=device) + (positions - first_token)[row_of_token]
        token_ids = state.tokens[rows if row_of_token is None else rows[row_of_token], positions].long()
        config = self._decoder.config
        plans = [
            plan_attention(
                table[rows],
                starts,
                counts,
                positions,
                row_of_token,
                block_size=cache.block_size,
                num_kv_heads=config.num_kv_heads,
                window=group.window,
            )
            for group, table in zip(config.kv_groups, state.block_tables, strict=True)
        ]
        return ForwardContext(token_ids, positions, plans, cache.layers, cache.scales, self._adapted(steps, counts))

    def _adapted(self, steps: Sequence[RowStep], counts: Sequence[int]) -> AdapterTokens | None:
        """Which tokens of a step have an adapter."""
        if not self._adapters:
            return None
        return self._adapters.tokens([self.rows.adapters[step.row] for step in steps], counts, self._device)

    def _sampling_row(self, step: RowStep) -> SamplingRow:
        state, position = self.rows, step.start + step.num_tokens
        params = state.params[step.row]
        history = state.history(step.row, position, params.repeat_last_n) if params.needs_history else None
        return SamplingRow(params, position - state.origins[step.row], history)
