"""Weights that stay packed on a CPU: codes of the file, products near those of float32 weights, sizes as planned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.quantization import int4_cpu, int4_op
from engine.quantization.base import Dense, QuantMethod
from engine.quantization.checkpoint import CheckpointTensor, Destination
from engine.quantization.gguf_blocks import LINEAR_TYPES, dequantize, parts
from engine.quantization.int4_cpu import BYTE_TYPES, MAX_TOKENS, NIBBLE_TYPES, Int4Packed, Int8Packed
from engine.quantization.int4_op import LAYOUTS, Layout
from engine.quantization.selection import Matrix, method_of, segments_bytes, segments_from_checkpoint
from modelfiles.gguf import BLOCK_LAYOUT, GGMLType

CPU = torch.device("cpu")
BFLOAT16 = Destination(CPU, torch.bfloat16)
TYPES = sorted(LINEAR_TYPES)
HALVES = {
    GGMLType.Q4_0: (0,), GGMLType.Q4_1: (0, 2), GGMLType.Q5_0: (0,), GGMLType.Q5_1: (0, 2), GGMLType.Q8_0: (0,),
    GGMLType.Q2_K: (80, 82), GGMLType.Q3_K: (108,), GGMLType.Q4_K: (0, 2), GGMLType.Q5_K: (0, 2),
    GGMLType.Q6_K: (208,), GGMLType.IQ4_NL: (0,), GGMLType.IQ4_XS: (0,), GGMLType.TQ1_0: (52,),
    GGMLType.TQ2_0: (64,),
}  # fmt: skip
"""Where blocks have float16 numbers; random ones would be of all sizes, and NaN."""

needs_operator = pytest.mark.skipif(int4_op.layout() is None, reason="torch has no fast 4-bit product on this CPU")


def matrix(type: GGMLType, num_rows: int, num_columns: int, seed: int = 0) -> CheckpointTensor:
    """Random codes, scales of either sign."""
    elements, num_bytes = BLOCK_LAYOUT[type]
    rng = np.random.default_rng([int(type), seed])
    blocks = rng.integers(0, 256, (num_rows * num_columns // elements, num_bytes), dtype=np.uint8)
    for start in HALVES.get(type, ()):
        numbers = rng.uniform(0.001, 0.02, len(blocks)) * rng.choice([-1, 1], len(blocks))
        blocks[:, start : start + 2] = numbers.astype(np.float16).view(np.uint8).reshape(-1, 2)
    if type == GGMLType.Q8_K:
        blocks[:, :4] = rng.uniform(-0.01, 0.01, len(blocks)).astype(np.float32).view(np.uint8).reshape(-1, 4)
    if type == GGMLType.MXFP4:
        blocks[:, 0] = rng.integers(118, 122, len(blocks))
    return CheckpointTensor("w", (num_rows, num_columns), type, memoryview(blocks.tobytes()))


def exact(tensors: Sequence[CheckpointTensor]) -> torch.Tensor:
    return torch.cat([values for tensor in tensors for _, _, values in tensor.pieces()])


def packed(tensors: Sequence[CheckpointTensor]) -> QuantMethod:
    (segment,) = segments_from_checkpoint(tensors, BFLOAT16)
    assert segment.num_bytes == segments_bytes(tensors, BFLOAT16)
    assert (segment.num_rows, segment.num_columns) == (sum(t.num_rows for t in tensors), tensors[0].num_columns)
    return segment


def error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result.float() - expected).norm() / expected.norm())


@needs_operator
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
@pytest.mark.parametrize("num_tokens", [1, 3, MAX_TOKENS, MAX_TOKENS + 1])
def test_products_are_near_those_of_the_float32_weights(type: GGMLType, num_tokens: int) -> None:
    columns = 3 * BLOCK_LAYOUT[type][0]
    tensors = [matrix(type, 37, columns), matrix(type, 94, columns, seed=1)]  # 131 rows: two whole runs and three rows
    segment = packed(tensors)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_tokens, 2 * columns, generator=generator).bfloat16()[:, ::2]  # a view with gaps
    expected = x.float() @ exact(tensors).t()
    result = segment.linear(x, None)
    assert result.dtype == torch.bfloat16
    assert error(result, expected) < 0.006
    bias = torch.randn(131, generator=generator).bfloat16()
    assert error(segment.linear(x, bias), expected + bias.float()) < 0.006
    assert segment.linear(x[None], bias).shape == (1, num_tokens, 131)


@needs_operator
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_the_codes_are_those_of_the_file(type: GGMLType) -> None:
    columns = 2 * max(BLOCK_LAYOUT[type][0], 256)
    tensor = matrix(type, 70, columns)
    taken = parts(type, tensor.raw_rows(0, 70).view(-1, BLOCK_LAYOUT[type][1]))
    segment = packed([tensor])
    assert isinstance(segment, Int4Packed | Int8Packed)
    codes = segment.layout.unpack(segment.packed).transpose(1, 2).flatten(0, 1)[:70].int()
    if isinstance(segment, Int4Packed):
        codes = codes - NIBBLE_TYPES[type]
    else:
        upper, lower = codes.view(70, -1, 2, 16).unbind(2)
        codes = (16 * (upper - 8) + lower).flatten(1) - BYTE_TYPES[type]
    assert torch.equal(codes, taken.codes.view(70, -1).int())


@needs_operator
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_rows_are_looked_up(type: GGMLType) -> None:
    columns = BLOCK_LAYOUT[type][0]
    tensors = [matrix(type, 200, columns)]
    rows = torch.tensor([0, 199, 31, 32, 63, 64, 95, 0, 128])
    result = packed(tensors).embed(rows)
    assert (result.dtype, result.shape) == (torch.bfloat16, (9, columns))
    expected = exact(tensors)[rows]
    assert error(result, expected) < 0.006
    x = torch.eye(columns).bfloat16()[: MAX_TOKENS // 2]
    torch.testing.assert_close(packed(tensors).linear(x, None).t()[rows], result[:, : len(x)], rtol=0.01, atol=0.01)


@needs_operator
def test_rows_in_another_order_than_the_files() -> None:
    plain = matrix(GGMLType.Q4_K, 96, 512)
    order = tuple(range(95, -1, -1))
    turned = CheckpointTensor("w", plain.shape, plain.type, plain.data, order)
    x = torch.randn(2, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(packed([turned]).linear(x, None), packed([plain]).linear(x, None).flip(1))


@needs_operator
def test_long_prompts_without_hardware_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [matrix(GGMLType.Q6_K, 70, 256)]
    segment = packed(tensors)
    x = torch.randn(100, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    monkeypatch.setattr(int4_op, "has_fast_bfloat16", lambda: False)
    assert error(segment.linear(x, None), x.float() @ exact(tensors).t()) < 0.006


class Allocations(TorchDispatchMode):
    """Notes the size of whatever operators make."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.sizes.append(tensor.untyped_storage().nbytes())
        return result


