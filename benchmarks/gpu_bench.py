"""What the sections of benchmarks/gpu.py share: reporting against the machine's limits, and the guard of a case."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_log import RunLog
from gpu_plan import BY_NAME, Sizes
from random_model import Shape
from report import Report

RESTART = 75
"""Exit status of a section that must be started again: the device does not answer this process any more."""


class MissingCase(Exception):
    """A case needs another one's figure, and that one has failed."""


@dataclass
class Bench:
    """What a case needs."""

    model: Path
    shape: str
    device: str
    sizes: Sizes
    log: RunLog
    report: Report

    def case(self, name: str, value: float, *, ceiling: float | None = None, **more: object) -> None:
        """Reports the figure of a case of the plan, or of one that a peer's command has named."""
        case = BY_NAME.get(name)
        unit = case.unit if case is not None else str(more.pop("unit", ""))
        smaller = case is not None and case.smaller_is_better
        self.report.case(name, value, unit, ceiling=ceiling, smaller_is_better=smaller, shape=self.shape, **more)

    def measured(self, name: str) -> dict[str, Any]:
        """The line of a case of this run.

        Raises:
            MissingCase: it has not been measured.
        """
        figures = self.log.figures
        if name not in figures:
            raise MissingCase(f"it needs the figure of {name}, which this run does not have")
        return figures[name]

    def rate(self, name: str) -> float | None:
        """Bytes or operations a second of a ceiling; None where it could not be measured."""
        try:
            return 1e12 * float(self.measured(name)["value"]) or None
        except MissingCase:
            return None


def run_cases(bench: Bench, cases: Mapping[str, Callable[[], None]], reset: Callable[[], None]) -> int:
    """Runs cases one after another; a case that fails is noted in a sentence and the others go on.

    Args:
        reset: called after a failure, before the next case.

    Returns:
        0, or RESTART where the device is lost to this process.
    """
    for name, run in cases.items():
        bench.log.begin(name)
        start = time.perf_counter()
        try:
            run()
        except Exception as error:
            # Whatever it was: the run is there to measure the rest, and ends with status 1.
            if not isinstance(error, MissingCase):
                traceback.print_exc()
            sentence = " ".join((str(error) or type(error).__name__).split())[:500]
        else:
            bench.log.end(name)
            sys.stderr.write(f"{name}: {time.perf_counter() - start:.1f} s\n")
            continue
        # Out of the handler: while it runs, the frames that failed still hold their tensors.
        bench.log.fail(name, sentence)
        sys.stderr.write(f"{name} failed: {sentence}\n")
        if not _device_answers():
            return RESTART
        reset()
    return 0


def _device_answers() -> bool:
    """Whether this process can go on with the device: an illegal access makes every later call fail, too."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


# ---- the machine's limits


def warm_up(bench: Bench) -> None:
    """Keeps the device busy until its clocks have risen."""
    dtype = torch.bfloat16
    a = torch.randn(bench.sizes.matmul_size, bench.sizes.matmul_size, device=bench.device).to(dtype)
    end = time.perf_counter() + bench.sizes.warm_up_s
    while time.perf_counter() < end:
        a @ a
        _synchronize(bench.device)


def measure_copy(bench: Bench) -> None:
    """Bytes a second, read plus written, of a copy on the device."""
    source = torch.randn(bench.sizes.copy_bytes // 4, device=bench.device)
    target = torch.empty_like(source)
    times = [_seconds(lambda: target.copy_(source), bench.device) for _ in range(21)][1:]
    bench.case("ceiling/copy", 2 * source.nbytes / median(times) / 1e12, num_bytes=source.nbytes, repeats=20)


def measure_matmul(bench: Bench) -> None:
    """Operations a second of a square product in bfloat16."""
    size = bench.sizes.matmul_size
    a = torch.randn(size, size, device=bench.device).to(torch.bfloat16)
    b = torch.randn(size, size, device=bench.device).to(torch.bfloat16)
    times = [_seconds(lambda: a @ b, bench.device) for _ in range(21)][1:]
    bench.case("ceiling/matmul", 2 * size**3 / median(times) / 1e12, size=size, repeats=20)


def measure_products(bench: Bench, shape: Shape, num_tokens: int) -> None:
    """What the library's products of all layers take for a prompt: the least that a first token can come after."""
    kv_size, q_size = shape.num_kv_heads * shape.head_dim, shape.num_heads * shape.head_dim
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    total, parts = 0.0, {}
    for name, rows, columns in (
        ("qkv_us", q_size + 2 * kv_size, hidden),
        ("output_us", hidden, q_size),
        ("gate_up_us", 2 * intermediate, hidden),
        ("down_us", hidden, intermediate),
    ):
        x = torch.randn(num_tokens, columns, device=bench.device).to(torch.bfloat16)
        weight = torch.randn(rows, columns, device=bench.device).to(torch.bfloat16)
        times = [_seconds(partial(torch.nn.functional.linear, x, weight), bench.device) for _ in range(21)][1:]
        total += median(times)
        parts[name] = round(1e6 * median(times), 1)
    bench.case("ceiling/products", 1e3 * total * shape.num_layers, tokens=num_tokens, repeats=20, **parts)


def _seconds(run: Callable[[], object], device: str) -> float:
    """Time of one call on the device."""
    if not device.startswith("cuda"):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
