"""What a GEMV without tensor cores does with the finished products of its rows, one scalar each.

Every thread of a program has these scalars, because a tensor of so few elements would be spread over the threads in
another way, and cost trips through shared memory. What is to be loaded is loaded by `load_scalars` and
`load_partials` while the last weights are on their way. Called by `gemv_fma` and `packed_gemv_kernel`; what becomes of
a product is listed in `gemv_epilogue`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.gemv_epilogue import ARGMAX, GATED, NO_ROW, RESIDUAL, activate

NORM_LANES: tl.constexpr = tl.constexpr(128)
"""Partial sums of squares that are read at once: one for each thread of four warps."""


@triton.jit
def append(items, item):
    """The tuple with one more item; Triton knows no star in it."""
    return items + (item,)  # noqa: RUF005 - the star is what Triton does not know


@triton.jit
def load_scalars(
    values,  # a tuple
    pointer,
    step,  # elements from one to the next
    last,  # index of the last that exists
    COUNT: tl.constexpr,
    IS_EVEN: tl.constexpr,
):
    """The tuple with COUNT more, as float32."""
    for index in tl.static_range(COUNT):
        value = tl.load(pointer + (index if IS_EVEN else tl.minimum(index, last)) * step)
        values = append(values, value.to(tl.float32))
    return values


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


@triton.jit
def pick(values, INDEX: tl.constexpr):
    """One element as a scalar. As integers, because x + 0 is x for them, and the compiler leaves the sum out."""
    bits = values.to(tl.int32, bitcast=True)
    bits = tl.where(tl.arange(0, values.shape[0]) == INDEX, bits, 0)
    return tl.sum(bits, axis=0).to(tl.float32, bitcast=True)


@triton.jit
def finish_rows(
    products,  # a tuple of ROWS scalars: of the gate rows for GATED
    products_up,  # the same of the up rows for GATED, else anything
    bias,  # a tuple of ROWS scalars, or anything unless HAS_BIAS
    bias_up,  # GATED: likewise
    gamma,  # a tuple of ROWS scalars, RESIDUAL: weight of the norm that follows
    residual,  # a tuple of scalars, RESIDUAL: those of this token from number FIRST_RESIDUAL on
    scale,  # what the norm multiplies products by
    first,  # the program's first output
    token,
    num_outputs,
    residual_ptr,  # this and the next five: as in gemv_epilogue.finish
    residual_stride,
    out_ptr,
    out_stride,  # elements from token to token, but for ARGMAX
    partials_ptr,
    FIRST_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    IS_EVEN: tl.constexpr,  # no program has rows beyond the last
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Stores a program's share of the result for one token."""
    best = float("-inf")
    best_row = NO_ROW
    sum_squares = 0.0
    for index in tl.static_range(ROWS):
        row = first + index
        exists = tl.full((), True, tl.int1) if IS_EVEN else row < num_outputs
        y = products[index] * scale
        if HAS_BIAS:
            y += bias[index]
        if EPILOGUE == ARGMAX:
            # A NaN would lose every comparison; as infinity it wins, and the step's end sees that no token did.
            y = tl.where(y == y, y, float("inf"))
            is_better = exists & (y > best)
            best = tl.where(is_better, y, best)
            best_row = tl.where(is_better, row, best_row)
        else:
            if EPILOGUE == RESIDUAL:
                y += residual[FIRST_RESIDUAL + index]
                tl.store(residual_ptr + token * residual_stride + row, y, mask=exists)
                sum_squares += tl.where(exists, y * y, 0.0)
                y *= gamma[index]
            if EPILOGUE == GATED:
                up = products_up[index] * scale
                if HAS_BIAS:
                    up += bias_up[index]
                y = activate(y, ACTIVATION) * up
            tl.store(out_ptr + token * out_stride + row, y.to(out_ptr.dtype.element_ty), mask=exists)
    there = token * tl.num_programs(0) + tl.program_id(0)
    if EPILOGUE == ARGMAX:
        tl.store(partials_ptr + there, best)
        tl.store(out_ptr + there, best_row)
    if EPILOGUE == RESIDUAL:
        tl.store(partials_ptr + there, sum_squares)
