"""Prefill attention and sampling alone, at the shapes of Qwen2.5-7B: shares of what products and copies reach here.

    PYTHONPATH=. python benchmarks/kernels_prefill.py [--only attention] [--out FILE]

Attention is counted in operations: 4 * head_dim for each query head and key that it sees; the ceiling is a product of
8192 x 8192 matrices in bfloat16, measured first, and the peer torch's own attention over keys that lie together (only
where no row has a past). Sampling is counted in bytes: the logits, read once; the ceiling is a large copy. A case is a
captured graph that runs the kernel several times; the figure is the median replay divided by their number. Tiles are
tried by `tune_prefill.py`.
Needs a CUDA device; without one it says so and does nothing. Takes about a minute and a half, most of it compiling.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_timing import copy_bandwidth, replayed_us, warm_up
from kernels_decode import random
from report import Report

from engine.kernels.logprobs import LogprobWorkspace, logprobs
from engine.kernels.prefill_attention import prefill_attention
from engine.kernels.sampling import SamplingWorkspace, sample_tokens
from engine.kernels.sampling_state import SamplingState
from engine.sampling_params import SamplingParams

Tensor = torch.Tensor

VOCAB, HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 152064, 28, 4, 128, 16
Row = tuple[int, int]
"""(tokens computed before, tokens of this step)"""
ATTENTION_CASES: dict[str, list[Row]] = {
    "a prompt of 128 tokens": [(0, 128)],
    "a prompt of 512 tokens": [(0, 512)],
    "a prompt of 2048 tokens": [(0, 2048)],
    "a prompt of 8192 tokens": [(0, 8192)],
    "512 tokens after 7680": [(7680, 512)],
    "2048 tokens after 30720": [(30720, 2048)],
    "eight prompts of 512 tokens": [(0, 512)] * 8,
    "448 tokens after 1600 beside 64 rows that decode at 1024": [(1600, 448), *[(1024, 1)] * 64],
}
SAMPLING_CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "no filter": {},
    "top-k 40, top-p 0.9": {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    "top-k 20, top-p 0.8, repeat penalty": {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repeat_penalty": 1.05},
    "top-p 0.9": {"top_p": 0.9},
    "top-p 0.95, flat": {"top_p": 0.95, "temperature": 3.0},
    "min-p 0.05": {"min_p": 0.05},
    "typical-p 0.9": {"typical_p": 0.9},
}
LAUNCHES = 8
"""Of one captured graph."""


class Attention:
    """Rows with their pasts in a shuffled cache."""

    def __init__(self, rows: Sequence[Row]) -> None:
        blocks = [-(-(start + count) // BLOCK_SIZE) for start, count in rows]
        shape = sum(blocks) + 1, KV_HEADS, BLOCK_SIZE, HEAD_DIM
        self.k_cache, self.v_cache = random(*shape), random(*shape)
        self.table = torch.zeros(len(rows), max(blocks), dtype=torch.int32, device="cuda")
        free = (torch.randperm(sum(blocks), device="cuda") + 1).int()
        for row, (own, part) in enumerate(zip(blocks, free.split(blocks), strict=True)):
            self.table[row, :own] = part
        self.rows = torch.arange(len(rows), dtype=torch.int32, device="cuda")
        counts = torch.tensor([0, *(count for _, count in rows)], device="cuda")
        self.cu_seqlens = counts.cumsum(0).int()
        self.starts = torch.tensor([start for start, _ in rows], dtype=torch.int32, device="cuda")
        self.q = random(int(counts.sum()), HEADS, HEAD_DIM)
        self.tera_operations = sum(
            4 * HEAD_DIM * HEADS * (start * count + count * (count + 1) / 2) / 1e12 for start, count in rows
        )

    def run(self) -> Tensor:
        return prefill_attention(
            self.q, self.k_cache, self.v_cache, self.table, self.rows, self.cu_seqlens, self.starts, HEAD_DIM**-0.5
        )


def measure_attention(report: Report, ceiling: float) -> None:
    for name, rows in ATTENTION_CASES.items():
        attention = Attention(rows)
        us, spread = replayed_us(lambda _, attention=attention: attention.run(), LAUNCHES)
        rate = attention.tera_operations / us * 1e6
        more: dict[str, object] = {}
        if len({count for _, count in rows}) == 1 and rows[0][0] == 0:
            shape = len(rows), rows[0][1]
            q = random(shape[0], HEADS, shape[1], HEAD_DIM)
            k, v = random(shape[0], HEADS, shape[1], HEAD_DIM), random(shape[0], HEADS, shape[1], HEAD_DIM)
            theirs, _ = replayed_us(
                lambda _, q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True), LAUNCHES
            )
            more = {"torch_us": round(theirs, 1), "times_torch": round(theirs / us, 3)}
        report.case(
            f"prefill_attention, {name}", rate, "TFLOP/s", ceiling=ceiling,
            us=round(us, 1), spread_us=round(spread, 1), **more,
        )  # fmt: skip


def measure_sampling(report: Report, ceiling: float, num_rows: Sequence[int]) -> None:
    device = torch.device("cuda")
    for n in num_rows:
        # A few likely tokens over a flat rest, as a model's logits are.
        logits = torch.randn(n, VOCAB, device=device) * 2
        logits.scatter_add_(1, torch.randint(0, VOCAB, (n, 200), device=device), torch.rand(n, 200, device=device) * 12)
        rows = torch.arange(n, dtype=torch.int32, device=device)
        positions = torch.full_like(rows, 1000)
        tokens = torch.randint(0, VOCAB, (n, 1024), dtype=torch.int32, device=device)
        token_ids = torch.empty_like(rows)
        state, workspace = SamplingState(n, device), SamplingWorkspace(n, VOCAB, device)
        for name, options in SAMPLING_CASES.items():
            for row in range(n):
                state.set(row, SamplingParams(seed=row, **options), origin=0)
            arguments = logits, rows, positions, tokens, state, workspace, token_ids
            us, spread = replayed_us(lambda _, a=arguments: sample_tokens(*a, advance=False), LAUNCHES)
            rate = logits.nbytes / us / 1e6
            report.case(
                f"sample_tokens, {n} rows, {name}", rate, "TB/s", ceiling=ceiling,
                us=round(us, 1), spread_us=round(spread, 1),
            )  # fmt: skip
        us, _ = replayed_us(lambda _, logits=logits: logits.sort(dim=-1, descending=True), LAUNCHES)
        report.case(f"torch.sort, {n} rows", us, "us")
        for row in range(n):
            state.set(row, SamplingParams(logprobs=20), origin=0)
        outputs = (
            torch.empty(n, device=device),
            torch.empty(n, 20, device=device),
            torch.empty(n, 20, dtype=torch.int64, device=device),
        )
        asked = logits, rows, state, token_ids, LogprobWorkspace(n, VOCAB, device), *outputs
        us, spread = replayed_us(lambda _, asked=asked: logprobs(*asked), LAUNCHES)
        rate = logits.nbytes / us / 1e6
        report.case(f"logprobs, {n} rows, top 20", rate, "TB/s", ceiling=ceiling, us=round(us, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 256], help="rows to sample")
    parser.add_argument("--only", choices=["attention", "sampling"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("kernels_prefill: no CUDA device here; nothing was measured\n")
        return
    torch.manual_seed(0)
    report = Report(args.out)
    with torch.inference_mode():
        warm_up()
        matrix, size = random(8192, 8192), 8192
        us, _ = replayed_us(lambda _: matrix @ matrix, LAUNCHES)
        products = 2 * size**3 / us / 1e6
        report.case("product of 8192 x 8192 matrices in bfloat16", products, "TFLOP/s")
        if args.only != "sampling":
            measure_attention(report, products)
        if args.only != "attention":
            copies = copy_bandwidth()
            report.case("copy of 1 GiB", copies, "TB/s")
            measure_sampling(report, copies, args.rows)


if __name__ == "__main__":
    main()
