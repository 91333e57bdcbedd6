"""Matrices of every packing against packers that write them code by code: the same float32 numbers, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.execution.staging import Staging
from engine.quantization import quantized_tensor, unpack
from engine.quantization.affine import Affine
from engine.quantization.base import Dense
from engine.quantization.checkpoint import Destination
from engine.quantization.quantized_tensor import FilePart, QuantizedTensor, QuantizedTensorError
from engine.quantization.row_types import quantize_rows
from engine.quantization.scheme import WeightScheme, stored_parts
from engine.quantization.selection import segments_from_checkpoint
from tests.engine.quantization import packers
from tests.engine.quantization.packers import Packed, opened

CPU = torch.device("cpu")
Make = Callable[[np.random.Generator], Packed]

AWQ = WeightScheme("awq", 4, 1, 16, has_zeros=True)
GPTQ = WeightScheme("gptq", 4, 1, 16, has_zeros=True, zero_offset=1)
PACKED = WeightScheme("packed", 4, 1, 16)
INT8 = WeightScheme("int8", 8, 1, None)
FP8 = WeightScheme("fp8", 8, None, None)

# Rows and columns are no powers of two, and groups are odd in number: 5 of 16 columns.
CASES: dict[str, tuple[WeightScheme, Make]] = {
    "awq": (AWQ, lambda g: packers.awq(g, 24, 80, 16)),
    "awq-whole-rows": (replace(AWQ, scale_columns=None), lambda g: packers.awq(g, 8, 48, 48)),
    "gptq-asymmetric": (GPTQ, lambda g: packers.gptq(g, 24, 80, 16)),
    "gptq-symmetric": (GPTQ, lambda g: packers.gptq(g, 24, 80, 16, is_symmetric=True)),
    "gptq-without-index": (GPTQ, lambda g: packers.gptq(g, 24, 80, 16, has_index=False)),
    "gptq-act-order": (
        replace(GPTQ, has_group_index=True), lambda g: packers.gptq(g, 24, 80, 16, is_shuffled=True),
    ),
    "gptq-v2": (replace(GPTQ, zero_offset=0), lambda g: packers.gptq(g, 24, 80, 16, offset=0)),
    "gptq-8-bits": (replace(GPTQ, bits=8), lambda g: packers.gptq(g, 20, 80, 16, bits=8)),
    "gptq-8-bits-act-order": (
        replace(GPTQ, bits=8), lambda g: packers.gptq(g, 20, 80, 16, bits=8, is_shuffled=True),
    ),
    "gptq-whole-rows": (replace(GPTQ, scale_columns=None), lambda g: packers.gptq(g, 16, 40, 40)),
    "packed": (PACKED, lambda g: packers.pack_quantized(g, 19, 80, 16)),
    "packed-words-not-full": (replace(PACKED, scale_columns=7), lambda g: packers.pack_quantized(g, 19, 77, 7)),
    "packed-asymmetric": (
        replace(PACKED, has_zeros=True), lambda g: packers.pack_quantized(g, 19, 80, 16, is_symmetric=False),
    ),
    "packed-8-bits-asymmetric": (
        replace(PACKED, bits=8, has_zeros=True),
        lambda g: packers.pack_quantized(g, 19, 80, 16, bits=8, is_symmetric=False),
    ),
    "packed-act-order": (
        replace(PACKED, has_group_index=True), lambda g: packers.pack_quantized(g, 19, 80, 16, is_shuffled=True),
    ),
    "packed-channel-asymmetric": (
        replace(PACKED, scale_columns=None, has_zeros=True),
        lambda g: packers.pack_quantized(g, 19, 50, 50, is_symmetric=False),
    ),
    "packed-channel": (replace(PACKED, scale_columns=None), lambda g: packers.pack_quantized(g, 19, 50, 50)),
    "int8-channel": (INT8, lambda g: packers.int8(g, 19, 50, (19, 1))),
    "int8-tensor": (replace(INT8, scale_rows=None), lambda g: packers.int8(g, 19, 50, (1,))),
    "int8-groups-asymmetric": (
        replace(INT8, scale_columns=10, has_zeros=True),
        lambda g: packers.int8(g, 19, 50, (19, 5), is_symmetric=False),
    ),
    "fp8-tensor": (FP8, lambda g: packers.fp8(g, 19, 50, (19, 50), scale_shape=())),
    "fp8-channel": (FP8, lambda g: packers.fp8(g, 19, 50, (1, 50))),
    "fp8-channel-flat": (replace(FP8, scale_rows=1), lambda g: packers.fp8(g, 19, 50, (1, 50), scale_shape=(19,))),
    "fp8-blocks-over-the-edge": (
        replace(FP8, scale_rows=8, scale_columns=16),
        lambda g: packers.fp8(g, 19, 50, (8, 16), suffix="weight_scale_inv", dtype=torch.bfloat16),
    ),
    "fp8-blocks-with-powers-of-two": (
        replace(FP8, scale_rows=8, scale_columns=16),
        lambda g: packers.fp8(g, 24, 48, (8, 16), suffix="weight_scale_inv", dtype=torch.float8_e8m0fnu),
    ),
    "fp8-blocks": (replace(FP8, scale_rows=8, scale_columns=16), lambda g: packers.fp8(g, 24, 48, (8, 16))),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Packed, QuantizedTensor]:
    scheme, make = CASES[request.param]
    packed = make(np.random.default_rng(3))
    return packed, opened(packed, scheme)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_parts_have_the_shapes_that_the_scheme_asks_for(case: tuple[Packed, QuantizedTensor]) -> None:
    packed, tensor = case
    assert tensor.scheme.misfit(tensor.num_rows, tensor.num_columns) is None
    known = set()
    for part in stored_parts(tensor.scheme, tensor.num_rows, tensor.num_columns):
        there = [suffix for suffix in part.suffixes if suffix in packed.parts]
        assert there or part.is_optional
        for suffix in there:
            assert tuple(packed.parts[suffix].shape) in part.shapes
            assert packers.SAFETENSORS_NAMES[packed.parts[suffix].dtype] in part.types
            known.add(suffix)
    assert known == set(packed.parts)
    tensor.check()


@pytest.mark.parametrize("piece_elements", [1, 500, 1 << 20])
def test_values_are_the_formats_own(
    piece_elements: int, case: tuple[Packed, QuantizedTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, tensor = case
    monkeypatch.setattr(quantized_tensor, "PIECE_ELEMENTS", piece_elements)
    monkeypatch.setattr(quantized_tensor, "ROWS_BY_COLUMNS", 3)  # rows that begin and end within words
    out = torch.full(packed.values.shape, torch.nan)
    tensor.expand_into(out)
    assert_same(out, packed.values)


@pytest.mark.parametrize("staged_elements", [1, 300, 1 << 22])
def test_staged_values_are_the_same(
    staged_elements: int, case: tuple[Packed, QuantizedTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, tensor = case
    monkeypatch.setattr(quantized_tensor, "STAGED_ELEMENTS", staged_elements)
    out = torch.full(packed.values.shape, torch.nan)
    taken: list[Affine] = []
    with Staging(CPU, buffer_bytes=1 << 16, num_buffers=2, num_threads=2) as staging:
        tensor.stage_into(out, staging)
        tensor.stage_affine(staging, taken.append)
    assert_same(out, packed.values)
    (whole,) = taken
    assert_same(whole.values(), packed.values)


def test_the_common_form_of_some_rows(case: tuple[Packed, QuantizedTensor]) -> None:
    packed, tensor = case
    found = tensor.affine_rows(5, 7)
    assert_same(found.values(), packed.values[5:7])
    assert found.scales.shape == (2, tensor.scheme.num_groups(tensor.num_columns))
    assert found.group_size == tensor.scheme.group_size(tensor.num_columns)
    assert found.group_of_column is None or found.group_of_column.tolist() == packed.group_of_column
    if found.zeros is not None:
        codes, columns = found.codes.float(), torch.arange(tensor.num_columns) // found.group_size
        if packed.group_of_column is not None:
            columns = torch.tensor(packed.group_of_column)
        by_minimum = found.scales[:, columns] * codes - found.minimums[:, columns]
        assert_same(by_minimum, packed.values[5:7])


def test_columns_in_the_order_of_their_groups(case: tuple[Packed, QuantizedTensor]) -> None:
    packed, tensor = case
    found = tensor.affine_rows(0, tensor.num_rows)
    if packed.group_of_column is None:
        assert found.by_group() is found
        return
    order = found.column_order
    assert order is not None
    assert [packed.group_of_column[c] for c in order.tolist()] == sorted(packed.group_of_column)
    assert_same(found.by_group().values(), packed.values[:, order])


def test_one_linear_of_several_packings() -> None:
    """As a fused projection: rows below each other, in the computing type, laid out as Dense wants them."""
    cases = {name: CASES[name] for name in ("awq", "gptq-act-order", "packed-asymmetric")}
    made = [(scheme, make(np.random.default_rng(9))) for scheme, make in cases.values()]
    for dtype in (torch.float32, torch.bfloat16):
        segments = segments_from_checkpoint(
            [opened(packed, scheme) for scheme, packed in made], Destination(CPU, dtype)
        )
        found = torch.cat([segment.embed(torch.arange(segment.num_rows)) for segment in segments])
        assert all(type(segment) is Dense for segment in segments)
        assert_same(found, torch.cat([packed.values for _, packed in made]).to(dtype))


@pytest.mark.parametrize(
    ("scheme", "rows", "columns", "expected"),
    [
        (AWQ, 24, 72, "has 72 columns, which groups of 16 do not divide"),
        (AWQ, 20, 80, "has 20 rows, which are no whole number of words of 8 codes"),
        (GPTQ, 20, 80, "has 20 rows, which are no whole number of words of 8 codes"),
        (replace(GPTQ, scale_columns=None), 24, 81, "has 81 columns, which are no whole number of words of 8 codes"),
        (replace(GPTQ, bits=8, scale_columns=3), 22, 81, "has 22 rows, which are no whole number of words of 4 codes"),
        (PACKED, 19, 81, "has 81 columns, which groups of 16 do not divide"),
        (replace(PACKED, scale_columns=27), 19, 81, None),
        (replace(INT8, scale_columns=100), 19, 50, "has 50 columns, which groups of 100 do not divide"),
        (replace(FP8, scale_rows=8, scale_columns=16), 19, 50, None),
    ],
)  # fmt: skip
def test_sizes_that_a_scheme_cannot_hold(scheme: WeightScheme, rows: int, columns: int, expected: str | None) -> None:
    assert scheme.misfit(rows, columns) == expected


# ---- bits


@given(st.lists(st.integers(0, 15), min_size=8, max_size=8), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_every_code_of_a_word_comes_back(codes: list[int], a: int, b: int) -> None:
    words = torch.full((a, b), packers.word(codes, 4), dtype=torch.int32)
    assert unpack.along_second(words, 4).tolist() == [codes * b] * a
    assert unpack.along_first(words, 4).t().tolist() == [codes * a] * b
    assert unpack.gptq(words, 4).tolist() == [codes * a] * b
    shuffled = packers.word([codes[row] for row in packers.AWQ_ORDER], 4)
    assert unpack.awq(torch.full((a, b), shuffled, dtype=torch.int32), 4).t().tolist() == [codes * b] * a


@given(st.lists(st.integers(0, 255), min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_every_byte_of_a_word_comes_back(codes: list[int]) -> None:
    words = torch.tensor([[packers.word(codes, 8)]], dtype=torch.int32)
    assert unpack.along_second(words, 8).tolist() == [codes]
    assert unpack.gptq(words, 8).tolist() == [codes]


def test_a_zero_point_of_gptqs_first_format_wraps_around() -> None:
    packed = packers.gptq(np.random.default_rng(0), 8, 16, 16)
    packed.parts["qzeros"] = torch.full_like(packed.parts["qzeros"], -1)  # 15 in every place
    zeros = opened(packed, GPTQ).affine_rows(0, 8).zeros
    assert zeros is not None
    assert zeros.tolist() == [[0.0]] * 8


# ---- values that cannot be


def damaged(case: str, suffix: str, value: torch.Tensor) -> QuantizedTensor:
    scheme, make = CASES[case]
    packed = make(np.random.default_rng(1))
    packed.parts[suffix] = value
    return opened(packed, scheme, "model.layers.3.mlp.up_proj")


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("awq", "scales"),
        ("gptq-act-order", "scales"),
        ("packed", "weight_scale"),
        ("int8-channel", "weight_scale"),
        ("fp8-tensor", "weight_scale"),
        ("fp8-blocks-over-the-edge", "weight_scale_inv"),
    ],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_scale_that_is_no_number(name: str, suffix: str, bad: float) -> None:
    scales = CASES[name][1](np.random.default_rng(1)).parts[suffix].clone()
    scales.view(-1)[-1] = bad
    expected = rf'^1 of the {scales.numel()} scales in the tensor "model\.layers\.3\.mlp\.up_proj\.{suffix}" are NaN'
    with pytest.raises(QuantizedTensorError, match=expected):
        damaged(name, suffix, scales).check()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda index: index.index_fill(0, torch.tensor([7]), 5), r"puts columns into the groups 0 to 5; there are 5"),
        (lambda index: index.index_fill(0, torch.tensor([7]), -1), r"puts columns into the groups -1 to 4"),
        (lambda index: torch.zeros_like(index), r"puts 80 columns into the group 0; a group has 16"),
    ],
    ids=["beyond", "negative", "uneven"],
)
def test_a_column_of_no_group(change: Callable[[torch.Tensor], torch.Tensor], expected: str) -> None:
    index = torch.arange(80, dtype=torch.int32) // 16
    for name, suffix in (("gptq-act-order", "g_idx"), ("packed-act-order", "weight_g_idx")):
        with pytest.raises(QuantizedTensorError, match=rf'"model\.layers\.3\.mlp\.up_proj\.{suffix}" {expected}'):
            damaged(name, suffix, change(index)).check()


def test_a_shape_that_lies() -> None:
    with pytest.raises(QuantizedTensorError, match=r'weight_shape" says \[80, 19\]; .* asks for \[19, 80\]'):
        damaged("packed", "weight_shape", torch.tensor([80, 19])).check()


def test_a_scale_of_zero_is_a_row_of_zeros() -> None:
    tensor = damaged("awq", "scales", torch.zeros(5, 24, dtype=torch.float16))
    tensor.check()
    assert not tensor.affine_rows(0, 24).values().any()


def test_parts_may_lie_at_odd_bytes() -> None:
    packed = packers.gptq(np.random.default_rng(0), 8, 16, 16)
    tensor = opened(packed, GPTQ)
    moved = {
        suffix: replace(part, data=memoryview(b"?" + bytes(part.data))[1:]) for suffix, part in tensor.parts.items()
    }
    shifted = replace(tensor, parts=moved)
    assert_same(shifted.affine_rows(0, 8).values(), packed.values)
    out = torch.empty(8, 16)
    with Staging(CPU, buffer_bytes=1 << 16, num_buffers=2, num_threads=1) as staging:
        shifted.stage_into(out, staging)
    assert_same(out, packed.values)


def test_parts_are_read_where_they_lie() -> None:
    part = FilePart("t", "BF16", (2, 3), packers.as_bytes(torch.arange(6).to(torch.bfloat16)))
    assert part.tensor(slice(1, 2), slice(0, 2)).tolist() == [[3.0, 4.0]]


# ---- FP8 made on load


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fp8_of_a_row_spans_the_whole_range(dtype: torch.dtype) -> None:
    weight = torch.randn(7, 65, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[2] = 0
    weight[3] *= 1e-3
    codes, scales = quantize_rows(weight, torch.float8_e4m3fn)
    assert (codes.dtype, scales.dtype, scales.shape) == (torch.float8_e4m3fn, torch.float32, (7, 1))
    assert codes.float().abs().amax(1).tolist() == [448.0, 448.0, 0.0, 448.0, 448.0, 448.0, 448.0]
    # Three bits of mantissa: half a step is 1/16 of a number, and 2**-10 codes below the least normal one.
    error = (codes.float() * scales - weight.float()).abs()
    assert bool((error <= weight.float().abs() / 16 + scales * 2**-10).all())
    assert scales[2].item() == 1.0


def test_fp8_of_numbers_that_hardly_are() -> None:
    codes, scales = quantize_rows(torch.full((1, 4), 1e-42), torch.float8_e4m3fn)
    assert bool(torch.isfinite(scales).all())
    assert bool(torch.isfinite(codes.float()).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fp8_of_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite cannot be quantised to FP8"):
        quantize_rows(torch.tensor([[1.0, bad]]), torch.float8_e4m3fn)
