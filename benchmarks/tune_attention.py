"""Which tile, how many splits and which block size decode attention should have, at the shape of Qwen2.5-7B.

    PYTHONPATH=. python benchmarks/tune_attention.py [--all]

Variants are compiled side by side first, one process each, which also holds each against its twin; one that fails is
named with its error and left out. Then each is timed as a captured graph that runs `rope_decode_attention` once over
each of several copies of the cache, together beyond the second-level cache, every launch overlapping with the one
before it; the figure is the median replay divided by the number of copies. Splits are given outright here, and as many
are used as there are tiles: that shows which number is best for a length, which the rule of the table ("rule") must
meet for all lengths at once. Beside it: `rope_store` and `decode_attention`, with the table's tile.

Needs a CUDA device; without one it says so and does nothing. Takes about a minute.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from gpu_timing import replayed_us

from engine.kernels import reference_decode
from engine.kernels.decode_attention import Workspace, decode_attention
from engine.kernels.launch import capability
from engine.kernels.rope_decode_attention import rope_decode_attention
from engine.kernels.rope_store import rope_store
from engine.kernels.tiles import AttentionTile, attention_tile

Tensor = torch.Tensor

HEADS, KV_HEADS, HEAD_DIM = 28, 4, 128
WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM
DTYPE = torch.bfloat16
SCALE = HEAD_DIM**-0.5
CASES = (
    (1, 512), (1, 560), (1, 1024), (1, 4096), (1, 16384), (4, 512),
    (8, 384), (32, 384), (64, 384), (128, 384), (256, 384),
)  # fmt: skip
"""(sequences, keys of each, the new one included)."""
BLOCK_SIZES = (16, 64)
TILES = ((64, 4, 168), (64, 4, None), (32, 4, 128), (32, 4, None), (32, 2, None), (128, 8, None))
"""(keys, warps, registers a thread at most)."""
SPLITS = {1: (8, 16, 32, 64), 4: (4, 8, 16, 32), 8: (4, 8, 16), 32: (1, 2, 4), 64: (1, 2), 128: (1, 2), 256: (1, 2)}
MAX_SHARES = 512
"""Sequences times splits, at most, of all that is tried."""
ROTATED_BYTES = 128 << 20
REPLAYS = 7
FUSED_TOLERANCE = 3e-2
"""Of the result, absolute and relative: the twin does not round the weights of the softmax to bfloat16."""


@dataclass(frozen=True)
class Variant:
    """What is compiled once; None stands for the two kernels that the fused one replaces."""

    shape: tuple[int, int, int | None] | None
    block_size: int

    def tile(self, balance: float) -> AttentionTile | None:
        if self.shape is None:
            return None
        tokens, num_warps, max_registers = self.shape
        return AttentionTile(tokens, num_warps, 64, balance, max_registers)

    def __str__(self) -> str:
        if self.shape is None:
            return f"two kernels, blocks of {self.block_size}"
        tokens, num_warps, max_registers = self.shape
        return f"{tokens}x{num_warps} r{max_registers or '-'} b{self.block_size}"


class Step:
    """A step of `num_rows` rows of `length` keys, over `num_copies` caches."""

    def __init__(self, num_rows: int, length: int, block_size: int, num_copies: int, device: torch.device) -> None:
        blocks_a_row = -(-length // block_size)
        num_blocks = num_rows * blocks_a_row
        shape = num_copies, num_blocks + 1, KV_HEADS, block_size, HEAD_DIM
        self.k_caches = torch.randn(shape, device=device, dtype=DTYPE)
        self.v_caches = torch.randn(shape, device=device, dtype=DTYPE)
        self.table = (torch.randperm(num_blocks, device=device) + 1).int().view(num_rows, blocks_a_row)
        self.rows = torch.arange(num_rows, dtype=torch.int32, device=device)
        self.positions = torch.full_like(self.rows, length - 1)
        self.qkv = torch.randn(num_rows, WIDTH, device=device)
        angles = torch.rand(num_rows, 1, HEAD_DIM // 2, device=device) * 6
        self.cos = torch.cat([angles.cos(), angles.cos()], dim=-1)
        self.sin = torch.cat([-angles.sin(), angles.sin()], dim=-1)
        self.workspace = Workspace.allocate(num_rows, HEADS, KV_HEADS, HEAD_DIM, MAX_SHARES // num_rows, device)

    def run(self, variant: Variant, copy: int, splits: int | None, balance: float) -> Tensor:
        caches, tables = (self.k_caches[copy], self.v_caches[copy]), (self.table, self.rows, self.positions)
        if variant.shape is None:
            q = rope_store(self.qkv, self.cos, self.sin, *caches, *tables, HEADS, out_dtype=DTYPE, pdl=True)
            return decode_attention(q, *caches, *tables, SCALE, workspace=self.workspace, pdl=True)
        return rope_decode_attention(
            self.qkv, self.cos, self.sin, *caches, *tables, HEADS, SCALE,
            workspace=self.workspace, splits=splits, tile=variant.tile(balance), pdl=True,
        )  # fmt: skip

    def twin(self) -> Tensor:
        caches = self.k_caches[0].clone(), self.v_caches[0].clone()
        return reference_decode.rope_decode_attention(
            self.qkv, self.cos, self.sin, *caches, self.table, self.rows, self.positions, HEADS, SCALE
        )


def check(variant: Variant, device: str = "cuda") -> str:
    """Compiles and compares with the twin: what is wrong, or nothing. In a process of its own."""
    try:
        torch.manual_seed(0)
        for num_rows, length, splits in ((1, 300, 4), (2, 129, 1)):
            step = Step(num_rows, length, variant.block_size, 1, torch.device(device))
            actual = step.run(variant, 0, splits, 0.0)
            torch.testing.assert_close(actual, step.twin(), atol=FUSED_TOLERANCE, rtol=FUSED_TOLERANCE)
    except Exception as error:  # whatever is wrong with one variant, the others are to be measured
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")[:200]


def checked(variants: list[Variant]) -> Iterator[Variant]:
    """Those that work; the others are named."""
    workers = min(os.cpu_count() or 1, len(variants))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(check, variant) for variant in variants]
        for variant, future in zip(variants, futures, strict=True):
            try:
                problem = future.result()
            except Exception as error:  # the process died
                problem = f"{type(error).__name__}: {first_line(error)}"
            if problem:
                sys.stdout.write(f"left out: {variant}: {problem}\n")
            else:
                yield variant


def measure(num_rows: int, length: int, variants: list[Variant], is_verbose: bool) -> None:
    """Prints a case: the table's own tile and rule, the two kernels, the best of all, and the best of each split."""
    default = attention_tile(capability(torch.device("cuda")), HEAD_DIM, DTYPE.itemsize, num_rows)
    num_bytes = 2 * num_rows * length * KV_HEADS * HEAD_DIM * DTYPE.itemsize
    num_copies = min(max(ROTATED_BYTES // num_bytes, 4), 128)
    times: dict[tuple[Variant, int | None], float] = {}
    for block_size in BLOCK_SIZES:
        step = Step(num_rows, length, block_size, num_copies, torch.device("cuda"))
        for variant in variants:
            if variant.block_size != block_size:
                continue
            for splits in (None,) if variant.shape is None else (None, *SPLITS[num_rows]):
                balance = default.balance if splits is None else 0.0
                try:
                    times[variant, splits], _ = replayed_us(
                        lambda copy, a=step, b=variant, c=splits, d=balance: a.run(b, copy, c, d), num_copies, REPLAYS
                    )
                except Exception as error:  # as in `check`
                    sys.stdout.write(f"failed: {variant}, {splits} splits: {first_line(error)}\n")
        del step

    def told(name: str, found: list[tuple[Variant, int | None]]) -> None:
        best = min(found, key=lambda key: times[key], default=None)
        if best is not None:
            variant, splits = best
            rate = num_bytes / times[best] / 1e6
            how = "" if variant.shape is None else f", {'rule' if splits is None else f'{splits} splits'}"
            sys.stdout.write(f"  {name:<12} {times[best]:8.2f} us {rate:6.3f} TB/s  {variant}{how}\n")

    sys.stdout.write(f"{num_rows} x {length}\n")
    own = default.tokens, default.num_warps, default.max_registers
    told("table", [key for key in times if key[0].shape == own and key[1] is None and key[0].block_size == 16])
    told("two kernels", [key for key in times if key[0].shape is None and key[0].block_size == 16])
    fused = [key for key in times if key[0].shape is not None]
    told("best", fused)
    for splits in (None, *SPLITS[num_rows]):
        told("rule" if splits is None else f"{splits} splits", [key for key in fused if key[1] == splits])
    if is_verbose:
        for key in sorted(fused, key=lambda key: times[key]):
            told("", [key])
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="print every variant of every case")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("tune_attention: no CUDA device here; nothing was measured\n")
        return
    variants = list(checked([Variant(shape, block_size) for block_size in BLOCK_SIZES for shape in (None, *TILES)]))
    with torch.inference_mode():
        for num_rows, length in CASES:
            measure(num_rows, length, variants, args.all)


if __name__ == "__main__":
    main()