@needs_operator
@pytest.mark.parametrize("type", [GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.Q5_0], ids=lambda type: type.name)
def test_loading_takes_bounded_pieces(type: GGMLType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4_cpu, "PIECE_ELEMENTS", 1 << 15)
    tensors = [matrix(type, 500, 1024), matrix(type, 524, 1024, seed=1)]
    with Allocations() as allocations:
        segment = packed(tensors)
    assert isinstance(segment, Int4Packed | Int8Packed)
    kept = segment.packed.nbytes, segment.scales_zeros.nbytes
    others = [size for size in allocations.sizes if size not in kept]
    # The least that is taken at once is 64 rows; of an element, at most the float32 scale of each group is made.
    assert max(others) <= 64 * 1024 * 2
    assert min(kept) > 64 * 1024 * 2 - 1


@needs_operator
def test_expansion_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4_cpu, "PIECE_ELEMENTS", 64 * 512)
    tensors = [matrix(GGMLType.Q4_0, 300, 512), matrix(GGMLType.Q4_0, 41, 512, seed=1)]
    segment = packed(tensors)
    assert isinstance(segment, Int4Packed)
    sizes = []
    expanded = segment.expanded
    monkeypatch.setattr(segment, "expanded", lambda *runs: sizes.append(expanded(*runs)) or sizes[-1])
    x = torch.randn(100, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert error(segment.linear(x, None), x.float() @ exact(tensors).t()) < 0.006
    assert [weight.numel() for weight in sizes] == [64 * 512] * 6


def test_types_of_a_projection_are_kept_apart_where_they_differ() -> None:
    tensors = [
        matrix(GGMLType.Q4_K, 64, 256), matrix(GGMLType.Q4_K, 64, 256, seed=1), matrix(GGMLType.Q6_K, 64, 256),
    ]  # fmt: skip
    assert [type(s) for s in segments_from_checkpoint(tensors, Destination(CPU, torch.float32))] == [Dense]
    if int4_op.layout() is not None:
        segments = segments_from_checkpoint(tensors, BFLOAT16)
        assert [(type(segment), segment.num_rows) for segment in segments] == [(Int4Packed, 128), (Int8Packed, 64)]


@needs_operator
def test_which_method_keeps_what() -> None:
    assert method_of(Matrix(GGMLType.Q4_K, 8, 256), BFLOAT16) is Int4Packed
    assert method_of(Matrix(GGMLType.Q6_K, 8, 256), BFLOAT16) is Int8Packed
    assert method_of(Matrix(GGMLType.Q4_K, 8, 256), Destination(CPU, torch.float32)) is Dense
    for type in (GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.IQ2_XS, GGMLType.IQ1_S):
        assert method_of(Matrix(type, 8, 256), BFLOAT16) is Dense
    assert set(NIBBLE_TYPES) | set(BYTE_TYPES) == LINEAR_TYPES


def test_without_the_operator_everything_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4_op, "layout", lambda: None)
    assert method_of(Matrix(GGMLType.Q4_K, 8, 256), BFLOAT16) is Dense


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_gives_back_what_it_packed(layout: Layout) -> None:
    codes = torch.randint(0, 16, (128, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    memory = layout.pack(codes)
    assert memory.shape == (128 // layout.width, 32, layout.width // 2)
    assert torch.equal(layout.unpack(memory).transpose(1, 2).reshape(128, 32), codes)
    rows = torch.tensor([127, 0, 33, 33, 16, 15])
    assert torch.equal(layout.rows(memory, rows), codes[rows])


def test_parts_are_what_is_expanded() -> None:
    tensor = matrix(GGMLType.Q5_K, 4, 256)
    raw = tensor.raw_rows(0, 4)
    taken = parts(GGMLType.Q5_K, raw)
    assert taken.codes.dtype == torch.int8
    assert torch.equal(taken.values(), dequantize(GGMLType.Q5_K, raw))
