"""Quantised matrices written as their formats are described, one code at a time; and the numbers they stand for.

Nothing here is shared with what reads them: words are Python integers, and values are made of the codes before these
are packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from engine.quantization.quantized_tensor import FilePart, QuantizedTensor
from engine.quantization.scheme import WeightScheme

Tensor = torch.Tensor

SAFETENSORS_NAMES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",    torch.int8: "I8", torch.int32: "I32", torch.int64: "I64",
}  # fmt: skip
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass
class Packed:
    """A quantised matrix."""

    parts: dict[str, Tensor]
    """As a file holds it, by the last part of their names."""
    values: Tensor
    """float32 [rows, columns]"""
    group_of_column: list[int] | None = None
    codes: list[list[int]] = field(default_factory=list)


def word(codes: list[int], bits: int) -> int:
    """An int32 that holds codes, the first in its lowest bits."""
    number = 0
    for position, code in enumerate(codes):
        assert 0 <= code < 1 << bits
        number |= code << (bits * position)
    return number - (1 << 32) if number >= 1 << 31 else number


def random_codes(generator: np.random.Generator, rows: int, columns: int, low: int, high: int) -> list[list[int]]:
    return generator.integers(low, high, (rows, columns)).tolist()


def affine(codes: list[list[int]], zeros: list[list[int]], scales: Tensor, group_of_column: list[int]) -> Tensor:
    """(code - zero) * scale in float32: Python's product of two float32 is exact and is rounded once."""
    scale = scales.double().tolist()
    return torch.tensor(
        [
            [
                (code - zeros[row][group]) * scale[row][group]
                for code, group in zip(of_row, group_of_column, strict=True)
            ]
            for row, of_row in enumerate(codes)
        ],
        dtype=torch.float32,
    )


def random_scales(
    generator: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, levels: int = 16
) -> Tensor:
    """Such that weights of a tiny model are of the size of 0.1."""
    return torch.from_numpy(generator.uniform(0.01, 0.05, shape) * 16 / levels).to(dtype)


