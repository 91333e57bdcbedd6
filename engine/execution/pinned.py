"""PinnedRing: a few buffers of page-locked memory, through which small copies cross without anybody waiting.

A copy from or to pageable memory makes the host wait for the device; one through pinned memory is only queued. The
buffer must then be left alone until the copy has run, so there are several, and an event tells when each is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

Tensor = torch.Tensor

NUM_SLOTS = 4
"""More than the steps that are ever in flight, so that the wait for a slot is over before it begins."""


class PinnedRing:
    """Buffers of `length` int32 each. For a CPU they are plain memory and copies are done when they return."""

    def __init__(self, length: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._buffers = [torch.empty(length, dtype=torch.int32, pin_memory=is_cuda) for _ in range(NUM_SLOTS)]
        self._events = [torch.cuda.Event() for _ in range(NUM_SLOTS)] if is_cuda else []
        self._next = 0

    @contextmanager
    def slot(self) -> Iterator[Tensor]:
        """The next buffer; copies out of it must be queued on the current stream before the end of the block."""
        number = self._next
        self._next = (number + 1) % NUM_SLOTS
        if self._events:
            self._events[number].synchronize()
        yield self._buffers[number]
        if self._events:
            self._events[number].record()
