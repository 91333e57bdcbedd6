"""The instructions that unpack two codes at once, on a machine without them: each is carried out on integers.

The interpreter knows no inline assembly, so without a GPU nothing else looks at these lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from engine.kernels import packed_tile

Words = npt.NDArray[Any]
"""uint32, registers; two words or two numbers each."""
ALL_WORDS = np.arange(1 << 16, dtype=np.uint32)
PAIRS = ALL_WORDS | ALL_WORDS[::-1] << np.uint32(16)
"""Every word below every other once; the upper one must not run into the lower."""


def bfloat16(words: Words) -> torch.Tensor:
    """The two numbers of each register, float64 [2, n]."""
    halves = torch.from_numpy(np.stack([words & 0xFFFF, words >> 16]).astype(np.uint16).view(np.int16))
    return halves.view(torch.bfloat16).double()


def register(numbers: torch.Tensor) -> Words:
    """Such that none needs rounding, which is not tried here."""
    rounded = numbers.to(torch.bfloat16)
    assert torch.equal(rounded.double(), numbers)
    low, high = rounded.view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
    result: Words = low | high << np.uint32(16)
    return result


def lookup(a: Words, b: Words, c: Words, table: Words) -> Words:
    result: Words = np.zeros_like(a | b | c)
    for number in range(8):
        if int(table.flat[0]) >> number & 1:
            result |= (a if number & 4 else ~a) & (b if number & 2 else ~b) & (c if number & 1 else ~c)
    return result


OPERATIONS: dict[str, Callable[..., Words]] = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "shl.b32": lambda a, b: a << b,
    "shr.u32": lambda a, b: a >> b,
    "lop3.b32": lookup,
    "fma.rn.bf16x2": lambda a, b, c: register(bfloat16(a) * bfloat16(b) + bfloat16(c)),
}


def run(assembly: Any, num_outputs: int, *inputs: Words) -> list[Words]:
    """What a block of instructions leaves in its outputs, $0 and so on; inputs follow them."""
    registers = {f"${number}": value for number, value in enumerate(inputs, num_outputs)}
    for line in assembly.value.strip("{} \n").split(";"):
        operation, _, words = line.strip().partition(" ")
        if operation in ("", ".reg"):
            continue
        target, *sources = re.split(r",\s*", words)
        values = [registers[word] if word in registers else np.uint32(int(word, 0)) for word in sources]
        registers[target] = OPERATIONS[operation](*np.broadcast_arrays(*values))
    return [registers[f"${number}"] for number in range(num_outputs)]


def field(position: int, bits: int, words: Words = PAIRS) -> torch.Tensor:
    """Of both words of each register: float64 [2, n]"""
    mask = (1 << bits) - 1
    return torch.from_numpy(np.stack([(words >> position) & mask, (words >> 16 + position) & mask]).astype(np.float64))


def filled(number: float) -> Words:
    return register(torch.full((2, len(PAIRS)), number, dtype=torch.float64))


@pytest.mark.parametrize("zero", [0, 4, 8])
def test_nibbles(zero: int) -> None:
    for j, words in enumerate(run(packed_tile._NIBBLES, 4, PAIRS, filled(-128 - zero))):
        assert torch.equal(bfloat16(words), field(4 * j, 4) - zero)


def test_nibbles_whose_quarters_have_zeros_of_their_own() -> None:
    zeros = [0, 7, 8, 15]
    found = run(packed_tile._NIBBLES_OF_GROUPS, 4, PAIRS, *(filled(-128 - zero) for zero in zeros))
    for j, zero in enumerate(zeros):
        assert torch.equal(bfloat16(found[j]), field(4 * j, 4) - zero)


def test_bytes() -> None:
    for j, words in enumerate(run(packed_tile._BYTES, 2, PAIRS)):
        assert torch.equal(bfloat16(words), field(8 * j, 8) - 128)


@pytest.mark.parametrize("zeros", [(0, 255), (128, 1), (100, 200)])
def test_bytes_whose_quarters_have_zeros_of_their_own(zeros: tuple[int, int]) -> None:
    found = run(packed_tile._BYTES_OF_GROUPS, 2, PAIRS, *(filled(-zero) for zero in zeros))
    for j, zero in enumerate(zeros):
        assert torch.equal(bfloat16(found[j]), field(8 * j, 8) - zero)


@pytest.mark.parametrize(("assembly", "bits"), [(packed_tile._FIVE_BITS, 1), (packed_tile._SIX_BITS, 2)], ids=[5, 6])
def test_bits_that_lie_apart(assembly: Any, bits: int) -> None:
    extra = (PAIRS * np.uint32(40503)) & np.uint32(0x00FF00FF if bits == 2 else 0x000F000F)
    for j, words in enumerate(run(assembly, 4, PAIRS, extra, filled(-128 - 16))):
        assert torch.equal(bfloat16(words), field(4 * j, 4) + 16 * field(bits * j, bits, extra) - 16)


def test_fp8() -> None:
    for j, words in enumerate(run(packed_tile._FP8, 2, PAIRS)):
        expected = field(8 * j, 8).to(torch.uint8).view(torch.float8_e4m3fn).double()
        found, is_number = bfloat16(words), ~expected.isnan()
        assert torch.equal(found[is_number], expected[is_number])
        assert torch.equal(found.signbit(), expected.signbit())
