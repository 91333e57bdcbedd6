"""x as the packed GEMV multiplies with it: int8 with one scale for a thread's 32 columns, rounded by the thread itself.

Each program rounds x again, which costs it less than a launch that would do it once. All is within a thread: it loads
64 bytes, takes the largest, and keeps the bytes in the order in which `packed_gemv_tile` unpacks codes. Rounding adds
1.5 * 2^23, after which the lowest byte of a float32 is the integer. The error of a product is up to 1e-2 of its norm,
as in llama.cpp, which rounds to the same. NaN and infinity make all of a thread's products NaN.

For FP8 codes x becomes float16, divided by a power of two so that the largest is between 1 and 2; that is exact for
what is above 2^-14 of it and has no more bits than float16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.gemv_norm import append
from engine.kernels.packed_gemv_tile import CHUNK_WORDS, READ_AGAIN, dot_bytes, load_vector, permute
from engine.kernels.packed_tile import FP8, NIBBLE, PAIRS

_ROUND: tl.constexpr = tl.constexpr(12582912.0)
"""1.5 * 2^23: a float32 of this size has steps of 1."""


@triton.jit
def _number(bits, HALF: tl.constexpr, IS_BFLOAT16: tl.constexpr):
    """float32 from the lower (HALF 0) or upper 16 bits of an int32."""
    if IS_BFLOAT16:
        wide = bits & -65536 if HALF else bits << 16
        return wide.to(tl.float32, bitcast=True)
    else:
        half = bits >> 16 if HALF else bits & 0xFFFF
        return half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _larger(a, b):
    """The larger magnitude, or NaN."""
    return tl.maximum(tl.abs(a), tl.abs(b), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _largest(numbers, COUNT: tl.constexpr):
    """The largest magnitude of COUNT numbers, or NaN; pair by pair, so that few wait for each other."""
    if COUNT == 1:
        return numbers[0]
    else:
        larger = ()
        for index in tl.static_range(COUNT // 2):
            larger = append(larger, _larger(numbers[index], numbers[index + COUNT // 2]))
        return _largest(larger, COUNT // 2)


@triton.jit
def _reciprocal(x):
    """1 / x but for the last bit."""
    if PAIRS:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def _halves(low, high):
    """Two float32 as two float16 in an int32."""
    if PAIRS:
        return tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        bits = low.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        return bits | (high.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def load_pairs(
    x_ptr,  # int32, a token's row: pairs of bfloat16 or float16
    chunk,  # int32 [THREADS]
    UNIT: tl.constexpr,
):
    """Sixteen int32 [THREADS]: a thread's 32 columns of x, quarter by quarter."""
    CHUNKS: tl.constexpr = UNIT // CHUNK_WORDS
    here = x_ptr + (chunk // CHUNKS * (2 * UNIT) + chunk % CHUNKS * 4)
    pairs = ()
    for quarter in tl.static_range(4):
        pairs = pairs + load_vector(here + quarter * (UNIT // 2), 4, READ_AGAIN)
    return pairs


@triton.jit
def quantize_chunk(
    pairs,  # what load_pairs gives
    live,  # int1 [THREADS], false: the scale is 0
    CODE: tl.constexpr,
    ZERO: tl.constexpr,
    NATIVE: tl.constexpr,  # as for row_codes
    IS_BFLOAT16: tl.constexpr,
):
    """Tuples of [THREADS]: x as row_codes has codes, eight int32 or sixteen; what their sums start from, -ZERO times
    the sum of x, four int32; the sums, four int32; and the scale, float32."""
    numbers = ()
    for index in tl.static_range(16):
        numbers = append(numbers, _number(pairs[index], 0, IS_BFLOAT16))
        numbers = append(numbers, _number(pairs[index], 1, IS_BFLOAT16))
    largest = _largest(numbers, 32)
    largest = tl.maximum(largest, 1e-30, propagate_nan=tl.PropagateNan.ALL)

    values, starts, sums = (), (), ()
    if CODE == FP8:
        exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
        factor = (0x7F000000 - exponent).to(tl.float32, bitcast=True)
        for half in tl.static_range(2):
            for column in tl.static_range(8):
                low, high = numbers[16 * half + column] * factor, numbers[16 * half + 8 + column] * factor
                values = append(values, _halves(low, high))
        for _ in tl.static_range(4):
            starts, sums = append(starts, exponent), append(sums, exponent)
        scale = exponent.to(tl.float32, bitcast=True)
        if not NATIVE:
            scale *= 256.0
        scale = tl.where(largest < float("inf"), scale, float("nan"))
    else:
        factor = 127.0 * _reciprocal(largest)
        for index in tl.static_range(8):
            b0 = (numbers[4 * index] * factor + _ROUND).to(tl.int32, bitcast=True)
            b1 = (numbers[4 * index + 1] * factor + _ROUND).to(tl.int32, bitcast=True)
            b2 = (numbers[4 * index + 2] * factor + _ROUND).to(tl.int32, bitcast=True)
            b3 = (numbers[4 * index + 3] * factor + _ROUND).to(tl.int32, bitcast=True)
            values = append(values, permute(permute(b0, b1, 0x0040), permute(b2, b3, 0x0040), 0x5410))
        ones, none = tl.full(live.shape, 0x01010101, tl.int32), tl.full(live.shape, 0, tl.int32)
        for quarter in tl.static_range(4):
            total = dot_bytes(ones, values[2 * quarter + 1], dot_bytes(ones, values[2 * quarter], none))
            sums = append(sums, total)
            # The second quarter of a byte is multiplied as 16 times what it is.
            zero = tl.constexpr(ZERO * 16 if CODE == NIBBLE and quarter % 2 == 1 else ZERO)
            starts = append(starts, none if ZERO == 0 else total * -zero)
        scale = largest * (1.0 / 127.0)
    return values, starts, sums, tl.where(live, scale, 0.0)
