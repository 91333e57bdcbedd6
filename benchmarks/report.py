"""One JSON line a case: what was measured, on what, against which ceiling, by which command.

Every benchmark prints through here. Lines that are quoted anywhere are kept in `benchmarks/results/*.jsonl`
(`--out FILE` appends).
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch


def machine() -> str:
    """The processor, its cores and, where there is one, the GPU."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    parts = [f"{name}, {os.cpu_count()} cores", f"torch {torch.__version__}"]
    if torch.cuda.is_available():
        parts.insert(0, torch.cuda.get_device_name())
    return ", ".join(parts)


class Report:
    """Prints cases, and appends them to files.

    Args:
        outs: files to append to.
        arguments: the command line to name as the origin; None takes this process's own.
    """

    def __init__(self, *outs: Path | None, arguments: Sequence[str] | None = None) -> None:
        self._outs = [out for out in outs if out is not None]
        self._machine = machine()
        argv = sys.argv if arguments is None else arguments
        folder = "tools" if Path(argv[0]).resolve().parent.name == "tools" else "benchmarks"
        self._command = "python " + shlex.join([f"{folder}/{Path(argv[0]).name}", *argv[1:]])

    def case(
        self,
        case: str,
        value: float,
        unit: str,
        *,
        ceiling: float | None = None,
        smaller_is_better: bool = False,
        **more: object,
    ) -> None:
        """Reports one figure.

        Args:
            case: what was measured, with its peer or its parameters in the name.
            value: the figure, in `unit`.
            ceiling: the limit of the machine in the same unit, measured in the same run.
            smaller_is_better: whether the ceiling is a floor, as of a time; the share is 1 at the limit either way.
            more: whatever else a reader needs (repeats, spread, a ratio).
        """
        share = None
        if ceiling is not None:
            share = round(ceiling / value if smaller_is_better else value / ceiling, 4)
        line = {
            "case": case,
            "value": round(value, 4),
            "unit": unit,
            "ceiling": None if ceiling is None else round(ceiling, 4),
            "share": share,
            **more,
            "machine": self._machine,
            "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            "command": self._command,
        }
        text = json.dumps(line, ensure_ascii=False)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        for out in self._outs:
            with out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Wall time of each of `repeats` calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def copy_bandwidth() -> float:
    """Bytes a second that a large copy moves, read plus written."""
    source = torch.ones(256 * 1024 * 1024 // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.numel() * 4 / median(seconds(lambda: target.copy_(source), 7))
