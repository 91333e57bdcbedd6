"""The K-quants: float32 [num_blocks, 256] -> blocks of two levels, whose groups' scales are quantised, too.

Groups of 16 or 32 get a scale each by `scale_search`; the block keeps them in 4, 6 or 8 bits beside one float16 (or
two, where groups have a minimum). Whatever is chosen is chosen by what will be read back before it: scales by the
float16, levels by the scales. The layouts are described where they are read, in `gguf_blocks`. Called by
`gguf_encoders`.

Source: quantize_row_q*_K_ref of ggml-quants.c (llama.cpp), which chooses the scales by the factor before it is rounded.
"""

from __future__ import annotations

import torch

from engine.quantization.scale_search import TINY, affine_search, signed_extreme, symmetric_search

Tensor = torch.Tensor

BLOCK = 256


def q2_k(x: Tensor) -> Tensor:
    groups = x.view(-1, 16)
    scale, minimum = affine_search(groups, groups.abs(), 3, -0.5, 15, by_absolute_error=True)
    d, scales = _shared(scale.view(-1, 16), 15)
    dmin, minima = _shared(minimum.view(-1, 16), 15)
    levels = _affine_levels(x.view(-1, 16, 16), d * scales, dmin * minima, 3)
    packed = scales.to(torch.uint8) | (minima.to(torch.uint8) << 4)
    return torch.cat([packed, _fields(levels.view(-1, 2, 4, 32), 2), _half(d), _half(dmin)], dim=1)


def q3_k(x: Tensor) -> Tensor:
    scale = _refined_scale(x.view(-1, 16)).view(-1, 16)
    d, scales = _shared_signed(scale, 32)
    levels = _symmetric_levels(x.view(-1, 16, 16), d * scales, 4).view(-1, BLOCK)
    stored = (scales + 32).to(torch.uint8)  # [n, 16] of 6 bits
    low, high = stored & 15, stored >> 4
    packed = torch.cat([low[:, :8] | (low[:, 8:] << 4), _fields(high.view(-1, 1, 4, 4), 2)], dim=1)
    third = _fields((levels >> 2).view(-1, 1, 8, 32), 1)
    return torch.cat([third, _fields((levels & 3).view(-1, 2, 4, 32), 2), packed, _half(d)], dim=1)


def q4_k(x: Tensor) -> Tensor:
    head, levels = _six_bit_groups(x, 15, -1.0, 20)
    return torch.cat([head, _fields(levels.view(-1, 4, 2, 32), 4)], dim=1)


def q5_k(x: Tensor) -> Tensor:
    head, levels = _six_bit_groups(x, 31, -0.5, 15)
    fifth = _fields((levels >> 4).view(-1, 1, 8, 32), 1)
    return torch.cat([head, fifth, _fields((levels & 15).view(-1, 4, 2, 32), 4)], dim=1)


def q6_k(x: Tensor) -> Tensor:
    scale = symmetric_search(x.view(-1, 16), 32).view(-1, 16)
    d, scales = _shared_signed(scale, 128)
    levels = _symmetric_levels(x.view(-1, 16, 16), d * scales, 32).view(-1, BLOCK)
    low = _fields((levels & 15).view(-1, 2, 2, 64), 4)
    high = _fields((levels >> 4).view(-1, 2, 4, 32), 2)
    return torch.cat([low, high, scales.to(torch.int8).view(torch.uint8), _half(d)], dim=1)


def _six_bit_groups(x: Tensor, max_level: int, first: float, num_steps: int) -> tuple[Tensor, Tensor]:
    """Shared by Q4_K and Q5_K: the 16 bytes before the levels, and the levels, uint8 [n, 256]."""
    groups = x.view(-1, 32)
    # Large weights count more, but none counts for nothing.
    weights = groups.abs() + groups.square().mean(1, keepdim=True).sqrt_()
    scale, minimum = affine_search(groups, weights, max_level, first, num_steps)
    d, scales = _shared(scale.view(-1, 8), 63)
    dmin, minima = _shared(minimum.view(-1, 8), 63)
    levels = _affine_levels(x.view(-1, 8, 32), d * scales, dmin * minima, max_level)
    packed = _packed_six_bits(scales.to(torch.uint8), minima.to(torch.uint8))
    return torch.cat([_half(d), _half(dmin), packed], dim=1), levels.view(-1, BLOCK)


