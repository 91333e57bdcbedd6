"""Ten thousand answers of models, cut in random ways: that streaming says what the whole says.

    python tools/parser_cases.py [--cases 10000] [--out benchmarks/results/parsers.jsonl]

`make parsers` calls it. tests/daemon/output_cases.py says what an answer is and what must hold; the tests try some
hundred. Prints the smallest case that went wrong, as hypothesis finds it, and exits with 1.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from hypothesis import HealthCheck, Phase, given, settings
from report import Report

from tests.daemon.output_cases import Case, cases, check_case, make_tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    tokenizer = make_tokenizer()
    counts: Counter[str] = Counter()

    @settings(
        max_examples=arguments.cases,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def try_all(case: Case) -> None:
        counts["tried"] += 1
        read = check_case(case, tokenizer)
        counts["tokens"] += sum(map(len, case.groups))
        counts["with calls"] += bool(read.calls)
        counts["with thoughts"] += bool(read.thinking)
        counts["right"] += 1

    try:
        try_all()
    except AssertionError as error:
        sys.stderr.write(f"{error}\n" + "\n".join(getattr(error, "__notes__", ())) + "\n")
        return 1
    details = {key.replace(" ", "_"): counts[key] for key in ("right", "with calls", "with thoughts", "tokens")}
    Report(arguments.out).case("parsers/streaming_equals_whole", counts["tried"], "cases", **details)
    return 0


if __name__ == "__main__":
    sys.exit(main())
