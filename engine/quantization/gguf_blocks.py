"""Block formats of GGUF tensors, expanded to float32: one vectorised function a format, looked up in `DECODERS`.

A row of a tensor is a run of blocks; each decoder takes blocks as uint8 [num_blocks, bytes_per_block] and returns
float32 [num_blocks, elements_per_block]. Most formats are integer codes with a scale, and perhaps an offset, for each
group of elements; they are taken apart into these `Parts`, which is also what a method starts from that keeps weights
quantised (`LINEAR_TYPES` lists them). Results equal ggml's own scalar code bit for bit, so the order of the
multiplications below matters: `(d * scale) * q - dmin * m`, never regrouped. Called by `checkpoint` while weights load;
nothing here knows of files or of layers. IQ1, IQ2 and IQ3 lie in `gguf_iq_blocks`.

Source: block structs of ggml-common.h and dequantize_row_* of ggml-quants.c (llama.cpp); MXFP4 after the OCP
Microscaling Formats specification 1.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from engine.quantization import gguf_iq_blocks
from modelfiles.gguf import BLOCK_LAYOUT, GGMLType

Tensor = torch.Tensor
Decoder = Callable[[Tensor], Tensor]


class Parts(NamedTuple):
    """Blocks taken apart: an element is scale * code + offset of its group."""

    codes: Tensor
    """int8 [num_blocks, elements_per_block]"""
    scales: Tensor
    """float32 [num_blocks, groups_per_block]; groups are equally long and consecutive."""
    offsets: Tensor | None = None
    """Like `scales`."""

    def values(self) -> Tensor:
        """float32 [num_blocks, elements_per_block]"""
        grouped = self.scales[:, :, None] * self.codes.float().view(*self.scales.shape, -1)
        return (grouped if self.offsets is None else grouped.add_(self.offsets[:, :, None])).flatten(1)


IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def dequantize(type: GGMLType, blocks: Tensor) -> Tensor:
    """Expands blocks of any format of `DECODERS`.

    Args:
        blocks: uint8 [num_blocks, bytes_per_block].

    Returns:
        float32 [num_blocks, elements_per_block].

    Raises:
        ValueError: no decoder for the type, or the blocks have another size.
    """
    decode = DECODERS.get(type)
    if decode is None:
        known = ", ".join(sorted(known.name for known in DECODERS))
        raise ValueError(f"block format {type.name} is not supported; these are: {known}")
    num_bytes = BLOCK_LAYOUT[type][1]
    if blocks.dtype != torch.uint8 or blocks.ndim != 2 or blocks.shape[1] != num_bytes:
        raise ValueError(f"{type.name} blocks are uint8 [n, {num_bytes}], not {blocks.dtype} {list(blocks.shape)}")
    return decode(blocks)


def half(blocks: Tensor, start: int, count: int = 1) -> Tensor:
    """float32 [num_blocks, count] from `count` float16 numbers at byte `start`."""
    return blocks[:, start : start + 2 * count].contiguous().view(torch.float16).float()


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Fields of `bits` bits, lowest first: uint8 [..., width] -> uint8 [..., 8 // bits, width]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-2) >> shifts[:, None]) & ((1 << bits) - 1)


def _fifth_bits(blocks: Tensor, start: int) -> Tensor:
    """uint8 [num_blocks, 32]: bit i of the little-endian word at `start` is element i's fifth bit, moved to 16."""
    per_byte = unpack(blocks[:, start : start + 4, None], 1)  # [n, 4, 8, 1]
    return per_byte.reshape(-1, 32) << 4


def _nibbles(blocks: Tensor, start: int) -> Tensor:
    """uint8 [num_blocks, 32] of 16 bytes: all low nibbles, then all high ones."""
    return unpack(blocks[:, start : start + 16], 4).flatten(1)


def _f32(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float32)


def _f16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float16).float()


def _bf16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.bfloat16).float()


def _q4_0(blocks: Tensor) -> Parts:
    return Parts(_signed(_nibbles(blocks, 2), 8), half(blocks, 0))


def _q4_1(blocks: Tensor) -> Parts:
    return Parts(_signed(_nibbles(blocks, 4)), half(blocks, 0), half(blocks, 2))


