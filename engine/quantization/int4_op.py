"""torch's product of bfloat16 rows with 4-bit weights on a CPU, and the layout that its weights have.

    y = x @ W.T, W[n, k] = (code[n, k] - 8) * scale[n, k // 32] + zero[n, k // 32], summed in float32

The operators are private to torch and their layout depends on the processor: `width` rows lie together, and a byte
holds one column of two of them, rows i and i + width / 2 or neighbours. So the layout is found by packing a known
matrix, once a process, and a product is compared with plain arithmetic; where either fails, nothing is packed. With
float32 rows the operator takes a reference path that is 70 times slower, as it does on processors without AVX2: both
are avoided here. Called by `int4_cpu`; the only place that names the operators.

Source: int4mm_kernel.cpp in aten/src/ATen/native/cpu of torch 2.13.
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass

import torch

Tensor = torch.Tensor

GROUP = 32
"""Columns that share a scale and a zero; the operator's smallest."""
ROW_MULTIPLE = 64
"""Rows are padded to this; then every known layout has whole runs of rows only."""


@dataclass(frozen=True)
class Layout:
    """How codes of a matrix lie in memory: uint8 [num_rows / width, num_columns, width / 2]."""

    width: int
    has_neighbours: bool
    """A byte holds rows 2i and 2i + 1, lower nibble first; otherwise rows i and i + width / 2."""

    def pack(self, codes: Tensor) -> Tensor:
        """uint8 [num_rows, num_columns] of 0 to 15 -> packed."""
        runs = codes.view(-1, self.width, codes.shape[1])
        low, high = (runs[:, ::2], runs[:, 1::2]) if self.has_neighbours else runs.chunk(2, dim=1)
        return (low | (high << 4)).transpose(1, 2).contiguous()

    def unpack(self, packed: Tensor) -> Tensor:
        """Packed -> uint8 [num_rows / width, num_columns, width]: a run of rows as columns."""
        halves = packed & 15, packed >> 4
        return torch.stack(halves, dim=-1).flatten(2) if self.has_neighbours else torch.cat(halves, dim=-1)

    def rows(self, packed: Tensor, rows: Tensor) -> Tensor:
        """int64 [n] -> codes of those rows, uint8 [n, num_columns]."""
        run, place = rows // self.width, rows % self.width
        if self.has_neighbours:
            byte, is_high = place // 2, place % 2
        else:
            byte, is_high = place % (self.width // 2), place // (self.width // 2)
        return (packed[run, :, byte] >> (4 * is_high[:, None].to(torch.uint8))) & 15


LAYOUTS = (Layout(64, False), Layout(32, False), Layout(64, True), Layout(32, True), Layout(16, True))
"""AVX-512, AVX2 and others."""


@functools.cache
def layout() -> Layout | None:
    """The layout on this processor; None: the operator is not there, is slow, or computes something else."""
    if platform.machine().lower() in ("x86_64", "amd64") and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        return None
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (ROW_MULTIPLE, 2 * GROUP), generator=generator, dtype=torch.uint8)
    x = torch.randn(3, 2 * GROUP, generator=generator).bfloat16()
    scales_zeros = torch.randn(2, ROW_MULTIPLE, 2, generator=generator).bfloat16()
    try:
        native = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1).flatten()
        found = next((one for one in LAYOUTS if torch.equal(one.pack(codes).flatten(), native)), None)
        if found is None:
            return None
        result = product(x, found.pack(codes), scales_zeros)
    except (AttributeError, RuntimeError):
        return None
    scales, zeros = scales_zeros.float().repeat_interleave(GROUP, dim=0).unbind(-1)  # [num_columns, num_rows]
    expected = x.float() @ ((codes.t().float() - 8) * scales + zeros)
    is_right = torch.allclose(result.float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))
    return found if is_right else None


def product(x: Tensor, packed: Tensor, scales_zeros: Tensor) -> Tensor:
    """
    Args:
        x: bfloat16 [num_tokens, num_columns] without gaps.
        packed: of `Layout.pack`.
        scales_zeros: bfloat16 [num_columns / GROUP, num_rows, 2].

    Returns:
        bfloat16 [num_tokens, num_rows].
    """
    weight = packed.view(scales_zeros.shape[1], -1)
    result: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, GROUP, scales_zeros)
    return result


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without, the library's products are slower than in float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
