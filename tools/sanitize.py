"""Runs every kernel under NVIDIA's compute-sanitizer: accesses out of bounds, races in shared memory, unwritten memory.

    python tools/sanitize.py [--tools memcheck,racecheck,initcheck] [--only TEXT] [--jobs N] [--sanitizer PATH]

Called by `make sanitize`. What runs are the kernels' own tests, of each the first case and the last, and the engine
with tiny models; every file is a process of its own, several at once, because the sanitizer slows each down many times.
Prints a line a job and the report of each that failed; exits with 1 if one did, with 2 where there is no sanitizer.
compute-sanitizer comes with the CUDA toolkit.

torch's allocator would hide what a kernel does beyond a tensor in a block of memory that holds many, so each tensor is
allocated by itself here. CUDA graphs cannot be captured then; they hold the same kernels.
Source: NVIDIA, Compute Sanitizer User Manual, "Command Line Options".
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TOOLKIT = Path("/usr/local/cuda/bin/compute-sanitizer")
ENGINE_TESTS = "tests/gpu/test_mixed_steps.py"
WITHOUT_KERNELS = ("test_offline_compile", "test_reference_attention", "test_reference_sampling", "test_tiles")
TOOLS = ("memcheck", "racecheck", "initcheck")
# The KV cache is not cleared, and what lies in its unused places is loaded and dropped: initcheck would report that.
NOT_TOGETHER = ((ENGINE_TESTS, "initcheck"),)
FOUND_ERRORS = 86
"""Exit status of compute-sanitizer when it has something to report; none of pytest's."""
SHOWN_LINES = 60
TIMEOUT_S = 540


@dataclass(frozen=True)
class Job:
    """One file of tests under one tool."""

    tool: str
    file: str


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    job: Job
    status: int
    seconds: float
    output: str

    @property
    def verdict(self) -> str:
        if self.status == 0:
            return "ok"
        return "errors found" if self.status == FOUND_ERRORS else f"ended with status {self.status}"

    def __str__(self) -> str:
        tests = re.search(r"\d+ passed[^\n]* in ", self.output)
        summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: [^\n]*", self.output)
        told = [match.group().removesuffix(" in ") for match in (tests, summary) if match]
        return f"{self.job.tool:10}{self.job.file:45}{self.verdict:22}{self.seconds:6.0f} s  {'; '.join(told)}"


class FirstAndLast:
    """A plugin of pytest: of each test function, its first case and its last."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        functions: dict[str, list[pytest.Item]] = {}
        for item in items:
            functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
        items[:] = [case for cases in functions.values() for case in dict.fromkeys((cases[0], cases[-1]))]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--only", default="", help="files whose name contains this")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) - 1))
    parser.add_argument("--sanitizer", default=shutil.which("compute-sanitizer") or str(TOOLKIT))
    parser.add_argument("--run", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.run:
        quiet = ["-q", "-p", "no:cacheprovider", "-W", "default", "--tb=short"]
        return int(pytest.main([*quiet, arguments.run], plugins=[FirstAndLast()]))
    if not Path(arguments.sanitizer).is_file():
        sys.stderr.write(f"Error: {arguments.sanitizer} is not there; install the CUDA toolkit, or use --sanitizer\n")
        return 2
    outcomes = run_all(planned(arguments.tools.split(","), arguments.only), arguments.sanitizer, arguments.jobs)
    bad = [outcome for outcome in outcomes if outcome.status != 0]
    for outcome in bad:
        lines = outcome.output.replace(f"{ROOT}{os.sep}", "").splitlines()
        sys.stdout.write("\n".join(["", str(outcome), *lines[:SHOWN_LINES]]) + "\n")
    sys.stdout.write(f"\n{len(outcomes) - len(bad)} of {len(outcomes)} jobs without errors\n")
    return 1 if bad or not outcomes else 0


def planned(tools: Sequence[str], only: str) -> list[Job]:
    """The longest first, which here are those of the engine."""
    kernels = sorted(
        path for path in (ROOT / "tests" / "kernels").glob("test_*.py") if path.stem not in WITHOUT_KERNELS
    )
    files = [ENGINE_TESTS, *(str(path.relative_to(ROOT)) for path in kernels)]
    return [Job(tool, file) for file in files for tool in tools if only in file and (file, tool) not in NOT_TOGETHER]


def run_all(jobs: Sequence[Job], sanitizer: str, at_once: int) -> list[Outcome]:
    outcomes = []
    with ThreadPoolExecutor(at_once) as pool:
        for future in as_completed([pool.submit(run, job, sanitizer) for job in jobs]):
            outcomes.append(future.result())
            sys.stdout.write(f"{outcomes[-1]}\n")
            sys.stdout.flush()
    return outcomes


def run(job: Job, sanitizer: str) -> Outcome:
    command = [
        sanitizer, "--tool", job.tool, "--error-exitcode", str(FOUND_ERRORS), "--print-limit", "10",
        # torch asks the driver for things that it may lack, and copes.
        *(["--report-api-errors", "no"] if job.tool == "memcheck" else []),
        sys.executable, str(Path(__file__).resolve()), "--run", job.file,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "OMP_NUM_THREADS": "1",
    }
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=TIMEOUT_S,
        )  # fmt: skip
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        status, output = 124, f"not done after {TIMEOUT_S} s\n"
    return Outcome(job, status, time.monotonic() - started, output)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
