"""Each decode kernel alone, at the shapes of Qwen2.5-7B in bfloat16: microseconds, and bytes a second beside a copy's.

    PYTHONPATH=. python benchmarks/kernels_decode.py [--tokens 1 2 4 8] [--only gemv] [--out FILE]

A case is a captured graph that runs the kernel once over each of many copies of its data, together far beyond the
second-level cache, so that every byte comes from memory as it does in a step. The figure is the median replay divided
by the number of copies. Bytes are those of weights, keys and values; the ceiling is a large copy, read plus written,
measured first. A read alone can exceed it by a few per cent. Kernels that move next to nothing are given in
microseconds.
Needs a CUDA device; without one it says so and does nothing. Takes about two minutes, most of it compiling.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from gpu_timing import Run, copy_bandwidth, replayed_us, warm_up
from report import Report

from engine.kernels.decode_attention import Workspace, decode_attention
from engine.kernels.gemv import DeferredNorm, gemv, gemv_argmax, gemv_gated, gemv_residual
from engine.kernels.rms_norm import add_rms_norm
from engine.kernels.rope_store import rope_store
from engine.kernels.step_begin import step_begin
from engine.kernels.step_end import step_end

Tensor = torch.Tensor

HIDDEN, INTERMEDIATE, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 3584, 18944, 152064, 28, 4, 128
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
BLOCK_SIZE = 32
EPS = 1e-6
DTYPE = torch.bfloat16
ROTATED_BYTES = 1 << 30
ATTENTION_CASES = ((1, 512), (1, 513), (1, 4096), (1, 32768), (8, 512), (16, 2048))
"""(sequences, tokens each); 513 because a tile more must not cost a second round."""


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=DTYPE) * 0.02


class Bench:
    """Runs cases and reports them."""

    def __init__(self, report: Report) -> None:
        self.report = report
        warm_up()
        self.ceiling = copy_bandwidth()
        report.case("copy of 1 GiB", self.ceiling, "TB/s")

    def case(self, name: str, run: Run, num_copies: int, num_bytes: int = 0) -> None:
        """
        Args:
            num_bytes: that one launch must read; 0 where time is what counts.
        """
        us, spread = replayed_us(run, num_copies)
        if num_bytes:
            rate = num_bytes / us / 1e6
            self.report.case(name, rate, "TB/s", ceiling=self.ceiling, us=round(us, 2), spread_us=round(spread, 2))
        else:
            self.report.case(name, us, "us", spread_us=round(spread, 2))

    def products(self, tokens: Sequence[int]) -> None:
        """The five matrices, with and without overlap, beside the library's product."""
        for kind, num_rows, width in (
            ("qkv", QKV, HIDDEN),
            ("o", HIDDEN, HIDDEN),
            ("gate_up", 2 * INTERMEDIATE, HIDDEN),
            ("down", HIDDEN, INTERMEDIATE),
            ("head", VOCAB, HIDDEN),
        ):
            num_bytes = num_rows * width * DTYPE.itemsize
            num_copies = max(2, ROTATED_BYTES // num_bytes)
            weights = [random(num_rows, width) for _ in range(num_copies)]
            for num_tokens in tokens:
                x = random(num_tokens, width)
                name = f"{kind} {num_rows}x{width}, {num_tokens} tokens"
                self.case(f"torch.mm, {name}", lambda i, x=x, weights=weights: x @ weights[i].T, num_copies, num_bytes)
                for pdl in (False, True) if num_tokens == 1 else (True,):
                    run = product(kind, x, weights, pdl)
                    self.case(f"gemv {name}{', overlapping' if pdl else ''}", run, num_copies, num_bytes)
            del weights

    def attention(self) -> None:
        for num_rows, length in ATTENTION_CASES:
            blocks_a_row = -(-length // BLOCK_SIZE)
            num_blocks = num_rows * blocks_a_row
            num_bytes = 2 * num_rows * length * KV_HEADS * HEAD_DIM * DTYPE.itemsize
            num_copies = max(4, ROTATED_BYTES // 4 // num_bytes)
            shape = num_blocks + 1, KV_HEADS, BLOCK_SIZE, HEAD_DIM
            caches = [(random(*shape), random(*shape)) for _ in range(num_copies)]
            table = (torch.randperm(num_blocks, device="cuda") + 1).int().view(num_rows, blocks_a_row)
            rows = torch.arange(num_rows, dtype=torch.int32, device="cuda")
            positions = torch.full_like(rows, length - 1)
            q = random(num_rows, HEADS, HEAD_DIM)
            workspace = Workspace.allocate(num_rows, HEADS, KV_HEADS, HEAD_DIM, 64, q.device)

            def run(
                i: int,
                caches: list[tuple[Tensor, Tensor]] = caches,
                state: tuple[Tensor, Tensor, Tensor, Tensor] = (q, table, rows, positions),
                workspace: Workspace = workspace,
            ) -> Tensor:
                q, table, rows, positions = state
                scale = HEAD_DIM**-0.5
                return decode_attention(q, *caches[i], table, rows, positions, scale, workspace=workspace, pdl=True)

            self.case(f"attention, {num_rows} sequences of {length} tokens", run, num_copies, num_bytes)
            del caches

    def small(self, tokens: Sequence[int]) -> None:
        """What moves next to nothing."""
        for num_tokens in tokens:
            rows = torch.arange(num_tokens, dtype=torch.int32, device="cuda")
            positions = torch.zeros_like(rows)
            x, residual = random(num_tokens, HIDDEN), torch.randn(num_tokens, HIDDEN, device="cuda")
            gamma, embedding, turns = random(HIDDEN), random(VOCAB, HIDDEN), torch.rand(3, HEAD_DIM, device="cuda")
            self.case(
                f"add_rms_norm, {num_tokens} tokens",
                lambda _, a=x, b=residual, c=gamma: add_rms_norm(a, b, c, EPS, pdl=True),
                64,
            )
            qkv = torch.randn(num_tokens, QKV, device="cuda")
            angles = torch.rand(2, num_tokens, 1, HEAD_DIM, device="cuda")
            cache = random(num_tokens + 1, KV_HEADS, BLOCK_SIZE, HEAD_DIM)
            table = torch.arange(1, num_tokens + 1, dtype=torch.int32, device="cuda")[:, None].contiguous()
            rope = partial(
                rope_store, qkv, angles[0], angles[1], cache, cache.clone(), table, rows, positions, HEADS,
                out_dtype=DTYPE, pdl=True,
            )  # fmt: skip
            self.case(f"rope_store, {num_tokens} tokens", lambda _, rope=rope: rope(), 64)
            values, candidates = gemv_argmax(x, embedding)
            tokens_of_rows = torch.zeros(num_tokens, 4096, dtype=torch.int32, device="cuda")
            end = partial(
                step_end, values, candidates, rows, positions, tokens_of_rows, torch.empty_like(rows), pdl=True
            )
            self.case(f"step_end, {num_tokens} tokens", lambda _, end=end: end(), 64)
            rotary = SimpleNamespace(inv_freq=turns[0], cos_factor=turns[1], sin_factor=turns[2])
            begin = partial(
                step_begin, rows, torch.zeros_like(rows), tokens_of_rows, embedding, gamma, EPS, [rotary], residual,
                pdl=True,
            )  # fmt: skip
            self.case(f"step_begin, {num_tokens} tokens", lambda _, begin=begin: begin(), 64)


def product(kind: str, x: Tensor, weights: list[Tensor], pdl: bool) -> Run:
    """The launch of one of the five, as a step makes it: with the norm, the residual or the gate fused."""
    num_tokens, num_rows = x.shape[0], weights[0].shape[0]
    norm = DeferredNorm(torch.ones(num_tokens, HIDDEN // 4, device="cuda"), EPS)
    if kind == "qkv":
        bias = random(num_rows)
        return lambda i: gemv(x, weights[i], bias, norm=norm, out_dtype=torch.float32, pdl=pdl)
    if kind == "gate_up":
        return lambda i: gemv_gated(x, weights[i], "silu", norm=norm, pdl=pdl)
    if kind == "head":
        return lambda i: gemv_argmax(x, weights[i], norm=norm, pdl=pdl)
    residual, gamma = torch.zeros(num_tokens, num_rows, device="cuda"), random(num_rows)
    return lambda i: gemv_residual(x, weights[i], residual, gamma, pdl=pdl)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--only", choices=["gemv", "attention", "small"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("kernels_decode: no CUDA device here; nothing was measured\n")
        return
    torch.manual_seed(0)
    bench = Bench(Report(args.out))
    with torch.inference_mode():
        if args.only in (None, "attention"):
            bench.attention()
        if args.only in (None, "small"):
            bench.small(args.tokens)
        if args.only in (None, "gemv"):
            bench.products(args.tokens)


if __name__ == "__main__":
    main()
