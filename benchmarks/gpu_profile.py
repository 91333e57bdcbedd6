"""Where a step's time goes on a GPU: each kernel's share and its launches, and how long the device had nothing to do.

    python benchmarks/gpu_profile.py [--cases 1,8,256,prompt2048,mixed] [--model FOLDER] [--out FILE]

`8` are decode steps of 8 sequences, `prompt2048` prompts of 2,048 tokens one after another, `mixed` is all of the mixed
load of benchmarks/gpu.py. torch's profiler records while the engine runs as in the benchmark, after a run that warms
up. It slows the host, and so steps that are launched kernel by kernel: take shares from here, and times from there. One
JSON line a case, and a table.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_plan import SIZES, lengths
from gpu_session import GREEDY, Session, Trace
from random_model import SHAPES, ensure_model
from report import Report
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

SHAPE = "qwen2.5-7b"
STEPS = 32
"""Decode steps that are recorded."""
PROMPTS = 4
SHOWN = 16
NAME_WIDTH = 64

Spans = list[tuple[str, float, float]]
"""(kernel, begin, end), in microseconds."""


def recorded(run: Callable[[], int]) -> tuple[Spans, int]:
    """What the device did meanwhile, in order, and what `run` returns: the number of its steps."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        count = run()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    return sorted(((e.name, e.time_range.start, e.time_range.end) for e in events), key=lambda span: span[1]), count


def decode(session: Session, batch: int) -> tuple[Spans, int]:
    trace = Trace(0.0)
    for _ in range(batch):
        trace.outputs[session.add(session.prompt(128), GREEDY, 256)] = []
    while len(trace.first_token) < batch:
        session.step(trace)
    for _ in range(8):
        session.step(trace)
    spans, count = recorded(lambda: len([session.step(trace) for _ in range(STEPS)]))
    while session.engine.has_work:
        session.step(trace)
    return spans, count


def prompts(session: Session, length: int) -> tuple[Spans, int]:
    def run() -> int:
        return sum(len(session.run([session.prompt(length)], 1).times) for _ in range(PROMPTS))

    run()
    return recorded(run)


def mixed(session: Session) -> tuple[Spans, int]:
    sizes, rng = SIZES[SHAPE], random.Random(0)
    inputs = lengths(sizes.mixed_requests, sizes.mixed_input_tokens, sizes.mixed_longest, rng)
    outputs = lengths(sizes.mixed_requests, sizes.mixed_output_tokens, sizes.mixed_longest, rng)
    session.run([session.prompt(length) for length in inputs[: len(inputs) // 4]], 8)
    return recorded(lambda: len(session.run([session.prompt(length) for length in inputs], outputs).times))


def busy_us(spans: Spans) -> float:
    """Time in which at least one kernel ran; those that overlap count once."""
    total, until = 0.0, float("-inf")
    for _, begin, end in spans:
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def tell(report: Report, case: str, spans: Spans, count: int) -> None:
    """The JSON line and the table of a case."""
    by_name: dict[str, list[float]] = defaultdict(list)
    for name, begin, end in spans:
        by_name[re.sub(r"^void |\(.*$|<.*$", "", name)[:NAME_WIDTH]].append(end - begin)
    total = max(end for _, _, end in spans) - spans[0][1]
    rows = sorted(((name, sum(us) / count, len(us) / count) for name, us in by_name.items()), key=lambda row: -row[1])
    report.case(
        f"profile/{case}",
        total / count,
        "us a step",
        steps=count,
        busy_us=round(busy_us(spans) / count, 1),
        kernels={name: [round(us, 1), round(launches, 2)] for name, us, launches in rows[:SHOWN]},
    )
    for name, us, launches in rows[:SHOWN]:
        share = 100 * us * count / total
        sys.stdout.write(f"  {name:{NAME_WIDTH}} {us:10.1f} us {share:5.1f} % {launches:8.1f} launches\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="1,8,256,prompt2048,mixed")
    parser.add_argument(
        "--model",
        type=Path,
        default=Path(tempfile.gettempdir()) / f"hob-bench-{SHAPE}",
        help="a folder, or a GGUF file",
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stdout.write("There is no GPU; nothing was recorded.\n")
        return 0
    if not arguments.model.is_file():
        ensure_model(arguments.model, SHAPES[SHAPE], "cuda")
    report, session = Report(arguments.out), Session(arguments.model, "cuda")
    for case in arguments.cases.split(","):
        if case == "mixed":
            spans, count = mixed(session)
        elif case.startswith("prompt"):
            spans, count = prompts(session, int(case.removeprefix("prompt")))
        else:
            spans, count = decode(session, int(case))
        tell(report, case, spans, count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
