"""Finds the best tile of each matrix product on this GPU: what `engine/kernels/product_tiles.py` is filled from.

    PYTHONPATH=. python benchmarks/tune_products.py [--matrix gate_up] [--tokens 1 32] [--prefetched 0 256] [--no-pdl]

For each matrix of Qwen2.5-7B in bfloat16 and each number of tokens: the library's product beside every candidate of a
list, as a decode step launches it (up to 16 tokens with norm, residual stream, gated unit or search for the largest
fused into it; beyond, plain, and the library's followed by the gated unit). A candidate is first compiled, in a pool of
processes that share Triton's cache on disk; then compared with a product in float32; then timed: a captured graph is a
chain of the product over copies of the weights, together far beyond the second-level cache, and the figure is the
median replay divided by the number of copies. What does not compile, fit or agree is told in a line and left out.

The share is that of the rate of a large copy, read plus written, measured first. The last line is JSON: the best of
each, as fields of FmaTile or DotTile, with null where the library is fastest. `--no-pdl` looks at one token without
overlap. Needs a CUDA device; without one it says so and does nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
from gpu_timing import Run, copy_bandwidth, replayed_us, warm_up

from engine.kernels.gated import gated
from engine.kernels.gemv import MIN_DOT_TOKENS, DeferredNorm, gemv, gemv_argmax, gemv_gated, gemv_residual
from engine.kernels.product_tiles import (
    MAX_FUSED_TOKENS,
    DotTile,
    FmaTile,
    Tile,
    WhatFollows,
    matrix_kind,
)

Tensor = torch.Tensor

DEVICE = "cuda"
DTYPE = torch.bfloat16
EPS = 1e-6
NUM_PARTIALS = 448
"""Partial sums of squares that a norm is finished from: as many as attention's output projection leaves."""
ROTATED_BYTES = 1 << 30
REPLAYS = 15
COMPILED_ROWS = 512
"""Rows that are enough to compile for: any number that all tiles divide gives the same code."""
MAX_ERROR = 0.02
"""Norm of the difference to a product in float32, beside the norm of the product. Results are rounded to bfloat16."""
SHARED_BYTES = 227 * 1024
TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class Matrix:
    """One of a layer's matrices."""

    name: str
    num_rows: int
    """All rows, of gate and up together."""
    width: int
    fused: WhatFollows
    """What follows the product of few tokens."""
    has_bias: bool = False

    def what_follows(self, num_tokens: int) -> WhatFollows:
        return self.fused if num_tokens <= MAX_FUSED_TOKENS or self.fused == "gated" else "plain"


MATRICES = (
    Matrix("qkv", 4608, 3584, "plain", has_bias=True),
    Matrix("o", 3584, 3584, "residual"),
    Matrix("gate_up", 37888, 3584, "gated"),
    Matrix("down", 3584, 18944, "residual"),
    Matrix("head", 152064, 3584, "argmax"),
)

MOST_FMA_TOKENS = 6
"""Beyond, multiply-adds have lost to tensor cores wherever they were measured."""
# (rows, warps, depth, rows of a tile)
FMA_CANDIDATES: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "qkv": ((4, 4, 2, 4), (4, 4, 3, 4), (2, 4, 2, 2), (2, 4, 4, 2), (8, 4, 2, 4), (4, 4, 4, 2), (4, 2, 2, 4)),
    "o": (
        (8, 4, 2, 8),
        (8, 4, 1, 8),
        (4, 4, 2, 4),
        (4, 4, 3, 4),
        (8, 4, 3, 4),
        (8, 4, 4, 4),
        (2, 4, 4, 2),
        (4, 8, 2, 4),
    ),
    "gate_up": ((2, 4, 2, 2), (2, 4, 3, 2), (2, 4, 4, 2), (4, 4, 2, 4), (4, 4, 3, 2), (1, 4, 4, 1), (2, 2, 2, 2)),
    "down": ((4, 4, 4, 4), (4, 4, 2, 4), (4, 4, 3, 4), (8, 4, 4, 4), (2, 4, 4, 2), (8, 4, 2, 8), (4, 8, 2, 4)),
    "head": ((8, 8, 2, 4), (8, 8, 2, 8), (8, 4, 2, 4), (4, 4, 2, 4), (4, 8, 2, 4), (8, 4, 2, 8), (16, 4, 2, 4)),
}
"""All of them at one token, the first four with more."""

