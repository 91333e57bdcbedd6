"""Times of launches on a GPU: a captured graph runs them in a chain, and the median replay is divided by their number.

What all benchmarks of single kernels measure with. A launch is given the number of a copy of its data; enough copies,
together beyond the second-level cache, make every byte come from memory as it does in a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

Run = Callable[[int], object]
"""Launches the kernel on copy number i."""

COPIED_BYTES = 1 << 30
WARM_UP_S = 0.5


def replayed_us(run: Run, num_copies: int, replays: int = 21) -> tuple[float, float]:
    """Median and spread (interquartile) of the microseconds of one launch."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(0)  # compiles outside the capture
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in range(num_copies):
            run(copy)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(replays)]
    graph.replay()
    for begin, end in events:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    times = sorted(begin.elapsed_time(end) * 1e3 / num_copies for begin, end in events)
    return median(times), times[3 * replays // 4] - times[replays // 4]


def warm_up() -> None:
    """Clocks rise under load, within about this time."""
    matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    end = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < end:
        for _ in range(20):
            matrix @ matrix
        torch.cuda.synchronize()


def copy_bandwidth() -> float:
    """Terabytes a second that a copy of a gibibyte moves, read plus written.

    By a kernel: a graph runs `copy_` on the copy engine, which is slower.
    """
    source = torch.randn(COPIED_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    us, _ = replayed_us(lambda _: torch.neg(source, out=target), 4)
    return 2 * source.nbytes / us / 1e6
