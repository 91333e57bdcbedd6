"""Downloads from a server that goes wrong in forty ways, with 25 seeds each.

    python tools/fault_sweep.py [--seeds 25] [--out benchmarks/results/store.jsonl]

`make faults` calls it. Every case has to end with right bytes or a clean error, and what had come must not be fetched
again: tests/registry/fault_case.py says what holds. Prints the cases that went wrong; exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from report import Report

from tests.registry.fault_case import SIZE, CaseResult, run_case
from tests.registry.fault_server import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    results: list[CaseResult] = []
    for kind in KINDS:
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                result = run_case(kind, seed, Path(folder))
            results.append(result)
            if result.problem:
                sys.stderr.write(f"{kind}, seed {seed}: {result.problem}\n")

    num_wrong = sum(bool(result.problem) for result in results)
    resumed = [result for result in results if result.resumed]
    refetched_share = sum(result.refetched for result in resumed) / (SIZE * max(1, len(resumed)))
    report = Report(arguments.out)
    report.case(
        "faults/registry/cases",
        len(results),
        "cases",
        kinds=len(KINDS),
        seeds=arguments.seeds,
        right=sum(result.outcome == "right" for result in results),
    )
    report.case("faults/registry/wrong", num_wrong, "cases")
    report.case("faults/registry/refetched_share", refetched_share, "of the blob", resumed=len(resumed))
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
