"""y = x @ W.T for one or two tokens and weights that stay quantised, without tensor cores.

The time should be that of W's bytes, so loads are kept in flight and instructions few. A program computes ROWS rows,
four a tile; its threads span a row, and take the next part of it in the next pass. `DEPTH` tiles are in flight, the
first of them before the kernel before this one has ended. In a pass a thread rounds its part of x once, for all rows
(`packed_gemv_input`), and multiplies in integers (`packed_gemv_tile`); `packed_gemv_lanes` says what becomes of sums.

Called by `packed_gemv`. Programs own whole rows of W, so results do not vary from run to run. Sums are in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.gemv_epilogue import GATED, RESIDUAL
from engine.kernels.gemv_norm import NORM_LANES, append, append_tuple, inverse_rms_of, load_partials
from engine.kernels.launch import wait_for_predecessor
from engine.kernels.packed_gemv_input import load_pairs, quantize_chunk
from engine.kernels.packed_gemv_lanes import counted_rows, finish_lanes, load_lanes, sum_rows
from engine.kernels.packed_gemv_tile import CHUNK_WORDS, TILE_ROWS, load_tile, row_codes, row_product
from engine.kernels.packed_tile import ROW_SCALE

UNROLLED_PASSES: tl.constexpr = tl.constexpr(2)
"""More become a loop: instructions come from memory too, each time after other kernels."""


@triton.jit
def _place(
    first,  # the program's first output
    num_outputs,
    TILE: tl.constexpr,  # its number; of GATED those of the gate come first
    ROWS: tl.constexpr,
):
    """A tile's block of 16 rows, and its first row within it. `first` and `num_outputs` are multiples of ROWS, or of 16
    if that is less, so that all rows of a program that lie in one block are known to."""
    ROW: tl.constexpr = TILE * TILE_ROWS
    if ROW < ROWS:
        return first // 16 + ROW // 16, first % 16 + ROW % 16
    else:
        first += num_outputs
        return first // 16 + (ROW - ROWS) // 16, first % 16 + (ROW - ROWS) % 16


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
    """The tile `T` after the first one of pass `step`."""
    chunk, _ = _chunks(step + T // TILES, THREADS, WIDTH)
    block, local = _place(first, num_outputs, T % TILES, ROWS)
    return load_tile(
        words_ptr, extra_ptr, scales_ptr, supers_ptr, block, local, chunk, WIDTH, UNIT, CODE, SCALE, GROUP, GROUPS,
    )  # fmt: skip


@triton.jit
def _chunks(step, THREADS: tl.constexpr, WIDTH: tl.constexpr):
    """The chunks of a pass, int32 [THREADS], and whether they exist. In place of one that does not is the last, because
    loads without a condition take fewer instructions."""
    CHUNKS: tl.constexpr = WIDTH // (4 * CHUNK_WORDS)
    chunk = step * THREADS + tl.arange(0, THREADS)
    return tl.minimum(chunk, CHUNKS - 1), chunk < CHUNKS


@triton.jit
def _load_x(
    x_ptr,
    x_stride,
    step,
    NUM_TOKENS: tl.constexpr,
    THREADS: tl.constexpr,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
):
    """For each token what load_pairs gives of a pass."""
    chunk, _ = _chunks(step, THREADS, WIDTH)
    pairs = ()
    for token in tl.static_range(NUM_TOKENS):
        pairs_ptr = (x_ptr + token * x_stride).to(tl.pointer_type(tl.int32))
        # Not append_tuple, which an older Triton would take for that of a tile with as many elements.
        pairs = pairs + (load_pairs(pairs_ptr, chunk, UNIT),)  # type: ignore[assignment]  # noqa: RUF005
    return pairs


@triton.jit
def _multiply(
    sums,  # a tuple of float32 [THREADS]: rows of a program, then those of the next token
    ring,  # a tuple of DEPTH tiles
    pairs,  # what _load_x gives for this pass
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
    NATIVE: tl.constexpr,
):
    """A pass: sums with its share, the ring with the tiles that follow, and x of the next pass."""
    IS_BFLOAT16: tl.constexpr = x_ptr.dtype.element_ty == tl.bfloat16
    _, live = _chunks(step, THREADS, WIDTH)
    xs = ()
    for token in tl.static_range(NUM_TOKENS):
        x = quantize_chunk(pairs[token], live, CODE, ZERO, NATIVE, IS_BFLOAT16)
        xs = xs + (x,)  # type: ignore[assignment]  # noqa: RUF005 - as above
    if PASSES != 1:
        pairs = _load_x(x_ptr, x_stride, step + 1, NUM_TOKENS, THREADS, WIDTH, UNIT)
    shares = ()
    for t in tl.static_range(TILES):
        tile = ring[0]
        ring = ring[1:]
        if PASSES == 0 or t + DEPTH < PASSES * TILES:
            following = _load(
                words_ptr, extra_ptr, scales_ptr, supers_ptr, first, num_outputs, step, t + DEPTH,
                TILES, THREADS, ROWS, WIDTH, UNIT, CODE, SCALE, GROUP, GROUPS,
            )  # fmt: skip
            ring = append_tuple(ring, following)
        for row in tl.static_range(TILE_ROWS):
            codes = row_codes(tile, row, CODE, NATIVE)
            for token in tl.static_range(NUM_TOKENS):
                shares = append(shares, row_product(codes, tile, xs[token], row, CODE, SCALE, GROUPS))
    new_sums = ()
    for token in tl.static_range(NUM_TOKENS):
        for row in tl.static_range(TILES * TILE_ROWS):
            new_sums = append(new_sums, sums[token * TILES * TILE_ROWS + row] + shares[row * NUM_TOKENS + token])
    return new_sums, ring, pairs


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
    NATIVE: tl.constexpr,  # whether the device has an instruction for FP8 codes
    ROWS: tl.constexpr,  # outputs a program, a power of two
    TILES: tl.constexpr,  # of four rows, those of the up rows among them
    THREADS: tl.constexpr,
    PASSES: tl.constexpr,
    DEPTH: tl.constexpr,  # tiles in flight
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORM_BLOCK: tl.constexpr,  # power of two >= num_partials; 0: the input needs no norm
    PDL: tl.constexpr,
):
    NUM_PARTS: tl.constexpr = (NORM_BLOCK + NORM_LANES - 1) // NORM_LANES
    TOKEN_ROWS: tl.constexpr = TILES * TILE_ROWS
    first = tl.program_id(0) * ROWS

    ring = ()
    for t in tl.static_range(DEPTH):
        if t < PASSES * TILES:
            tile = _load(
                words_ptr, extra_ptr, scales_ptr, supers_ptr, first, num_outputs, 0, t,
                TILES, THREADS, ROWS, WIDTH, UNIT, CODE, SCALE, GROUP, GROUPS,
            )  # fmt: skip
            ring = append_tuple(ring, tile)
    wait_for_predecessor(PDL)
    pairs = _load_x(x_ptr, x_stride, 0, NUM_TOKENS, THREADS, WIDTH, UNIT)

    squares = ()
    for token in tl.static_range(NUM_TOKENS):
        squares = load_partials(squares, sum_squares_ptr + token * num_partials, num_partials, NORM_BLOCK)
    # What follows the products is asked for before them.
    rows = counted_rows(first, num_outputs, ROWS)
    bias, bias_up, gamma, factor, factor_up, residual = rows, rows, rows, rows, rows, ()
    if HAS_BIAS:
        bias = load_lanes(bias_ptr, rows, num_outputs)
        if EPILOGUE == GATED:
            bias_up = load_lanes(bias_ptr + num_outputs, rows, num_outputs)
    if EPILOGUE == RESIDUAL:
        gamma = load_lanes(gamma_ptr, rows, num_outputs)
        for token in tl.static_range(NUM_TOKENS):
            residual = append(residual, load_lanes(residual_ptr + token * residual_stride, rows, num_outputs))
    if SCALE == ROW_SCALE:
        floats_ptr = scales_ptr.to(tl.pointer_type(tl.float32))
        factor = load_lanes(floats_ptr, rows, num_outputs)
        if EPILOGUE == GATED:
            factor_up = load_lanes(floats_ptr + num_outputs, rows, num_outputs)
    sums = ()
    for _ in tl.static_range(NUM_TOKENS * TOKEN_ROWS):
        sums = append(sums, tl.zeros((THREADS,), tl.float32))
    if PASSES <= UNROLLED_PASSES:
        for step in tl.static_range(PASSES):
            sums, ring, pairs = _multiply(
                sums, ring, pairs, x_ptr, words_ptr, extra_ptr, scales_ptr, supers_ptr, x_stride, first, num_outputs,
                step, DEPTH, NUM_TOKENS, TILES, PASSES - step, THREADS, ROWS, WIDTH, UNIT, CODE, ZERO, SCALE,
                GROUP, GROUPS, NATIVE,
            )  # fmt: skip
    else:
        for step in range(PASSES):
            sums, ring, pairs = _multiply(
                sums, ring, pairs, x_ptr, words_ptr, extra_ptr, scales_ptr, supers_ptr, x_stride, first, num_outputs,
                step, DEPTH, NUM_TOKENS, TILES, 0, THREADS, ROWS, WIDTH, UNIT, CODE, ZERO, SCALE, GROUP,
                GROUPS, NATIVE,
            )  # fmt: skip

    for token in tl.static_range(NUM_TOKENS):
        scale = inverse_rms_of(squares, token * NUM_PARTS, NUM_PARTS, WIDTH, eps)
        y = sum_rows(sums[token * TOKEN_ROWS : token * TOKEN_ROWS + ROWS], ROWS, THREADS) * scale
        if SCALE == ROW_SCALE:
            y *= factor
        if HAS_BIAS:
            y += bias
        y_up = y
        if EPILOGUE == GATED:
            y_up = sum_rows(sums[token * TOKEN_ROWS + ROWS : token * TOKEN_ROWS + 2 * ROWS], ROWS, THREADS) * scale
            if SCALE == ROW_SCALE:
                y_up *= factor_up
            if HAS_BIAS:
                y_up += bias_up
        stream = residual[token] if EPILOGUE == RESIDUAL else y
        finish_lanes(
            y, y_up, rows, gamma, stream, token, num_outputs, residual_ptr, residual_stride, out_ptr, partials_ptr,
            out_stride, EPILOGUE, ACTIVATION,
        )  # fmt: skip
