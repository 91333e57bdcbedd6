"""Quantised safetensors that stay packed on a CPU, and INT8 that is made there: products near those of the numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.quantization import int4_cpu, int4_op
from engine.quantization.base import Dense, QuantMethod
from engine.quantization.checkpoint import CheckpointTensor, Destination
from engine.quantization.int4_cpu import Int4Packed, Int8Packed
from engine.quantization.quantized_tensor import CheckpointMatrix
from engine.quantization.rounded import Rounded
from engine.quantization.row_types import quantize_rows
from engine.quantization.scheme import WeightScheme
from engine.quantization.selection import Matrix, method_of, segments_bytes, segments_from_checkpoint
from modelfiles.gguf import GGMLType
from tests.engine.quantization import packers
from tests.engine.quantization.packers import opened

CPU = torch.device("cpu")
BFLOAT16 = Destination(CPU, torch.bfloat16)
MAX_ERROR = 0.006
Make = Callable[[np.random.Generator, int], packers.Packed]

AWQ = WeightScheme("awq", 4, 1, 32, has_zeros=True)
GPTQ = WeightScheme("gptq", 4, 1, 32, has_zeros=True, zero_offset=1)
INT8 = WeightScheme("int8", 8, 1, None)
CASES: dict[str, tuple[WeightScheme, type[QuantMethod], Make]] = {
    "awq": (AWQ, Int4Packed, lambda g, n: packers.awq(g, n, 96, 32)),
    "awq-whole-rows": (replace(AWQ, scale_columns=None), Int4Packed, lambda g, n: packers.awq(g, n, 96, 96)),
    "gptq": (GPTQ, Int4Packed, lambda g, n: packers.gptq(g, n, 96, 32)),
    "gptq-act-order": (
        replace(GPTQ, has_group_index=True), Int4Packed, lambda g, n: packers.gptq(g, n, 96, 32, is_shuffled=True),
    ),
    "gptq-8-bits": (replace(GPTQ, bits=8), Int8Packed, lambda g, n: packers.gptq(g, n, 96, 32, bits=8)),
    "packed": (WeightScheme("packed", 4, 1, 32), Int4Packed, lambda g, n: packers.pack_quantized(g, n, 96, 32)),
    "packed-8-bits": (
        WeightScheme("packed", 8, 1, 48), Int8Packed, lambda g, n: packers.pack_quantized(g, n, 96, 48, bits=8),
    ),
    "int8": (INT8, Int8Packed, lambda g, n: packers.int8(g, n, 96, (n, 1))),
    "int8-groups-asymmetric": (
        replace(INT8, scale_columns=48, has_zeros=True),
        Int8Packed,
        lambda g, n: packers.int8(g, n, 96, (n, 2), is_symmetric=False),
    ),
}  # fmt: skip

needs_operator = pytest.mark.skipif(int4_op.layout() is None, reason="torch has no fast 4-bit product on this CPU")


def error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result.float() - expected).norm() / expected.norm())


def segment(tensors: list[CheckpointMatrix], destination: Destination) -> QuantMethod:
    (found,) = segments_from_checkpoint(tensors, destination)
    assert found.num_bytes == segments_bytes(tensors, destination)
    return found


@needs_operator
@pytest.mark.parametrize("name", CASES)
def test_a_checkpoints_codes_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, joined and alone, with few rows and with many; each column meets its own."""
    monkeypatch.setattr(int4_cpu, "PIECE_ELEMENTS", 1)
    scheme, method, make = CASES[name]
    generator = np.random.default_rng(4)
    made = [make(generator, rows) for rows in ((168,) if "act-order" in name else (136, 40))]
    found = segment([opened(one, scheme) for one in made], BFLOAT16)
    values = torch.cat([one.values for one in made])
    assert isinstance(found, method)
    rows = torch.tensor([0, 135, 167, 5])
    assert error(found.embed(rows), values[rows]) < MAX_ERROR
    for num_tokens in (1, int4_cpu.MAX_TOKENS + 1):
        x = torch.randn(num_tokens, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
        assert error(found.linear(x, None), x.float() @ values.T) < MAX_ERROR
    moved = found.map_tensors(torch.clone)
    assert torch.equal(moved.embed(rows), found.embed(rows))


@needs_operator
def test_what_is_expanded_on_a_cpu() -> None:
    for scheme in (WeightScheme("fp8", 8, 1, None), replace(AWQ, scale_columns=16), replace(INT8, scale_columns=8)):
        assert method_of(Matrix(scheme, 64, 96), BFLOAT16) is Dense
    assert method_of(Matrix(AWQ, 64, 80), BFLOAT16) is Dense
    assert method_of(Matrix(AWQ, 64, 96), Destination(CPU, torch.float32)) is Dense


def plain(rows: int) -> CheckpointTensor:
    weight = torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)).bfloat16()
    return CheckpointTensor("w", (rows, 96), GGMLType.BF16, packers.as_bytes(weight))


@pytest.mark.parametrize("weight_dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unquantised_weights_are_rounded_or_packed(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    destination = Destination(CPU, dtype, weight_dtype=weight_dtype)
    tensors: list[CheckpointMatrix] = [plain(40), plain(24)]
    found = segment(tensors, destination)
    codes, scales = quantize_rows(
        torch.cat([rows for tensor in tensors for _, _, rows in tensor.pieces()]), weight_dtype
    )
    values = codes.float() * scales
    if (dtype, weight_dtype) == (torch.bfloat16, torch.int8) and int4_op.layout() is not None:
        assert isinstance(found, Int8Packed)
        assert error(found.embed(torch.arange(64)), values) < MAX_ERROR
    else:
        assert isinstance(found, Rounded)
        assert torch.equal(found.weight, values.to(dtype))
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert error(found.linear(x, None), x.float() @ values.T) < MAX_ERROR


def test_what_is_quantised_already_stays_so() -> None:
    destination = Destination(CPU, torch.float32, weight_dtype=torch.int8)
    assert method_of(Matrix(AWQ, 64, 96), destination) is Dense
    assert method_of(Matrix(GGMLType.Q4_0, 64, 96), destination) is Dense
    assert method_of(Matrix(GGMLType.F16, 64, 96), destination) is Rounded
