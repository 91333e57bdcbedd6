"""y = x @ W.T for one to a few tokens, without tensor cores: the kernel that most of a lone user's time is spent in.

The time is that of W's bytes, so everything here is for keeping loads in flight. The threads of a program span a row:
each loads 16 bytes of every row of a tile and the same of x, so that no value changes hands until one sum over the
threads at the end. `DEPTH` tiles are in flight, the first of them before the kernel before this one has ended. What the
epilogue needs is loaded together with the last tiles, and is handled row by row in scalars, which every thread has:
a tensor of so few elements would be spread over the threads in another way, and cost trips through shared memory.

Called by `gemv.launch`. Programs own whole rows of W, so results do not vary from run to run. Sums are in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.gemv_epilogue import ARGMAX, GATED, NO_ROW, RESIDUAL, activate
from engine.kernels.gemv_norm import NORM_LANES, append, inverse_rms_of, load_partials
from engine.kernels.launch import wait_for_predecessor


@triton.jit
def _load_tile(
    weight_ptr,  # the program's first row; of the gate
    up_distance,  # elements from a gate row to its up row
    last,  # last row that exists, counted from the program's first
    T: tl.constexpr,  # the tile's number: all groups of rows of a chunk, then the next chunk
    NUM_GROUPS: tl.constexpr,
    GROUPS_A_HALF: tl.constexpr,
    ROW_STEP: tl.constexpr,  # elements from a row to the next of the same half
    TILE_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    IS_EVEN: tl.constexpr,
):
    """[TILE_ROWS, COLUMNS], zero beyond the width. Weights are read once a step: they leave the cache first."""
    CHUNK: tl.constexpr = T // NUM_GROUPS
    GROUP: tl.constexpr = T % NUM_GROUPS
    row = (GROUP % GROUPS_A_HALF) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    if not IS_EVEN:
        row = tl.minimum(row, last)  # programs at the end compute the last row again
    column = CHUNK * COLUMNS + tl.arange(0, COLUMNS)
    base = weight_ptr
    if GROUP >= GROUPS_A_HALF:
        base += up_distance
    pointers = base + (row[:, None] * ROW_STEP + column[None, :])
    if (CHUNK + 1) * COLUMNS <= WIDTH:
        return tl.load(pointers, eviction_policy="evict_first")
    else:
        return tl.load(pointers, mask=(column < WIDTH)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _load_scalars(
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
def _sum_threads(sums, COUNT: tl.constexpr):
    """[rows * COUNT] from COUNT tensors [rows, threads]; tensor number g of row r at r * COUNT + g. One reduction."""
    if COUNT == 1:
        joined = sums[0]
    elif COUNT == 2:
        joined = tl.join(sums[0], sums[1])
    else:
        tl.static_assert(COUNT == 4)
        joined = tl.join(tl.join(sums[0], sums[2]), tl.join(sums[1], sums[3]))
    return tl.ravel(tl.sum(joined, axis=1))


@triton.jit
def _pick(values, INDEX: tl.constexpr):
    """One element as a scalar. As integers, because x + 0 is x for them, and the compiler leaves the sum out."""
    bits = values.to(tl.int32, bitcast=True)
    bits = tl.where(tl.arange(0, values.shape[0]) == INDEX, bits, 0)
    return tl.sum(bits, axis=0).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["num_partials"])
def fma_kernel(
    x_ptr,  # [num_tokens, WIDTH]
    weight_ptr,  # [num_outputs, WIDTH]; GATED: twice as many rows
    bias_ptr,  # [rows of the matrix], or anything unless HAS_BIAS
    sum_squares_ptr,  # float32 [num_tokens, num_partials], or anything unless NORM_BLOCK
    residual_ptr,  # float32 [num_tokens, num_outputs], RESIDUAL
    gamma_ptr,  # [num_outputs], RESIDUAL: weight of the norm that follows
    out_ptr,  # [num_tokens, num_outputs]; ARGMAX: int32 [num_tokens, num_programs]
    partials_ptr,  # float32 [num_tokens, num_programs], RESIDUAL and ARGMAX
    x_stride,  # elements from row to row
    residual_stride,
    num_outputs,
    num_partials,
    eps,
    NUM_TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,  # constant, so that a tile's rows are one pointer and known distances
    ROWS: tl.constexpr,  # outputs a program, a power of two
    TILE_ROWS: tl.constexpr,  # of them in a tile, a power of two
    COLUMNS: tl.constexpr,  # VECTOR elements of every row for each thread
    VECTOR: tl.constexpr,  # elements in 16 bytes
    DEPTH: tl.constexpr,  # tiles in flight
    IS_EVEN: tl.constexpr,  # no program has rows beyond the last
    IS_INTERLEAVED: tl.constexpr,  # gate and up rows alternate
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORM_BLOCK: tl.constexpr,  # power of two >= num_partials; 0: the input needs no norm
    PDL: tl.constexpr,
):
    GROUPS_A_HALF: tl.constexpr = ROWS // TILE_ROWS
    NUM_GROUPS: tl.constexpr = GROUPS_A_HALF * 2 if EPILOGUE == GATED else GROUPS_A_HALF
    NUM_CHUNKS: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    NUM_PARTS: tl.constexpr = (NORM_BLOCK + NORM_LANES - 1) // NORM_LANES
    STEP: tl.constexpr = 2 if IS_INTERLEAVED else 1
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    first = program * ROWS
    last = num_outputs - 1 - first
    weight_ptr += first.to(tl.int64) * (STEP * WEIGHT_STRIDE)
    up_row = 1 if IS_INTERLEAVED else num_outputs
    up_distance = tl.cast(up_row, tl.int64) * WEIGHT_STRIDE

    ring = ()
    for t in tl.static_range(DEPTH):
        if t < NUM_CHUNKS * NUM_GROUPS:
            tile = _load_tile(
                weight_ptr, up_distance, last,
                t, NUM_GROUPS, GROUPS_A_HALF, STEP * WEIGHT_STRIDE, TILE_ROWS, WIDTH, COLUMNS, IS_EVEN,
            )  # fmt: skip
            ring = append(ring, tile)
    wait_for_predecessor(PDL)

    sums = ()  # for each group and token [TILE_ROWS, COLUMNS // VECTOR], one element a thread and row
    for _ in tl.static_range(NUM_GROUPS * NUM_TOKENS):
        sums = append(sums, tl.zeros((TILE_ROWS, COLUMNS // VECTOR), tl.float32))
    for chunk in tl.static_range(NUM_CHUNKS):
        column = chunk * COLUMNS + tl.arange(0, COLUMNS)
        xs = ()
        for token in tl.static_range(NUM_TOKENS):
            if (chunk + 1) * COLUMNS <= WIDTH:
                x = tl.load(x_ptr + token * x_stride + column)
            else:
                x = tl.load(x_ptr + token * x_stride + column, mask=column < WIDTH, other=0.0)
            xs = append(xs, x.to(tl.float32))
        # The norm's sums arrive while a chunk is computed, and are added while the last tiles are on their way.
        if chunk == tl.constexpr(NUM_CHUNKS - 2 if NUM_CHUNKS > 1 else 0):
            squares = ()
            for token in tl.static_range(NUM_TOKENS):
                squares = load_partials(squares, sum_squares_ptr + token * num_partials, num_partials, NORM_BLOCK)
        if chunk == NUM_CHUNKS - 1:
            bias, bias_up, gamma, residual, scales = (), (), (), (), ()
            if HAS_BIAS:
                bias = _load_scalars(bias, bias_ptr + first * STEP, STEP, last, ROWS, IS_EVEN)
                if EPILOGUE == GATED:
                    bias_up = _load_scalars(bias_up, bias_ptr + first * STEP + up_row, STEP, last, ROWS, IS_EVEN)
            if EPILOGUE == RESIDUAL:
                gamma = _load_scalars(gamma, gamma_ptr + first, 1, last, ROWS, IS_EVEN)
                for token in tl.static_range(NUM_TOKENS):
                    stream = residual_ptr + token * residual_stride + first
                    residual = _load_scalars(residual, stream, 1, last, ROWS, IS_EVEN)
            for token in tl.static_range(NUM_TOKENS):
                scales = append(scales, inverse_rms_of(squares, token * NUM_PARTS, NUM_PARTS, WIDTH, eps))
        new_sums = ()
        for group in tl.static_range(NUM_GROUPS):
            weights = ring[0].to(tl.float32)  # type: ignore[misc] # a tuple that Triton unrolls, empty to mypy
            ring = ring[1:]
            # Written out twice, because a name for the tile's number would make it a run-time value.
            if chunk * NUM_GROUPS + group + DEPTH < NUM_CHUNKS * NUM_GROUPS:
                tile = _load_tile(
                    weight_ptr, up_distance, last, chunk * NUM_GROUPS + group + DEPTH,
                    NUM_GROUPS, GROUPS_A_HALF, STEP * WEIGHT_STRIDE, TILE_ROWS, WIDTH, COLUMNS, IS_EVEN,
                )  # fmt: skip
                ring = append(ring, tile)
            for token in tl.static_range(NUM_TOKENS):
                product = tl.reshape(weights * xs[token][None, :], (TILE_ROWS, COLUMNS // VECTOR, VECTOR))
                new_sums = append(new_sums, sums[token * NUM_GROUPS + group] + tl.sum(product, axis=2))
        # Made group by group, kept token by token.
        sums = ()
        for token in tl.static_range(NUM_TOKENS):
            for group in tl.static_range(NUM_GROUPS):
                sums = append(sums, new_sums[group * NUM_TOKENS + token])

    for token in tl.static_range(NUM_TOKENS):
        values = _sum_threads(sums[token * NUM_GROUPS : (token + 1) * NUM_GROUPS], NUM_GROUPS)
        best = float("-inf")
        best_row = NO_ROW
        sum_squares = 0.0
        for index in tl.static_range(ROWS):
            row = first + index
            exists = tl.full((), True, tl.int1) if IS_EVEN else row < num_outputs
            y = _pick(values, (index % TILE_ROWS) * NUM_GROUPS + index // TILE_ROWS) * scales[token]
            if HAS_BIAS:
                y += bias[index]
            here = out_ptr + token * num_outputs + row
            if EPILOGUE == ARGMAX:
                # A NaN would lose every comparison; as infinity it wins, and the step's end sees that no token did.
                y = tl.where(y == y, y, float("inf"))
                is_better = y > best  # rows beyond the last repeat it, and are no better
                best = tl.where(is_better, y, best)
                best_row = tl.where(is_better, row, best_row)
            else:
                if EPILOGUE == RESIDUAL:
                    y += residual[token * ROWS + index]
                    tl.store(residual_ptr + token * residual_stride + row, y, mask=exists)
                    sum_squares += tl.where(exists, y * y, 0.0)
                    y *= gamma[index]
                if EPILOGUE == GATED:
                    up = (
                        _pick(values, (index % TILE_ROWS) * NUM_GROUPS + index // TILE_ROWS + GROUPS_A_HALF)
                        * scales[token]
                    )
                    if HAS_BIAS:
                        up += bias_up[index]
                    y = activate(y, ACTIVATION) * up
                tl.store(here, y.to(out_ptr.dtype.element_ty), mask=exists)
        there = token * num_programs + program
        if EPILOGUE == ARGMAX:
            tl.store(partials_ptr + there, best)
            tl.store(out_ptr + there, best_row)
        if EPILOGUE == RESIDUAL:
            tl.store(partials_ptr + there, sum_squares)
