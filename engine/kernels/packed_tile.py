"""What the kernels of packed weights share: a tile of four quarters of a unit, loaded, unpacked and scaled.

The layout is that of `quantization.packed_format`. Each instruction unpacks two codes: columns 2c and 2c + 1 lie
in one register, as a pair that tensor cores take as it is. An integer below 128 becomes bfloat16 by setting the bits of
128 around it; subtracting 128 is exact. Scales are computed in float32 and rounded to bfloat16, so a weight is as exact
as one that was expanded to bfloat16, within a factor of two. Scales are loaded once for each group and spread over its
columns without leaving the registers, which the compiler finds by itself as long as no shape changes in between.

Pairs are for bfloat16 on a GPU. Other types, and the interpreter, take each code by itself.

Source: Frantar et al. 2024, arXiv:2408.11743 (the bits of 128); PTX ISA, lop3 and fma.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.launch import INTERPRETED
from engine.quantization.packed_format import Code, Scale

NIBBLE: tl.constexpr = tl.constexpr(int(Code.NIBBLE))
FIVE_BITS: tl.constexpr = tl.constexpr(int(Code.FIVE_BITS))
SIX_BITS: tl.constexpr = tl.constexpr(int(Code.SIX_BITS))
BYTE: tl.constexpr = tl.constexpr(int(Code.BYTE))
PAIR_SCALE: tl.constexpr = tl.constexpr(int(Scale.PAIR))
BYTE_SCALE: tl.constexpr = tl.constexpr(int(Scale.BYTE))
HALF_SCALE: tl.constexpr = tl.constexpr(int(Scale.HALF))

PAIRS: tl.constexpr = tl.constexpr(not INTERPRETED)
"""Whether instructions for two codes at once are there."""

_NIBBLES: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 a, b, c;
    shr.u32 a, $4, 4; shr.u32 b, $4, 8; shr.u32 c, $4, 12;
    lop3.b32 $0, $4, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $1, a, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $2, b, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $3, c, 0x000f000f, 0x43004300, 0xea;
    mov.b32 a, 0x3f803f80;
    fma.rn.bf16x2 $0, $0, a, $5; fma.rn.bf16x2 $1, $1, a, $5;
    fma.rn.bf16x2 $2, $2, a, $5; fma.rn.bf16x2 $3, $3, a, $5;
    }"""
)
# As before, and bits of $5 moved to bit 4 by the shifts of each quarter.
_FIVE_BITS: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 a, b, c, d, e, f, g;
    shr.u32 a, $4, 4; shr.u32 b, $4, 8; shr.u32 c, $4, 12;
    shl.b32 d, $5, 4; shl.b32 e, $5, 3; shl.b32 f, $5, 2; shl.b32 g, $5, 1;
    lop3.b32 $0, $4, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $1, a, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $2, b, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $3, c, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $0, d, 0x00100010, $0, 0xea; lop3.b32 $1, e, 0x00100010, $1, 0xea;
    lop3.b32 $2, f, 0x00100010, $2, 0xea; lop3.b32 $3, g, 0x00100010, $3, 0xea;
    mov.b32 a, 0x3f803f80;
    fma.rn.bf16x2 $0, $0, a, $6; fma.rn.bf16x2 $1, $1, a, $6;
    fma.rn.bf16x2 $2, $2, a, $6; fma.rn.bf16x2 $3, $3, a, $6;
    }"""
)
_SIX_BITS: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 a, b, c, d, e, g;
    shr.u32 a, $4, 4; shr.u32 b, $4, 8; shr.u32 c, $4, 12;
    shl.b32 d, $5, 4; shl.b32 e, $5, 2; shr.u32 g, $5, 2;
    lop3.b32 $0, $4, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $1, a, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $2, b, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $3, c, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $0, d, 0x00300030, $0, 0xea; lop3.b32 $1, e, 0x00300030, $1, 0xea;
    lop3.b32 $2, $5, 0x00300030, $2, 0xea; lop3.b32 $3, g, 0x00300030, $3, 0xea;
    mov.b32 a, 0x3f803f80;
    fma.rn.bf16x2 $0, $0, a, $6; fma.rn.bf16x2 $1, $1, a, $6;
    fma.rn.bf16x2 $2, $2, a, $6; fma.rn.bf16x2 $3, $3, a, $6;
    }"""
)
# A byte is 16 * high + low; 16 * (128 + high) - 2048 - 128 and (128 + low) - 128 are exact, and so is their sum.
_BYTES: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 a, b, c, d, one, sixteen, less, far;
    mov.b32 one, 0x3f803f80; mov.b32 sixteen, 0x41804180; mov.b32 less, 0xc300c300; mov.b32 far, 0xc508c508;
    shr.u32 b, $2, 4; shr.u32 c, $2, 8; shr.u32 d, $2, 12;
    lop3.b32 a, $2, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 b, b, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 c, c, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 d, d, 0x000f000f, 0x43004300, 0xea;
    fma.rn.bf16x2 a, a, one, less; fma.rn.bf16x2 c, c, one, less;
    fma.rn.bf16x2 b, b, sixteen, far; fma.rn.bf16x2 d, d, sixteen, far;
    fma.rn.bf16x2 $0, a, one, b; fma.rn.bf16x2 $1, c, one, d;
    }"""
)


def kernel_tensor(plane: torch.Tensor) -> torch.Tensor:
    """A plane as a kernel takes it: one that a format lacks is never read, but the interpreter wants memory for it."""
    return plane if plane.numel() or not INTERPRETED else plane.new_zeros(1)


@triton.jit
def _minus(words, NUMBER: tl.constexpr):
    """-NUMBER in bfloat16, shaped like `words`: an operand that the compiler keeps in one register."""
    return tl.full(words.shape, -NUMBER, tl.bfloat16)


@triton.jit
def _fma(a, b, c):
    """a * b + c, two bfloat16 at once, rounded once."""
    return tl.inline_asm_elementwise(
        "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.bfloat16, is_pure=True, pack=2
    )


@triton.jit
def _quarter(
    words,  # int16 [ROWS, WORDS]
    extra,  # int16 [ROWS, WORDS], FIVE_BITS and SIX_BITS
    J: tl.constexpr,  # its number; BYTE: within the word
    CODE: tl.constexpr,
    ZERO: tl.constexpr,
):
    """Codes less their zero, one by one: float32 [ROWS, WORDS]."""
    word = words.to(tl.int32)
    if CODE == BYTE:
        code = (word >> (8 * J)) & 255
    else:
        code = (word >> (4 * J)) & 15
        if CODE == FIVE_BITS:
            code |= ((extra.to(tl.int32) >> J) & 1) << 4
        if CODE == SIX_BITS:
            code |= ((extra.to(tl.int32) >> (2 * J)) & 3) << 4
    return (code - ZERO).to(tl.float32)


@triton.jit
def _codes(
    words,  # int16 [ROWS, WORDS]
    words_above,  # BYTE: of the two upper quarters; else anything
    extra,  # int16 [ROWS, WORDS], FIVE_BITS and SIX_BITS; else anything
    CODE: tl.constexpr,
    ZERO: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Codes less their zero: four quarters [ROWS, WORDS], of DTYPE, exact."""
    if PAIRS and tl.bfloat16 == DTYPE:
        if CODE == BYTE:
            q0, q1 = tl.inline_asm_elementwise(
                _BYTES, "=&r,=&r,r", [words], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
            )
            q2, q3 = tl.inline_asm_elementwise(
                _BYTES, "=&r,=&r,r", [words_above], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
            )
        elif CODE == NIBBLE:
            q0, q1, q2, q3 = tl.inline_asm_elementwise(
                _NIBBLES, "=&r,=&r,=&r,=&r,r,r", [words, _minus(words, 128 + ZERO)],
                dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
            )  # fmt: skip
        elif CODE == FIVE_BITS:
            q0, q1, q2, q3 = tl.inline_asm_elementwise(
                _FIVE_BITS, "=&r,=&r,=&r,=&r,r,r,r", [words, extra, _minus(words, 128 + ZERO)],
                dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
            )  # fmt: skip
        else:
            q0, q1, q2, q3 = tl.inline_asm_elementwise(
                _SIX_BITS, "=&r,=&r,=&r,=&r,r,r,r", [words, extra, _minus(words, 128 + ZERO)],
                dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
            )  # fmt: skip
    else:
        q0 = _quarter(words, extra, 0, CODE, ZERO).to(DTYPE)
        q1 = _quarter(words, extra, 1, CODE, ZERO).to(DTYPE)
        if CODE == BYTE:
            q2 = _quarter(words_above, extra, 0, CODE, ZERO).to(DTYPE)
            q3 = _quarter(words_above, extra, 1, CODE, ZERO).to(DTYPE)
        else:
            q2 = _quarter(words, extra, 2, CODE, ZERO).to(DTYPE)
            q3 = _quarter(words, extra, 3, CODE, ZERO).to(DTYPE)
    return q0, q1, q2, q3


