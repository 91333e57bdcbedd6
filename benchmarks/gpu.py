"""Hob on a GPU: decoding, prompts, mixed load, starts and HTTP, beside the machine's limits and beside other engines.

    python benchmarks/gpu.py [--only decode,ttft] [--out benchmarks/results/gpu.jsonl]      (make bench-gpu)
    python benchmarks/gpu.py --shape tiny --device cpu          the same code, for its own tests

The model has the shape of Qwen2.5-7B and random weights (random_model.py); it is written to --model-dir, 15.2 GB, and
stays there. Every section of cases is a process that this one watches: a case that fails, hangs or takes its process
down is a sentence in the end, the others are measured, and the exit status is 1. `--peer NAME=COMMAND` runs another
engine's own benchmark (it finds the model's folder in $MODEL) and records the JSON objects with a "value" that it
prints. Cases and targets: gpu_plan.py; how they are measured: gpu_engine.py, gpu_processes.py, gpu_http.py.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from gpu_job import MODEL_CASE, Job
from gpu_log import RunLog, table
from gpu_plan import SECTIONS, SIZES, select

ROOT = Path(__file__).resolve().parent.parent
SECTION = Path(__file__).resolve().parent / "gpu_section.py"
MODEL_LIMIT_S = 600.0
"""For writing the model, which is no case."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases, by name or by the first parts of their names, with commas")
    parser.add_argument("--shape", choices=list(SIZES), default="qwen2.5-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model-dir", type=Path, help="folder of the model, which is made where it is not there")
    parser.add_argument("--out", type=Path, help="file to append the figures to")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--case-limit", type=float, default=120.0, help="seconds after which a case counts as hung")
    args = parser.parse_args(arguments)
    for peer in args.peer:
        if not all(peer.partition("=")):
            parser.error(f'--peer is "{peer}" but must be NAME=COMMAND')
    try:
        args.cases = select(args.only.split(","))
    except ValueError as error:
        parser.error(str(error))
    if args.model_dir is None:
        args.model_dir = Path(tempfile.gettempdir()) / f"hob-bench-{args.shape}"
    return args


def main() -> int:
    args = parse(sys.argv[1:])
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder) / "log.jsonl")
        for section in SECTIONS:
            supervise(args, section, log)
            if MODEL_CASE in log.failures:
                break
        sys.stdout.write(table(log, compares=args.shape == "qwen2.5-7b" and args.device != "cpu"))
        sys.stdout.write(f"{time.perf_counter() - begin:.0f} s in all\n")
        return 1 if log.failures else 0


def supervise(args: argparse.Namespace, section: str, log: RunLog) -> None:
    """Runs a section, and again with what is left when its process has gone before its last case."""
    names = [case.name for case in args.cases if case.section == section]
    if section == "peers":
        names += [f"peer/{peer.partition('=')[0]}" for peer in args.peer]
    while left := [name for name in names if name not in log.begun]:
        job = Job(
            section=section,
            cases=left,
            log=str(log.path),
            model=str(args.model_dir),
            shape=args.shape,
            device=args.device,
            out=None if args.out is None else str(args.out),
            peers=args.peer,
            arguments=sys.argv[1:],
        )
        end = run(job, log, args.case_limit)
        if log.open_case is not None:
            fail(log, log.open_case, f"its process {end}")
        if MODEL_CASE in log.failures:
            return
        if left[0] not in log.begun:
            # Another attempt would end in the same way.
            for name in left:
                log.begin(name)
                fail(log, name, f"the process of its section {end} before its first case")


def fail(log: RunLog, name: str, sentence: str) -> None:
    log.fail(name, sentence)
    sys.stderr.write(f"{name} failed: {sentence}\n")


def run(job: Job, log: RunLog, case_limit_s: float) -> str:
    """Runs a section's process to its end, or ends it when a case takes too long; returns how it ended."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    words = [sys.executable, str(SECTION), json.dumps(asdict(job))]
    # Passive, as the daemon sets it for its workers (engine/client.py), so that both have the same on a CPU.
    environ = {"OMP_WAIT_POLICY": "passive", **os.environ, "PYTHONPATH": path}
    # In a group of its own: a daemon or another engine that the section has started goes with it.
    process = subprocess.Popen(words, env=environ, start_new_session=True)
    try:
        num_begun, since = 0, time.perf_counter()
        while True:
            try:
                status = process.wait(1)
                return f"ended with status {status}" if status >= 0 else f"was ended by signal {-status}"
            except subprocess.TimeoutExpired:
                pass
            if len(log.begun) > num_begun:
                num_begun, since = len(log.begun), time.perf_counter()
            limit_s = MODEL_LIMIT_S if log.open_case in (None, MODEL_CASE) else case_limit_s
            if time.perf_counter() - since > limit_s:
                return f"was still busy after {limit_s:.0f} s, and was ended"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
