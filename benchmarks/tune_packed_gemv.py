"""Finds the best tile of each product of few tokens with quantised weights: what `packed_gemv_tiles.py` is filled from.

    PYTHONPATH=. python benchmarks/tune_packed_gemv.py [--matrix gate_up] [--format Q4_K] [--tokens 1 2] [--out FILE]

First every format with every epilogue is compared with plain torch: with x rounded as the kernel rounds it, and with x
as it is; what is wrong by more than is allowed is told in a line and makes the exit status 1. Then, for each matrix of
Qwen2.5-7B, every candidate of a list is timed as a decode step launches it: a captured graph is a chain of the product
over copies of the planes, together far beyond the second-level cache, and the figure is the median replay divided by
the number of copies. Candidates are compiled beforehand, in processes that share Triton's cache on disk.

The table has microseconds, terabytes a second of the planes' bytes, and the best tile as fields of PackedGemvTile;
with --out each candidate's time goes to FILE as a JSON line. Needs a CUDA device; without one it does nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_timing import Run, copy_bandwidth, replayed_us, warm_up

from engine.kernels.gemv import DeferredNorm
from engine.kernels.packed_gemv import packed_gemv, packed_gemv_argmax, packed_gemv_gated, packed_gemv_residual
from engine.kernels.packed_gemv_tiles import PackedGemvTile
from engine.kernels.packed_rows import packed_rows
from engine.kernels.product_tiles import WhatFollows
from engine.kernels.reference_packed_gemv import rounded_activations
from engine.quantization.packed_format import FORMATS, Code, PackedFormat, PackedWeight, Planes, Scale, empty_planes

Tensor = torch.Tensor

DEVICE = "cuda"
DTYPE = torch.bfloat16
EPS = 1e-6
NUM_PARTIALS = 448
"""Partial sums of squares that a norm is finished from: as many as attention's output projection leaves."""
ROTATED_BYTES = 320 << 20
REPLAYS = 11
COMPILED_ROWS = 512
"""Rows that are enough to compile for: any number that all tiles divide gives the same code."""
MAX_ERROR_ROUNDED, MAX_ERROR = 4e-3, 2.2e-2
"""Norm of the difference beside the norm of the result, to x rounded alike and to x as it is. Results are rounded to
bfloat16, which the first has to allow for; a gate and an up that are both rounded are twice as far off."""

FORMATS_BY_NAME: dict[str, PackedFormat] = {type.name: format for type, format in FORMATS.items()} | {
    "AWQ": PackedFormat(Code.NIBBLE, 0, Scale.FLOAT_ZERO, 128),
    "AWQ_64": PackedFormat(Code.NIBBLE, 0, Scale.FLOAT_ZERO, 64),
    "GPTQ": PackedFormat(Code.NIBBLE, 8, Scale.FLOAT, 128),
    "GPTQ_8": PackedFormat(Code.BYTE, 128, Scale.FLOAT, 32),
    "INT8": PackedFormat(Code.BYTE, 128, Scale.ROW, 0),
    "FP8": PackedFormat(Code.FP8, 0, Scale.ROW, 0),
    "FP8_BLOCK": PackedFormat(Code.FP8, 0, Scale.BLOCK, 128),
}
TIMED = ("Q4_K", "Q6_K", "Q8_0", "AWQ", "FP8")


@dataclass(frozen=True)
class Matrix:
    """One of a layer's matrices."""

    name: str
    num_rows: int
    """All rows, of gate and up together."""
    width: int
    what_follows: WhatFollows


MATRICES = (
    Matrix("qkv", 4608, 3584, "plain"),
    Matrix("o", 3584, 3584, "residual"),
    Matrix("gate_up", 37888, 3584, "gated"),
    Matrix("down", 3584, 18944, "residual"),
    Matrix("head", 152064, 3584, "argmax"),
)
CHECKED_SHAPES = ((96, 3584), (64, 4608), (64, 896), (32, 192))
"""Rows and columns: one pass and a rest, several passes, short units."""

