"""The norm that is deferred into a product, for kernels whose threads span a row.

Partial sums are asked for early, while weights are on their way, and added late. What such a norm is, `gemv_epilogue`
says. Called by `gemv_fma` and `packed_gemv_kernel`.
"""

from __future__ import annotations

import triton
import triton.language as tl

NORM_LANES: tl.constexpr = tl.constexpr(128)
"""Partial sums of squares that are read at once: one for each thread of four warps."""


@triton.jit
def append(items, item):
    """The tuple with one more item; Triton knows no star in it."""
    return items + (item,)  # noqa: RUF005 - the star is what Triton does not know


@triton.jit
def append_tuple(items, item):
    """The same for an item that is a tuple. Triton tells functions apart by the elements of their arguments, one after
    the other: to `append`, a tuple of two behind an empty one would be the same as one item behind a tuple of one."""
    return items + (item,)  # noqa: RUF005 - as above


@triton.jit
def load_partials(
    values,  # a tuple
    sum_squares_ptr,  # float32 [num_partials]
    num_partials,
    BLOCK: tl.constexpr,  # power of two >= num_partials; 0: there is no norm
):
    """The tuple with (BLOCK + NORM_LANES - 1) // NORM_LANES more tensors, all partial sums among them."""
    LANES: tl.constexpr = BLOCK if BLOCK < NORM_LANES else NORM_LANES
    for start in tl.static_range(0, BLOCK, NORM_LANES):
        index = start + tl.arange(0, LANES)
        values = append(values, tl.load(sum_squares_ptr + index, mask=index < num_partials, other=0.0))
    return values


@triton.jit
def inverse_rms_of(
    squares,  # a tuple of tensors of partial sums
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,  # of them are this token's; 0: there is no norm
    WIDTH: tl.constexpr,
    eps,
):
    """1 / sqrt(mean of squares + eps), a scalar."""
    if COUNT == 0:
        return tl.full((), 1.0, tl.float32)
    else:
        total = squares[FIRST]
        for index in tl.static_range(1, COUNT):
            total += squares[FIRST + index]
        return tl.rsqrt(tl.sum(total, axis=0) / WIDTH + eps)
