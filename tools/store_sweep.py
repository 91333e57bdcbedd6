"""The store, stopped at every change that it makes to the disk, and refused every one.

    python tools/store_sweep.py [--out benchmarks/results/store.jsonl]    everything, by strace; a quarter of an hour
    python tools/store_sweep.py --fail-points --stride 3                  a sample, without strace

`make sweep` calls it. tests/registry/sweep.py says how it strikes and what must hold, sweep_operations.py beside it
lists the operations. Where strace is missing or may not trace, deaths come from fail points and errors are left out.
Prints what went wrong; exits with 1 if anything did.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.registry.sweep import Result, Sweep, strace_works
from tests.registry.sweep_operations import OPERATIONS, make_template


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--operation", action="append", choices=OPERATIONS, help="only this one")
    parser.add_argument("--fail-points", action="store_true", help="deaths by fail points, and no errors")
    parser.add_argument("--stride", type=int, default=1, help="of the fail points, every which")
    parser.add_argument("--json", action="store_true", help="print one line a strike, and no report")
    arguments = parser.parse_args()

    uses_strace = not arguments.fail_points and strace_works()
    if not uses_strace and not arguments.fail_points:
        sys.stderr.write("strace is missing or may not trace: deaths come from fail points, and no call is refused\n")
    kills: list[Result] = []
    errors: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        template = make_template(Path(folder) / "template")
        for label in arguments.operation or OPERATIONS:
            sweep = Sweep(label, OPERATIONS[label], template, Path(folder) / "scratch")
            kills += _noted(
                sweep.strace_kills() if uses_strace else sweep.fail_points(arguments.stride), arguments.json
            )
            errors += _noted(sweep.strace_errors() if uses_strace else iter(()), arguments.json)
            sys.stderr.write(f"{label}: {len(kills)} deaths and {len(errors)} errors so far\n")
    if not arguments.json:
        _report(arguments.out, kills, errors, "strace" if uses_strace else "fail points")
    return 1 if any(result.problem for result in (*kills, *errors)) else 0


def _noted(results: Iterator[Result], as_json: bool) -> Iterator[Result]:
    for result in results:
        if as_json:
            sys.stdout.write(json.dumps(vars(result)) + "\n")
        elif result.problem:
            sys.stderr.write(f"{result.operation}, {result.point}: {result.problem}\n")
        yield result


def _report(out: Path | None, kills: list[Result], errors: list[Result], how: str) -> None:
    # Imports torch, for the name of the machine: 2 s that tests need not pay.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
    from report import Report

    report = Report(out)
    operations = len({result.operation for result in kills})
    report.case("sweep/kill/points", len(kills), "deaths", operations=operations, by=how)
    report.case("sweep/kill/models_lost", sum(result.models_lost for result in kills), "models")
    report.case("sweep/kill/problems", sum(bool(result.problem) for result in kills), "deaths")
    if errors:
        report.case("sweep/error/points", len(errors), "errors", operations=operations, by=how)
        report.case("sweep/error/false_success", sum(result.is_false_success for result in errors), "errors")
        report.case("sweep/error/problems", sum(bool(result.problem) for result in errors), "errors")


if __name__ == "__main__":
    sys.exit(main())
