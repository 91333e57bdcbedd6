"""Quantised safetensors that stay so on a GPU: planes hold their numbers, and kernels compute what the twins do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.kernels import reference_packed
from engine.kernels.packed_product import PackedTile, packed_product
from engine.kernels.packed_rows import packed_rows
from engine.kernels.products import packed_linear
from engine.quantization import packed_scheme
from engine.quantization.affine import Affine
from engine.quantization.packed_format import Code, PackedFormat, Scale
from engine.quantization.packed_scheme import ROW_FORMATS, scheme_format
from engine.quantization.row_types import quantize_rows
from engine.quantization.scheme import WeightScheme
from tests.kernels.packed_weights import packed_affine, random_affine
from tests.kernels.test_packed import MAX_ERROR, error

AWQ = WeightScheme("awq", 4, 1, 128, has_zeros=True)
FP8_BLOCKS = WeightScheme("fp8", 8, 128, 128)
SCHEMES = {
    "awq": AWQ,
    "gptq-groups-of-32": WeightScheme("gptq", 4, 1, 32, has_zeros=True, zero_offset=1),
    "gptq-8-bits": WeightScheme("gptq", 8, 1, 64, has_zeros=True),
    "gptq-whole-rows": WeightScheme("gptq", 4, 1, None, has_zeros=True),
    "packed-4-bits": WeightScheme("packed", 4, 1, 128),
    "packed-4-bits-rows": WeightScheme("packed", 4, 1, None),
    "packed-8-bits": WeightScheme("packed", 8, 1, 32),
    "int8": WeightScheme("int8", 8, 1, None),
    "int8-tensor": WeightScheme("int8", 8, None, None),
    "int8-groups-with-zeros": WeightScheme("int8", 8, 1, 128, has_zeros=True),
    "fp8": WeightScheme("fp8", 8, 1, None),
    "fp8-groups": WeightScheme("fp8", 8, 1, 64),
    "fp8-blocks": FP8_BLOCKS,
    "fp8-blocks-of-few-rows": WeightScheme("fp8", 8, 8, 64),
}
NAMES = pytest.mark.parametrize("name", SCHEMES)


@NAMES
def test_packing_loses_nothing(name: str, device: torch.device) -> None:
    torch.manual_seed(0)
    rows = random_affine(SCHEMES[name], 48, 512, device)
    weight = packed_affine(SCHEMES[name], rows)
    assert torch.equal(reference_packed.packed_rows(weight, torch.float32), rows.values())
    assert weight.format.bytes(48, 512) == sum(plane.nbytes for plane in weight.planes.tensors)


@NAMES
def test_rows(name: str, device: torch.device) -> None:
    torch.manual_seed(0)
    weight = packed_affine(SCHEMES[name], random_affine(SCHEMES[name], 48, 256, device))
    chosen = torch.tensor([47, 0, 16, 3, 3], device=device)
    for dtype, limit in MAX_ERROR.items():
        assert error(packed_rows(weight, dtype), reference_packed.packed_rows(weight, dtype)) < limit
        expected = reference_packed.packed_rows(weight, dtype, chosen)
        assert error(packed_rows(weight, dtype, chosen, pdl=True), expected) < limit


@pytest.mark.parametrize(
    ("num_tokens", "num_rows", "dtype"), [(1, 16, torch.float32), (20, 48, torch.bfloat16)], ids=str
)
@NAMES
def test_product(name: str, num_tokens: int, num_rows: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    weight = packed_affine(SCHEMES[name], random_affine(SCHEMES[name], num_rows, 512, device))
    bias, x = torch.randn(num_rows, device=device).to(dtype), torch.randn(num_tokens, 512, device=device).to(dtype)
    expected = reference_packed.packed_product(x, weight, bias)
    assert error(packed_product(x, weight, bias, pdl=True), expected) < MAX_ERROR[dtype]


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("name", ["awq", "gptq-8-bits", "fp8", "fp8-blocks"])
def test_tiles_and_pieces_of_rows(name: str, splits: int, device: torch.device) -> None:
    """Tiles of half a unit, and rows whose pieces are added: each gets its row's scale once."""
    torch.manual_seed(0)
    weight = packed_affine(SCHEMES[name], random_affine(SCHEMES[name], 48, 1280, device))
    x, bias = torch.randn(9, 1280, device=device).bfloat16(), torch.randn(48, device=device).bfloat16()
    actual = packed_product(x, weight, bias, tile=PackedTile(32, 32, 4, 2), splits=splits)
    assert error(actual, reference_packed.packed_product(x, weight, bias)) < MAX_ERROR[torch.bfloat16]


@pytest.mark.parametrize("num_columns", [64, 192, 448])
@pytest.mark.parametrize("name", ["gptq-groups-of-32", "int8", "fp8-groups", "fp8-blocks"])
def test_short_rows(name: str, num_columns: int, device: torch.device) -> None:
    """Units of few columns; and blocks that reach over the edge of the matrix, rows and columns."""
    torch.manual_seed(0)
    rows = random_affine(SCHEMES[name], 32, num_columns, device)
    weight = packed_affine(SCHEMES[name], rows)
    assert torch.equal(reference_packed.packed_rows(weight, torch.float32), rows.values())
    assert error(packed_rows(weight, torch.float32), rows.values()) < MAX_ERROR[torch.float32]
    x = torch.randn(3, num_columns, device=device)
    assert error(packed_product(x, weight), x @ rows.values().T) < MAX_ERROR[torch.float32]