# (rows, warps, depth)
CANDIDATES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "qkv": ((4, 4, 1), (8, 4, 1), (8, 4, 2), (8, 2, 1), (4, 2, 1), (16, 4, 1)),
    "o": ((4, 4, 1), (8, 4, 1), (8, 4, 2), (4, 2, 1), (4, 2, 2), (8, 2, 1)),
    "gate_up": (
        (4, 4, 1),
        (4, 4, 2),
        (8, 4, 1),
        (8, 4, 2),
        (16, 4, 1),
        (16, 4, 2),
        (8, 2, 1),
        (4, 1, 1),
        (8, 1, 1),
        (8, 1, 2),
    ),
    "down": ((4, 4, 1), (4, 4, 2), (8, 4, 1), (8, 4, 2), (8, 4, 3), (4, 8, 1), (8, 8, 1), (16, 8, 1)),
    "head": ((8, 4, 1), (8, 4, 2), (16, 4, 1), (8, 1, 2), (16, 1, 1), (16, 1, 2), (16, 2, 1)),
}
TWO_TOKENS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "head": ((4, 4, 1), (8, 4, 1), (16, 4, 1), (8, 1, 1), (16, 1, 1), (16, 1, 2)),
}
FEW: tuple[tuple[int, int, int], ...] = ((4, 4, 1), (4, 4, 2), (8, 4, 1), (8, 4, 2), (8, 2, 1), (4, 2, 1))
"""With two tokens, for the other matrices."""


def random_weight(format: PackedFormat, num_rows: int, width: int) -> PackedWeight:
    """Any codes, with scales that make weights of about 0.02."""
    planes = empty_planes(format, num_rows, width, torch.device(DEVICE))
    words, extra = random_bytes(planes.words), random_bytes(planes.extra)
    if format.code == Code.FP8:
        codes = words.view(torch.uint8)
        codes[(codes & 127) == 127] = 0  # NaN
    size = 0.02 / {Code.NIBBLE: 5, Code.FIVE_BITS: 9, Code.SIX_BITS: 18, Code.BYTE: 74, Code.FP8: 100}[format.code]
    scale, shape = format.scale, planes.scales.shape
    scales = (torch.rand(shape, device=DEVICE) + 0.5) * size
    supers = planes.supers
    if scale == Scale.PAIR:
        random = torch.randint(0, 64, (2, *shape), device=DEVICE)
        values = (random[0] | random[1] << 8).to(torch.int16)
        supers = torch.full(supers.shape, size / 32, device=DEVICE).half().view(torch.int16).int() * 0x10001
    elif scale == Scale.BYTE:
        values = torch.randint(-127, 128, shape, device=DEVICE).to(torch.int8)
        supers = torch.full(supers.shape, size / 64, device=DEVICE).half()
    elif scale == Scale.HALF:
        values = scales.half()
    elif scale == Scale.HALF_PAIR:
        values = torch.stack([scales.half(), (scales * -8).half()], -1).view(torch.int32).squeeze(-1)
    elif scale == Scale.FLOAT_ZERO:
        top = 256 if format.code == Code.BYTE else 16
        values = (scales.view(torch.int32) & -256) | torch.randint(0, top, shape, device=DEVICE).int()
    else:
        values = scales
    return PackedWeight(Planes(words, extra, values.contiguous(), supers), format, num_rows, width)


def random_bytes(plane: Tensor) -> Tensor:
    size = (*plane.shape[:-1], plane.shape[-1] * plane.element_size())
    return torch.randint(0, 256, size, dtype=torch.uint8, device=DEVICE).view(plane.dtype)


class Product:
    """The product of one matrix and some tokens, as a step launches it."""

    def __init__(self, what_follows: WhatFollows, num_rows: int, width: int, num_tokens: int) -> None:
        self.what_follows = what_follows
        self.num_rows = num_rows
        self.x = (torch.randn(num_tokens, width, device=DEVICE)).to(DTYPE)
        # The root mean square that these tell is 2.
        squares = torch.full((num_tokens, NUM_PARTIALS), 4 * width / NUM_PARTIALS, device=DEVICE)
        self.norm = None if what_follows == "residual" else DeferredNorm(squares, EPS)
        self.bias = torch.randn(num_rows, device=DEVICE).to(DTYPE) if what_follows == "plain" else None
        self.gamma = torch.ones(num_rows, device=DEVICE, dtype=DTYPE)
        self.residual = torch.zeros(num_tokens, num_rows, device=DEVICE)

    def launch(self, weight: PackedWeight, tile: PackedGemvTile | None) -> Any:
        x, norm = self.x, self.norm
        if self.what_follows == "residual":
            return packed_gemv_residual(x, weight, self.residual, self.gamma, tile=tile, pdl=True)
        if self.what_follows == "gated":
            return packed_gemv_gated(x, weight, "silu", norm=norm, tile=tile, pdl=True)
        if self.what_follows == "argmax":
            return packed_gemv_argmax(x, weight, self.num_rows, norm=norm, tile=tile, pdl=True)
        return packed_gemv(x, weight, self.bias, norm=norm, out_dtype=torch.float32, tile=tile, pdl=True)

    def launcher(self, weights: list[PackedWeight], tile: PackedGemvTile) -> Run:
        return lambda copy: self.launch(weights[copy], tile)

    def expected(self, x: Tensor, values: Tensor) -> Tensor:
        y = x @ values.T
        if self.norm is not None:
            y = y / 2
        if self.bias is not None:
            y = y + self.bias.float()
        if self.what_follows == "gated":
            gate, up = y.chunk(2, -1)
            y = torch.nn.functional.silu(gate) * up
        return y

    def error(self, weight: PackedWeight, tile: PackedGemvTile | None, expected: Tensor) -> float:
        """Norm of what is wrong beside the norm of what is right."""
        self.residual.zero_()
        result = self.launch(weight, tile)
        if self.what_follows == "argmax":
            values, rows = result
            best = values.argmax(1, keepdim=True)
            chosen = expected.gather(1, rows.gather(1, best).long())
            wanted = expected.amax(1, keepdim=True)
            return float(((chosen - wanted).abs() + (values.gather(1, best) - wanted).abs()).norm() / wanted.norm())
        if self.what_follows == "residual":
            out, partials = result
            squares = float((partials.sum(1) - self.residual.square().sum(1)).norm() / self.residual.square().sum())
            stream = float((out.float() - self.residual).norm() / self.residual.norm())
            return float((self.residual - expected).norm() / expected.norm()) + squares + max(0.0, stream - 3e-3)
        assert isinstance(result, Tensor)
        return float((result.float() - expected).norm() / expected.norm())


