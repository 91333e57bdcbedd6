"""Which tile prefill attention should have, and what the small kernels of a long step cost, at the shape of Qwen2.5-7B.

    PYTHONPATH=. python benchmarks/tune_prefill.py [--only attention] [--processes 15]

Everything is compiled first, in a pool of processes that share Triton's cache on disk; there each tile is also held
against its twin. What fails is named with its error and left out. Then each is timed as a captured graph of several
launches; the figure is the median replay divided by their number.

    attention    a row a tile, a column a case, in microseconds; below it the rates (4 * head_dim operations for each
                 query head and key that it sees) of the best and of the table's tile, beside torch's own attention
                 over keys that lie together: of FlashAttention-2 and of cuDNN. Where rows have a past, torch computes
                 without a mask, which is a few per cent more.
    small        norms, gated unit, rotation, begin of a step: bytes read and written, over copies that lie together
                 beyond the second-level cache, as a share of a large copy's rate; least time for one token
    sampling     logits in bfloat16, in microseconds

Needs a CUDA device; without one it says so and does nothing. Takes less than a minute.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from gpu_timing import Run, copy_bandwidth, replayed_us, warm_up
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.kernels import reference_step
from engine.kernels.gated import gated
from engine.kernels.launch import capability
from engine.kernels.prefill_attention import prefill_attention
from engine.kernels.rms_norm import add_rms_norm
from engine.kernels.rope_store import rope_store
from engine.kernels.sampling import SamplingWorkspace, sample_tokens
from engine.kernels.sampling_state import SamplingState
from engine.kernels.step_begin import step_begin
from engine.kernels.tiles import PrefillTile, prefill_tile
from engine.sampling_params import SamplingParams

Tensor = torch.Tensor
Row = tuple[int, int]
"""(tokens computed before, tokens of this step)"""

HIDDEN, INTERMEDIATE, VOCAB, HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 3584, 18944, 152064, 28, 4, 128, 16
SCALE, EPS = HEAD_DIM**-0.5, 1e-6
DTYPE = torch.bfloat16
TABLE_COLUMNS = 1024
"""Of the block table, in every case: what a kernel is compiled for depends on it."""
CASES: dict[str, list[Row]] = {
    "2048": [(0, 2048)],
    "512": [(0, 512)],
    "128": [(0, 128)],
    "4 x 512": [(0, 512)] * 4,
    "512 @ 8192": [(8192, 512)],
    "2048 @ 8192": [(8192, 2048)],
}
CHECKED: list[Row] = [(37, 70), (0, 129), (200, 40), (15, 1)]
TILES = tuple(
    PrefillTile(block_m, block_n, num_warps, num_stages, bool(in_registers))
    for block_m, block_n, num_warps, num_stages, in_registers in (
        (128, 64, 8, 2, 0), (128, 64, 8, 3, 0), (128, 64, 8, 2, 1), (128, 64, 8, 3, 1),
        (128, 128, 8, 2, 0), (128, 128, 8, 2, 1), (128, 32, 8, 3, 1), (128, 32, 8, 4, 1),
        (128, 64, 4, 2, 0), (128, 32, 4, 2, 0), (128, 32, 4, 3, 0),
        (64, 64, 4, 2, 0), (64, 64, 4, 2, 1), (64, 64, 4, 3, 1), (64, 32, 4, 3, 1),
    )
)  # fmt: skip
TOLERANCE = 2e-2
"""Absolute, of averages of normal numbers: weights and results are rounded to bfloat16."""
SMALL_TOKENS = (2048, 512, 256, 64, 1)
SAMPLED_ROWS = (1, 8, 64, 256)
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k 40, top-p 0.9": {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    "top-p 0.9": {"top_p": 0.9},
}
LAUNCHES, REPLAYS = 8, 9
ROTATED_BYTES, MAX_COPIES = 256 << 20, 64


class Attention:
    """Rows with their pasts in a shuffled cache."""

    def __init__(self, rows: list[Row], device: torch.device) -> None:
        blocks = [-(-(start + count) // BLOCK_SIZE) for start, count in rows]
        shape = sum(blocks) + 1, KV_HEADS, BLOCK_SIZE, HEAD_DIM
        self.k_cache = torch.randn(shape, device=device, dtype=DTYPE)
        self.v_cache = torch.randn(shape, device=device, dtype=DTYPE)
        self.table = torch.zeros(len(rows), TABLE_COLUMNS, dtype=torch.int32, device=device)
        free = (torch.randperm(sum(blocks), device=device) + 1).int()
        for row, (own, part) in enumerate(zip(blocks, free.split(blocks), strict=True)):
            self.table[row, :own] = part
        counts = torch.tensor([0, *(count for _, count in rows)], device=device)
        self.rows = torch.arange(len(rows), dtype=torch.int32, device=device)
        self.cu_seqlens = counts.cumsum(0).int()
        self.starts = torch.tensor([start for start, _ in rows], dtype=torch.int32, device=device)
        self.q = torch.randn(int(counts.sum()), HEADS, HEAD_DIM, device=device, dtype=DTYPE)
        self.tera_operations = sum(
            4 * HEAD_DIM * HEADS * (start * count + count * (count + 1) / 2) / 1e12 for start, count in rows
        )

    def arguments(self) -> tuple[Any, ...]:
        return self.q, self.k_cache, self.v_cache, self.table, self.rows, self.cu_seqlens, self.starts, SCALE

    def run(self, tile: PrefillTile | None) -> Tensor:
        return prefill_attention(*self.arguments(), tile=tile)


@dataclass(frozen=True)
class Small:
    """A kernel of which a step's bytes are the cost."""

    name: str
    bytes_a_token: int
    make: Callable[[int, int, torch.device], Run]
    """(tokens, copies, device)"""


