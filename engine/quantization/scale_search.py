"""How a group of weights gets its scale: searches that minimise the weighted squared error of what will be read back.

Rounding by the largest value alone wastes levels on it. Each search below tries a row of candidates for all groups at
once, gives every candidate the scale (and minimum) that is best for its levels by least squares, and keeps the best.
`gguf_k_encoders` calls them; a group is a row of `x` [num_groups, size], everything is float32.

The error of a candidate follows from five sums over the group, so no pass over the weights is needed for it.

Source: the ideas of make_qkx2_quants, make_qx_quants and make_q3_quants in ggml-quants.c (llama.cpp), whose candidates
and weights are kept so that results are as good as its own.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor

TINY = 1e-15
"""Groups whose largest magnitude is below count as zeros."""


def affine_search(
    x: Tensor, weights: Tensor, max_level: int, first: float, num_steps: int, *, by_absolute_error: bool = False
) -> tuple[Tensor, Tensor]:
    """Scale and minimum for levels 0 to max_level: x is about scale * level - minimum.

    Args:
        weights: [num_groups, size], how much each element's error counts.
        first: by how much the first candidate's levels outnumber `max_level`; each further one has 0.1 more.
        by_absolute_error: candidates compete by the sum of absolute errors.

    Returns:
        float32 [num_groups] twice; neither is negative.
    """
    low = x.amin(1, keepdim=True).clamp_(max=0)
    span = x.amax(1, keepdim=True) - low  # [num_groups, 1], as all sums below
    x = x - low
    shift = -low
    sum_w = weights.sum(1, keepdim=True)
    weighted = weights * x
    sum_wx = weighted.sum(1, keepdim=True)
    sum_wxx = (weighted * x).sum(1, keepdim=True)
    scale, offset = span / max_level, torch.zeros_like(span)  # the best so far; its minimum is low + offset
    best: Tensor | None = None
    level, product = torch.empty_like(x), torch.empty_like(x)
    for step in range(-1, num_steps + 1):  # -1 is the plain scale, which the others have to beat
        num_levels = max_level if step < 0 else max_level + first + 0.1 * step
        # A better minimum moves the levels of all candidates after it.
        rest = span - offset
        per_level = torch.where(rest > 0, num_levels / rest, 0)
        torch.mul(x, per_level, out=level).sub_(offset * per_level).round_().clamp_(0, max_level)
        torch.mul(weights, level, out=product)
        sum_l = product.sum(1, keepdim=True)
        sum_ll = product.mul_(level).sum(1, keepdim=True)
        sum_lx = torch.mul(weighted, level, out=product).sum(1, keepdim=True)
        if step < 0:
            new_scale, new_offset, is_possible = scale, offset, torch.ones_like(span, dtype=torch.bool)
        else:
            new_scale, new_offset, is_possible = _fit(sum_w, sum_wx, sum_l, sum_ll, sum_lx, shift)
        if by_absolute_error:
            error = torch.addcmul(new_offset, level, new_scale).sub_(x).abs_().mul_(weights).sum(1, keepdim=True)
        else:
            error = new_scale * (new_scale * sum_ll + 2 * (new_offset * sum_l - sum_lx))
            error += new_offset * (new_offset * sum_w - 2 * sum_wx) + sum_wxx
        if best is None:
            best = error
            continue
        is_better = is_possible & (error < best)
        best = torch.where(is_better, error, best)
        scale = torch.where(is_better, new_scale, scale)
        offset = torch.where(is_better, new_offset, offset)
    return scale[:, 0], (shift - offset)[:, 0].clamp_(min=0)


def _fit(
    sum_w: Tensor, sum_wx: Tensor, sum_l: Tensor, sum_ll: Tensor, sum_lx: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares for given levels: scale, offset, and whether there is a solution.

    A minimum below zero cannot be stored, so there the line goes through x = 0, which is `shift` in these coordinates.
    """
    determinant = sum_w * sum_ll - sum_l * sum_l
    is_possible = determinant > 0
    divisor = torch.where(is_possible, determinant, 1)
    scale = (sum_w * sum_lx - sum_wx * sum_l) / divisor
    offset = (sum_ll * sum_wx - sum_l * sum_lx) / divisor
    is_above = offset > shift
    through_zero = (sum_lx - shift * sum_l) / torch.where(sum_ll > 0, sum_ll, 1)
    scale = torch.where(is_above, through_zero, scale)
    offset = torch.where(is_above, shift, offset)
    return scale, offset, is_possible & (scale >= 0)


def symmetric_search(x: Tensor, half: int) -> Tensor:
    """Scale for levels -half to half - 1, each element's error weighted by its square.

    The scale has the sign that gives the element of the largest magnitude the level -half.

    Returns:
        float32 [num_groups]; 0 for groups of (nearly) zeros.
    """
    extreme = signed_extreme(x)
    is_zero = extreme.abs() < TINY
    inverse = torch.where(is_zero, 0, 1 / extreme)
    weights = x * x
    weighted = weights * x
    scale, best = torch.zeros_like(extreme), torch.full_like(extreme, -1)
    level, product = torch.empty_like(x), torch.empty_like(x)
    for step in (0, *range(-9, 0), *range(1, 10)):
        torch.mul(x, inverse * -(half + 0.1 * step), out=level).round_().clamp_(-half, half - 1)
        sum_lx = torch.mul(weighted, level, out=product).sum(1, keepdim=True)
        sum_ll = torch.mul(weights, level, out=product).mul_(level).sum(1, keepdim=True)
        # The error left by the best scale is sum_wxx - sum_lx ** 2 / sum_ll: the largest quotient wins.
        fitted = sum_lx / torch.where(sum_ll > 0, sum_ll, 1)
        gain = fitted * sum_lx
        is_better = (sum_ll > 0) & (gain > best)
        best = torch.where(is_better, gain, best)
        scale = torch.where(is_better, fitted, scale)
    return torch.where(is_zero, 0, scale)[:, 0]


def signed_extreme(x: Tensor) -> Tensor:
    """The element of the largest magnitude of each row, the first of equals: [num_rows, 1]."""
    return x.gather(1, x.abs().argmax(1, keepdim=True))