def check(num_tokens: int) -> list[str]:
    """What is wrong, in sentences."""
    found = []
    for name, format in FORMATS_BY_NAME.items():
        for num_rows, width in CHECKED_SHAPES:
            if format.scale in (Scale.PAIR, Scale.BYTE) and width % 256:
                continue
            if format.group > 0 and width % format.group:
                continue
            weight = random_weight(format, num_rows, width)
            values = packed_rows(weight, torch.float32)
            for what_follows in ("plain", "residual", "gated", "argmax"):
                product = Product(what_follows, num_rows, width, num_tokens)
                x = product.x.float()
                rounded = x if format.code == Code.FP8 else rounded_activations(product.x, weight)
                case = f"{name} {num_rows}x{width}, {what_follows}, {num_tokens} tokens"
                try:
                    near = product.error(weight, None, product.expected(rounded, values))
                    far = product.error(weight, None, product.expected(x, values))
                except (RuntimeError, ValueError, triton.TritonError) as error:
                    found.append(f"{case}: {first_line(error)}")
                    continue
                if not near <= MAX_ERROR_ROUNDED or not far <= MAX_ERROR:
                    found.append(f"{case}: wrong by {near:.2e} to x rounded alike, by {far:.2e} to x as it is")
    return found


def tiles(matrix: Matrix, format: PackedFormat, num_tokens: int) -> Iterator[PackedGemvTile]:
    listed = CANDIDATES[matrix.name] if num_tokens == 1 else TWO_TOKENS.get(matrix.name, FEW)
    for rows, num_warps, depth in listed:
        if format.code in (Code.BYTE, Code.FP8) and depth > 2:
            continue  # twice the registers
        yield PackedGemvTile(rows, num_warps, depth)


Job = tuple[str, str, int, PackedGemvTile]
"""Names of matrix and format, tokens, tile."""


def compile_one(job: Job) -> str:
    """Compiles and runs a candidate on a part of the matrix; the first line of what went wrong."""
    matrix_name, format_name, num_tokens, tile = job
    matrix = next(matrix for matrix in MATRICES if matrix.name == matrix_name)
    rows = COMPILED_ROWS * (2 if matrix.what_follows == "gated" else 1)
    try:
        with torch.inference_mode():
            weight = random_weight(FORMATS_BY_NAME[format_name], rows, matrix.width)
            Product(matrix.what_follows, rows, matrix.width, num_tokens).launch(weight, tile)
            torch.cuda.synchronize()
    except Exception as error:  # whatever the compiler or the launch raises is a finding
        return first_line(error)
    return ""


