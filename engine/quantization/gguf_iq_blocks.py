"""The IQ1, IQ2 and IQ3 block formats of GGUF, expanded to float32: indices into point sets, signs and scales.

All have 256 elements a block. A group of 8 (or 4) elements is a point of a grid (`iq_grids`), its signs come as bits,
and each 16 or 32 elements share a small odd or half-integer scale. Called through `gguf_blocks.DECODERS`.

Source: block structs of ggml-common.h and dequantize_row_iq* of ggml-quants.c (llama.cpp).
"""

from __future__ import annotations

import torch

from engine.quantization.iq_grids import grid_points

Tensor = torch.Tensor

IQ1_DELTA = 0.125


def _half(blocks: Tensor, start: int) -> Tensor:
    """float32 [n, 1] from a float16 number at byte `start`."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _words(blocks: Tensor, start: int, stop: int, size: int) -> Tensor:
    """int64 [n, (stop - start) // size]: little-endian unsigned words of `size` bytes."""
    parts = blocks[:, start:stop].reshape(len(blocks), -1, size).long()
    return (parts << torch.arange(0, 8 * size, 8, device=blocks.device)).sum(-1)


def _fields(words: Tensor, shifts: tuple[int, ...], mask: int) -> Tensor:
    """[n, w] -> [n, w * len(shifts)]: one field a shift out of each word."""
    return ((words[:, :, None] >> torch.tensor(shifts, device=words.device)) & mask).flatten(1)


def _points(grid: str, indices: Tensor) -> Tensor:
    """float32 [n, num_indices * dimensions]."""
    return grid_points(grid).to(indices.device)[indices].flatten(1)


def _signs(bits: Tensor) -> Tensor:
    """int64 [n, bytes] -> float32 [n, bytes * 8] of 1 and -1; a set bit is negative, the lowest comes first."""
    return 1.0 - 2.0 * _fields(bits, tuple(range(8)), 1).float()


def _even_signs(indices: Tensor) -> Tensor:
    """As `_signs`, of 7-bit numbers whose eighth bit makes the number of set bits even."""
    parity = indices ^ (indices >> 4)
    parity = parity ^ (parity >> 2)
    parity = (parity ^ (parity >> 1)) & 1
    return _signs(indices | (parity << 7))


def _scaled(scale: Tensor, values: Tensor) -> Tensor:
    """scale [n, k] spread over 256 / k elements each; values [n, 256]."""
    return (scale[:, :, None] * values.view(*scale.shape, -1)).flatten(1)


def _half_steps(blocks: Tensor, start: int, stop: int, d: Tensor, factor: float) -> Tensor:
    """d * (0.5 + nibble) * factor for two nibbles a byte: [n, 2 * (stop - start)]."""
    nibbles = _fields(blocks[:, start:stop].long(), (0, 4), 15)
    return d * (0.5 + nibbles.float()) * factor


def iq2_xxs(blocks: Tensor) -> Tensor:
    # d; 8 times: four byte indices, then four 7-bit sign indices under a 4-bit scale
    indices = blocks[:, 2:66].reshape(-1, 8, 8)[:, :, :4].flatten(1).long()  # [n, 32]
    words = _words(blocks, 2, 66, 4)[:, 1::2]  # [n, 8]
    scale = _half(blocks, 0) * (0.5 + (words >> 28).float()) * 0.25
    signs = _even_signs(_fields(words, (0, 7, 14, 21), 127))
    return _scaled(scale, _points("IQ2_XXS", indices)) * signs


def iq2_xs(blocks: Tensor) -> Tensor:
    # d; 32 words of 9 index bits and 7 sign bits; 8 bytes of two scales
    words = _words(blocks, 2, 66, 2)
    scale = _half_steps(blocks, 66, 74, _half(blocks, 0), 0.25)
    return _scaled(scale, _points("IQ2_XS", words & 511)) * _even_signs(words >> 9)


def iq2_s(blocks: Tensor) -> Tensor:
    # d; 32 bytes of indices; 32 of signs; 8 of upper index bits; 8 of two scales
    high = _fields(blocks[:, 66:74].long(), (0, 2, 4, 6), 3)
    indices = blocks[:, 2:34].long() | (high << 8)
    scale = _half_steps(blocks, 74, 82, _half(blocks, 0), 0.25)
    return _scaled(scale, _points("IQ2_S", indices)) * _signs(blocks[:, 34:66].long())


def iq3_xxs(blocks: Tensor) -> Tensor:
    # d; 64 bytes of indices; 8 words of four 7-bit sign indices under a 4-bit scale
    words = _words(blocks, 66, 98, 4)
    scale = _half(blocks, 0) * (0.5 + (words >> 28).float()) * 0.5
    signs = _even_signs(_fields(words, (0, 7, 14, 21), 127))
    return _scaled(scale, _points("IQ3_XXS", blocks[:, 2:66].long())) * signs


def iq3_s(blocks: Tensor) -> Tensor:
    # d; 64 bytes of indices; 8 of ninth index bits; 32 of signs; 4 of two scales
    ninth = _fields(blocks[:, 66:74].long(), tuple(range(8)), 1)
    indices = blocks[:, 2:66].long() | (ninth << 8)
    scale = _half(blocks, 0) * (1 + 2 * _fields(blocks[:, 106:110].long(), (0, 4), 15)).float()
    return _scaled(scale, _points("IQ3_S", indices)) * _signs(blocks[:, 74:106].long())


def _iq1(scale: Tensor, delta_signs: Tensor, indices: Tensor) -> Tensor:
    """scale [n, k]; delta_signs [n, j] bits, one a shared shift of +-1/8; indices [n, 32]."""
    delta = IQ1_DELTA * (1.0 - 2.0 * delta_signs.float())
    points = _points("IQ1", indices).view(*delta.shape, -1)
    return _scaled(scale, (points + delta[:, :, None]).flatten(1))


def iq1_s(blocks: Tensor) -> Tensor:
    # d; 32 bytes of indices; 8 words: four times 3 upper index bits, a 3-bit scale, the sign of the shift
    words = _words(blocks, 34, 50, 2)
    indices = blocks[:, 2:34].long() | (_fields(words, (0, 3, 6, 9), 7) << 8)
    scale = _half(blocks, 0) * (2 * ((words >> 12) & 7) + 1).float()
    return _iq1(scale, words >> 15, indices)


def iq1_m(blocks: Tensor) -> Tensor:
    # 32 bytes of indices; 16 of (3 upper index bits, sign of the shift) twice; 4 words of four 3-bit scales, whose
    # upper nibbles together are the float16 d, lowest first
    words = _words(blocks, 48, 56, 2)
    bits = ((words >> 12) << torch.tensor([0, 4, 8, 12], device=words.device)).sum(1, keepdim=True)
    d = bits.to(torch.int32).to(torch.int16).view(torch.float16).float()
    high = blocks[:, 32:48].long()
    indices = blocks[:, :32].long() | (_fields(high, (0, 4), 7) << 8)
    scale = d * (2 * _fields(words, (0, 3, 6, 9), 7) + 1).float()
    return _iq1(scale, _fields(high, (3, 7), 1), indices)
