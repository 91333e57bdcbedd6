"""Products of quantised matrices with one or two tokens: those of x rounded alike, and near to those of x as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.kernels.gemv import DeferredNorm
from engine.kernels.packed_gemv import (
    is_multipliable,
    packed_gemv,
    packed_gemv_argmax,
    packed_gemv_gated,
    packed_gemv_residual,
)
from engine.kernels.packed_gemv_tile import _FP8_BITS
from engine.kernels.packed_gemv_tiles import PACKED_GEMV_TILES, PackedGemvTile, packed_gemv_tile
from engine.kernels.packed_rows import packed_rows
from engine.kernels.reference_packed_gemv import rounded_activations
from engine.quantization.packed_format import FORMATS, Code, PackedFormat, PackedWeight, Scale
from modelfiles.gguf import GGMLType
from tests.kernels.packed_weights import packed, random_blocks, random_packed

MAX_ERROR_ROUNDED, MAX_ERROR = 1e-3, 1.5e-2
"""Norm of the difference beside the norm of the result: to x rounded as the kernel rounds it, and to x as it is. The
latter is 6e-3 on average, and of 8 rows sometimes twice that."""
TILE = PackedGemvTile(8, 1, 1)

# One type for each format: Q8_0 and IQ4_NL are the same to a kernel.
TYPES = sorted({format: type for type, format in FORMATS.items()}.values(), key=lambda type: type.name)
CHECKPOINT_FORMATS = {
    "AWQ": PackedFormat(Code.NIBBLE, 0, Scale.FLOAT_ZERO, 128),
    "GPTQ, 8 bits, groups of 64": PackedFormat(Code.BYTE, 0, Scale.FLOAT_ZERO, 64),
    "GPTQ, groups of 256": PackedFormat(Code.NIBBLE, 8, Scale.FLOAT, 256),
    "INT8": PackedFormat(Code.BYTE, 128, Scale.ROW, 0),
    "FP8": PackedFormat(Code.FP8, 0, Scale.ROW, 0),
    "FP8, blocks": PackedFormat(Code.FP8, 0, Scale.BLOCK, 128),
}


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


def check_plain(weight: PackedWeight, x: torch.Tensor) -> None:
    """The products of the first eight rows, two tiles."""
    values = packed_rows(weight, torch.float32)[:8]
    bias = torch.randn(8, device=x.device).to(x.dtype)
    part = replace(weight, num_rows=8)
    y = packed_gemv(x, part, bias, out_dtype=torch.float32, tile=TILE, pdl=True) - bias.float()
    rounded = x.float() if weight.format.code == Code.FP8 else rounded_activations(x, weight)
    assert error(y, rounded @ values.T) < MAX_ERROR_ROUNDED
    assert error(y, x.float() @ values.T) < MAX_ERROR


def random_type(type: GGMLType, num_rows: int, num_columns: int, device: torch.device) -> PackedWeight:
    return packed(type, random_blocks(type, num_rows, num_columns, device), num_columns)


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_types_of_gguf(type: GGMLType, device: torch.device) -> None:
    torch.manual_seed(0)
    check_plain(random_type(type, 16, 256, device), torch.randn(1, 256, device=device).to(torch.bfloat16))


@pytest.mark.parametrize("format", CHECKPOINT_FORMATS.values(), ids=CHECKPOINT_FORMATS.keys())
def test_formats_of_checkpoints(format: PackedFormat, device: torch.device) -> None:
    torch.manual_seed(0)
    weight = random_packed(format, 16, 256, device)
    check_plain(weight, torch.randn(1, 256, device=device).to(torch.bfloat16))


def test_two_tokens_short_units_and_an_order_of_columns(device: torch.device) -> None:
    torch.manual_seed(0)
    weight = random_type(GGMLType.Q5_0, 16, 192, device)  # units of 64 columns
    order = torch.randperm(192, device=device)
    permuted = replace(weight, num_rows=8, column_order=order)
    x = torch.randn(2, 192, device=device).to(torch.float16)
    out = torch.full((2, 24), float("nan"), device=device)
    packed_gemv(x, permuted, out=out[:, 8:16], tile=TILE)
    expected = rounded_activations(x[:, order], weight) @ packed_rows(weight, torch.float32)[:8].T
    assert error(out[:, 8:16], expected) < MAX_ERROR_ROUNDED
    assert out[:, :8].isnan().all()
    assert out[:, 16:].isnan().all()


@pytest.mark.parametrize(("num_columns", "depth"), [(1280, 3), (2560, 2)])
def test_rows_of_several_passes(num_columns: int, depth: int, device: torch.device) -> None:
    """A row and a half of the threads' columns, unrolled; and three passes, which are a loop."""
    torch.manual_seed(0)
    weight = random_type(GGMLType.Q4_K, 16, num_columns, device)
    x = torch.randn(1, num_columns, device=device).to(torch.bfloat16)
    values, rows = packed_gemv_argmax(x, weight, 4, tile=PackedGemvTile(4, 1, depth))
    y = (rounded_activations(x, weight) @ packed_rows(weight, torch.float32).T)[:, :4]
    assert values.shape == (1, 1)
    assert values.item() == pytest.approx(y.max().item(), rel=MAX_ERROR_ROUNDED)
    assert rows.item() == y.argmax().item()