def gated_unit(num_tokens: int, num_copies: int, device: torch.device) -> Run:
    gate_up = torch.randn(num_copies, num_tokens, 2 * INTERMEDIATE, device=device, dtype=DTYPE)
    return lambda i: gated(gate_up[i], "silu")


def norm(residual_dtype: torch.dtype) -> Callable[[int, int, torch.device], Run]:
    def make(num_tokens: int, num_copies: int, device: torch.device) -> Run:
        x = torch.randn(num_copies, num_tokens, HIDDEN, device=device, dtype=DTYPE)
        residual = torch.randn(num_copies, num_tokens, HIDDEN, device=device, dtype=residual_dtype)
        weight = torch.ones(HIDDEN, device=device, dtype=DTYPE)
        return lambda i: add_rms_norm(x[i], residual[i], weight, EPS)

    return make


def rotation(num_tokens: int, num_copies: int, device: torch.device) -> Run:
    width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    qkv = torch.randn(num_copies, num_tokens, width, device=device, dtype=DTYPE)
    angles = torch.rand(2, num_tokens, 1, HEAD_DIM, device=device)
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    caches = torch.zeros(2, num_copies, num_blocks, KV_HEADS, BLOCK_SIZE, HEAD_DIM, device=device, dtype=DTYPE)
    table = torch.zeros(1, TABLE_COLUMNS, dtype=torch.int32, device=device)
    table[0, :num_blocks] = torch.randperm(num_blocks, device=device)
    positions = torch.arange(num_tokens, dtype=torch.int32, device=device)
    rows = torch.zeros_like(positions)
    return lambda i: rope_store(qkv[i], angles[0], angles[1], caches[0, i], caches[1, i], table, rows, positions, HEADS)


@dataclass(frozen=True)
class Angles:
    """What `step_begin` asks of a rotary."""

    inv_freq: Tensor
    cos_factor: Tensor
    sin_factor: Tensor


def begin(num_tokens: int, num_copies: int, device: torch.device) -> Run:
    embedding = torch.randn(VOCAB, HIDDEN, device=device, dtype=DTYPE)
    gamma = torch.ones(HIDDEN, device=device, dtype=DTYPE)
    angles = Angles(*torch.rand(3, HEAD_DIM, device=device))
    tokens = torch.randint(0, VOCAB, (num_copies, 1, 4097), dtype=torch.int32, device=device)
    positions = torch.arange(num_tokens, dtype=torch.int32, device=device)
    rows = torch.zeros_like(positions)
    residual = torch.empty(num_copies, num_tokens, HIDDEN, device=device)
    return lambda i: step_begin(rows, positions, tokens[i], embedding, gamma, EPS, [angles], residual[i])


SMALL = (
    Small("gated", 3 * INTERMEDIATE * 2, gated_unit),
    Small("add_rms_norm, float32", HIDDEN * (2 + 8 + 2), norm(torch.float32)),
    Small("add_rms_norm, bfloat16", HIDDEN * (2 + 4 + 2), norm(DTYPE)),
    Small("rope_store", 2 * (HEADS + 2 * KV_HEADS) * HEAD_DIM * 2 + 4 * HEAD_DIM, rotation),
    Small("step_begin", HIDDEN * (2 + 4 + 2) + 8 * HEAD_DIM, begin),
)