def compile_checks(job: tuple[str, int]) -> str:
    """Compiles what `check` launches for a format."""
    name, num_tokens = job
    with torch.inference_mode():
        for num_rows, width in CHECKED_SHAPES:
            format = FORMATS_BY_NAME[name]
            is_small = format.scale not in (Scale.PAIR, Scale.BYTE) and not (format.group and width % format.group)
            if width % 256 == 0 or is_small:
                weight = random_weight(format, num_rows, width)
                for what_follows in ("plain", "residual", "gated", "argmax"):
                    try:
                        Product(what_follows, num_rows, width, num_tokens).launch(weight, None)
                    except Exception:  # `check` finds it again and tells it
                        continue
    return ""


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def time_all(jobs: list[Job], broken: set[Job], out: Path | None) -> None:
    """Times the jobs and prints the table."""
    ceiling = copy_bandwidth()
    say(f"{torch.cuda.get_device_name()}: copy {ceiling:.2f} TB/s")
    say(f"{'matrix':8} {'format':9} tokens       us   TB/s  best tile; the others' us")
    lines = []
    groups: dict[tuple[str, str, int], list[PackedGemvTile]] = {}
    for job in jobs:
        groups.setdefault(job[:3], []).append(job[3])
    for (matrix_name, format_name, num_tokens), candidates in groups.items():
        matrix = next(matrix for matrix in MATRICES if matrix.name == matrix_name)
        first = random_weight(FORMATS_BY_NAME[format_name], matrix.num_rows, matrix.width)
        num_bytes = sum(plane.nbytes for plane in first.planes.tensors)
        weights = [first]
        for _ in range(max(1, ROTATED_BYTES // num_bytes)):
            planes = Planes(*(plane.clone() for plane in first.planes.tensors))
            weights.append(PackedWeight(planes, first.format, first.num_rows, first.num_columns))
        product = Product(matrix.what_follows, matrix.num_rows, matrix.width, num_tokens)
        times: dict[PackedGemvTile, float] = {}
        for tile in candidates:
            if (matrix_name, format_name, num_tokens, tile) in broken:
                continue
            us, spread = replayed_us(product.launcher(weights, tile), len(weights), REPLAYS)
            times[tile] = us
            lines.append(
                {"matrix": matrix_name, "format": format_name, "tokens": num_tokens, **asdict(tile), "us": round(us, 2)}
                | {
                    "spread_us": round(spread, 2),
                    "tb_s": round(num_bytes / us / 1e6, 3),
                    "copy_tb_s": round(ceiling, 3),
                }
            )
        ordered = sorted(times, key=lambda tile: times[tile])
        if not ordered:
            say(f"{matrix_name:8} {format_name:9} {num_tokens:6}  nothing runs")
            continue
        best = times[ordered[0]]
        others = "  ".join(f"{sizes(tile)} {times[tile]:.1f}" for tile in ordered[1:])
        say(
            f"{matrix_name:8} {format_name:9} {num_tokens:6}  {best:7.2f}  {num_bytes / best / 1e6:5.2f}  "
            f"{sizes(ordered[0])}; {others}"
        )
        del weights, first, planes
    if out is not None:
        out.write_text("".join(json.dumps(line) + "\n" for line in lines))


def sizes(tile: PackedGemvTile) -> str:
    return f"({tile.rows},{tile.num_warps},{tile.depth})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrix", nargs="+", choices=[matrix.name for matrix in MATRICES])
    parser.add_argument("--format", nargs="+", choices=list(FORMATS_BY_NAME), default=list(TIMED))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1])
    parser.add_argument("--tile", nargs=3, type=int, action="append", help="rows, warps, depth, instead of the list")
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--processes", type=int, default=15, help="that compile")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("tune_packed_gemv: no CUDA device here; nothing was measured\n")
        return 0
    torch.manual_seed(0)
    started = time.perf_counter()
    jobs: list[Job] = []
    for matrix in MATRICES:
        for name in args.format:
            if args.matrix is None or matrix.name in args.matrix:
                for num_tokens in args.tokens:
                    chosen = [PackedGemvTile(*tile) for tile in args.tile or ()]
                    listed = chosen or tiles(matrix, FORMATS_BY_NAME[name], num_tokens)
                    jobs += [(matrix.name, name, num_tokens, tile) for tile in listed]
    broken = set()
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        checks = [] if args.no_check else [(name, n) for name in FORMATS_BY_NAME for n in args.tokens]
        waiting = [pool.submit(compile_checks, job) for job in checks]
        running = {} if args.no_times else {pool.submit(compile_one, job): job for job in jobs}
        for done in as_completed([*waiting, *running]):
            error = done.exception()
            problem = first_line(error) if isinstance(error, Exception) else done.result()
            if problem and done in running:
                broken.add(running[done])
                say(f"left out: {running[done]}: {problem}")
    say(f"compiled {len(jobs)} candidates and {len(checks)} sets of checks in {time.perf_counter() - started:.0f} s")
    wrong: list[str] = []
    with torch.inference_mode():
        warm_up()
        if not args.no_check:
            wrong = [line for num_tokens in args.tokens for line in check(num_tokens)]
            for line in wrong:
                say(f"wrong: {line}")
            say(f"checked {len(FORMATS_BY_NAME)} formats: {len(wrong)} results are wrong")
        if not args.no_times:
            time_all(jobs, broken, args.out)
    say(f"took {time.perf_counter() - started:.0f} s")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
