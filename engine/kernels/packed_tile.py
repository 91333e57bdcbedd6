"""What the kernels of packed weights share: a tile of four quarters of a unit, loaded, unpacked and scaled.

The layout is that of `quantization.packed_format`. Each instruction unpacks two codes: columns 2c and 2c + 1 lie
in one register, as a pair that tensor cores take as it is. An integer below 128 becomes bfloat16 by setting the bits of
128 around it; subtracting 128 is exact. Scales are computed in float32 and rounded to bfloat16, so a weight is as exact
as one that was expanded to bfloat16, within a factor of two. Scales are loaded once for each group and spread over its
columns without leaving the registers, which the compiler finds by itself as long as no shape changes in between. A
group's zero point is what is subtracted in place of 128: that stays exact. An FP8 number becomes bfloat16 by moving its
bits to where that type has its own and multiplying with 2^120, the distance of their exponents' biases, which is exact
for subnormals too. With one scale a row (Scale.ROW) a tile is the codes; whoever loads it multiplies.

Pairs are for bfloat16 on a GPU. Other types, and the interpreter, take each code by itself.

Source: Frantar et al. 2024, arXiv:2408.11743 (the bits of 128); PTX ISA, lop3 and fma, which keeps subnormals.
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
FP8: tl.constexpr = tl.constexpr(int(Code.FP8))  # from BYTE on a code takes a byte
PAIR_SCALE: tl.constexpr = tl.constexpr(int(Scale.PAIR))
BYTE_SCALE: tl.constexpr = tl.constexpr(int(Scale.BYTE))
HALF_SCALE: tl.constexpr = tl.constexpr(int(Scale.HALF))
HALF_PAIR_SCALE: tl.constexpr = tl.constexpr(int(Scale.HALF_PAIR))
ZERO_SCALE: tl.constexpr = tl.constexpr(int(Scale.FLOAT_ZERO))
BLOCK_SCALE: tl.constexpr = tl.constexpr(int(Scale.BLOCK))
ROW_SCALE: tl.constexpr = tl.constexpr(int(Scale.ROW))

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
# As the first, with what is taken from the codes of each quarter in $5 to $8.
_NIBBLES_OF_GROUPS: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 a, b, c;
    shr.u32 a, $4, 4; shr.u32 b, $4, 8; shr.u32 c, $4, 12;
    lop3.b32 $0, $4, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $1, a, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $2, b, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 $3, c, 0x000f000f, 0x43004300, 0xea;
    mov.b32 a, 0x3f803f80;
    fma.rn.bf16x2 $0, $0, a, $5; fma.rn.bf16x2 $1, $1, a, $6;
    fma.rn.bf16x2 $2, $2, a, $7; fma.rn.bf16x2 $3, $3, a, $8;
    }"""
)
# As _BYTES, with (128 + low) - zero in place of - 128, so that the sum is 16 * high + low - zero.
_BYTES_OF_GROUPS: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 a, b, c, d, one, sixteen, far;
    mov.b32 one, 0x3f803f80; mov.b32 sixteen, 0x41804180; mov.b32 far, 0xc508c508;
    shr.u32 b, $2, 4; shr.u32 c, $2, 8; shr.u32 d, $2, 12;
    lop3.b32 a, $2, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 b, b, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 c, c, 0x000f000f, 0x43004300, 0xea;
    lop3.b32 d, d, 0x000f000f, 0x43004300, 0xea;
    fma.rn.bf16x2 a, a, one, $3; fma.rn.bf16x2 c, c, one, $4;
    fma.rn.bf16x2 b, b, sixteen, far; fma.rn.bf16x2 d, d, sixteen, far;
    fma.rn.bf16x2 $0, a, one, b; fma.rn.bf16x2 $1, c, one, d;
    }"""
)
# s eeee mmm -> s 0000 eeee mmm 0000, times 2^120.
_FP8: tl.constexpr = tl.constexpr(
    """{
    .reg .b32 a, b, c, bias, none;
    mov.b32 bias, 0x7b807b80; mov.b32 none, 0x80008000;
    shl.b32 a, $2, 4; shl.b32 b, $2, 8; shr.u32 c, $2, 4;
    and.b32 a, a, 0x07f007f0; and.b32 c, c, 0x07f007f0;
    lop3.b32 a, b, 0x80008000, a, 0xea; lop3.b32 c, $2, 0x80008000, c, 0xea;
    fma.rn.bf16x2 $0, a, bias, none; fma.rn.bf16x2 $1, c, bias, none;
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
    J: tl.constexpr,  # its number; BYTE and FP8: within the word
    CODE: tl.constexpr,
    ZERO: tl.constexpr,
):
    """Codes less their zero, one by one: float32 [ROWS, WORDS]."""
    word = words.to(tl.int32)
    if CODE >= BYTE:
        code = (word >> (8 * J)) & 255
    else:
        code = (word >> (4 * J)) & 15
        if CODE == FIVE_BITS:
            code |= ((extra.to(tl.int32) >> J) & 1) << 4
        if CODE == SIX_BITS:
            code |= ((extra.to(tl.int32) >> (2 * J)) & 3) << 4
    if CODE == FP8:  # by way of float16, whose exponents begin at 15 and not at 7
        half = (((code & 128) << 8) | ((code & 127) << 7)).to(tl.int16).to(tl.float16, bitcast=True)
        value = half.to(tl.float32) * 256.0
    else:
        value = (code - ZERO).to(tl.float32)
    return value


