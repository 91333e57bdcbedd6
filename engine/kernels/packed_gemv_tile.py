"""What a thread of the packed GEMV holds of four rows: their planes' bits for 32 columns, and products of them with x.

Tensors here have one element for each thread of the program, [THREADS]: kernels are written for a thread, and no value
changes hands. A thread's columns are eight words of a unit (`quantization.packed_format`): eight consecutive columns of
each of its four quarters. Quarters lie in one register above each other, four columns a register once `prmt` has
gathered bytes, so that `dp4a` multiplies four codes by four columns of x, which is int8 (`packed_gemv_input`).
A quarter's sum is an integer; scales come after it, once for eight columns. With integer scales (PAIR, BYTE) the four
quarters are still added as integers, because x has one scale for all of a thread's columns: by `dp2a`, two quarters at
a time, where sums fit 16 bits (32 * 127 * 8 does).

FP8 codes are no integers. They become float16, by an instruction from compute capability 8.9 on and elsewhere by moving
their bits to where float16 has its own, which makes them 2^8 too small, and are multiplied in pairs; x is float16 then,
and at most 2, so that eight products stay far below the largest number.

The interpreter, which knows no instructions of a GPU, takes the plain twin of each.

Source: PTX ISA, dp4a, dp2a, prmt, cvt and ld (level::eviction_priority).
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.gemv_norm import append
from engine.kernels.packed_tile import (
    BLOCK_SCALE,
    BYTE,
    BYTE_SCALE,
    FIVE_BITS,
    FP8,
    HALF_PAIR_SCALE,
    HALF_SCALE,
    NIBBLE,
    PAIR_SCALE,
    PAIRS,
    ROW_SCALE,
    SIX_BITS,
    ZERO_SCALE,
)

TILE_ROWS: tl.constexpr = tl.constexpr(4)
"""Rows of a tile: with them no plane needs more than 16 bytes of scales at once."""
CHUNK_WORDS: tl.constexpr = tl.constexpr(8)
"""Words of a thread in a row, 16 bytes."""

# Not .nc: the assembler would move such loads below the wait for the predecessor, where they come too late.
READ_ONCE: tl.constexpr = tl.constexpr(".L1::no_allocate")
"""How weights are loaded."""
READ_AGAIN: tl.constexpr = tl.constexpr("")
"""How scales are, of which other tiles find the rest of a sector in the first-level cache; and x."""

_LOAD: tl.constexpr = tl.constexpr("ld.global")
_TO_4: tl.constexpr = tl.constexpr(".v4.b32 {$0, $1, $2, $3}, [$4];")
_TO_2: tl.constexpr = tl.constexpr(".v2.b32 {$0, $1}, [$2];")
_TO_1: tl.constexpr = tl.constexpr(".b32 $0, [$1];")
# Two of e4m3 from the lower half, and two from the upper one.
_FP8_PAIRS: tl.constexpr = tl.constexpr(
    """{
    .reg .b16 l, h;
    mov.b32 {l, h}, $2; cvt.rn.f16x2.e4m3x2 $0, l; cvt.rn.f16x2.e4m3x2 $1, h;
    }"""
)
# The same times 2^-8, bit by bit: s eeee mmm -> s 0eeee mmm0000000.
_FP8_BITS: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 a, b, c, d;
    prmt.b32 a, $2, 0, 0x1404; prmt.b32 b, $2, 0, 0x3424;
    shr.u32 c, a, 1; and.b32 c, c, 0x3f803f80; lop3.b32 $0, a, 0x80008000, c, 0xea;
    shr.u32 d, b, 1; and.b32 d, d, 0x3f803f80; lop3.b32 $1, b, 0x80008000, d, 0xea;
    }"""
)
_PAIRS_DOT: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 s; .reg .b16 l, h;
    mul.rn.f16x2 s, $2, $10; fma.rn.f16x2 s, $3, $11, s; fma.rn.f16x2 s, $4, $12, s; fma.rn.f16x2 s, $5, $13, s;
    fma.rn.f16x2 s, $6, $14, s; fma.rn.f16x2 s, $7, $15, s; fma.rn.f16x2 s, $8, $16, s; fma.rn.f16x2 s, $9, $17, s;
    mov.b32 {l, h}, s; cvt.f32.f16 $0, l; cvt.f32.f16 $1, h;
    }"""
)


@triton.jit
def load_vector(
    pointers,  # int32 pointers [THREADS], aligned to COUNT elements
    COUNT: tl.constexpr,  # 1, 2 or 4
    HOW: tl.constexpr,  # READ_ONCE, READ_AGAIN
):
    """A tuple of COUNT int32 [THREADS] that follow each other in memory, by one load."""
    if not PAIRS:
        values = ()
        for index in tl.static_range(COUNT):
            values = append(values, tl.load(pointers + index))
        return values
    elif COUNT == 4:
        return tl.inline_asm_elementwise(
            _LOAD + HOW + _TO_4, "=r,=r,=r,=r,l", [pointers],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1,
        )  # fmt: skip
    elif COUNT == 2:
        return tl.inline_asm_elementwise(
            _LOAD + HOW + _TO_2, "=r,=r,l", [pointers], dtype=(tl.int32, tl.int32), is_pure=False, pack=1
        )
    else:
        value = tl.inline_asm_elementwise(
            _LOAD + HOW + _TO_1, "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
        )
        return (value,)


@triton.jit
def permute(
    a,
    b,
    SELECTOR: tl.constexpr,  # one hexadecimal digit a byte, the lowest first: 0 to 3 are bytes of a, 4 to 7 of b
):
    """Four of the eight bytes of two int32."""
    if PAIRS:
        selector = tl.full(a.shape, SELECTOR, tl.int32)
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, selector], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        taken = a & 0
        for index in tl.static_range(4):
            place = tl.constexpr((SELECTOR >> (4 * index)) & 7)
            source = a if place < 4 else b
            taken |= ((source >> (8 * (place % 4))) & 255) << (8 * index)
        return taken


@triton.jit
def dot_bytes(
    codes,  # int32, four unsigned bytes
    x,  # int32, four signed bytes
    start,  # int32
):
    """start + codes . x"""
    if PAIRS:
        return tl.inline_asm_elementwise(
            "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [codes, x, start], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        for index in tl.static_range(4):
            start += ((codes >> (8 * index)) & 255) * ((x << (24 - 8 * index)) >> 24)
        return start


@triton.jit
def dot_pairs(
    values,  # int32, two signed numbers of 16 bits
    scales,  # int32, four bytes
    start,  # int32
    HIGH: tl.constexpr,  # whether the upper two of them count
    SIGNED: tl.constexpr,
):
    """start + values . scales"""
    if not PAIRS:
        for index in tl.static_range(2):
            scale = scales >> (16 * HIGH + 8 * index)
            scale = (scale << 24) >> 24 if SIGNED else scale & 255
            start += ((values << (16 - 16 * index)) >> 16) * scale
        return start
    elif SIGNED:
        return tl.inline_asm_elementwise(
            "dp2a.hi.s32.s32 $0, $1, $2, $3;" if HIGH else "dp2a.lo.s32.s32 $0, $1, $2, $3;",
            "=r,r,r,r", [values, scales, start], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            "dp2a.hi.s32.u32 $0, $1, $2, $3;" if HIGH else "dp2a.lo.s32.u32 $0, $1, $2, $3;",
            "=r,r,r,r", [values, scales, start], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def _signed_byte(word, INDEX: tl.constexpr):
    """int32 from one of four bytes."""
    if PAIRS:
        return permute(word, word, 0x8880 + 0x1111 * INDEX)  # a digit from 8 on repeats that byte's sign
    else:
        return (word << (24 - 8 * INDEX)) >> 24


@triton.jit
def _half(bits):
    """float32 from the lower 16 bits of an int32."""
    return (bits & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _fp8_pairs(
    words,
    NATIVE: tl.constexpr,  # whether the device has an instruction for it; else results are 2^-8 times as large
):
    """Pairs of float16 from the four codes of two words, one pair a word."""
    if not PAIRS:
        a, b = (words & 255) << 8 | (words & 0xFF00) << 16, (words >> 16 & 255) << 8 | (words & -0x1000000)
        low, high = (a & -0x7FFF8000) | (a >> 1 & 0x3F803F80), (b & -0x7FFF8000) | (b >> 1 & 0x3F803F80)
        return low, high
    elif NATIVE:
        return tl.inline_asm_elementwise(
            _FP8_PAIRS, "=&r,=&r,r", [words], dtype=(tl.int32, tl.int32), is_pure=True, pack=1
        )
    else:
        return tl.inline_asm_elementwise(
            _FP8_BITS, "=&r,=&r,r", [words], dtype=(tl.int32, tl.int32), is_pure=True, pack=1
        )


@triton.jit
def _dot_pairs_of_halves(
    codes,  # a tuple of pairs of float16, int32
    x,  # likewise
    FIRST: tl.constexpr,  # eight of each, from this one on
):
    """Two float32: the sum of products of the lower halves, and that of the upper ones. Summed in float16."""
    if PAIRS:
        return tl.inline_asm_elementwise(
            _PAIRS_DOT, "=&f,=&f,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
            [codes[FIRST], codes[FIRST + 1], codes[FIRST + 2], codes[FIRST + 3], codes[FIRST + 4], codes[FIRST + 5],
             codes[FIRST + 6], codes[FIRST + 7], x[FIRST], x[FIRST + 1], x[FIRST + 2], x[FIRST + 3], x[FIRST + 4],
             x[FIRST + 5], x[FIRST + 6], x[FIRST + 7]],
            dtype=(tl.float32, tl.float32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        low, high = _half(codes[FIRST]) * _half(x[FIRST]), _half(codes[FIRST] >> 16) * _half(x[FIRST] >> 16)
        for index in tl.static_range(1, 8):
            low += _half(codes[FIRST + index]) * _half(x[FIRST + index])
            high += _half(codes[FIRST + index] >> 16) * _half(x[FIRST + index] >> 16)
        return low, high


@triton.jit
def load_tile(
    words_ptr,  # int32, this and the next three: planes, all as int32
    extra_ptr,
    scales_ptr,
    supers_ptr,
    block,  # of 16 rows
    local,  # the first of four rows of the block, a multiple of four
    chunk,  # int32 [THREADS]: of a row, CHUNK_WORDS words each
    WIDTH: tl.constexpr,  # columns of the matrix
    UNIT: tl.constexpr,  # words of a unit
    CODE: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,  # different ones in which the four quarters of a chunk lie: 1, 2 or 4
):
    """Tuples of int32 [THREADS]: words, extra bits, scales and supers of four rows.

    Words: four a row, then the next row's; BYTE and FP8: eight. Extra bits: two a row. Scales: those of the first
    group, row by row, then the next group's. Supers: row by row. Types of 16 bits fill half a register.
    """
    UNITS: tl.constexpr = WIDTH // (4 * UNIT)
    CHUNKS: tl.constexpr = UNIT // CHUNK_WORDS  # of a unit
    IS_WHOLE: tl.constexpr = CODE >= BYTE  # FP8 too
    block = block.to(tl.int64)
    unit, part = chunk // CHUNKS, chunk % CHUNKS

    ROW: tl.constexpr = UNIT // 2  # int32 of words from row to row
    UNIT_SIZE: tl.constexpr = 16 * ROW * (2 if IS_WHOLE else 1)
    here = words_ptr + block * (UNITS * UNIT_SIZE) + local * ROW + (unit * UNIT_SIZE + part * 4)
    words = ()
    for index in tl.static_range(TILE_ROWS):
        words = words + load_vector(here + index * ROW, 4, READ_ONCE)
        if IS_WHOLE:
            words = words + load_vector(here + (16 + index) * ROW, 4, READ_ONCE)

    extra = ()
    if CODE == SIX_BITS:
        BYTES: tl.constexpr = UNIT // 4  # int32 of extra bits from row to row
        there = extra_ptr + block * (UNITS * 16 * BYTES) + local * BYTES + (unit * (16 * BYTES) + part * 2)
        for index in tl.static_range(TILE_ROWS):
            extra = extra + load_vector(there + index * BYTES, 2, READ_ONCE)
    if CODE == FIVE_BITS:
        BITS: tl.constexpr = UNIT // 8
        there = extra_ptr + block * (UNITS * 16 * BITS) + local * BITS
        there += unit * (16 * BITS) + part % (CHUNKS // 2) * 2
        for index in tl.static_range(TILE_ROWS):
            low, high = load_vector(there + index * BITS, 2, READ_ONCE)
            shift = part // (CHUNKS // 2) * 4
            extra = append(append(extra, low >> shift), high >> shift)

    scales = ()
    if SCALE != ROW_SCALE:
        # Scales of a group in int32: 16 rows of one, two or four bytes, or one for all of them.
        IS_SHORT: tl.constexpr = (SCALE == PAIR_SCALE) | (SCALE == HALF_SCALE)
        IS_SINGLE: tl.constexpr = (SCALE == BLOCK_SCALE) | (SCALE == BYTE_SCALE)
        COUNT: tl.constexpr = 1 if IS_SINGLE else 2 if IS_SHORT else 4
        SIZE: tl.constexpr = 1 if SCALE == BLOCK_SCALE else 4 * COUNT
        STEP: tl.constexpr = 4 // GROUPS * UNIT  # columns from one of them to the next
        column = unit * (4 * UNIT) + part * CHUNK_WORDS
        first = scales_ptr + block * ((WIDTH + GROUP - 1) // GROUP * SIZE)
        if SCALE != BLOCK_SCALE:
            first += local * COUNT // 4
        for number in tl.static_range(GROUPS):
            if STEP % GROUP == 0:
                group = column // GROUP + number * (STEP // GROUP)
            else:
                group = (column + number * STEP) // GROUP
            scales = scales + load_vector(first + group * SIZE, COUNT, READ_AGAIN)

    supers = ()
    if SCALE == PAIR_SCALE:
        there = supers_ptr + block * (WIDTH // 256 * 16) + local + unit * (4 * UNIT) // 256 * 16
        supers = load_vector(there, 4, READ_AGAIN)
    if SCALE == BYTE_SCALE:
        there = supers_ptr + block * (WIDTH // 256 * 8) + local // 2 + unit * (4 * UNIT) // 256 * 8
        supers = load_vector(there, 2, READ_AGAIN)
    return words, extra, scales, supers


@triton.jit
def _nibbles(a, b, e, HIGH: tl.constexpr, CODE: tl.constexpr):
    """Codes of four columns of two quarters, from the low bytes of four words, or the high ones: two int32.

    Of NIBBLE the second is 16 times as large.
    """
    both = permute(a, b, 0x7531 if HIGH else 0x6420)
    low = both & 0x0F0F0F0F
    high = both & -0x0F0F0F10 if CODE == NIBBLE else (both >> 4) & 0x0F0F0F0F
    if CODE == FIVE_BITS:
        low |= (e << 2 if HIGH else e << 4) & 0x10101010
        high |= (e << 1 if HIGH else e << 3) & 0x10101010
    if CODE == SIX_BITS:
        low |= (e if HIGH else e << 4) & 0x30303030
        high |= (e >> 2 if HIGH else e << 2) & 0x30303030
    return low, high


@triton.jit
def row_codes(tile, ROW: tl.constexpr, CODE: tl.constexpr, NATIVE: tl.constexpr):
    """Eight int32 [THREADS]: four columns of quarter 0, the next four, and so on. FP8: sixteen, the codes of quarters 0
    and 1 of a column each, then those of 2 and 3."""
    words, extra, _, _ = tile
    if CODE == FP8:
        codes = ()
        for index in tl.static_range(8):
            low, high = _fp8_pairs(words[8 * ROW + index], NATIVE)
            codes = append(append(codes, low), high)
        return codes
    elif CODE == BYTE:
        a0, a1 = words[8 * ROW], words[8 * ROW + 1]
        a2, a3 = words[8 * ROW + 2], words[8 * ROW + 3]
        b0, b1 = words[8 * ROW + 4], words[8 * ROW + 5]
        b2, b3 = words[8 * ROW + 6], words[8 * ROW + 7]
        return (
            permute(a0, a1, 0x6420), permute(a2, a3, 0x6420), permute(a0, a1, 0x7531), permute(a2, a3, 0x7531),
            permute(b0, b1, 0x6420), permute(b2, b3, 0x6420), permute(b0, b1, 0x7531), permute(b2, b3, 0x7531),
        )  # fmt: skip
    else:
        w0, w1, w2, w3 = words[4 * ROW], words[4 * ROW + 1], words[4 * ROW + 2], words[4 * ROW + 3]
        if CODE == NIBBLE:
            e0, e1 = w0, w0
        else:
            e0, e1 = extra[2 * ROW], extra[2 * ROW + 1]
        c0, c2 = _nibbles(w0, w1, e0, False, CODE)
        c1, c3 = _nibbles(w2, w3, e1, False, CODE)
        c4, c6 = _nibbles(w0, w1, e0, True, CODE)
        c5, c7 = _nibbles(w2, w3, e1, True, CODE)
        return c0, c1, c2, c3, c4, c5, c6, c7


@triton.jit
def _quarter_sums(codes, x, CODE: tl.constexpr):
    """Products of a row's codes, less the format's zero, with x: four of [THREADS], int32 or, FP8, float32."""
    values, starts, _, _ = x
    if CODE == FP8:
        s0, s1 = _dot_pairs_of_halves(codes, values, 0)
        s2, s3 = _dot_pairs_of_halves(codes, values, 8)
        return s0, s1, s2, s3
    else:
        sums = ()
        for quarter in tl.static_range(4):
            total = dot_bytes(codes[2 * quarter], values[2 * quarter], starts[quarter])
            total = dot_bytes(codes[2 * quarter + 1], values[2 * quarter + 1], total)
            if CODE == NIBBLE and quarter % 2 == 1:
                total = total >> 4
            sums = append(sums, total)
        return sums


@triton.jit
def row_product(
    codes,  # what row_codes gives
    tile,
    x,  # what quantize_chunk gives
    ROW: tl.constexpr,
    CODE: tl.constexpr,
    SCALE: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """A thread's share of a row's product with x: float32 [THREADS]. ROW_SCALE: without the row's scale."""
    _, _, scales, supers = tile
    _, _, totals, x_scale = x
    quarter_sums = _quarter_sums(codes, x, CODE)
    s0, s1, s2, s3 = quarter_sums
    if SCALE == ROW_SCALE:
        return (s0 + s1 + (s2 + s3)).to(tl.float32) * x_scale
    else:
        t0, t1, t2, t3 = totals
        sums, parts = (), ()
        if GROUPS == 1:
            sums, parts = append(sums, s0 + s1 + (s2 + s3)), append(parts, t0 + t1 + (t2 + t3))
        elif GROUPS == 2:
            sums, parts = append(sums, s0 + s1), append(parts, t0 + t1)
            sums, parts = append(sums, s2 + s3), append(parts, t2 + t3)
        else:
            sums, parts = quarter_sums, totals
        y = tl.zeros(x_scale.shape, tl.float32)
        if SCALE <= BYTE_SCALE:  # integers
            inner, offset = tl.zeros(t0.shape, tl.int32), tl.zeros(t0.shape, tl.int32)
            if CODE == BYTE:  # sums that need more than 16 bits
                for group in tl.static_range(GROUPS):
                    inner += sums[group] * _signed_byte(scales[group], ROW)
            else:
                s01, s23 = permute(s0, s1, 0x5410), permute(s2, s3, 0x5410)
                if SCALE == PAIR_SCALE:
                    # Of two groups: both scales, then both minima.
                    PLACES: tl.constexpr = 0x7362 if ROW % 2 else 0x5140
                    a = permute(scales[ROW // 2], scales[2 + ROW // 2], PLACES)
                    b = permute(scales[4 + ROW // 2], scales[6 + ROW // 2], PLACES)
                    inner = dot_pairs(s23, b, dot_pairs(s01, a, inner, False, False), False, False)
                    offset = dot_pairs(permute(t0, t1, 0x5410), a, offset, True, False)
                    offset = dot_pairs(permute(t2, t3, 0x5410), b, offset, True, False)
                else:
                    # Of two groups: the scales of a row, then those of the next.
                    ROWS: tl.constexpr = 0x7362 if ROW >= 2 else 0x5140
                    a, b = permute(scales[0], scales[1], ROWS), permute(scales[2], scales[3], ROWS)
                    inner = dot_pairs(s01, a, inner, ROW % 2 == 1, True)
                    inner = dot_pairs(s23, b, inner, ROW % 2 == 1, True)
            if SCALE == PAIR_SCALE:
                y = _half(supers[ROW]) * inner.to(tl.float32) - _half(supers[ROW] >> 16) * offset.to(tl.float32)
            else:
                y = _half(supers[ROW // 2] >> (16 * (ROW % 2))) * inner.to(tl.float32)
        else:
            for group in tl.static_range(GROUPS):
                if SCALE == HALF_SCALE:
                    y += _half(scales[2 * group + ROW // 2] >> (16 * (ROW % 2))) * sums[group].to(tl.float32)
                elif SCALE == HALF_PAIR_SCALE:
                    pair = scales[4 * group + ROW]
                    y += _half(pair) * sums[group].to(tl.float32)
                    y += _half(pair >> 16) * parts[group].to(tl.float32)
                elif SCALE == ZERO_SCALE:
                    both = scales[4 * group + ROW]
                    total = sums[group] - (both & 255) * parts[group]
                    y += (both & -256).to(tl.float32, bitcast=True) * total.to(tl.float32)
                elif SCALE == BLOCK_SCALE:
                    y += scales[group].to(tl.float32, bitcast=True) * sums[group].to(tl.float32)
                else:
                    y += scales[4 * group + ROW].to(tl.float32, bitcast=True) * sums[group].to(tl.float32)
        return y * x_scale