# (rows, columns, warps, stages), by the tokens of a `tl.dot`
DOT_CANDIDATES: dict[int, tuple[tuple[int, int, int, int], ...]] = {
    16: (
        (16, 256, 1, 3),
        (16, 512, 1, 3),
        (16, 256, 2, 3),
        (16, 512, 2, 3),
        (16, 256, 4, 3),
        (16, 256, 4, 4),
        (16, 512, 4, 4),
        (32, 128, 2, 4),
        (32, 256, 2, 3),
        (32, 256, 2, 4),
        (32, 512, 2, 3),
        (32, 128, 4, 6),
        (32, 256, 4, 3),
        (32, 256, 4, 4),
        (32, 256, 8, 4),
        (32, 512, 4, 3),
        (32, 512, 8, 3),
        (64, 128, 4, 3),
        (64, 128, 4, 4),
        (64, 256, 4, 3),
        (64, 256, 8, 3),
    ),
    32: (
        (16, 256, 4, 4),
        (32, 128, 4, 4),
        (32, 256, 4, 3),
        (32, 256, 4, 4),
        (64, 128, 4, 3),
        (64, 128, 4, 4),
        (64, 256, 4, 3),
        (64, 128, 8, 4),
    ),
    64: ((32, 128, 4, 4), (64, 64, 4, 3), (64, 64, 4, 4), (64, 128, 4, 3), (128, 64, 8, 3), (128, 64, 4, 4)),
    128: ((64, 64, 4, 3), (64, 64, 8, 4), (128, 64, 8, 3), (128, 64, 8, 4), (128, 128, 8, 3), (256, 64, 8, 3)),
}
# (rows, columns, warps, stages, splits), for products that nothing is fused into and that have few rows
SPLIT_CANDIDATES: dict[int, tuple[tuple[int, int, int, int, int], ...]] = {
    32: ((32, 128, 4, 4, 2), (64, 128, 4, 4, 2), (64, 128, 4, 4, 4)),
    64: ((64, 128, 4, 3, 2), (64, 128, 4, 3, 4), (64, 64, 4, 5, 4), (128, 64, 8, 4, 4), (128, 64, 8, 4, 8)),
    128: ((64, 64, 4, 4, 4), (128, 64, 8, 4, 4), (128, 64, 8, 4, 8)),
}


def candidates(matrix: Matrix, num_tokens: int, prefetched: Sequence[int]) -> Iterator[Tile]:
    """The tiles to try. Those of the tensor cores are the same for all numbers of tokens that one `tl.dot` takes."""
    if num_tokens <= MOST_FMA_TOKENS:
        listed = FMA_CANDIDATES[matrix.name]
        yield from (FmaTile(*sizes) for sizes in (listed if num_tokens == 1 else listed[:4]))
    if num_tokens > 2:
        bucket = dot_tokens(num_tokens)
        shapes = [(*sizes, 1) for sizes in DOT_CANDIDATES[bucket]]
        if matrix.name in ("qkv", "o", "down"):
            shapes += SPLIT_CANDIDATES.get(bucket, ())
        halves = 2 if matrix.fused == "gated" else 1
        for rows, columns, num_warps, num_stages, splits in shapes:
            if (rows * halves + bucket) * columns * num_stages * DTYPE.itemsize <= SHARED_BYTES:
                for ahead in prefetched:
                    yield DotTile(rows, columns, num_warps, num_stages, splits, ahead)


def dot_tokens(num_tokens: int) -> int:
    return max(MIN_DOT_TOKENS, int(triton.next_power_of_2(num_tokens)))