def _q5_0(blocks: Tensor) -> Parts:
    return Parts(_signed(_nibbles(blocks, 6) | _fifth_bits(blocks, 2), 16), half(blocks, 0))


def _q5_1(blocks: Tensor) -> Parts:
    return Parts(_signed(_nibbles(blocks, 8) | _fifth_bits(blocks, 4)), half(blocks, 0), half(blocks, 2))


def _q8_0(blocks: Tensor) -> Parts:
    return Parts(_signed(blocks[:, 2:].contiguous()), half(blocks, 0))


def _q8_k(blocks: Tensor) -> Parts:
    # float32 d, 256 int8, 16 int16 sums that serve integer dot products only
    d = blocks[:, :4].contiguous().view(torch.float32)
    return Parts(_signed(blocks[:, 4:260].contiguous()), d)


def _q2_k(blocks: Tensor) -> Parts:
    # 16 bytes scale | min << 4, 64 bytes of 2-bit fields, d, dmin
    d, dmin = half(blocks, 80, 2).chunk(2, dim=1)
    scales = blocks[:, :16]
    q = unpack(blocks[:, 16:80].reshape(-1, 2, 32), 2).flatten(1)  # 32 bytes hold 4 x 32 elements
    return Parts(_signed(q), d * (scales & 15).float(), -(dmin * (scales >> 4).float()))