@triton.jit
def _low_half(pair):
    """float32 from the lower 16 bits of int32."""
    return (pair & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _high_half(pair):
    return (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _spread(values, ROWS: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr):
    """[ROWS, GROUPS] -> [ROWS, WORDS], each value over its group's columns."""
    WIDTH: tl.constexpr = WORDS // GROUPS
    return tl.reshape(tl.broadcast_to(values[:, :, None], (ROWS, GROUPS, WIDTH)), (ROWS, WORDS))


@triton.jit
def _scaled(
    codes,  # [ROWS, WORDS], a quarter
    scales_ptr,  # of the program's rows: [ROWS, GROUPS] pointers to the first group
    supers,  # [ROWS], of the 256 columns; PAIR_SCALE and BYTE_SCALE
    column,  # the quarter's first
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The quarter's weights, typed like `codes`."""
    GROUPS: tl.constexpr = WORDS // GROUP if WORDS > GROUP else 1
    packed = tl.load(scales_ptr + column // GROUP * 16)  # [ROWS, GROUPS]
    HAS_OFFSET: tl.constexpr = SCALE != BYTE_SCALE and SCALE != HALF_SCALE
    if SCALE == PAIR_SCALE:
        pair = packed.to(tl.int32)
        scale = (pair & 255).to(tl.float32) * _low_half(supers)[:, None]
        offset = -((pair >> 8) & 255).to(tl.float32) * _high_half(supers)[:, None]
    elif SCALE == BYTE_SCALE:
        scale = packed.to(tl.float32) * supers.to(tl.float32)[:, None]
    elif SCALE == HALF_SCALE:
        scale = packed.to(tl.float32)
    else:
        scale = _low_half(packed)
        offset = _high_half(packed)
    if PAIRS and codes.dtype == tl.bfloat16:
        wide = _spread(scale.to(tl.bfloat16), ROWS, GROUPS, WORDS)
        if HAS_OFFSET:
            weights = _fma(codes, wide, _spread(offset.to(tl.bfloat16), ROWS, GROUPS, WORDS))
        else:
            weights = _fma(codes, wide, tl.full((ROWS, WORDS), -0.0, tl.bfloat16))
    else:
        exact = codes.to(tl.float32) * _spread(scale, ROWS, GROUPS, WORDS)
        if HAS_OFFSET:
            exact += _spread(offset, ROWS, GROUPS, WORDS)
        weights = exact.to(codes.dtype)
    return weights


@triton.jit
def load_tile(
    words_ptr,  # int16, the plane
    extra_ptr,  # uint8, FIVE_BITS and SIX_BITS
    scales_ptr,
    supers_ptr,
    rows,  # int32 [ROWS], of the matrix
    unit,
    first,  # word of the unit
    WIDTH: tl.constexpr,  # columns of the matrix
    UNIT: tl.constexpr,  # words of a unit
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,  # words of the tile, up to UNIT
    CODE: tl.constexpr,
    ZERO: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Weights of columns first + [0, WORDS) of each of a unit's quarters: four [ROWS, WORDS] of DTYPE."""
    UNITS: tl.constexpr = WIDTH // (4 * UNIT)
    GROUPS: tl.constexpr = WORDS // GROUP if WORDS > GROUP else 1
    block, row = (rows // 16).to(tl.int64), rows % 16
    word = first + tl.arange(0, WORDS)
    if CODE == BYTE:
        here = (block * UNITS + unit) * (2 * 16 * UNIT) + row * UNIT  # [ROWS]
        words = tl.load(words_ptr + (here[:, None] + word[None, :]), eviction_policy="evict_first")
        words_above = tl.load(words_ptr + (here[:, None] + word[None, :]) + 16 * UNIT, eviction_policy="evict_first")
        extra = words
    else:
        here = (block * UNITS + unit) * (16 * UNIT) + row * UNIT
        words = tl.load(words_ptr + (here[:, None] + word[None, :]), eviction_policy="evict_first")
        words_above = words
        if CODE == SIX_BITS:
            extra = tl.load(extra_ptr + (here[:, None] + word[None, :]), eviction_policy="evict_first").to(tl.int16)
        elif CODE == FIVE_BITS:
            HALF: tl.constexpr = UNIT // 2
            there = (block * UNITS + unit) * (16 * HALF) + row * HALF
            extra = tl.load(extra_ptr + (there[:, None] + (word % HALF)[None, :])).to(tl.int16)
            extra = extra >> (word // HALF * 4).to(tl.int16)[None, :]
        else:
            extra = words
    q0, q1, q2, q3 = _codes(words, words_above, extra, CODE, ZERO, DTYPE)
    supers = rows
    if SCALE <= BYTE_SCALE:  # the two that have one
        supers = tl.load(supers_ptr + (block * (WIDTH // 256) + unit * (4 * UNIT) // 256) * 16 + row)
    scales = scales_ptr + (block * (WIDTH // GROUP * 16) + row)[:, None] + (tl.arange(0, GROUPS) * 16)[None, :]
    column = unit * (4 * UNIT) + first
    w0 = _scaled(q0, scales, supers, column, ROWS, WORDS, SCALE, GROUP)
    w1 = _scaled(q1, scales, supers, column + UNIT, ROWS, WORDS, SCALE, GROUP)
    w2 = _scaled(q2, scales, supers, column + 2 * UNIT, ROWS, WORDS, SCALE, GROUP)
    w3 = _scaled(q3, scales, supers, column + 3 * UNIT, ROWS, WORDS, SCALE, GROUP)
    return w0, w1, w2, w3
