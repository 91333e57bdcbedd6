"""What a step on the GPU leaves for the host: tokens and log-probabilities, read through pinned memory a step later.

`StepOutputs` owns the device's buffers, which graphs write, and a ring of pinned copies; `DeviceHandle` is one step's
claim on a copy. Called by `gpu_steps`; the engine holds the handles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.execution.errors import NOT_FINITE
from engine.sampling_params import MAX_TOP_LOGPROBS, SamplingParams
from engine.scheduling.batch import RowStep, StepResult, TokenLogprobs

Tensor = torch.Tensor


class _Copy:
    """One step's results in the host's memory."""

    def __init__(self, max_rows: int, is_cuda: bool) -> None:
        self.token_ids = torch.empty(max_rows, dtype=torch.int32, pin_memory=is_cuda)
        self.chosen = torch.empty(max_rows, pin_memory=is_cuda)
        self.top = torch.empty(max_rows, MAX_TOP_LOGPROBS, pin_memory=is_cuda)
        self.top_ids = torch.empty(max_rows, MAX_TOP_LOGPROBS, dtype=torch.int64, pin_memory=is_cuda)
        self.event = torch.cuda.Event() if is_cuda else None


class StepOutputs:
    """Results of the newest step on the device, and of some before it on the host."""

    def __init__(self, max_rows: int, num_copies: int, device: torch.device) -> None:
        """
        Args:
            num_copies: steps whose results may wait unread.
        """
        # A step's padding samples too: as many rows again.
        size = 2 * max_rows
        self.token_ids = torch.zeros(size, dtype=torch.int32, device=device)
        self.chosen = torch.zeros(size, device=device)
        self.top = torch.zeros(size, MAX_TOP_LOGPROBS, device=device)
        self.top_ids = torch.zeros(size, MAX_TOP_LOGPROBS, dtype=torch.int64, device=device)
        self._copies = [_Copy(size, device.type == "cuda") for _ in range(num_copies)]
        self._next = 0

    def none(self) -> DeviceHandle:
        """Of a step in which nothing was computed."""
        return DeviceHandle([], [], [], None)

    def take(self, steps: Sequence[RowStep], places: Sequence[int], params: Sequence[SamplingParams]) -> DeviceHandle:
        """Queues the copy of a step's results, on the current stream.

        Args:
            steps: those that sample.
            places: where the results of each lie.
            params: by row.
        """
        copy = self._copies[self._next]
        self._next = (self._next + 1) % len(self._copies)
        num_logprobs = [params[step.row].logprobs for step in steps]
        if steps:
            stop = places[-1] + 1
            copy.token_ids[:stop].copy_(self.token_ids[:stop], non_blocking=True)
            if any(number is not None for number in num_logprobs):
                copy.chosen[:stop].copy_(self.chosen[:stop], non_blocking=True)
                copy.top[:stop].copy_(self.top[:stop], non_blocking=True)
                copy.top_ids[:stop].copy_(self.top_ids[:stop], non_blocking=True)
        if copy.event is not None:
            copy.event.record()
        return DeviceHandle(steps, places, num_logprobs, copy)


class DeviceHandle:
    """A launched step; see scheduling.batch.Handle."""

    def __init__(
        self,
        steps: Sequence[RowStep],
        places: Sequence[int],
        num_logprobs: Sequence[int | None],
        copy: _Copy | None,
    ) -> None:
        self._steps, self._places, self._num_logprobs, self._copy = steps, places, num_logprobs, copy

    def result(self) -> StepResult:
        """Waits for the device."""
        copy = self._copy
        if copy is None:
            return StepResult([], [], [])
        if copy.event is not None:
            copy.event.synchronize()
        if not self._steps:
            return StepResult([], [], [])
        all_ids: list[int] = copy.token_ids[: self._places[-1] + 1].tolist()
        token_ids = [all_ids[place] for place in self._places]
        errors: list[str | None] = [None] * len(token_ids)
        logprobs: list[TokenLogprobs | None] = [None] * len(token_ids)
        for number, token in enumerate(token_ids):
            if token < 0:
                step = self._steps[number]
                token_ids[number] = 0
                errors[number] = NOT_FINITE.format(step.start + step.num_tokens - 1)
            elif self._num_logprobs[number] is not None:
                logprobs[number] = self._logprobs(copy, self._places[number], self._num_logprobs[number] or 0)
        return StepResult(token_ids, logprobs, errors)

    @staticmethod
    def _logprobs(copy: _Copy, place: int, count: int) -> TokenLogprobs:
        top: list[float] = copy.top[place, :count].tolist()
        top_ids: list[int] = copy.top_ids[place, :count].tolist()
        return TokenLogprobs(float(copy.chosen[place]), list(zip(top_ids, top, strict=True)))