@triton.jit
def _codes(
    words,  # int16 [ROWS, WORDS]
    words_above,  # BYTE and FP8: of the two upper quarters; else anything
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
        elif CODE == FP8:
            q0, q1 = tl.inline_asm_elementwise(
                _FP8, "=&r,=&r,r", [words], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
            )
            q2, q3 = tl.inline_asm_elementwise(
                _FP8, "=&r,=&r,r", [words_above], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
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
        if CODE >= BYTE:
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


@triton.constexpr_function
def _second(unit, group):
    """Columns from a unit's first quarter to one in the group of its second: what both share is loaded once."""
    return 0 if group % (2 * unit) == 0 else unit


@triton.constexpr_function
def _third(unit, group):
    return 0 if group % (4 * unit) == 0 else 2 * unit


@triton.jit
def _times(
    codes,  # [ROWS, WORDS], a quarter
    scale,  # float32 [ROWS, GROUPS]
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """codes * scale, typed like `codes`."""
    if PAIRS and codes.dtype == tl.bfloat16:
        wide = _spread(scale.to(tl.bfloat16), ROWS, GROUPS, WORDS)
        weights = _fma(codes, wide, tl.full((ROWS, WORDS), -0.0, tl.bfloat16))
    else:
        weights = (codes.to(tl.float32) * _spread(scale, ROWS, GROUPS, WORDS)).to(codes.dtype)
    return weights


@triton.jit
def _less(
    zero,  # float32 [ROWS, GROUPS], of a quarter's groups
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    WORDS: tl.constexpr,
    CODE: tl.constexpr,
):
    """What is added to a quarter's codes, which have the bits of 128 around them: bfloat16 [ROWS, WORDS], exact."""
    MORE: tl.constexpr = 128.0 if CODE == NIBBLE else 0.0
    return _spread((-MORE - zero).to(tl.bfloat16), ROWS, GROUPS, WORDS)


@triton.jit
def _with_zeros(
    words,  # int16 [ROWS, WORDS]
    words_above,  # BYTE: of the two upper quarters
    scales_ptr,  # of the program's rows: [ROWS, GROUPS] pointers to the first group
    column,  # the first of the first quarter
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    GROUPS: tl.constexpr,
    CODE: tl.constexpr,  # NIBBLE or BYTE
    GROUP: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """ZERO_SCALE: the weights of four quarters, whose groups have zero points beside their scales."""
    SECOND: tl.constexpr = _second(UNIT, GROUP)
    THIRD: tl.constexpr = _third(UNIT, GROUP)
    p0 = tl.load(scales_ptr + column // GROUP * 16)  # int32 [ROWS, GROUPS]
    p1 = tl.load(scales_ptr + (column + SECOND) // GROUP * 16)
    p2 = tl.load(scales_ptr + (column + THIRD) // GROUP * 16)
    p3 = tl.load(scales_ptr + (column + (THIRD + SECOND)) // GROUP * 16)
    z0, z1 = (p0 & 255).to(tl.float32), (p1 & 255).to(tl.float32)
    z2, z3 = (p2 & 255).to(tl.float32), (p3 & 255).to(tl.float32)
    if PAIRS and tl.bfloat16 == DTYPE:
        l0, l1 = _less(z0, ROWS, GROUPS, WORDS, CODE), _less(z1, ROWS, GROUPS, WORDS, CODE)
        l2, l3 = _less(z2, ROWS, GROUPS, WORDS, CODE), _less(z3, ROWS, GROUPS, WORDS, CODE)
        if CODE == BYTE:
            q0, q1 = tl.inline_asm_elementwise(
                _BYTES_OF_GROUPS, "=&r,=&r,r,r,r", [words, l0, l1],
                dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
            )  # fmt: skip
            q2, q3 = tl.inline_asm_elementwise(
                _BYTES_OF_GROUPS, "=&r,=&r,r,r,r", [words_above, l2, l3],
                dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
            )  # fmt: skip
        else:
            q0, q1, q2, q3 = tl.inline_asm_elementwise(
                _NIBBLES_OF_GROUPS, "=&r,=&r,=&r,=&r,r,r,r,r,r", [words, l0, l1, l2, l3],
                dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
            )  # fmt: skip
    else:
        q0, q1, q2, q3 = _codes(words, words_above, words, CODE, 0, tl.float32)
        q0 = (q0 - _spread(z0, ROWS, GROUPS, WORDS)).to(DTYPE)
        q1 = (q1 - _spread(z1, ROWS, GROUPS, WORDS)).to(DTYPE)
        q2 = (q2 - _spread(z2, ROWS, GROUPS, WORDS)).to(DTYPE)
        q3 = (q3 - _spread(z3, ROWS, GROUPS, WORDS)).to(DTYPE)
    # -256 clears the lowest 8 bits.
    w0 = _times(q0, (p0 & -256).to(tl.float32, bitcast=True), ROWS, GROUPS, WORDS)
    w1 = _times(q1, (p1 & -256).to(tl.float32, bitcast=True), ROWS, GROUPS, WORDS)
    w2 = _times(q2, (p2 & -256).to(tl.float32, bitcast=True), ROWS, GROUPS, WORDS)
    w3 = _times(q3, (p3 & -256).to(tl.float32, bitcast=True), ROWS, GROUPS, WORDS)
    return w0, w1, w2, w3


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
    STEP: tl.constexpr = 1 if SCALE == BLOCK_SCALE else 16
    packed = tl.load(scales_ptr + column // GROUP * STEP)  # [ROWS, GROUPS]
    HAS_OFFSET: tl.constexpr = SCALE == PAIR_SCALE or HALF_PAIR_SCALE == SCALE
    if SCALE == PAIR_SCALE:
        pair = packed.to(tl.int32)
        scale = (pair & 255).to(tl.float32) * _low_half(supers)[:, None]
        offset = -((pair >> 8) & 255).to(tl.float32) * _high_half(supers)[:, None]
    elif SCALE == BYTE_SCALE:
        scale = packed.to(tl.float32) * supers.to(tl.float32)[:, None]
    elif SCALE == HALF_PAIR_SCALE:
        scale = _low_half(packed)
        offset = _high_half(packed)
    else:
        scale = packed.to(tl.float32)
    if not HAS_OFFSET:
        weights = _times(codes, scale, ROWS, GROUPS, WORDS)
    elif PAIRS and codes.dtype == tl.bfloat16:
        wide = _spread(scale.to(tl.bfloat16), ROWS, GROUPS, WORDS)
        weights = _fma(codes, wide, _spread(offset.to(tl.bfloat16), ROWS, GROUPS, WORDS))
    else:
        exact = codes.to(tl.float32) * _spread(scale, ROWS, GROUPS, WORDS)
        weights = (exact + _spread(offset, ROWS, GROUPS, WORDS)).to(codes.dtype)
    return weights


@triton.jit
def _scaled_quarters(
    words,
    words_above,
    extra,
    scales,  # [ROWS, GROUPS] pointers to the tile's first group
    supers_ptr,
    block,  # of each row, int64 [ROWS]
    row,  # within it, [ROWS]
    unit,
    column,  # the first of the first quarter
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    CODE: tl.constexpr,
    ZERO: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The weights of four quarters whose zero is the format's."""
    q0, q1, q2, q3 = _codes(words, words_above, extra, CODE, ZERO, DTYPE)
    supers = row
    if SCALE <= BYTE_SCALE:  # the two that have one
        supers = tl.load(supers_ptr + (block * (WIDTH // 256) + unit * (4 * UNIT) // 256) * 16 + row)
    w0 = _scaled(q0, scales, supers, column, ROWS, WORDS, SCALE, GROUP)
    SECOND: tl.constexpr = _second(UNIT, GROUP)
    THIRD: tl.constexpr = _third(UNIT, GROUP)
    w1 = _scaled(q1, scales, supers, column + SECOND, ROWS, WORDS, SCALE, GROUP)
    w2 = _scaled(q2, scales, supers, column + THIRD, ROWS, WORDS, SCALE, GROUP)
    w3 = _scaled(q3, scales, supers, column + (THIRD + SECOND), ROWS, WORDS, SCALE, GROUP)
    return w0, w1, w2, w3


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
    """Weights of columns first + [0, WORDS) of each of a unit's quarters: four [ROWS, WORDS] of DTYPE.

    ROW_SCALE: they lack their row's scale.
    """
    UNITS: tl.constexpr = WIDTH // (4 * UNIT)
    GROUPS: tl.constexpr = WORDS // GROUP if WORDS > GROUP else 1
    block, row = (rows // 16).to(tl.int64), rows % 16
    word = first + tl.arange(0, WORDS)
    if CODE >= BYTE:
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
    STEP: tl.constexpr = 1 if SCALE == BLOCK_SCALE else 16
    ROW_GROUPS: tl.constexpr = (WIDTH + GROUP - 1) // GROUP
    scales = scales_ptr + (block * (ROW_GROUPS * STEP))[:, None] + (tl.arange(0, GROUPS) * STEP)[None, :]
    if SCALE != BLOCK_SCALE:
        scales += row[:, None]
    column = unit * (4 * UNIT) + first
    if SCALE == ZERO_SCALE:
        w0, w1, w2, w3 = _with_zeros(words, words_above, scales, column, UNIT, ROWS, WORDS, GROUPS, CODE, GROUP, DTYPE)
    elif SCALE == ROW_SCALE:
        w0, w1, w2, w3 = _codes(words, words_above, extra, CODE, ZERO, DTYPE)
    else:
        w0, w1, w2, w3 = _scaled_quarters(
            words, words_above, extra, scales, supers_ptr, block, row, unit, column,
            WIDTH, UNIT, ROWS, WORDS, CODE, ZERO, SCALE, GROUP, DTYPE,
        )  # fmt: skip
    return w0, w1, w2, w3
