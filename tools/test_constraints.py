"""All schemas of the test data under random walks: `make constraints`. Appends its counts as JSON lines."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

import llguidance

from engine.grammar.vocabulary import GrammarVocabulary
from engine.text.tokenizer import Tokenizer
from modelfiles.source import ModelSource
from tests.daemon.tiny_model import write_tiny_model
from tests.engine.grammar.schemas import examine, real_schemas, suite_schemas
from tests.engine.grammar.walks import service_for

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("HOB_TEST_DATA", ROOT.parent / "shared" / "data"))


def main() -> int:
    """0 where every text was an instance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file to append the result to")
    parser.add_argument("--num-walks", type=int, default=3, help="texts a schema")
    parser.add_argument("--step", type=int, default=1, help="take every n-th schema only")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_source(ModelSource.from_path(ROOT / "registry" / "builtin" / "tale"))
    walks = service_for(GrammarVocabulary(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids))
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_model(Path(folder) / "tiny")
        of_bytes = service_for(GrammarVocabulary.from_source(ModelSource.from_path(Path(folder) / "tiny"), 259))
    status = 0
    for name, cases in (("maskbench", real_schemas), ("JSON-Schema-Test-Suite", suite_schemas)):
        found: Counter[str] = Counter()
        problems: list[str] = []
        start = time.perf_counter()
        for case in list(cases(DATA / "schemas"))[:: args.step]:
            problems += examine(case, walks, of_bytes, args.num_walks, found)
        line = {
            "case": f"constraints, {name}", **found, "problems": problems,
            "seconds": round(time.perf_counter() - start, 1), "num_walks": args.num_walks, "step": args.step,
            "llguidance": llguidance.__version__, "jsonschema": version("jsonschema"), "date": f"{date.today()}",
        }  # fmt: skip
        print(json.dumps(line), flush=True)  # noqa: T201 -- its output
        if args.out is not None:
            with args.out.open("a") as out:
                out.write(json.dumps(line) + "\n")
        status |= bool(problems)
    return status


if __name__ == "__main__":
    sys.exit(main())
