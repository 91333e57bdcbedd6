"""Codes out of the words in which AWQ, GPTQ and compressed-tensors pack them: one function a layout.

Each takes elements of the file's tensor and gives uint8 codes [rows, columns] of the matrix, on whichever device the
elements lie. Bytes are taken apart rather than words: four times less memory moves than with int32.
Source: AutoAWQ awq/utils/packing_utils.py (the order of nibbles); AutoGPTQ qlinear_cuda.py; compressed-tensors
pack_quantized.py.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def fields(words: Tensor, bits: int) -> Tensor:
    """int32 [a, b] -> uint8 [a, b, 32 / bits], lowest bits first; bits are 4 or 8."""
    octets = words.contiguous().view(torch.uint8)
    if bits == 4:
        # A byte becomes two without a strided write: 0xHL -> 0x0H0L, whose lower byte comes first in memory.
        spread = octets.short()
        spread = (spread | (spread << 4)) & 0x0F0F
        octets = spread.view(torch.uint8)
    return octets.view(len(words), -1, 32 // bits)


def along_second(words: Tensor, bits: int) -> Tensor:
    """[rows, columns / n] -> [rows, columns]: consecutive columns share a word."""
    return fields(words, bits).flatten(1)


def along_first(words: Tensor, bits: int) -> Tensor:
    """[rows / n, columns] -> [rows, columns]: consecutive rows share a word."""
    return fields(words, bits).transpose(1, 2).flatten(0, 1)


def awq(words: Tensor, bits: int) -> Tensor:
    """[columns, rows / 8] -> [rows, columns]: eight rows share a word, lowest nibble first 0, 2, 4, 6, 1, 3, 5, 7."""
    halves = fields(words, bits).view(*words.shape, 2, 4)  # [columns, words, even or odd, which of four]
    return halves.permute(1, 3, 2, 0).flatten(0, 2)


def gptq(words: Tensor, bits: int) -> Tensor:
    """[columns / n, rows] -> [rows, columns]: consecutive columns share a word."""
    return fields(words, bits).transpose(0, 1).flatten(1)


def gptq_zeros(words: Tensor, bits: int) -> Tensor:
    """[groups, rows / n] -> [rows, groups]"""
    return along_second(words, bits).t()


def plain(codes: Tensor, bits: int) -> Tensor:
    """[rows, columns], one code an element."""
    return codes
