"""What a step on the GPU leaves for the host: tokens and log-probabilities, read through pinned memory a step later.

`StepOutputs` owns the device's buffers, which graphs write, and a ring of pinned copies; `DeviceHandle` is one step's
claim on a copy. Called by `gpu_steps`; the engine holds the handles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.execution.errors import NOT_FINITE
from engine.sampling_params import MAX_TOP_LOGPROBS
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

    def take(
        self, steps: Sequence[RowStep], places: Sequence[int] | None, num_logprobs: Sequence[int | None] | None
    ) -> DeviceHandle:
        """Queues the copy of a step's results, on the current stream.

        Args:
            steps: those that sample.
            places: where the results of each lie, ascending; None: in their order.
            num_logprobs: of each, how many of the likeliest tokens it wants; None: nobody wants any.
        """
        copy = self._copies[self._next]
        self._next = (self._next + 1) % len(self._copies)
        if num_logprobs is not None and all(number is None for number in num_logprobs):
            num_logprobs = None
        stop = len(steps) if places is None else max(places, default=-1) + 1
        if stop > 0:
            copy.token_ids[:stop].copy_(self.token_ids[:stop], non_blocking=True)
            if num_logprobs is not None:
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
        places: Sequence[int] | None,
        num_logprobs: Sequence[int | None] | None,
        copy: _Copy,
    ) -> None:
        self._steps, self._places, self._num_logprobs, self._copy = steps, places, num_logprobs, copy

    def result(self) -> StepResult:
        """Waits for the device."""
        copy, places = self._copy, self._places
        if copy.event is not None:
            copy.event.synchronize()
        num_steps = len(self._steps)
        if places is None:
            token_ids: list[int] = copy.token_ids[:num_steps].tolist()
        else:
            found = copy.token_ids.tolist()
            token_ids = [found[place] for place in places]
        logprobs: list[TokenLogprobs | None] = [None] * num_steps
        errors: list[str | None] = [None] * num_steps
        if self._num_logprobs is not None:
            for number, count in enumerate(self._num_logprobs):
                if count is not None and token_ids[number] >= 0:
                    logprobs[number] = self._logprobs(copy, number if places is None else places[number], count)
        if min(token_ids, default=0) < 0:
            for number, step in enumerate(self._steps):
                if token_ids[number] < 0:
                    token_ids[number] = 0
                    errors[number] = NOT_FINITE.format(step.start + step.num_tokens - 1)
        return StepResult(token_ids, logprobs, errors)

    @staticmethod
    def _logprobs(copy: _Copy, place: int, count: int) -> TokenLogprobs:
        top: list[float] = copy.top[place, :count].tolist()
        top_ids: list[int] = copy.top_ids[place, :count].tolist()
        return TokenLogprobs(float(copy.chosen[place]), list(zip(top_ids, top, strict=True)))
