"""Runs what a GPU can tell: all kernel tests, and the engine's on real weights; writes down what came out.

    python tools/test_gpu.py [--out FILE] [--commit ID] [-- what pytest shall be told]

Called by `make test-gpu`. With pytest-xdist the tests run side by side. The machine's packages need not be those that
the project pins, so warnings are shown and are no errors here; and plugins that happen to be installed stay out.
The log names the GPU, the versions and every file's tests; paths of the machine it leaves out.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("tests/kernels", "tests/gpu")
WITH_TRANSFORMERS = ("tests/engine/execution/test_gpu_steps.py", "tests/engine/execution/test_gpu_adapters.py")
"""Their models are made by transformers; left out where that is missing."""
WITHOUT_GPU = "tests/kernels/test_offline_compile.py"
"""Compiles for GPUs that are not there; `make test` does that anywhere."""
MAX_WORKERS = 15
"""Each holds a context on the GPU and imports torch."""
SHOWN_SKIPS = 20


@dataclass
class Tally:
    """Outcomes of the tests of one file."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    """Of all its tests, as if one after another."""

    def add(self, other: Tally) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.seconds += other.seconds

    def __str__(self) -> str:
        return f"{self.passed:5} passed {self.failed:4} failed {self.skipped:4} skipped {self.seconds:8.1f} s"


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "test-gpu.log")
    parser.add_argument("--commit", help="what is tested, where git cannot tell")
    parser.add_argument("more", nargs="*", help="further arguments of pytest, after --")
    arguments = parser.parse_args(words)
    lines = header(arguments.commit or commit())
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        started = time.monotonic()
        status = subprocess.run(pytest_words(report, arguments.more), cwd=ROOT, env=environment()).returncode
        seconds = time.monotonic() - started
        lines += summary(report, seconds, status)
    sys.stdout.write(f"{lines[-1]}\n")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(lines) + "\n", "utf-8")
    return status


def header(commit_id: str) -> list[str]:
    """What ran where."""
    import torch

    gpu = "none"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    packages = [f"{name} {version_of(name)}" for name in ("torch", "triton", "pytest", "pytest-xdist")]
    return [
        "make test-gpu",
        f"date     {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"commit   {commit_id}",
        f"GPU      {gpu}; CUDA {torch.version.cuda or 'none'}",
        f"host     {platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        f"software Python {platform.python_version()}, {', '.join(packages)}",
        "",
    ]


def commit() -> str:
    """The commit of this tree, and whether something has changed since."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def pytest_words(report: Path, more: Sequence[str]) -> list[str]:
    """The command."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", f"--junitxml={report}"]
    if find_spec("xdist"):
        workers = max(1, min(MAX_WORKERS, (os.cpu_count() or 1) - 1))
        words += ["-p", "xdist.plugin", "-n", str(workers), "--dist", "loadgroup"]
    more_files = WITH_TRANSFORMERS if find_spec("transformers") else ()
    return [*words, f"--ignore={WITHOUT_GPU}", *FOLDERS, *more_files, *more]


def environment() -> dict[str, str]:
    """One thread each, since many run at once."""
    return {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}


def summary(report: Path, seconds: float, status: int) -> list[str]:
    """The lines below the header."""
    if not report.exists():
        return [f"pytest ended with status {status} before it ran a test"]
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    tallies: dict[str, Tally] = defaultdict(Tally)
    total = Tally()
    for case in cases:
        tally = tally_of(case)
        total.add(tally)
        tallies[file_of(case)].add(tally)
    width = max(map(len, tallies), default=0)
    return [
        *(f"{name:{width}} {tally}" for name, tally in sorted(tallies.items())),
        "",
        *details("failed", cases, ("failure", "error")),
        *details("skipped", cases, ("skipped",)),
        f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped in {seconds:.0f} s; status {status}",
    ]


def tally_of(case: ElementTree.Element) -> Tally:
    seconds = float(case.get("time", 0))
    if case.find("failure") is not None or case.find("error") is not None:
        return Tally(failed=1, seconds=seconds)
    if case.find("skipped") is not None:
        return Tally(skipped=1, seconds=seconds)
    return Tally(passed=1, seconds=seconds)


def file_of(case: ElementTree.Element) -> str:
    """ "tests/kernels/test_gemv.py", from the dotted name of its module."""
    parts = case.get("classname", "").split(".")
    modules = [n for n, part in enumerate(parts) if part.startswith("test_")]
    return "/".join(parts[: modules[0] + 1]) + ".py" if modules else ".".join(parts)


def details(what: str, cases: Iterable[ElementTree.Element], tags: Sequence[str]) -> list[str]:
    """One line for each reason, with how many tests have it and the first of them; then an empty one."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        for tag in tags:
            found = case.find(tag)
            if found is not None:
                reason = (found.get("message") or "no reason").strip().splitlines()[0]
                reasons[without_paths(reason)[:160]].append(f"{file_of(case)}::{case.get('name')}")
    lines = [f"{what} {len(names)}: {names[0]}: {reason}" for reason, names in reasons.items()]
    return [*lines[:SHOWN_SKIPS], ""] if lines else []


def without_paths(text: str) -> str:
    """A message without folders of this machine."""
    for folder in (str(ROOT), str(Path.home()), sys.prefix, tempfile.gettempdir()):
        text = text.replace(f"{folder}{os.sep}", "")
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
