"""Staging: brings a model's bytes from mapped files to the device through a few page-locked buffers.

    threads:  file -> buffer      (read ahead, then a plain memory copy; both without Python's lock)
    stream:   buffer -> device    (queued behind the pieces before it; an event tells when the buffer is free again)

Pieces reach the device in the order in which they were given, so that whoever expands one there needs no lock; files
are read in any order. Only the buffers are ever held beside the model: NUM_BUFFERS * BUFFER_BYTES on the host, and what
one piece is expanded through on the device. Made by `weights.load_weights`; without a GPU it works with plain memory,
which is what its tests use.

Copies from pageable memory go through one buffer of the driver's and make the caller wait, which is several times
slower than the bus. Sources: CUDA C++ Best Practices Guide, "Pinned Memory"; madvise(2).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.execution.errors import Unsupported, WeightsError, mebibytes

Tensor = torch.Tensor
Bytes = npt.NDArray[np.uint8]
Take = Callable[[Tensor], None]
"""Is given a piece, uint8 [n], and queues all that reads it before it returns."""

BUFFER_BYTES = 16 << 20
NUM_BUFFERS = 8
MAX_THREADS = 6
"""One thread copies a few GB/s out of the page cache, the bus takes tens."""
POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, for which Python has no name
EHWPOISON = 133  # from asm-generic/errno.h; Python has no name for it either
UNREADABLE = (errno.EFAULT, EHWPOISON)
"""What it answers where a page cannot be had; kernels that do not know it answer EINVAL."""


@dataclass(frozen=True)
class _Buffer:
    memory: Tensor
    """uint8 [buffer_bytes]"""
    is_free: torch.cuda.Event | None
    """Recorded behind the last copy out of it."""


@dataclass(frozen=True)
class _Piece:
    filled: Future[None]
    buffer: _Buffer | None
    """None: the bytes are where they belong once `filled` is done."""
    num_bytes: int
    take: Take
    """Gets them in the buffer."""


class Staging(AbstractContextManager["Staging"]):
    """A context manager. Inside, its stream is the current one; leaving it waits for all copies.

    Args:
        device: where tensors go. For the CPU, buffers are plain memory and there are no streams.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        num_buffers: int = NUM_BUFFERS,
        num_threads: int | None = None,
    ) -> None:
        self.device = device
        self.buffer_bytes = buffer_bytes
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None
        self._free = deque(
            _Buffer(host_empty((buffer_bytes,), torch.uint8, device), torch.cuda.Event() if is_cuda else None)
            for _ in range(num_buffers)
        )
        self._pending: deque[_Piece] = deque()
        num_threads = num_threads or min(MAX_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="staging")
        self._exits = ExitStack()

    def __enter__(self) -> Staging:
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            self._exits.enter_context(torch.cuda.stream(self._stream))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            self._threads.shutdown(cancel_futures=True)
            self._exits.close()
            if self._stream is not None and error is None:
                torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def copy(self, source: Bytes, target: Tensor) -> None:
        """Queues a plain copy.

        Args:
            source: uint8 [n], usually a view of a mapped file; must stay as it is until `finish`.
            target: uint8 [n] without gaps, on the device or in host memory.
        """
        for start in range(0, len(source), self.buffer_bytes):
            part = slice(start, start + self.buffer_bytes)
            if target.device.type == "cpu":  # no detour: it is where threads can write
                self._start(source[part], None, target[part].numpy(), _ignore)
            else:
                self._stage(source[part], _copier(target[part]))

    def expand(self, source: Bytes, take: Take) -> None:
        """Queues a piece that `take` gets when its bytes are, or will be, on the device.

        Args:
            source: uint8 [n], at most `buffer_bytes`.

        Raises:
            WeightsError: it is longer; or one that was given before could not be read.
        """
        if len(source) > self.buffer_bytes:
            raise WeightsError(
                f"a row of weights takes {mebibytes(len(source))}; {mebibytes(self.buffer_bytes)} are the most that "
                "can be read at once"
            )
        self._stage(source, lambda piece: take(piece.to(self.device, non_blocking=True)))

    def _stage(self, source: Bytes, take: Take) -> None:
        while not self._free:
            self._take_first()
        buffer = self._free.popleft()
        self._start(source, buffer, buffer.memory[: len(source)].numpy(), take)

    def finish(self) -> None:
        """Waits until everything is where it belongs.

        Raises:
            WeightsError: a file could not be read.
        """
        while self._pending:
            self._take_first()
        if self._stream is not None:
            self._stream.synchronize()

    def host_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device can read by itself."""
        return host_empty(shape, dtype, self.device)

    def _start(self, source: Bytes, buffer: _Buffer | None, target: Bytes, take: Take) -> None:
        filled = self._threads.submit(_fill, source, target, None if buffer is None else buffer.is_free)
        self._pending.append(_Piece(filled, buffer, len(source), take))
        while self._pending and self._pending[0].filled.done():
            self._take_first()

    def _take_first(self) -> None:
        piece = self._pending.popleft()
        piece.filled.result()
        if piece.buffer is None:
            return
        piece.take(piece.buffer.memory[: piece.num_bytes])
        if piece.buffer.is_free is not None:
            piece.buffer.is_free.record()
        self._free.append(piece.buffer)


def _ignore(piece: Tensor) -> None:
    pass


def _copier(target: Tensor) -> Take:
    def copy(piece: Tensor) -> None:
        target.copy_(piece, non_blocking=True)

    return copy


# ---- in the threads


def _fill(source: Bytes, target: Bytes, is_free: torch.cuda.Event | None) -> None:
    if is_free is not None:
        is_free.synchronize()
    read_ahead(source)
    np.copyto(target, source)


def read_ahead(source: Bytes) -> None:
    """Asks for all pages of a mapped file at once, and waits for them: one by one, a disk would be read in small parts.

    It also turns what would kill the process, a page that is not there any more, into an error.

    Raises:
        WeightsError: the file has become shorter, or its disk fails.
    """
    if sys.platform != "linux" or not len(source):
        return
    first = source.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = source.ctypes.data + len(source) - first
    libc = ctypes.CDLL(None, use_errno=True)  # unlike mmap.madvise, a call through ctypes gives up Python's lock
    libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_WILLNEED)
    status = libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), POPULATE_READ)
    if status != 0 and ctypes.get_errno() in UNREADABLE:
        reason = os.strerror(ctypes.get_errno())
        raise WeightsError(
            f"{len(source)} bytes of the model's file could not be read ({reason}); it was cut short while it was "
            "loaded, or its disk fails"
        )


# ---- memory of the host


class _Locked(mmap.mmap):
    """Anonymous memory that is unlocked before it goes; a weak reference would be told afterwards."""

    unlock: Callable[[], object] = staticmethod(lambda: None)

    def __del__(self) -> None:
        self.unlock()


def host_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of the host that `device` can read by itself: page-locked for a GPU, plain for a CPU.

    Unlike torch's pinned memory it takes what it says, not the next power of two, and goes back when its tensors go.

    Raises:
        Unsupported: the driver will not lock it.
    """
    if device.type != "cuda":
        return torch.empty(shape, dtype=dtype)
    num_bytes = prod(shape) * dtype.itemsize
    memory = _Locked(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(memory, dtype=dtype, count=prod(shape)).view(shape)
    cudart: Any = torch.cuda.cudart()
    address = tensor.data_ptr()
    status = cudart.cudaHostRegister(address, num_bytes, 0)
    if int(status) != 0:
        raise Unsupported(
            f"the driver could not lock {mebibytes(num_bytes)} of the host's memory (CUDA error {int(status)}); free "
            "memory, or raise the limit of locked memory (ulimit -l)"
        )
    memory.unlock = partial(cudart.cudaHostUnregister, address)
    return tensor