class Sampling:
    """Rows of logits: a few likely tokens over a flat rest, as a model's are."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        logits = torch.randn(num_rows, VOCAB, device=device) * 2
        likely = torch.randint(0, VOCAB, (num_rows, 200), device=device)
        self.logits = logits.scatter_add_(1, likely, torch.rand(num_rows, 200, device=device) * 12).to(DTYPE)
        self.rows = torch.arange(num_rows, dtype=torch.int32, device=device)
        self.positions = torch.full_like(self.rows, 1000)
        self.tokens = torch.zeros(num_rows, 4097, dtype=torch.int32, device=device)
        self.state = SamplingState(num_rows, device)
        self.workspace = SamplingWorkspace(num_rows, VOCAB, device)
        self.token_ids = torch.empty_like(self.rows)

    def set(self, options: dict[str, Any]) -> None:
        encoded = [SamplingState.encode(SamplingParams(seed=row, **options), 0) for row in range(len(self.rows))]
        self.state.floats.copy_(torch.tensor([floats for floats, _ in encoded]))
        self.state.ints.copy_(torch.tensor([ints for _, ints in encoded]))

    def run(self) -> None:
        sample_tokens(
            self.logits, self.rows, self.positions, self.tokens, self.state, self.workspace, self.token_ids,
            advance=False,
        )  # fmt: skip


def check_tile(tile: PrefillTile, device: str = "cuda") -> None:
    torch.manual_seed(0)
    attention = Attention(CHECKED, torch.device(device))
    expected = reference_step.prefill_attention(*attention.arguments())
    torch.testing.assert_close(attention.run(tile), expected, atol=TOLERANCE, rtol=TOLERANCE)


def check_small(number: int, device: str = "cuda") -> None:
    SMALL[number].make(1, 1, torch.device(device))(0)


def check_sampling(device: str = "cuda") -> None:
    sampling = Sampling(1, torch.device(device))
    for options in SAMPLING.values():
        sampling.set(options)
        sampling.run()
        if options.get("temperature") == 0.0:
            assert sampling.token_ids[0] == sampling.logits[0].float().argmax(), "greedy is not the largest logit"


def attempt(check: Callable[..., None], *arguments: object) -> str:
    """What is wrong, or nothing. In a process of its own; compiling is most of it."""
    try:
        check(*arguments)
        torch.cuda.synchronize()
    except Exception as error:  # whatever is wrong with one, the others are to be measured
        return told(error)
    return ""


def told(error: Exception) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:150]}"


def working_tiles(pool: ProcessPoolExecutor) -> Iterator[PrefillTile]:
    """Compiles everything; yields the tiles that work and names what does not."""
    jobs: dict[Any, PrefillTile | str] = {pool.submit(attempt, check_tile, tile): tile for tile in TILES}
    jobs[pool.submit(attempt, check_sampling)] = "sampling"
    for number, small in enumerate(SMALL):
        jobs[pool.submit(attempt, check_small, number)] = small.name
    working = set()
    for job in as_completed(jobs):
        what = jobs[job]
        try:
            problem = job.result()
        except Exception as error:  # the process died
            problem = told(error)
        if problem:
            sys.stdout.write(f"left out: {what}: {problem}\n")
        elif isinstance(what, PrefillTile):
            working.add(what)
    yield from (tile for tile in TILES if tile in working)


def timed(name: str, run: Run, num_launches: int = LAUNCHES) -> float:
    """As `replayed_us`; infinite, and told, where it fails."""
    try:
        return replayed_us(run, num_launches, REPLAYS)[0]
    except Exception as error:  # as in `attempt`
        sys.stdout.write(f"failed: {name}: {told(error)}\n")
        return float("inf")


def torch_us(rows: list[Row], backend: SDPBackend) -> float:
    """Microseconds of torch's attention over keys that lie together; all rows are alike in the cases."""
    (start, count), num_rows = rows[0], len(rows)
    q = torch.randn(num_rows, HEADS, count, HEAD_DIM, device="cuda", dtype=DTYPE)
    k, v = (torch.randn(num_rows, KV_HEADS, start + count, HEAD_DIM, device="cuda", dtype=DTYPE) for _ in range(2))

    def run(_: int) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=start == 0, enable_gqa=True)

    return timed(f"torch, {backend.name}", run)


