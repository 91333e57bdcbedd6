"""Codes out of the words in which AWQ, GPTQ and compressed-tensors pack them: one function a layout.

Each takes elements of the file's tensor and gives uint8 codes [rows, columns] of the matrix, on whichever device the
elements lie. Bytes are taken apart rather than words: four times less memory moves than with int32.
Source: AutoAWQ awq/utils/packing_utils.py (the order of nibbles); AutoGPTQ qlinear_cuda.py; compressed-tensors
pack_quantized.py.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column of eight that lies in each nibble of a word, lowest first."""
AWQ_NIBBLES = tuple(AWQ_ORDER.index(column) for column in range(8))


def fields(words: Tensor, bits: int) -> Tensor:
    """int32 [a, b] -> uint8 [a, b, 32 / bits], lowest bits first; bits are 4 or 8."""
    octets = words.contiguous().view(torch.uint8).unflatten(1, (-1, 4))
    return octets if bits == 8 else torch.stack([octets & 15, octets >> 4], dim=-1).flatten(2)


def along_second(words: Tensor, bits: int) -> Tensor:
    """[rows, columns / n] -> [rows, columns]: consecutive columns share a word."""
    return fields(words, bits).flatten(1)


def along_first(words: Tensor, bits: int) -> Tensor:
    """[rows / n, columns] -> [rows, columns]: consecutive rows share a word."""
    return fields(words, bits).transpose(1, 2).flatten(0, 1)


def awq(words: Tensor, bits: int) -> Tensor:
    """[columns, rows / 8] -> [rows, columns]: eight rows share a word, in AWQ's order."""
    return fields(words, bits)[..., AWQ_NIBBLES].flatten(1).t()


def gptq(words: Tensor, bits: int) -> Tensor:
    """[columns / n, rows] -> [rows, columns]: consecutive columns share a word."""
    return fields(words, bits).transpose(0, 1).flatten(1)


def gptq_zeros(words: Tensor, bits: int) -> Tensor:
    """[groups, rows / n] -> [rows, groups]"""
    return along_second(words, bits).t()


def plain(codes: Tensor, bits: int) -> Tensor:
    """[rows, columns], one code an element."""
    return codes