def test_residual_stream_and_the_norm_that_follows(device: torch.device) -> None:
    torch.manual_seed(0)
    weight = random_type(GGMLType.Q6_K, 16, 256, device)
    x = torch.randn(1, 256, device=device).to(torch.bfloat16)
    residual, gamma = torch.randn(1, 16, device=device), torch.rand(16, device=device).to(torch.bfloat16)
    expected = residual + rounded_activations(x, weight) @ packed_rows(weight, torch.float32).T
    out, partials = packed_gemv_residual(x, weight, residual, gamma, tile=PackedGemvTile(8, 2, 2), pdl=True)
    assert error(residual, expected) < MAX_ERROR_ROUNDED
    assert error(out, residual * gamma.float()) < 8e-3
    assert partials.shape == (1, 2)
    assert error(partials.sum(1), residual.square().sum(1)) < 1e-5


def test_gate_and_up_after_a_deferred_norm(device: torch.device) -> None:
    torch.manual_seed(0)
    weight = random_packed(CHECKPOINT_FORMATS["FP8"], 16, 256, device)  # halves that end within a block
    x = torch.randn(1, 256, device=device).to(torch.float16)
    bias = torch.randn(16, device=device).to(torch.float16)
    squares = torch.rand(1, 40, device=device)
    y = x.float() @ packed_rows(weight, torch.float32).T / (squares.sum() / 256 + 1e-6).sqrt() + bias.float()
    norm = DeferredNorm(squares, 1e-6)
    actual = packed_gemv_gated(x, weight, "silu", bias, norm=norm, tile=PackedGemvTile(16, 1, 1), pdl=True)
    assert actual.shape == (1, 8)
    assert error(actual, torch.nn.functional.silu(y[:, :8]) * y[:, 8:]) < 2e-3


def test_the_largest_among_rows_that_count(device: torch.device) -> None:
    torch.manual_seed(0)
    weight = random_type(GGMLType.Q8_0, 16, 64, device)
    x = torch.randn(2, 64, device=device).to(torch.bfloat16)
    y = (rounded_activations(x, weight) @ packed_rows(weight, torch.float32).T)[:, :13]
    x[1, 40] = float("nan")
    values, rows = packed_gemv_argmax(x, weight, 13, tile=TILE)
    assert values.shape == rows.shape == (2, 2)
    best = values[:1].argmax(1, keepdim=True)
    assert torch.equal(rows[:1].gather(1, best).long(), y[:1].argmax(1, keepdim=True))
    assert error(values[:1].gather(1, best), y[:1].amax(1, keepdim=True)) < MAX_ERROR_ROUNDED
    assert values[1].isinf().all()