def _q3_k(blocks: Tensor) -> Parts:
    # 32 bytes of third bits, 64 bytes of 2-bit fields, 12 bytes of 6-bit scales, d
    low = unpack(blocks[:, 96:104], 4).flatten(1)  # [n, 16]: the scales' lower four bits
    high = unpack(blocks[:, 104:108], 2).flatten(1)  # [n, 16]: their upper two
    q = unpack(blocks[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 256)
    third = unpack(blocks[:, :32], 1).reshape(-1, 256) << 2  # a clear bit subtracts 4
    return Parts(_signed(q + third, 4), half(blocks, 108) * ((low | (high << 4)).float() - 32))


def k_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """6-bit scales and minima of Q4_K and Q5_K: uint8 [n, 12] -> float32 [n, 8] twice.

    Bytes 0-3 hold scales 0-3, bytes 4-7 minima 0-3 (lower six bits each); bytes 8-11 the lower nibbles of scales 4-7
    and, above them, of minima 4-7, whose upper two bits are those of bytes 0-3 and 4-7.
    """
    first, second, nibbles = packed.chunk(3, dim=1)
    scales = torch.cat([first & 63, (nibbles & 15) | ((first >> 6) << 4)], dim=1)
    minima = torch.cat([second & 63, (nibbles >> 4) | ((second >> 6) << 4)], dim=1)
    return scales.float(), minima.float()


def _affine_k(blocks: Tensor, q: Tensor) -> Parts:
    """Shared by Q4_K and Q5_K. `q`: uint8 [n, 256]."""
    d, dmin = half(blocks, 0, 2).chunk(2, dim=1)
    scales, minima = k_scales(blocks[:, 4:16])
    return Parts(_signed(q), d * scales, -(dmin * minima))


def _q4_k(blocks: Tensor) -> Parts:
    return _affine_k(blocks, unpack(blocks[:, 16:144].reshape(-1, 4, 32), 4).reshape(-1, 256))


def _q5_k(blocks: Tensor) -> Parts:
    low = unpack(blocks[:, 48:176].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    fifth = unpack(blocks[:, 16:48], 1) << 4  # [n, 8, 32]: bit j of byte i belongs to element i of sub-block j
    return _affine_k(blocks, (low | fifth).flatten(1))


def _q6_k(blocks: Tensor) -> Parts:
    # 128 bytes of lower nibbles, 64 of upper 2-bit fields, 16 int8 scales, d
    low = unpack(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 256)
    high = unpack(blocks[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 256)
    scales = half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return Parts(_signed(low | (high << 4), 32), scales)


def _signed(codes: Tensor, zero: int = 0) -> Tensor:
    """uint8 -> int8, less `zero`."""
    codes = codes.view(torch.int8)
    return codes - zero if zero else codes


def _lookup(values: tuple[int, ...], indices: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int8, device=indices.device)[indices.int()]


def _iq4_nl(blocks: Tensor) -> Parts:
    return Parts(_lookup(IQ4_VALUES, _nibbles(blocks, 2)), half(blocks, 0))


def _iq4_xs(blocks: Tensor) -> Parts:
    # d, 16 bits of upper scale bits, 4 bytes of lower nibbles, 128 bytes of indices
    low = unpack(blocks[:, 4:8, None], 4).reshape(-1, 8)
    high = unpack(blocks[:, 2:4, None], 2).reshape(-1, 8)
    indices = unpack(blocks[:, 8:].reshape(-1, 8, 16), 4).reshape(-1, 256)
    return Parts(_lookup(IQ4_VALUES, indices), half(blocks, 0) * ((low | (high << 4)).float() - 32))


def _trits(packed: Tensor, digits: int) -> Tensor:
    """Base-3 digits, most significant first: uint8 [n, width] -> int8 [n, digits * width] of -1, 0, 1.

    A byte is the fraction b / 256 of a number below one: multiplying by 3**i, dropping what overflows, and taking the
    integer part of three times the rest yields digit i.
    """
    powers = torch.tensor([3**i for i in range(digits)], dtype=torch.int32, device=packed.device)
    rest = (packed.int().unsqueeze(-2) * powers[:, None]) & 255
    return (((rest * 3) >> 8) - 1).to(torch.int8).flatten(1)


def _tq1_0(blocks: Tensor) -> Parts:
    # 32 + 16 bytes of five digits each, 4 bytes of four, d
    trits = torch.cat([_trits(blocks[:, :32], 5), _trits(blocks[:, 32:48], 5), _trits(blocks[:, 48:52], 4)], dim=1)
    return Parts(trits, half(blocks, 52))


def _tq2_0(blocks: Tensor) -> Parts:
    return Parts(_signed(unpack(blocks[:, :64].reshape(-1, 2, 32), 2).reshape(-1, 256), 1), half(blocks, 64))


def _mxfp4(blocks: Tensor) -> Parts:
    exponent = blocks[:, :1].int()
    # The values are doubled, so the scale is 2 ** (exponent - 128); as bits, because exponents 0 and 1 are subnormal.
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    return Parts(_lookup(E2M1_DOUBLED, _nibbles(blocks, 1)), bits.view(torch.float32))


_PARTS: dict[GGMLType, Callable[[Tensor], Parts]] = {
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q4_1: _q4_1,
    GGMLType.Q5_0: _q5_0,
    GGMLType.Q5_1: _q5_1,
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q2_K: _q2_k,
    GGMLType.Q3_K: _q3_k,
    GGMLType.Q4_K: _q4_k,
    GGMLType.Q5_K: _q5_k,
    GGMLType.Q6_K: _q6_k,
    GGMLType.Q8_K: _q8_k,
    GGMLType.IQ4_NL: _iq4_nl,
    GGMLType.IQ4_XS: _iq4_xs,
    GGMLType.TQ1_0: _tq1_0,
    GGMLType.TQ2_0: _tq2_0,
    GGMLType.MXFP4: _mxfp4,
}
LINEAR_TYPES = frozenset(_PARTS)
"""Formats that `parts` takes apart."""


def parts(type: GGMLType, blocks: Tensor) -> Parts:
    """Takes blocks of a format of LINEAR_TYPES apart: uint8 [num_blocks, bytes_per_block]."""
    return _PARTS[type](blocks)


def _values_of(take_apart: Callable[[Tensor], Parts]) -> Decoder:
    return lambda blocks: take_apart(blocks).values()


DECODERS: dict[GGMLType, Decoder] = {
    GGMLType.F32: _f32,
    GGMLType.F16: _f16,
    GGMLType.BF16: _bf16,
    **{type: _values_of(take_apart) for type, take_apart in _PARTS.items()},
    GGMLType.IQ1_S: gguf_iq_blocks.iq1_s,
    GGMLType.IQ1_M: gguf_iq_blocks.iq1_m,
    GGMLType.IQ2_XXS: gguf_iq_blocks.iq2_xxs,
    GGMLType.IQ2_XS: gguf_iq_blocks.iq2_xs,
    GGMLType.IQ2_S: gguf_iq_blocks.iq2_s,
    GGMLType.IQ3_XXS: gguf_iq_blocks.iq3_xxs,
    GGMLType.IQ3_S: gguf_iq_blocks.iq3_s,
}