class Product:
    """The product of one matrix and some tokens, as a step launches it."""

    def __init__(self, matrix: Matrix, num_tokens: int, pdl: bool) -> None:
        self.what_follows = matrix.what_follows(num_tokens)
        self.pdl = pdl
        self.x = random(num_tokens, matrix.width) * 50
        # The root mean square that these tell is 1.
        squares = torch.full((num_tokens, NUM_PARTIALS), matrix.width / NUM_PARTIALS, device=DEVICE)
        self.norm = DeferredNorm(squares, EPS) if num_tokens <= MAX_FUSED_TOKENS else None
        self.bias = random(matrix.num_rows) if matrix.has_bias else None
        self.gamma = random(matrix.num_rows)
        self.residual = torch.zeros(num_tokens, matrix.num_rows, device=DEVICE)

    def launch(self, weight: Tensor, tile: Tile) -> object:
        x, norm, pdl = self.x, self.norm, self.pdl
        if self.what_follows == "residual":
            rows = weight.shape[0]
            return gemv_residual(x, weight, self.residual[:, :rows], self.gamma[:rows], tile=tile, pdl=pdl)
        if self.what_follows == "gated":
            return gemv_gated(x, weight, "silu", norm=norm, tile=tile, pdl=pdl)
        if self.what_follows == "argmax":
            return gemv_argmax(x, weight, norm=norm, tile=tile, pdl=pdl)
        bias = None if self.bias is None else self.bias[: weight.shape[0]]
        return gemv(x, weight, bias, norm=norm, tile=tile, pdl=pdl)

    def launcher(self, weights: list[Tensor], tile: Tile) -> Run:
        return lambda copy: self.launch(weights[copy], tile)

    def library(self, weight: Tensor) -> Tensor:
        y = F.linear(self.x, weight, self.bias)
        return gated(y, "silu", pdl=self.pdl) if self.what_follows == "gated" else y

    def expected(self, weight: Tensor) -> Tensor:
        y = F.linear(self.x.float(), weight.float(), None if self.bias is None else self.bias.float())
        return gated(y, "silu") if self.what_follows == "gated" else y

    def error(self, weight: Tensor, tile: Tile, expected: Tensor) -> float:
        """Norm of what is wrong beside the norm of what is right."""
        self.residual.zero_()
        result = self.launch(weight, tile)
        if self.what_follows == "argmax":
            assert isinstance(result, tuple)
            values, rows = result
            best = values.argmax(1, keepdim=True)
            chosen = expected.gather(1, rows.gather(1, best).long())
            wanted = expected.amax(1, keepdim=True)
            return float(((chosen - wanted).abs() + (values.gather(1, best) - wanted).abs()).norm() / wanted.norm())
        actual = self.residual if self.what_follows == "residual" else result
        assert isinstance(actual, Tensor)
        return float((actual.float() - expected).norm() / expected.norm())


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=DTYPE) * 0.02


def compile_one(matrix: Matrix, num_tokens: int, tile: Tile, pdl: bool) -> str:
    """Compiles and runs a candidate on a part of the matrix; the first line of what went wrong."""
    rows = COMPILED_ROWS * (2 if matrix.fused == "gated" else 1)
    try:
        with torch.inference_mode():
            part = Matrix(matrix.name, rows, matrix.width, matrix.fused, matrix.has_bias)
            Product(part, num_tokens, pdl).launch(random(rows, matrix.width), tile)
            torch.cuda.synchronize()
    except Exception as error:  # whatever the compiler or the launch raises is a finding
        return first_line(error)
    return ""


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:160]


def compile_all(jobs: list[tuple[Matrix, int, Tile]], pdl: bool, num_processes: int) -> set[tuple[str, int, Tile]]:
    """Compiles each job once; returns those that cannot run."""
    broken = set()
    different = {job_key(*job): job for job in jobs}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        # The longest first: unrolled loops of long rows.
        ordered = sorted(different.items(), key=lambda job: (isinstance(job[1][2], DotTile), -job[1][0].width))
        running = {pool.submit(compile_one, *job, pdl): key for key, job in ordered}
        for future in as_completed(running):
            error = future.exception()
            problem = first_line(error) if isinstance(error, Exception) else future.result()
            if problem:
                broken.add(running[future])
                say(f"left out: {running[future]}: {problem}")
    return broken


def job_key(matrix: Matrix, num_tokens: int, tile: Tile) -> tuple[str, int, Tile]:
    """Jobs with the same key are compiled to the same code."""
    if isinstance(tile, FmaTile):
        return matrix.name, num_tokens, tile
    # What is fused, and with it the code, changes with the number of tokens at one place that is a limit here too.
    return matrix.name, dot_tokens(num_tokens), tile