def short(tile: PrefillTile) -> str:
    return (
        f"{tile.block_m}x{tile.block_n} {tile.num_warps} warps {tile.num_stages} stages"
        f"{' registers' if tile.query_in_registers else ''}"
    )


def measure_attention(tiles: list[PrefillTile]) -> None:
    table_tile = prefill_tile(capability(torch.device("cuda")), HEAD_DIM, DTYPE.itemsize)
    sys.stdout.write(f"\nattention, us{'':<25}" + "".join(f"{name:>13}" for name in CASES) + "\n")
    times: dict[tuple[str, PrefillTile], float] = {}
    cases = {name: Attention(rows, torch.device("cuda")) for name, rows in CASES.items()}
    for tile in tiles:
        for name, attention in cases.items():
            times[name, tile] = timed(f"{short(tile)}, {name}", lambda _, a=attention, t=tile: a.run(t))
        mark = "*" if tile == table_tile else " "
        figures = "".join(f"{times[name, tile]:13.1f}" for name in CASES)
        sys.stdout.write(f"{mark} {short(tile):<36}{figures}\n")
        sys.stdout.flush()
    for name, rows in CASES.items() if tiles else ():
        work = cases[name].tera_operations * 1e6
        best = min(tiles, key=lambda tile: times[name, tile])
        parts = [f"best {short(best)}: {times[name, best]:.1f} us, {work / times[name, best]:.0f} TFLOP/s"]
        if table_tile in tiles:
            parts.append(f"table {work / times[name, table_tile]:.0f}")
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            us = torch_us(rows, backend)
            parts.append(f"torch {backend.name.split('_')[0].lower()} {us:.1f} us, {work / us:.0f}")
        sys.stdout.write(f"  {name:<12} {'; '.join(parts)}\n")
        sys.stdout.flush()


def measure_small() -> None:
    copy_rate = copy_bandwidth()
    sys.stdout.write(f"\nus (share of a copy's {copy_rate:.2f} TB/s){'':<6}")
    sys.stdout.write("".join(f"{num_tokens:>15}" for num_tokens in SMALL_TOKENS) + " tokens\n")
    for small in SMALL:
        figures = ""
        for num_tokens in SMALL_TOKENS:
            num_bytes = small.bytes_a_token * num_tokens
            num_copies = max(2, min(MAX_COPIES, ROTATED_BYTES // num_bytes))
            us = timed(
                f"{small.name}, {num_tokens}", small.make(num_tokens, num_copies, torch.device("cuda")), num_copies
            )
            figures += f"{us:8.1f} ({num_bytes / us / 1e6 / copy_rate:4.2f})"
        sys.stdout.write(f"  {small.name:<32}{figures}\n")
        sys.stdout.flush()


def measure_sampling() -> None:
    sys.stdout.write(f"\nsampling, us{'':<22}" + "".join(f"{n:>10}" for n in SAMPLED_ROWS) + " rows\n")
    figures = dict.fromkeys(SAMPLING, "")
    for num_rows in SAMPLED_ROWS:
        sampling = Sampling(num_rows, torch.device("cuda"))
        for name, options in SAMPLING.items():
            sampling.set(options)
            us = timed(f"{name}, {num_rows} rows", lambda _, s=sampling: s.run())
            figures[name] += f"{us:10.1f}"
    for name, line in figures.items():
        sys.stdout.write(f"  {name:<32}{line}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["attention", "small", "sampling"])
    parser.add_argument("--processes", type=int, default=15, help="that compile")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("tune_prefill: no CUDA device here; nothing was measured\n")
        return
    torch.manual_seed(0)
    began = time.perf_counter()
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        tiles = list(working_tiles(pool))
    sys.stdout.write(
        f"compiled and compared in {time.perf_counter() - began:.0f} s on {torch.cuda.get_device_name()}\n"
    )
    with torch.inference_mode():
        warm_up()
        if args.only in (None, "attention"):
            measure_attention(tiles)
        if args.only in (None, "small"):
            measure_small()
        if args.only in (None, "sampling"):
            measure_sampling()
    sys.stdout.write(f"\n{time.perf_counter() - began:.0f} s in all\n")


if __name__ == "__main__":
    main()
