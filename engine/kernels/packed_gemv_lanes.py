"""Sums over the threads of a program, each row's in some lanes of a warp, and what becomes of them there.

A warp adds ROWS values of each of its lanes by exchanging half of what is left at each step: ROWS - 1 shuffles and a
few more, in place of five for each row. What is left lies in the lanes by row, 32 / ROWS lanes each, and one sum over
the warps follows. So tensors here have 32 elements, lane by lane; that of a row's first lane counts. The results are
those that `gemv_epilogue` lists. Called by `packed_gemv_kernel`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.gemv_epilogue import ARGMAX, GATED, NO_ROW, RESIDUAL, activate
from engine.kernels.gemv_norm import append
from engine.kernels.packed_tile import PAIRS

LANES: tl.constexpr = tl.constexpr(32)


@triton.jit
def _exchange(a, b, lane, DISTANCE: tl.constexpr):
    """Lanes that have the bit DISTANCE set get the sum of b in both lanes of a pair, the others that of a."""
    is_upper = lane & DISTANCE
    distance = tl.full(lane.shape, DISTANCE, tl.int32)
    return tl.inline_asm_elementwise(
        """{ .reg .pred p; .reg .f32 kept, sent; setp.ne.b32 p, $3, 0;
        selp.f32 kept, $2, $1, p; selp.f32 sent, $1, $2, p;
        shfl.sync.bfly.b32 sent, sent, $4, 31, 0xffffffff; add.rn.f32 $0, kept, sent; }""",
        "=f,f,f,r,r", [a, b, is_upper, distance], dtype=tl.float32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _add_lanes(values, lane, COUNT: tl.constexpr, DISTANCE: tl.constexpr):
    """[THREADS]: the sums over a warp of COUNT values, COUNT / 32 of its lanes for each, in order."""
    if COUNT > 1:
        kept = ()
        for index in tl.static_range(COUNT // 2):
            kept = append(kept, _exchange(values[index], values[index + COUNT // 2], lane, DISTANCE))
        return _add_lanes(kept, lane, COUNT // 2, DISTANCE // 2)
    elif DISTANCE > 0:
        both = (_exchange(values[0], values[0], lane, DISTANCE),)
        return _add_lanes(both, lane, 1, DISTANCE // 2)
    else:
        return values[0]


@triton.jit
def sum_rows(
    values,  # a tuple of ROWS float32 [THREADS]
    ROWS: tl.constexpr,  # a power of two up to 32
    THREADS: tl.constexpr,
):
    """Their sums, float32 [LANES]."""
    if PAIRS:
        thread = tl.arange(0, THREADS)
        partial = _add_lanes(values, thread, ROWS, 16)
        if THREADS == LANES:
            return partial
        else:
            return tl.sum(tl.reshape(partial, (THREADS // LANES, LANES)), axis=0)
    else:
        row = lane_rows(ROWS)
        sums = tl.zeros((LANES,), tl.float32)
        for index in tl.static_range(ROWS):
            sums = tl.where(row == index, tl.sum(values[index], axis=0), sums)
        return sums


@triton.jit
def lane_rows(ROWS: tl.constexpr):
    """int32 [LANES]: the row of each lane, counted from the program's first."""
    return tl.arange(0, LANES) // (LANES // ROWS)


@triton.jit
def counted_rows(first, num_outputs, ROWS: tl.constexpr):
    """int32 [LANES]: outputs, that of a row's first lane and num_outputs in the others."""
    is_first = tl.arange(0, LANES) % (LANES // ROWS) == 0
    return tl.where(is_first, tl.minimum(first + lane_rows(ROWS), num_outputs), num_outputs)


@triton.jit
def load_lanes(pointer, rows, num_outputs):
    """float32 [LANES], zero where a lane does not count."""
    return tl.load(pointer + rows, mask=rows < num_outputs, other=0.0).to(tl.float32)


@triton.jit
def finish_lanes(
    y,  # float32 [LANES], after the norm; of the gate rows for GATED
    y_up,  # the same of the up rows for GATED, else anything
    rows,  # counted_rows
    gamma,  # [LANES], RESIDUAL: weight of the norm that follows
    residual,  # [LANES], RESIDUAL
    token,
    num_outputs,
    residual_ptr,  # this and the next three: as in gemv_epilogue.finish
    residual_stride,
    out_ptr,
    partials_ptr,
    out_stride,  # elements from token to token, but for ARGMAX
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Stores a program's share of the result for one token."""
    counts = rows < num_outputs
    there = token * tl.num_programs(0) + tl.program_id(0)
    if EPILOGUE == ARGMAX:
        # A NaN would lose every comparison; as infinity it wins, and the step's end sees that no token did.
        y = tl.where(y == y, y, float("inf"))
        y = tl.where(counts, y, float("-inf"))
        best = tl.max(y, axis=0)
        tl.store(partials_ptr + there, best)
        tl.store(out_ptr + there, tl.min(tl.where((y == best) & counts, rows, NO_ROW), axis=0))
    else:
        if EPILOGUE == RESIDUAL:
            y += residual
            tl.store(residual_ptr + token * residual_stride + rows, y, mask=counts)
            tl.store(partials_ptr + there, tl.sum(tl.where(counts, y * y, 0.0), axis=0))
            y *= gamma
        if EPILOGUE == GATED:
            y = activate(y, ACTIVATION) * y_up
        tl.store(out_ptr + token * out_stride + rows, y.to(out_ptr.dtype.element_ty), mask=counts)
