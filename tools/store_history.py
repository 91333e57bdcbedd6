"""Ten thousand random operations on a daemon's store by eight clients at once; prints how many violations were found.

    python tools/store_history.py [--operations 10000] [--seed 0] [--out benchmarks/results/store.jsonl]

The operations are those of tests/e2e/history.py, drawn by hypothesis; a registry beside the
daemon serves what is pulled.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from report import Report  # noqa: E402

from registry.store import Store  # noqa: E402
from tests.daemon.tiny_model import write_tiny_model  # noqa: E402
from tests.e2e.conftest import end, follow, launch  # noqa: E402
from tests.e2e.history import KINDS_WITH_PULL, Operation, operations, run_history, serve_model  # noqa: E402

NUM_WORKERS = 8
LENGTH = 25
"""Operations of one worker in one history."""
NUM_BASES = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    num_histories = -(-arguments.operations // (NUM_WORKERS * LENGTH))
    with tempfile.TemporaryDirectory() as folder:
        violations = run(Path(folder), num_histories, arguments.seed)
    for violation in violations:
        sys.stderr.write(f"{violation}\n")
    Report(arguments.out, arguments=["../tools/store_history.py", *sys.argv[1:]]).case(
        "store/history/violations", len(violations), "count",
        operations=num_histories * NUM_WORKERS * LENGTH, workers=NUM_WORKERS,
    )  # fmt: skip
    return 1 if violations else 0


def run(folder: Path, num_histories: int, first_seed: int) -> list[str]:
    """The violations of so many histories, one after another, on one daemon."""
    bases = []
    for number in range(NUM_BASES):
        write_tiny_model(folder / f"base{number}", seed=number)
        bases.append({path.name: path.read_bytes() for path in sorted((folder / f"base{number}").iterdir())})
    daemon = launch(folder / "home")
    follow(daemon)
    store = Store(daemon.home / "models")
    violations: list[str] = []
    done = 0

    @seed(first_seed)
    @settings(
        max_examples=num_histories, deadline=None, phases=[Phase.generate], database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.tuples(*[operations(KINDS_WITH_PULL, LENGTH)] * NUM_WORKERS))
    def history(histories: tuple[list[Operation], ...]) -> None:
        nonlocal done
        violations.extend(run_history(daemon.base_url, histories, bases, registry.pull_name))
        violations.extend(f"{finding.subject}: {finding.reason}" for finding in store.check())
        done += 1
        sys.stderr.write(f"{done} of {num_histories} histories, {len(violations)} violations\n")

    try:
        with serve_model(bases[0]) as registry:
            history()
    finally:
        end(daemon)
    return violations


if __name__ == "__main__":
    sys.exit(main())
