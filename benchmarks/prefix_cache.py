"""A ten-turn chat: how many prompt tokens each turn computes, and how many came from the prefix cache; and the KV
memory wasted.

    python benchmarks/prefix_cache.py [--model FOLDER] [--out benchmarks/results/prefix_cache.jsonl]

Counted, not timed. The ceiling of the share of cached tokens is every token but the newest message and the one
partial block; waste is the share of slots in allocated blocks that hold no token, over sequences of log-normal
length.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from report import Report

from engine.llm import LLM
from engine.sampling_params import SamplingParams

TALE = Path(__file__).resolve().parent.parent / "registry" / "builtin" / "tale"
BLOCK_SIZE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=TALE)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = Report(args.out)
    llm = LLM(args.model, dtype="float32", block_size=BLOCK_SIZE)
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)

    rng = random.Random(0)
    history: list[int] = []
    num_prompt = num_cached = num_reusable = 0
    for _ in range(args.turns):
        num_reusable += max(len(history) - 1, 0) // BLOCK_SIZE * BLOCK_SIZE
        history += [rng.randrange(10, 4000) for _ in range(30)]
        output = llm.generate([history], params)[0]
        num_prompt += len(history)
        num_cached += output.num_cached_tokens
        history += output.token_ids
    report.case(
        f"prompt tokens from the prefix cache, {args.turns}-turn chat, {args.model.name}",
        num_cached / num_prompt,
        "share",
        ceiling=num_reusable / num_prompt,
        computed=num_prompt - num_cached,
        prompt=num_prompt,
    )

    lengths = [max(1, round(rng.lognormvariate(5.0, 0.8))) for _ in range(1000)]
    slots = sum(-(-length // BLOCK_SIZE) * BLOCK_SIZE for length in lengths)
    report.case(
        f"KV slots wasted, blocks of {BLOCK_SIZE}, 1000 log-normal sequences (median {sorted(lengths)[500]} tokens)",
        1 - sum(lengths) / slots,
        "share",
    )


if __name__ == "__main__":
    main()
