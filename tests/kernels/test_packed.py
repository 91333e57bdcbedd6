"""Weights that stay quantised on a GPU: packing them loses nothing, and kernels compute what their twins do."""

from __future__ import annotations

import pytest
import torch

from engine.kernels import reference_packed
from engine.kernels.packed_product import PackedTile, num_splits, packed_product
from engine.kernels.packed_rows import packed_rows, packed_token_rows
from engine.kernels.products import packed_linear
from engine.quantization.gguf_blocks import dequantize
from engine.quantization.packed_format import FORMATS, unit_words
from modelfiles.gguf import BLOCK_LAYOUT, GGMLType
from tests.kernels.packed_weights import packed, random_blocks

TYPES = sorted(FORMATS, key=lambda type: type.name)
SMALL = [type for type in TYPES if BLOCK_LAYOUT[type][0] == 32]
"""Formats whose rows may be shorter than 256 columns."""
MAX_ERROR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 8e-3}
"""Norm of the difference beside the norm of the twin's result."""


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_packing_loses_nothing(type: GGMLType, device: torch.device) -> None:
    torch.manual_seed(0)
    raw = random_blocks(type, 48, 512, device)
    weight = packed(type, raw, 512)
    expected = dequantize(type, raw.view(-1, BLOCK_LAYOUT[type][1])).view(48, 512)
    assert torch.equal(reference_packed.packed_rows(weight, torch.float32), expected)
    assert FORMATS[type].bytes(48, 512) == sum(plane.nbytes for plane in weight.planes.tensors)


@pytest.mark.parametrize("num_columns", [64, 128, 192, 448])
@pytest.mark.parametrize("type", SMALL, ids=lambda type: type.name)
def test_short_rows_have_short_units(type: GGMLType, num_columns: int, device: torch.device) -> None:
    torch.manual_seed(0)
    raw = random_blocks(type, 16, num_columns, device)
    expected = dequantize(type, raw.view(-1, BLOCK_LAYOUT[type][1])).view(16, num_columns)
    weight = packed(type, raw, num_columns)
    assert torch.equal(reference_packed.packed_rows(weight, torch.float32), expected)
    assert error(packed_rows(weight, torch.float32), expected) < MAX_ERROR[torch.float32]
    x = torch.randn(3, num_columns, device=device)
    assert error(packed_product(x, weight), x @ expected.T) < MAX_ERROR[torch.float32]


def test_units_divide_rows() -> None:
    assert [unit_words(columns) for columns in (18944, 896, 2880, 64, 172, 96)] == [64, 32, 16, 16, 0, 0]


@pytest.mark.parametrize("dtype", MAX_ERROR, ids=str)
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_rows(type: GGMLType, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    weight = packed(type, random_blocks(type, 48, 256, device), 256)
    assert error(packed_rows(weight, dtype), reference_packed.packed_rows(weight, dtype)) < MAX_ERROR[dtype]
    rows = torch.tensor([47, 0, 16, 3, 3], device=device)
    expected = reference_packed.packed_rows(weight, dtype, rows)
    assert error(packed_rows(weight, dtype, rows, pdl=True), expected) < MAX_ERROR[dtype]


def test_rows_of_tokens(device: torch.device) -> None:
    torch.manual_seed(0)
    weight = packed(GGMLType.Q4_K, random_blocks(GGMLType.Q4_K, 64, 256, device), 256)
    tokens = torch.randint(0, 64, (4, 40), dtype=torch.int32, device=device)
    rows = torch.tensor([3, -1, 0, 1], dtype=torch.int32, device=device)
    positions = torch.tensor([39, 0, 5, 0], dtype=torch.int32, device=device)
    actual = packed_token_rows(weight, torch.bfloat16, rows, positions, tokens)
    expected = reference_packed.packed_token_rows(weight, torch.bfloat16, rows, positions, tokens)
    used = rows >= 0
    assert error(actual[used], expected[used]) < MAX_ERROR[torch.bfloat16]


@pytest.mark.parametrize("num_tokens", [1, 7, 16, 17, 40])
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_product(type: GGMLType, num_tokens: int, device: torch.device) -> None:
    torch.manual_seed(0)
    weight = packed(type, random_blocks(type, 144, 512, device), 512)
    x = torch.randn(num_tokens, 512, device=device).to(torch.bfloat16)
    bias = torch.randn(144, device=device).to(torch.bfloat16)
    expected = reference_packed.packed_product(x, weight, bias)
    assert error(packed_product(x, weight, bias, pdl=True), expected) < MAX_ERROR[torch.bfloat16]


@pytest.mark.parametrize("dtype", MAX_ERROR, ids=str)
def test_product_of_types(dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    weight = packed(GGMLType.Q5_K, random_blocks(GGMLType.Q5_K, 32, 256, device), 256)
    x = torch.randn(5, 256, device=device).to(dtype)
    assert error(packed_product(x, weight), reference_packed.packed_product(x, weight)) < MAX_ERROR[dtype]


@pytest.mark.parametrize("splits", [1, 2, 4])
def test_pieces_of_rows_add_up(splits: int, device: torch.device) -> None:
    torch.manual_seed(0)
    weight = packed(GGMLType.Q6_K, random_blocks(GGMLType.Q6_K, 48, 1280, device), 1280)
    x = torch.randn(9, 2560, device=device).to(torch.bfloat16)[:, ::2].contiguous()[:, :1280]
    bias = torch.randn(48, device=device).to(torch.bfloat16)
    tile = PackedTile(64, 32, 4, 2)
    out = torch.full((9, 96), float("nan"), dtype=torch.bfloat16, device=device)
    packed_product(x, weight, bias, out=out[:, 16:64], tile=tile, splits=splits)
    assert error(out[:, 16:64], reference_packed.packed_product(x, weight, bias)) < MAX_ERROR[torch.bfloat16]
    assert out[:, :16].isnan().all()
    assert out[:, 64:].isnan().all()


def test_beyond_some_tokens_the_matrix_is_expanded(device: torch.device) -> None:
    torch.manual_seed(0)
    weight = packed(GGMLType.Q4_0, random_blocks(GGMLType.Q4_0, 32, 128, device), 128)
    x = torch.randn(300, 128, device=device).to(torch.bfloat16)
    bias = torch.randn(32, device=device).to(torch.bfloat16)
    out = torch.empty(300, 64, dtype=torch.bfloat16, device=device)
    packed_linear(x, weight, bias, out=out[:, 32:])
    assert error(out[:, 32:], reference_packed.packed_product(x, weight, bias)) < MAX_ERROR[torch.bfloat16]
    assert packed_linear(x[:0], weight).shape == (0, 32)


def test_programs_fill_the_device_once() -> None:
    cases = ((28, 74), (296, 14), (28, 14), (28, 4))  # tiles and steps of the loop
    assert [num_splits(132, tiles, steps, 2) for tiles, steps in cases] == [8, 1, 8, 4]


def test_shapes_that_do_not_fit(device: torch.device) -> None:
    weight = packed(GGMLType.Q4_0, random_blocks(GGMLType.Q4_0, 16, 64, device), 64)
    x = torch.zeros(2, 64, dtype=torch.bfloat16, device=device)
    with pytest.raises(ValueError, match="must have 64 columns"):
        packed_product(x[:, :32], weight)
    with pytest.raises(ValueError, match=r"bias is \(8,\)"):
        packed_product(x, weight, x[0, :8])
    with pytest.raises(ValueError, match=r"must be torch.bfloat16 \(2, 16\)"):
        packed_product(x, weight, out=x)
