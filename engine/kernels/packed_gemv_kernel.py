"""y = x @ W.T for one or two tokens and weights that stay quantised, without tensor cores.

The time should be that of W's bytes, so loads are kept in flight and instructions few. A program computes ROWS rows,
four a tile; its threads span a row, and take the next part of it in the next pass. `DEPTH` tiles are in flight, the
first of them before the kernel before this one has ended. In a pass a thread rounds its part of x once, for all rows
(`packed_gemv_input`), and multiplies in integers (`packed_gemv_tile`); what becomes of the sums is in `gemv_rows`.

Called by `packed_gemv`. Programs own whole rows of W, so results do not vary from run to run. Sums are in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.gemv_epilogue import GATED, RESIDUAL
from engine.kernels.gemv_rows import (
    NORM_LANES,
    append,
    finish_rows,
    inverse_rms_of,
    load_partials,
    load_scalars,
)
from engine.kernels.launch import wait_for_predecessor
from engine.kernels.packed_gemv_input import quantize_chunk
from engine.kernels.packed_gemv_tile import CHUNK_WORDS, TILE_ROWS, load_tile, row_codes, row_product
from engine.kernels.packed_tile import PAIRS, ROW_SCALE

UNROLLED_PASSES: tl.constexpr = tl.constexpr(2)
"""More become a loop, so that its instructions stay in their cache."""


@triton.jit
def _add_4(a0, a1, a2, a3, b0, b1, b2, b3):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@triton.jit
def _add_8(a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4, a5 + b5, a6 + b6, a7 + b7


@triton.jit
def _sum_threads(tensors, COUNT: tl.constexpr):
    """A tuple of COUNT scalars, the sums of as many tensors [THREADS], a multiple of 4; eight by one reduction."""
    sums = ()
    if not PAIRS:  # the interpreter would add them element by element
        for index in tl.static_range(COUNT):
            sums = append(sums, tl.sum(tensors[index], axis=0))
    elif COUNT == 4:
        sums = tl.reduce(tensors, 0, _add_4)
    else:
        for start in tl.static_range(0, COUNT, 8):
            sums = sums + tl.reduce(tensors[start : start + 8], 0, _add_8)  # noqa: RUF005 - as for append
    return sums


@triton.jit
def _first_row(
    first,  # the program's first output
    num_outputs,
    TILE: tl.constexpr,  # its number; of GATED those of the gate come first
    ROWS: tl.constexpr,
):
    """The first row of a tile."""
    if TILE * TILE_ROWS < ROWS:
        return first + TILE * TILE_ROWS
    else:
        return num_outputs + first + (TILE * TILE_ROWS - ROWS)


@triton.jit
def _load(
    words_ptr,
    extra_ptr,
    scales_ptr,
    supers_ptr,
    first,
    num_outputs,
    step,  # the pass of the tile counted from is step
    T: tl.constexpr,  # tiles from that pass's first to this one
    TILES: tl.constexpr,  # of a pass
    THREADS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    CODE: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The tile `T` after the first one of pass `step`; zeros where that is beyond the last pass."""
    chunk = (step + T // TILES) * THREADS + tl.arange(0, THREADS)
    return load_tile(
        words_ptr, extra_ptr, scales_ptr, supers_ptr, _first_row(first, num_outputs, T % TILES, ROWS), chunk,
        _live(chunk, step + T // TILES, THREADS, WIDTH), WIDTH, UNIT, CODE, SCALE, GROUP, GROUPS,
    )  # fmt: skip


@triton.jit
def _live(chunk, step, THREADS: tl.constexpr, WIDTH: tl.constexpr):
    """int32 [THREADS]: whether there are such chunks; known to the compiler where all are."""
    CHUNKS: tl.constexpr = WIDTH // (4 * CHUNK_WORDS)
    return (chunk < CHUNKS).to(tl.int32)


@triton.jit
def _multiply(
    sums,  # a tuple of float32 [THREADS]: rows of a program, then those of the next token
    ring,  # a tuple of DEPTH tiles
    x_ptr,
    words_ptr,
    extra_ptr,
    scales_ptr,
    supers_ptr,
    x_stride,
    first,
    num_outputs,
    step,  # the pass
    DEPTH: tl.constexpr,
    NUM_TOKENS: tl.constexpr,
    TILES: tl.constexpr,
    PASSES: tl.constexpr,  # from this one on; 0: any number
    THREADS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    CODE: tl.constexpr,
    ZERO: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """A pass: sums with its share, and the ring with the tiles that follow."""
    IS_BFLOAT16: tl.constexpr = x_ptr.dtype.element_ty == tl.bfloat16
    chunk = step * THREADS + tl.arange(0, THREADS)
    live = _live(chunk, step, THREADS, WIDTH)
    xs = ()
    for token in tl.static_range(NUM_TOKENS):
        pairs_ptr = (x_ptr + token * x_stride).to(tl.pointer_type(tl.int32))
        xs = append(xs, quantize_chunk(pairs_ptr, chunk, live, UNIT, CODE, ZERO, IS_BFLOAT16))
    shares = ()
    for t in tl.static_range(TILES):
        tile = ring[0]
        ring = ring[1:]
        if PASSES == 0 or t + DEPTH < PASSES * TILES:
            following = _load(
                words_ptr, extra_ptr, scales_ptr, supers_ptr, first, num_outputs, step, t + DEPTH,
                TILES, THREADS, ROWS, WIDTH, UNIT, CODE, SCALE, GROUP, GROUPS,
            )  # fmt: skip
            ring = append(ring, following)
        for row in tl.static_range(TILE_ROWS):
            codes = row_codes(tile, row, CODE)
            for token in tl.static_range(NUM_TOKENS):
                shares = append(shares, row_product(codes, tile, xs[token], row, CODE, SCALE, GROUPS))
    new_sums = ()
    for token in tl.static_range(NUM_TOKENS):
        for row in tl.static_range(TILES * TILE_ROWS):
            new_sums = append(new_sums, sums[token * TILES * TILE_ROWS + row] + shares[row * NUM_TOKENS + token])
    return new_sums, ring


@triton.jit(do_not_specialize=["num_partials"])
def packed_gemv_kernel(
    x_ptr,  # bfloat16 or float16 [num_tokens, WIDTH], rows aligned to 16 bytes
    words_ptr,  # this and the next three: planes as int32, see quantization.packed_format
    extra_ptr,
    scales_ptr,
    supers_ptr,
    bias_ptr,  # this and the next five: as in gemv_epilogue.finish
    sum_squares_ptr,
    residual_ptr,
    gamma_ptr,
    out_ptr,
    partials_ptr,
    x_stride,  # elements from token to token
    residual_stride,
    out_stride,
    num_outputs,
    num_partials,
    eps,
    NUM_TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    CODE: tl.constexpr,
    ZERO: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,  # different ones in which the four quarters of a chunk lie: 1, 2 or 4
    ROWS: tl.constexpr,  # outputs a program, a power of two
    TILES: tl.constexpr,  # of four rows, those of the up rows among them
    THREADS: tl.constexpr,
    PASSES: tl.constexpr,
    DEPTH: tl.constexpr,  # tiles in flight
    IS_EVEN: tl.constexpr,  # no program has rows beyond the last; those that it may have are rows of the matrix
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORM_BLOCK: tl.constexpr,  # power of two >= num_partials; 0: the input needs no norm
    PDL: tl.constexpr,
):
    NUM_PARTS: tl.constexpr = (NORM_BLOCK + NORM_LANES - 1) // NORM_LANES
    TOKEN_ROWS: tl.constexpr = TILES * TILE_ROWS
    first = tl.program_id(0) * ROWS
    last = num_outputs - 1 - first

    ring = ()
    for t in tl.static_range(DEPTH):
        if t < PASSES * TILES:
            tile = _load(
                words_ptr, extra_ptr, scales_ptr, supers_ptr, first, num_outputs, 0, t,
                TILES, THREADS, ROWS, WIDTH, UNIT, CODE, SCALE, GROUP, GROUPS,
            )  # fmt: skip
            ring = append(ring, tile)
    wait_for_predecessor(PDL)

    squares = ()
    for token in tl.static_range(NUM_TOKENS):
        squares = load_partials(squares, sum_squares_ptr + token * num_partials, num_partials, NORM_BLOCK)
    bias, bias_up, gamma, residual, row_scales = (), (), (), (), ()
    if HAS_BIAS:
        bias = load_scalars(bias, bias_ptr + first, 1, last, ROWS, IS_EVEN)
        if EPILOGUE == GATED:
            bias_up = load_scalars(bias_up, bias_ptr + num_outputs + first, 1, last, ROWS, IS_EVEN)
    if EPILOGUE == RESIDUAL:
        gamma = load_scalars(gamma, gamma_ptr + first, 1, last, ROWS, IS_EVEN)
        for token in tl.static_range(NUM_TOKENS):
            stream = residual_ptr + token * residual_stride + first
            residual = load_scalars(residual, stream, 1, last, ROWS, IS_EVEN)
    if SCALE == ROW_SCALE:
        floats_ptr = scales_ptr.to(tl.pointer_type(tl.float32))
        row_scales = load_scalars(row_scales, floats_ptr + first, 1, last, ROWS, IS_EVEN)
        if EPILOGUE == GATED:
            row_scales = load_scalars(row_scales, floats_ptr + num_outputs + first, 1, last, ROWS, IS_EVEN)
    sums = ()
    for _ in tl.static_range(NUM_TOKENS * TOKEN_ROWS):
        sums = append(sums, tl.zeros((THREADS,), tl.float32))
    if PASSES <= UNROLLED_PASSES:
        for step in tl.static_range(PASSES):
            sums, ring = _multiply(
                sums, ring, x_ptr, words_ptr, extra_ptr, scales_ptr, supers_ptr, x_stride, first, num_outputs,
                step, DEPTH, NUM_TOKENS, TILES, PASSES - step, THREADS, ROWS, WIDTH, UNIT, CODE, ZERO, SCALE,
                GROUP, GROUPS,
            )  # fmt: skip
    else:
        for step in range(PASSES):
            sums, ring = _multiply(
                sums, ring, x_ptr, words_ptr, extra_ptr, scales_ptr, supers_ptr, x_stride, first, num_outputs,
                step, DEPTH, NUM_TOKENS, TILES, 0, THREADS, ROWS, WIDTH, UNIT, CODE, ZERO, SCALE, GROUP, GROUPS,
            )  # fmt: skip

    for token in tl.static_range(NUM_TOKENS):
        values = _sum_threads(sums[token * TOKEN_ROWS : (token + 1) * TOKEN_ROWS], TOKEN_ROWS)
        products, products_up = (), ()
        for index in tl.static_range(TOKEN_ROWS):
            product = values[index]
            if SCALE == ROW_SCALE:
                product *= row_scales[index]
            if index < ROWS:
                products = append(products, product)
            else:
                products_up = append(products_up, product)
        finish_rows(
            products, products_up, bias, bias_up, gamma, residual,
            inverse_rms_of(squares, token * NUM_PARTS, NUM_PARTS, WIDTH, eps), first, token, num_outputs,
            residual_ptr, residual_stride, out_ptr, out_stride, partials_ptr,
            token * ROWS, ROWS, IS_EVEN, EPILOGUE, ACTIVATION, HAS_BIAS,
        )  # fmt: skip