def tune(matrix: Matrix, num_tokens: int, tiles: list[Tile], weights: list[Tensor], pdl: bool) -> dict[str, Any]:
    """Times the library and the tiles."""
    product = Product(matrix, num_tokens, pdl)
    expected = product.expected(weights[0])
    times: dict[Tile | None, float] = {}
    for tile in tiles:
        try:
            error = product.error(weights[0], tile, expected)
            if not error <= MAX_ERROR:
                say(f"left out: {matrix.name}, {num_tokens} tokens, {tile}: wrong by {error:.3g}")
                continue
            times[tile], _ = replayed_us(product.launcher(weights, tile), len(weights), REPLAYS)
        except (RuntimeError, ValueError, triton.TritonError) as error:
            say(f"left out: {matrix.name}, {num_tokens} tokens, {tile}: {first_line(error)}")
    library_us, _ = replayed_us(lambda i: product.library(weights[i]), len(weights), REPLAYS)
    best = min(times, key=lambda tile: times[tile], default=None)
    what_follows = matrix.what_follows(num_tokens)
    num_outputs = matrix.num_rows // 2 if what_follows == "gated" else matrix.num_rows
    return {
        "matrix": matrix.name,
        "kind": matrix_kind(what_follows, num_outputs, matrix.width),
        "tokens": num_tokens,
        "library_us": round(library_us, 2),
        "us": None if best is None else round(times[best], 2),
        "is_library_faster": best is None or times[best] > library_us,
        "tile": None if best is None else {"type": type(best).__name__, **asdict(best)},
        "all_us": {str(tile): round(us, 2) for tile, us in sorted(times.items(), key=lambda item: item[1])},
    }


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def sizes(tile: dict[str, Any] | None) -> str:
    return "" if tile is None else "{}({})".format(tile["type"], ", ".join(str(v) for v in list(tile.values())[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrix", nargs="+", choices=[matrix.name for matrix in MATRICES])
    parser.add_argument("--tokens", type=int, nargs="+", help=f"default: {' '.join(map(str, TOKENS))}")
    parser.add_argument("--prefetched", type=int, nargs="+", default=[256], help="DotTile.prefetched, each tried")
    parser.add_argument("--no-pdl", action="store_true", help="without overlap; one token unless --tokens is given")
    parser.add_argument("--processes", type=int, default=15, help="that compile")
    parser.add_argument("--all", action="store_true", help="every candidate's time in the JSON line")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("tune_products: no CUDA device here; nothing was measured\n")
        return
    torch.manual_seed(0)
    pdl = not args.no_pdl
    numbers = args.tokens or (TOKENS if pdl else (1,))
    matrices = [matrix for matrix in MATRICES if args.matrix is None or matrix.name in args.matrix]
    jobs = [(m, n, tile) for m in matrices for n in numbers for tile in candidates(m, n, args.prefetched)]
    started = time.perf_counter()
    broken = compile_all(jobs, pdl, args.processes)
    say(f"compiled {len({job_key(*job) for job in jobs})} kernels in {time.perf_counter() - started:.0f} s")
    found = []
    with torch.inference_mode():
        warm_up()
        ceiling = copy_bandwidth()
        say(f"{torch.cuda.get_device_name()}: copy {ceiling:.2f} TB/s, overlap {'on' if pdl else 'off'}")
        say(f"{'matrix':8} tokens  library us  best us  TB/s  share  best")
        for matrix in matrices:
            num_bytes = matrix.num_rows * matrix.width * DTYPE.itemsize
            weights = [random(matrix.num_rows, matrix.width) for _ in range(max(2, ROTATED_BYTES // num_bytes + 1))]
            for n in numbers:
                tiles = [t for t in candidates(matrix, n, args.prefetched) if job_key(matrix, n, t) not in broken]
                row = tune(matrix, n, tiles, weights, pdl)
                us = row["us"] or float("inf")
                rate = num_bytes / us / 1e6
                say(
                    f"{matrix.name:8} {n:6}  {row['library_us']:10.2f}  {us:7.2f}  {rate:4.2f}  {rate / ceiling:5.3f}  "
                    f"{sizes(row['tile'])}{'  (library is faster)' if row['is_library_faster'] else ''}"
                )
                found.append(row if args.all else {key: value for key, value in row.items() if key != "all_us"})
            del weights
    say(f"took {time.perf_counter() - started:.0f} s")
    major, minor = torch.cuda.get_device_capability()
    say(json.dumps({"capability": 10 * major + minor, "copy_tb_s": round(ceiling, 3), "pdl": pdl, "best": found}))


if __name__ == "__main__":
    main()
