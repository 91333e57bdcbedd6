"""StepInputs: what the kernels of a step read, at fixed places of one buffer on the device, so that graphs find it.

    rows, positions               of every token; a step of one-token rows has nothing else
    prompt rows, their tokens' ends, their starts
    selection, sampled rows and positions      which tokens' logits are wanted, and for whom

One copy through pinned memory writes a step's inputs; its parts begin where the largest step needs them to. Filled by
gpu_steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from engine.execution.pinned import PinnedRing
from engine.execution.step_shapes import StepShape, StepSizes
from engine.models.device_decoder import DeviceStep, PrefillRows
from engine.models.lora import AdapterTokens
from engine.scheduling.batch import RowStep

Tensor = torch.Tensor
Values = Sequence[int] | npt.NDArray[np.int64]

NOBODY = -1
"""The row of padding."""


class StepInputs:
    """The inputs of the newest step."""

    def __init__(self, sizes: StepSizes, device: torch.device) -> None:
        tokens, prompts = sizes.max_padded_tokens, sizes.max_rows
        samples = sizes.max_rows + sizes.max_padding_rows
        widths = [tokens, tokens, prompts, prompts + 1, prompts, samples, samples, samples]
        # Each part begins at a multiple of 16 bytes: Triton compiles a kernel anew for addresses that do not.
        starts = np.cumsum([0, *(-(-width // 4) * 4 for width in widths)]).tolist()
        self._buffer = torch.full((starts[-1],), NOBODY, dtype=torch.int32, device=device)
        self._parts = [slice(start, start + width) for start, width in zip(starts, widths, strict=False)]
        (
            self._rows, self._positions, self._prompt_rows, self._cu_seqlens, self._starts,
            self._selection, self._sample_rows, self._sample_positions,
        ) = (self._buffer[part] for part in self._parts)  # fmt: skip
        self._ring = PinnedRing(starts[-1], device)

    def step(
        self, shape: StepShape, adapters: AdapterTokens | None = None, selected: AdapterTokens | None = None
    ) -> DeviceStep:
        """The inputs of a forward pass.

        Args:
            adapters: of its tokens.
            selected: of those whose logits are wanted.
        """
        num_tokens = shape.num_decodes + shape.num_tokens
        prefill, selection = None, None
        if not shape.is_decode:
            prefill = PrefillRows(
                self._prompt_rows[: shape.num_rows],
                self._cu_seqlens[: shape.num_rows + 1],
                self._starts[: shape.num_rows],
            )
            selection = self._selection[: shape.num_decodes + shape.num_rows]
        rows, positions = self._rows[:num_tokens], self._positions[:num_tokens]
        num_decodes = shape.num_decodes
        return DeviceStep(rows, positions, num_decodes, prefill, selection, shape.has_long_row, adapters, selected)

    def sampled(self, shape: StepShape) -> tuple[Tensor, Tensor]:
        """Rows and positions that logits belong to: int32 [num_samples] each."""
        if shape.is_decode:
            return self._rows[: shape.num_decodes], self._positions[: shape.num_decodes]
        num_samples = shape.num_decodes + shape.num_rows
        return self._sample_rows[:num_samples], self._sample_positions[:num_samples]

    def write_decodes(self, shape: StepShape, steps: Sequence[RowStep]) -> None:
        """Inputs of a step in which each row brings one token."""
        padding = [NOBODY] * (shape.num_decodes - len(steps))
        self._send([[step.row for step in steps] + padding, [step.start for step in steps] + padding])

    def write_mixed(self, shape: StepShape, decodes: Sequence[RowStep], others: Sequence[RowStep]) -> None:
        """Inputs of any other step: the decodes first, behind them the tokens of the others, row by row."""
        first = shape.num_decodes  # token, and sample, of the others
        counts = np.array([step.num_tokens for step in others])
        starts = np.array([step.start for step in others])
        row_ids = np.array([step.row for step in others])
        ends = counts.cumsum()
        behind = slice(first, first + int(ends[-1]))
        rows, positions = _padding(first + shape.num_tokens)
        rows[: len(decodes)] = [step.row for step in decodes]
        positions[: len(decodes)] = [step.start for step in decodes]
        rows[behind] = np.repeat(row_ids, counts)
        positions[behind] = np.arange(ends[-1]) + np.repeat(starts - ends + counts, counts)

        prompt_rows, prompt_starts = _padding(shape.num_rows)
        prompt_rows[: len(others)], prompt_starts[: len(others)] = row_ids, starts
        cu_seqlens = np.full(shape.num_rows + 1, ends[-1])
        cu_seqlens[0] = 0
        cu_seqlens[1 : len(others) + 1] = ends

        # Every decode is sampled; of the others there is room for all, and those that do not sample leave padding.
        samples = np.array([step.samples for step in others])
        sample_rows, sample_positions = _padding(first + shape.num_rows)
        selection = np.zeros(first + shape.num_rows, dtype=np.int64)
        selection[:first] = np.arange(first)
        sample_rows[:first], sample_positions[:first] = rows[:first], positions[:first]
        chosen = slice(first, first + int(samples.sum()))
        selection[chosen] = first + ends[samples] - 1
        sample_rows[chosen] = row_ids[samples]
        sample_positions[chosen] = (starts + counts - 1)[samples]
        self._send([rows, positions, prompt_rows, cu_seqlens, prompt_starts, selection, sample_rows, sample_positions])

    def write_padding(self, shape: StepShape) -> None:
        """Inputs of a step of nobody."""
        parts: list[Values] = [*_padding(shape.num_decodes + shape.num_tokens)]
        if not shape.is_decode:
            prompt_rows, zeros = _padding(shape.num_rows)
            sample_rows, samples = _padding(shape.num_decodes + shape.num_rows)
            parts += [prompt_rows, np.append(zeros, 0), zeros, samples, sample_rows, samples]
        self._send(parts)

    def _send(self, parts: Sequence[Values]) -> None:
        """Writes the beginnings of the first parts of the buffer."""
        with self._ring.slot() as host:
            array = host.numpy()
            for part, values in zip(self._parts, parts, strict=False):
                array[part.start : part.start + len(values)] = values
            if len(parts) == 2:  # of a decode step: two short copies instead of a long one
                for part, values in zip(self._parts, parts, strict=False):
                    there = slice(part.start, part.start + len(values))
                    self._buffer[there].copy_(host[there], non_blocking=True)
            else:
                stop = self._parts[len(parts) - 1].stop
                self._buffer[:stop].copy_(host[:stop], non_blocking=True)


def _padding(length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and positions of so many tokens of nobody."""
    return np.full(length, NOBODY), np.zeros(length, dtype=np.int64)