def test_what_is_not_multiplied(device: torch.device) -> None:
    weight = random_type(GGMLType.Q4_0, 16, 64, device)
    x = torch.zeros(3, 64, dtype=torch.bfloat16, device=device)
    assert is_multipliable(weight, torch.bfloat16, 2)
    assert not is_multipliable(weight, torch.float32)
    assert not is_multipliable(random_packed(PackedFormat(Code.NIBBLE, 8, Scale.FLOAT, 96), 16, 768, device), x.dtype)
    with pytest.raises(ValueError, match=r"3 tokens of torch\.bfloat16"):
        packed_gemv(x, weight)
    with pytest.raises(ValueError, match="must have 64 columns"):
        packed_gemv(x[:1, :32], weight)
    with pytest.raises(ValueError, match=r"bias is \(8,\)"):
        packed_gemv(x[:1], weight, x[0, :8])
    with pytest.raises(ValueError, match=r"it must be \(1, 16\)"):
        packed_gemv(x[:1], weight, out=x)
    with pytest.raises(ValueError, match="takes a multiple of 8 rows"):
        packed_gemv_gated(x[:1], weight, "relu")
    with pytest.raises(ValueError, match=r"must be float32 \(1, 16\)"):
        packed_gemv_residual(x[:1], weight, x[:1], x[0, :16])
    with pytest.raises(ValueError, match="must be float32, contiguous, with 1 rows"):
        packed_gemv(x[:1], weight, norm=DeferredNorm(torch.ones(2, 3, device=device), 1e-6))


def test_tiles() -> None:
    for tiles in PACKED_GEMV_TILES.values():
        for kind_tiles in tiles.values():
            for tile in (tile for choice in kind_tiles.values() for tile in choice):
                assert tile.rows in (4, 8, 16, 32)
                assert tile.num_warps in (1, 2, 4, 8)
                assert tile.depth > 0
    assert packed_gemv_tile(90, "residual", Code.NIBBLE, 16, 1).num_warps == 1  # short rows


def run_ptx(lines: str, operands: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What moves bits of 32-bit registers in a piece of PTX; lop3 with 0xea is (a & b) | c."""

    def permuted(a: np.ndarray, b: np.ndarray, places: np.ndarray) -> np.ndarray:
        """prmt: each hexadecimal digit names a byte, 0 to 3 of a, 4 to 7 of b."""
        both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
        digits = [int(places) >> 4 * index & 7 for index in range(4)]
        taken = [(both >> np.uint64(8 * digit) & np.uint64(255)) << np.uint64(8 * i) for i, digit in enumerate(digits)]
        joined: np.ndarray = taken[0] | taken[1] | taken[2] | taken[3]
        return joined.astype(np.uint32)

    values = dict(operands)
    operations: dict[str, Callable[..., np.ndarray]] = {
        "prmt.b32": permuted,
        "shr.u32": lambda a, b: a >> b,
        "shl.b32": lambda a, b: a << b,
        "and.b32": lambda a, b: a & b,
        "lop3.b32": lambda a, b, c, _: (a & b) | c,
    }
    for line in re.findall(r"(\w+\.\w+) ([^;]*);", re.sub(r"\.reg[^;]*;", "", lines)):
        target, *sources = [word.strip() for word in line[1].split(",")]
        numbers = [values[word] if word in values else np.uint32(int(word, 0)) for word in sources]
        values[target] = operations[line[0]](*numbers)
    return values


def test_bits_of_fp8_become_those_of_float16() -> None:
    """The instructions, which the interpreter does not run, for all pairs of codes but NaN."""
    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint32)
    pairs = (codes[:, None] | codes[None, :] << 8).reshape(-1)
    words = np.ascontiguousarray(pairs | pairs[::-1] << 16)
    found = run_ptx(_FP8_BITS.value, {"$2": words})
    exact = torch.from_numpy(words.view(np.uint8)).view(torch.float8_e4m3fn).view(-1, 2, 2)
    for word, register in enumerate(("$0", "$1")):
        halves = torch.from_numpy(found[register].view(np.float16)).view(-1, 2)
        assert torch.equal(halves.float() * 256, exact[:, word].float())