def awq(generator: np.random.Generator, rows: int, columns: int, group: int) -> Packed:
    groups = columns // group
    codes, zeros = random_codes(generator, rows, columns, 0, 16), random_codes(generator, rows, groups, 3, 13)
    scales = random_scales(generator, (rows, groups), torch.float16)

    def packed(matrix: list[list[int]]) -> Tensor:
        """[rows, n] -> [n, rows / 8]"""
        return torch.tensor(
            [
                [word([matrix[8 * w + AWQ_ORDER[i]][column] for i in range(8)], 4) for w in range(rows // 8)]
                for column in range(len(matrix[0]))
            ],
            dtype=torch.int32,
        )

    parts = {"qweight": packed(codes), "qzeros": packed(zeros), "scales": scales.t().contiguous()}
    return Packed(parts, affine(codes, zeros, scales, [c // group for c in range(columns)]), codes=codes)


def gptq(
    generator: np.random.Generator,
    rows: int,
    columns: int,
    group: int,
    *,
    bits: int = 4,
    offset: int = 1,
    is_symmetric: bool = False,
    is_shuffled: bool = False,
    has_index: bool = True,
) -> Packed:
    groups, n = columns // group, 32 // bits
    codes = random_codes(generator, rows, columns, 0, 1 << bits)
    zeros = random_codes(generator, rows, groups, (offset + (1 << bits)) // 3, (1 << bits) * 2 // 3)
    if is_symmetric:
        zeros = [[1 << (bits - 1)] * groups for _ in range(rows)]
    scales = random_scales(generator, (rows, groups), torch.float16, 1 << bits)
    group_of_column = [c // group for c in range(columns)]
    if is_shuffled:
        group_of_column = [group_of_column[c] for c in generator.permutation(columns)]
    parts = {
        "qweight": torch.tensor(
            [
                [word([codes[row][n * w + i] for i in range(n)], bits) for row in range(rows)]
                for w in range(columns // n)
            ],
            dtype=torch.int32,
        ),
        "qzeros": torch.tensor(
            [
                [word([zeros[n * w + i][g] - offset for i in range(n)], bits) for w in range(rows // n)]
                for g in range(groups)
            ],
            dtype=torch.int32,
        ),
        "scales": scales.t().contiguous(),
    }
    if has_index:
        parts["g_idx"] = torch.tensor(group_of_column, dtype=torch.int32)
    return Packed(parts, affine(codes, zeros, scales, group_of_column), group_of_column if is_shuffled else None, codes)


def pack_quantized(
    generator: np.random.Generator,
    rows: int,
    columns: int,
    group: int,
    *,
    bits: int = 4,
    is_symmetric: bool = True,
    is_shuffled: bool = False,
) -> Packed:
    groups, n, half = -(-columns // group), 32 // bits, 1 << (bits - 1)
    codes = random_codes(generator, rows, columns, -half, half)
    zeros = [[0] * groups] * rows if is_symmetric else random_codes(generator, rows, groups, -half // 2, half // 2)
    scales = random_scales(generator, (rows, groups), torch.bfloat16, 1 << bits)
    group_of_column = [c // group for c in range(columns)]
    if is_shuffled:
        group_of_column = [group_of_column[c] for c in generator.permutation(columns)]

    def unsigned(numbers: list[int]) -> list[int]:
        """Moved by half the range, and filled up with zeros to whole words."""
        return [number + half for number in numbers] + [0] * (-len(numbers) % n)

    def words(numbers: list[int]) -> list[int]:
        filled = unsigned(numbers)
        return [word(filled[start : start + n], bits) for start in range(0, len(filled), n)]

    parts = {
        "weight_packed": torch.tensor([words(row) for row in codes], dtype=torch.int32),
        "weight_scale": scales,
        "weight_shape": torch.tensor([rows, columns]),
    }
    if not is_symmetric:
        by_group = [words([row[g] for row in zeros]) for g in range(groups)]
        parts["weight_zero_point"] = torch.tensor(by_group, dtype=torch.int32).t().contiguous()
    if is_shuffled:
        parts["weight_g_idx"] = torch.tensor(group_of_column, dtype=torch.int32)
    values = affine(codes, zeros, scales, group_of_column)
    return Packed(parts, values, group_of_column if is_shuffled else None, codes)


def int8(
    generator: np.random.Generator, rows: int, columns: int, scale_shape: tuple[int, ...], *, is_symmetric: bool = True
) -> Packed:
    """`scale_shape`: (1,) for one scale, [rows, groups] else."""
    codes = random_codes(generator, rows, columns, -128, 128)
    scales = random_scales(generator, scale_shape, torch.float32 if is_symmetric else torch.float16, 256)
    zeros = torch.from_numpy(generator.integers(-5, 6, scale_shape)).to(torch.int8)
    parts = {"weight": torch.tensor(codes, dtype=torch.int8), "weight_scale": scales}
    if not is_symmetric:
        parts["weight_zero_point"] = zeros
    groups = scale_shape[1] if len(scale_shape) == 2 else 1
    of_row = [[0] * groups] * rows if is_symmetric else zeros.reshape(-1, groups).expand(rows, groups).tolist()
    every = scales.reshape(-1, groups).expand(rows, groups)
    return Packed(parts, affine(codes, of_row, every, [c * groups // columns for c in range(columns)]), codes=codes)


def fp8(
    generator: np.random.Generator,
    rows: int,
    columns: int,
    block: tuple[int, int],
    *,
    suffix: str = "weight_scale",
    scale_shape: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Packed:
    """`scale_shape`: the one in the file, where that is not the blocks' own."""
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    codes = torch.from_numpy(generator.standard_normal((rows, columns))).mul(50).to(torch.float8_e4m3fn)
    scales = random_scales(generator, grid, dtype, 256)
    code, scale = codes.double().tolist(), scales.float().double().tolist()
    values = [
        [code[row][column] * scale[row // block[0]][column // block[1]] for column in range(columns)]
        for row in range(rows)
    ]
    parts = {"weight": codes, suffix: scales if scale_shape is None else scales.reshape(scale_shape)}
    return Packed(parts, torch.tensor(values, dtype=torch.float32))


def as_bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def opened(packed: Packed, scheme: WeightScheme, name: str = "layer") -> QuantizedTensor:
    """The matrix as a checkpoint would give it."""
    rows, columns = packed.values.shape
    parts = {
        suffix: FilePart(f"{name}.{suffix}", SAFETENSORS_NAMES[tensor.dtype], tuple(tensor.shape), as_bytes(tensor))
        for suffix, tensor in packed.parts.items()
    }
    return QuantizedTensor(name, scheme, rows, columns, parts)


def named(parts: Mapping[str, Any], module: str) -> dict[str, Tensor]:
    return {f"{module}.{suffix}": tensor for suffix, tensor in parts.items()}