def _packed_six_bits(scales: Tensor, minima: Tensor) -> Tensor:
    """uint8 [n, 8] twice, of six bits -> [n, 12], as `gguf_blocks` takes them apart."""
    upper_scales, upper_minima = scales[:, 4:], minima[:, 4:]
    return torch.cat(
        [
            scales[:, :4] | ((upper_scales >> 4) << 6),
            minima[:, :4] | ((upper_minima >> 4) << 6),
            (upper_scales & 15) | ((upper_minima & 15) << 4),
        ],
        dim=1,
    )


def _shared(values: Tensor, max_level: int) -> tuple[Tensor, Tensor]:
    """Values from 0 up [n, groups] -> the factor as it will be read back [n, 1], and levels 0 to max_level."""
    factor = _as_stored(values.amax(1, keepdim=True) / max_level)
    return factor, (values * torch.where(factor > 0, 1 / factor, 0)).round_().clamp_(max=max_level)


def _shared_signed(values: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """As `_shared`, with levels -half to half - 1; the value of the largest magnitude gets -half."""
    extreme = signed_extreme(values)
    is_zero = extreme.abs() < TINY
    factor = _as_stored(torch.where(is_zero, 0, extreme / -half))
    return factor, (values * torch.where(factor == 0, 0, 1 / factor)).round_().clamp_(-half, half - 1)


def _as_stored(values: Tensor) -> Tensor:
    """float16 rounds small factors coarsely: one of 1e-5, common in Q6_K, by 0.3 %. So levels are chosen by it."""
    return values.half().float()


def _affine_levels(x: Tensor, scale: Tensor, minimum: Tensor, max_level: int) -> Tensor:
    """x [n, groups, size], scale and minimum [n, groups] -> uint8 of x's shape; 0 where the scale is 0."""
    inverse = torch.where(scale > 0, 1 / scale, 0)[:, :, None]
    return (x + minimum[:, :, None]).mul_(inverse).round_().clamp_(0, max_level).to(torch.uint8)


def _symmetric_levels(x: Tensor, scale: Tensor, half: int) -> Tensor:
    """x [n, groups, size], scale [n, groups] -> uint8 of x's shape, `half` standing for zero."""
    inverse = torch.where(scale == 0, 0, 1 / scale)[:, :, None]
    return (x * inverse).round_().clamp_(-half, half - 1).add_(half).to(torch.uint8)


def _refined_scale(x: Tensor) -> Tensor:
    """Scale of groups [n, 16] for the eight levels -4 to 3: least squares, one element's level improved after another.

    An element is given the level that is best while the others keep theirs, up to five times round.
    """
    extreme = signed_extreme(x)
    is_zero = extreme.abs() < TINY
    inverse = torch.where(is_zero, 0, -4 / extreme)
    weights = x * x
    level = (x * inverse).round_().clamp_(-4, 3)
    sum_lx = (weights * x * level).sum(1)
    sum_ll = (weights * level * level).sum(1)
    for _ in range(5):
        is_changed = torch.zeros_like(sum_lx, dtype=torch.bool)
        for column in range(x.shape[1]):
            w, value, old = weights[:, column], x[:, column], level[:, column]
            rest_lx = sum_lx - w * value * old
            rest_ll = sum_ll - w * old * old
            is_open = rest_lx > 0
            new = (value * rest_ll / torch.where(is_open, rest_lx, 1)).round_().clamp_(-4, 3)
            new_lx, new_ll = rest_lx + w * value * new, rest_ll + w * new * new
            is_better = is_open & (new != old) & (new_ll > 0) & (new_lx * new_lx * sum_ll > sum_lx * sum_lx * new_ll)
            level[:, column] = torch.where(is_better, new, old)
            sum_lx = torch.where(is_better, new_lx, sum_lx)
            sum_ll = torch.where(is_better, new_ll, sum_ll)
            is_changed |= is_better
        if not is_changed.any():
            break
    return torch.where(is_zero[:, 0] | (sum_ll == 0), 0, sum_lx / torch.where(sum_ll == 0, 1, sum_ll))


def _fields(levels: Tensor, bits: int) -> Tensor:
    """uint8 [n, parts, 8 // bits, width] -> [n, parts * width]: the inverse of `gguf_blocks.unpack`."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=levels.device)
    return (levels << shifts[:, None]).sum(2, dtype=torch.uint8).flatten(1)


def _half(values: Tensor) -> Tensor:
    return values.half().contiguous().view(torch.uint8)
