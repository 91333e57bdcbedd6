"""Matrix products for any number of tokens: which of our kernels, or the library's, the table of tiles says.

With few tokens a product takes as long as its weights need from memory, and there our kernels read faster than the
library's; with many it is the library's that use the tensor cores best. Called by the decoder of a GPU for all products
that nothing but a gated unit is fused into; decode steps of few tokens call `gemv` and `packed_gemv` themselves, with
the rest fused.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engine.kernels.gated import gated
from engine.kernels.gemv import gemv, gemv_gated
from engine.kernels.launch import capability
from engine.kernels.packed_product import MAX_TOKENS as MAX_PACKED_TOKENS
from engine.kernels.packed_product import packed_product
from engine.kernels.packed_rows import packed_rows
from engine.kernels.product_tiles import MAX_TOKENS, Tile, WhatFollows, matrix_kind, product_tile
from engine.quantization.packed_format import PackedWeight

Tensor = torch.Tensor

MAX_PACKED_TOKENS_90 = 192
"""On compute capability 9.0 the library's products gain more from there on than expanding costs: a step of 256 tokens
of a 7B model in Q4_K_M takes 13.3 ms so and 15.0 ms without, one of 128 11.0 and 9.6 (H200, 2026-11-27)."""
MAX_EXPANDED_ROWS = 1 << 16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, pdl: bool = False) -> Tensor:
    """x @ weight.T + bias.

    Args:
        x: [num_tokens, width], any number of tokens; float32, float16 or bfloat16, elements of a row together.
        weight: [num_outputs, width], typed like `x`, elements of a row together.
        bias: [num_outputs], typed like `x`.
        pdl: overlap with the kernel before, where the kernel is ours and the device can.

    Returns:
        [num_tokens, num_outputs], typed like `x`.

    Raises:
        ValueError: shapes or types that do not fit, where the kernel is ours.
        RuntimeError: the same from the library.
    """
    tile = _tile(x, weight, "plain", weight.shape[0])
    return F.linear(x, weight, bias) if tile is None else gemv(x, weight, bias, tile=tile, pdl=pdl)


def linear_gated(
    x: Tensor, gate_up: Tensor, activation: str, bias: Tensor | None = None, *, pdl: bool = False
) -> Tensor:
    """activation(x @ gate.T) * (x @ up.T).

    Args:
        x: as for `linear`.
        gate_up: [2 * num_outputs, width], all gate rows before all up rows.
        activation: "silu", "gelu" or "gelu_tanh".
        bias: [2 * num_outputs].
        pdl: as for `linear`.

    Returns:
        [num_tokens, num_outputs], typed like `x`.

    Raises:
        ValueError: as `linear`; an odd number of rows, an unknown activation.
        RuntimeError: as `linear`.
    """
    tile = _tile(x, gate_up, "gated", gate_up.shape[0] // 2)
    if tile is None:
        return gated(F.linear(x, gate_up, bias), activation, pdl=pdl)
    return gemv_gated(x, gate_up, activation, bias, tile=tile, pdl=pdl)


def _tile(x: Tensor, weight: Tensor, what_follows: WhatFollows, num_outputs: int) -> Tile | None:
    """None where the product is the library's."""
    num_tokens, width = x.shape
    if not 1 <= num_tokens <= MAX_TOKENS:
        return None
    kind = matrix_kind(what_follows, num_outputs, width)
    return product_tile(capability(x.device), kind, width, weight.element_size(), num_tokens)


def packed_linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, out: Tensor | None = None, pdl: bool = False
) -> Tensor:
    """x @ weight.T + bias for a matrix that stays quantised.

    With many tokens it is expanded, all of it, for this product.

    Args:
        x: as for `linear`.
        weight: the matrix.
        bias: as for `linear`.
        out: [num_tokens, num_rows], typed like `x`, elements of a row together; made where it is not given.
        pdl: as for `linear`.

    Returns:
        `out`.

    Raises:
        ValueError: shapes that do not fit.
    """
    if x.shape[0] <= _most_packed_tokens(x, weight):
        return packed_product(x, weight, bias, out=out, pdl=pdl)
    y = F.linear(weight.ordered(x), packed_rows(weight, x.dtype, pdl=pdl), bias)
    return y if out is None else out.copy_(y)


def _most_packed_tokens(x: Tensor, weight: PackedWeight) -> int:
    """A head is worth expanding for no more tokens than must be: it takes a gigabyte, which every step would hold."""
    is_head = weight.num_rows > MAX_EXPANDED_ROWS
    return MAX_PACKED_TOKENS if is_head or capability(x.device) != 90 else MAX_PACKED_TOKENS_90
