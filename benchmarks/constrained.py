"""Throughput of 64 streams with a constraint beside 64 free ones, on the CPU engine with the built-in model.

    python benchmarks/constrained.py [--out FILE]

Rounds of free and constrained streams take turns in one process, and each constrained round is compared with the free
ones before and behind it, so that what else the machine does meanwhile falls on both; `cpu_share` compares the
processor time of all threads, on which other programs have less of a say. Sampling is Ollama's default.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from report import Report

from engine.constraint import Constraint
from engine.llm import LLM
from engine.sampling_params import SamplingParams

TALE = Path(__file__).resolve().parent.parent / "registry" / "builtin" / "tale"
NUM_STREAMS = 64
TARGET = 0.85
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email": {"type": "string", "pattern": "^[a-z]{2,10}@[a-z]{2,10}\\.(com|org)$"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
    },
    "required": ["name", "age", "email", "tags"],
    "additionalProperties": False,
}
# Texts that do not end before their last token: what is compared is steps, not lengths.
CONSTRAINTS = {
    "JSON schema": Constraint(
        kind="json_schema", value=json.dumps({"type": "array", "items": PERSON, "minItems": 100})
    ),
    "regex": Constraint(kind="regex", value="([A-Z][a-z]{2,12} ){500}"),
    "GBNF": Constraint(kind="gbnf", value='root ::= line{500}\nline ::= "- " [a-z ]{4,30} "\\n"\n'),
}


class Round(NamedTuple):
    """Tokens a second of wall time, and of processor time."""

    rate: float
    cpu_rate: float


def run(llm: LLM, params: list[SamplingParams], constraint: Constraint | None) -> Round:
    """One round."""
    prompts = [f"Once upon a time, {number}" for number in range(NUM_STREAMS)]
    start, cpu_start = time.perf_counter(), time.process_time()
    outputs = llm.generate(prompts, params, constraint=constraint)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    num_tokens = sum(len(output.token_ids) for output in outputs)
    assert num_tokens == sum(one.max_tokens or 0 for one in params), "a text has ended early"
    return Round(num_tokens / seconds, num_tokens / cpu_seconds)


def shares(constrained: Sequence[float], free: Sequence[float]) -> list[float]:
    """Each constrained round as a share of the free ones beside it, ascending."""
    beside = zip(constrained, free, free[1:], strict=False)
    return sorted(round(2 * one / (before + behind), 3) for one, before, behind in beside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--num-tokens", type=int, default=64, help="of each stream")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = Report(args.out)
    llm = LLM(TALE, device="cpu", max_num_seqs=NUM_STREAMS, num_blocks=4000)
    params = [
        SamplingParams(temperature=0.8, top_k=40, top_p=0.9, seed=seed, max_tokens=args.num_tokens, ignore_eos=True)
        for seed in range(NUM_STREAMS)
    ]
    for name, constraint in CONSTRAINTS.items():
        run(llm, params, constraint)
        free, constrained = [run(llm, params, None)], []
        for _ in range(args.repeats):
            constrained.append(run(llm, params, constraint))
            free.append(run(llm, params, None))
        of_free = shares([one.rate for one in constrained], [one.rate for one in free])
        of_cpu = shares([one.cpu_rate for one in constrained], [one.cpu_rate for one in free])
        report.case(
            f"{NUM_STREAMS} streams of tale on a CPU, {name}",
            median(one.rate for one in constrained),
            "tokens/s",
            free=round(median(one.rate for one in free), 1),
            share_of_free=median(of_free),
            shares=of_free,
            cpu_share=median(of_cpu),
            cpu_shares=of_cpu,
            target=TARGET,
            load=round(os.getloadavg()[0], 1),
            repeats=args.repeats,
            tokens_a_stream=args.num_tokens,
        )


if __name__ == "__main__":
    main()