@pytest.mark.parametrize("num_tokens", [3, 300])
def test_columns_in_the_order_of_their_groups(num_tokens: int, device: torch.device) -> None:
    torch.manual_seed(0)
    rows = random_affine(AWQ, 32, 256, device)
    shuffled = replace(rows, group_of_column=torch.randperm(256, device=device) // 128)
    weight = packed_affine(AWQ, shuffled)
    x = torch.randn(num_tokens, 256, device=device)
    assert error(packed_linear(x, weight), x @ shuffled.values().T) < MAX_ERROR[torch.float32]
    assert error(reference_packed.packed_product(x, weight), x @ shuffled.values().T) < MAX_ERROR[torch.float32]


def test_fp8_has_every_number(device: torch.device) -> None:
    codes = torch.arange(256, device=device).to(torch.uint8)
    codes = torch.where((codes & 127) == 127, 0, codes).view(torch.float8_e4m3fn).expand(16, 256)
    weight = packed_affine(SCHEMES["fp8"], Affine(codes, torch.ones(16, 1, device=device), None, 256))
    for dtype in MAX_ERROR:
        assert torch.equal(packed_rows(weight, dtype).float(), codes.float())


@pytest.mark.parametrize(("scale_rows", "last"), [(1, 3), (128, 16)])
def test_fp8_that_is_no_number_stays_so(scale_rows: int, last: int, device: torch.device) -> None:
    """All of its row, or of the rows that have a scale together."""
    torch.manual_seed(0)
    scheme = replace(FP8_BLOCKS, scale_rows=scale_rows)
    rows = random_affine(scheme, 32, 128, device)
    rows.codes[2, 5] = float("nan")
    values = packed_rows(packed_affine(scheme, rows), torch.float32)
    first = 2 if scale_rows == 1 else 0
    assert values[first:last].isnan().all()
    assert torch.equal(values[last:], rows.values()[last:])


def test_a_zero_point_lies_in_a_scales_last_bits(device: torch.device) -> None:
    """Scales of float32 are rounded to what is left, to the nearest."""
    torch.manual_seed(0)
    rows = random_affine(SCHEMES["int8-groups-with-zeros"], 16, 512, device)
    rows = replace(rows, scales=torch.rand_like(rows.scales) + 1)
    values = reference_packed.packed_rows(packed_affine(SCHEMES["int8-groups-with-zeros"], rows), torch.float32)
    assert not torch.equal(values, rows.values())
    torch.testing.assert_close(values, rows.values(), rtol=2**-16, atol=0)


@pytest.mark.parametrize("dtype", ROW_FORMATS, ids=str)
def test_rows_that_are_quantised_here(dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    codes, scales = quantize_rows(torch.randn(16, 256, device=device), dtype)
    weight = packed_affine(SCHEMES["fp8" if dtype.is_floating_point else "int8"], Affine(codes, scales, None, 256))
    assert weight.format == ROW_FORMATS[dtype]
    assert torch.equal(reference_packed.packed_rows(weight, torch.float32), codes.float() * scales)


def test_which_format_a_scheme_becomes() -> None:
    assert scheme_format(AWQ, 512) == PackedFormat(Code.NIBBLE, 0, Scale.FLOAT_ZERO, 128)
    assert scheme_format(SCHEMES["gptq-whole-rows"], 512) == PackedFormat(Code.NIBBLE, 0, Scale.FLOAT_ZERO, 512)
    assert scheme_format(SCHEMES["packed-8-bits"], 512) == PackedFormat(Code.BYTE, 128, Scale.FLOAT, 32)
    assert scheme_format(SCHEMES["fp8-blocks"], 512) == PackedFormat(Code.FP8, 0, Scale.BLOCK, 128)
    assert scheme_format(SCHEMES["fp8-blocks-of-few-rows"], 512) == PackedFormat(Code.FP8, 0, Scale.FLOAT, 64)
    assert scheme_format(SCHEMES["int8-tensor"], 512) == PackedFormat(Code.BYTE, 128, Scale.ROW, 0)


@pytest.mark.parametrize(
    ("scheme", "rows", "columns", "expected"),
    [
        (AWQ, 24, 512, "rows are no multiple of 16"),
        (AWQ, 32, 160, "columns are no multiple of 64"),
        (replace(AWQ, scale_columns=48), 32, 768, "groups of 48 columns do not fit pieces of 64"),
        (replace(AWQ, scale_columns=48), 32, 192, None),  # whose pieces are of 16
        (replace(AWQ, scale_columns=192), 32, 768, None),
        (FP8_BLOCKS, 32, 320, None),
    ],
)
def test_what_does_not_fit(scheme: WeightScheme, rows: int, columns: int, expected: str | None) -> None:
    found = packed_scheme.misfit(scheme_format(scheme, columns), rows, columns)
    assert (found is None) if expected is None else (found is not None and found.endswith(expected))
