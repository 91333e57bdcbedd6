"""Products of a weight matrix with few tokens: y = x @ W.T, with what follows fused into the store.

Decoding reads each weight once a step, so the time is that of the bytes. A few tokens are multiplied by `gemv_fma`,
which needs no tensor cores; beyond, multiply-adds would be the limit, and `gemv_dot` gives up to 128 tokens to the
tensor cores. Here are their launchers; `product_tiles` says which of the two and with which tile, `gemv_epilogue` what
follows the product, and what the norm is that is deferred into it. Called by the runner of decode steps, and by
`products`, which knows when the library is the better choice.

Source: Zhang & Sennrich 2019, arXiv:1910.07467 (RMSNorm); Shazeer 2020, arXiv:2002.05202 (gated units).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl

from engine.kernels import gemv_epilogue as epilogues
from engine.kernels.gemv_dot import dot_kernel, sum_splits
from engine.kernels.gemv_fma import fma_kernel
from engine.kernels.launch import capability, launch_options
from engine.kernels.product_tiles import (
    MAX_FUSED_TOKENS,
    MAX_TOKENS,
    DotTile,
    FmaTile,
    Tile,
    WhatFollows,
    matrix_kind,
    product_tile,
)

Tensor = torch.Tensor

ACTIVATIONS = {
    "silu": epilogues.SILU.value,
    "gelu": epilogues.GELU.value,
    "gelu_tanh": epilogues.GELU_TANH.value,
}


MIN_DOT_TOKENS = 16


class DeferredNorm(NamedTuple):
    """An RMSNorm whose weight is already in x; the division by the root mean square is left to the reader."""

    sum_squares: Tensor
    """float32 [num_tokens, num_partials]: their sum over a row is that of the squares of the residual stream."""
    eps: float


def gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    out_dtype: torch.dtype | None = None,
    tile: Tile | None = None,
    pdl: bool = False,
) -> Tensor:
    """x @ weight.T + bias.

    Args:
        x: [num_tokens, width], 1 to 128 tokens; with `norm` 1 to 16, times its weight but not yet divided.
        weight: [num_outputs, width]; bfloat16, float16 or float32.
        bias: [num_outputs].
        norm: completes the norm of `x`.
        out_dtype: the type of `x` by default. float32 spares a rounding where a kernel of ours reads the result.
        tile: instead of the table's choice; what measurements vary.
        pdl: load weights while the kernel before still runs, on devices that can.

    Returns:
        [num_tokens, num_outputs].

    Raises:
        ValueError: shapes or types that do not fit, elements of a row that do not lie together, or more tokens than
            the table has a tile for.
    """
    out = torch.empty(x.shape[0], weight.shape[0], dtype=out_dtype or x.dtype, device=x.device)
    _launch(x, weight, bias, norm, out, epilogues.PLAIN, "plain", tile, pdl)
    return out


def gemv_residual(
    x: Tensor,
    weight: Tensor,
    residual: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    tile: Tile | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """Adds x @ weight.T + bias to `residual`, in place, and begins the norm that follows.

    The first result is not divided by the root mean square yet, so float16 can overflow in models whose residual stream
    passes 65504 (Gemma); bfloat16 and float32 cannot.

    Args:
        x: as for `gemv`, 1 to 16 tokens.
        weight: as for `gemv`.
        residual: float32 [num_tokens, num_outputs], overwritten.
        gamma: [num_outputs], weight of the norm that follows, its offset added.
        bias: as for `gemv`.
        norm: as for `gemv`.
        tile: as for `gemv`.
        pdl: as for `gemv`.

    Returns:
        gamma * residual, [num_tokens, num_outputs] typed like `x`; and what DeferredNorm.sum_squares takes.

    Raises:
        ValueError: as `gemv`.
    """
    num_tokens, num_outputs = x.shape[0], weight.shape[0]
    if residual.shape != (num_tokens, num_outputs) or residual.dtype != torch.float32:
        raise ValueError(
            f"gemv_residual: residual is {residual.dtype} {tuple(residual.shape)}; "
            f"it must be float32 ({num_tokens}, {num_outputs})"
        )
    if residual.stride(1) != 1 or gamma.shape != (num_outputs,) or not gamma.is_contiguous():
        raise ValueError(
            f"gemv_residual: gamma is {tuple(gamma.shape)}; it must be ({num_outputs},), and both it and the rows of "
            "residual contiguous"
        )
    out = torch.empty(num_tokens, num_outputs, dtype=x.dtype, device=x.device)
    partials = _launch(x, weight, bias, norm, out, epilogues.RESIDUAL, "residual", tile, pdl, residual, gamma)
    return out, partials


def gemv_gated(
    x: Tensor,
    gate_up: Tensor,
    activation: str,
    bias: Tensor | None = None,
    *,
    layout: Literal["split", "interleaved"] = "split",
    norm: DeferredNorm | None = None,
    tile: Tile | None = None,
    pdl: bool = False,
) -> Tensor:
    """activation(x @ gate.T) * (x @ up.T).

    Args:
        x: as for `gemv`.
        gate_up: [2 * num_outputs, width].
        activation: "silu", "gelu" or "gelu_tanh".
        bias: [2 * num_outputs], laid out as the rows of `gate_up`.
        layout: "split": all gate rows, then all up rows; "interleaved": they alternate, gate first.
        norm: as for `gemv`.
        tile: as for `gemv`.
        pdl: as for `gemv`.

    Returns:
        [num_tokens, num_outputs], typed like `x`.

    Raises:
        ValueError: as `gemv`; an odd number of rows, an unknown activation or layout.
    """
    if gate_up.shape[0] % 2 or activation not in ACTIVATIONS or layout not in ("split", "interleaved"):
        raise ValueError(
            f"gemv_gated: {gate_up.shape[0]} rows, activation {activation!r}, layout {layout!r}; takes an even number "
            f'of rows, one of {", ".join(ACTIVATIONS)}, and "split" or "interleaved"'
        )
    out = torch.empty(x.shape[0], gate_up.shape[0] // 2, dtype=x.dtype, device=x.device)
    _launch(
        x, gate_up, bias, norm, out, epilogues.GATED, "gated", tile, pdl,
        activation=ACTIVATIONS[activation], is_interleaved=layout == "interleaved",
    )  # fmt: skip
    return out


def gemv_argmax(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    tile: Tile | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """The largest of x @ weight.T + bias among the rows of each program; `step_end` finds the largest of all.

    The products are not kept. A soft cap, being monotonic, needs no regard.

    Args:
        x: as for `gemv`, 1 to 16 tokens.
        weight: as for `gemv`, without rows that only pad the vocabulary.
        bias: as for `gemv`.
        norm: as for `gemv`.
        tile: as for `gemv`.
        pdl: as for `gemv`.

    Returns:
        Values, float32 [num_tokens, num_programs], infinite where a product was NaN; and their rows, int32, the lowest
        of equals.

    Raises:
        ValueError: as `gemv`.
    """
    rows = torch.empty(0, dtype=torch.int32, device=x.device)  # as wide as there are programs
    values = _launch(x, weight, bias, norm, rows, epilogues.ARGMAX, "argmax", tile, pdl)
    return values, rows


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: DeferredNorm | None,
    out: Tensor,
    epilogue: tl.constexpr,
    what_follows: WhatFollows,
    tile: Tile | None,
    pdl: bool,
    residual: Tensor | None = None,
    gamma: Tensor | None = None,
    activation: int = 0,
    is_interleaved: bool = False,
) -> Tensor:
    """Launches either kernel. Returns the partial results, one for each token and program; sizes `out` for ARGMAX."""
    _check(x, weight, bias, norm, is_fused=norm is not None or what_follows in ("residual", "argmax"))
    num_tokens, width = x.shape
    num_outputs = weight.shape[0] // 2 if what_follows == "gated" else weight.shape[0]
    is_normed = what_follows == "plain" and norm is not None
    tile = tile or _tile(x, weight, "normed" if is_normed else what_follows, num_outputs)
    num_programs = triton.cdiv(num_outputs, tile.rows)
    has_partials = what_follows in ("residual", "argmax")
    partials = torch.empty(num_tokens, num_programs if has_partials else 0, device=x.device)
    if what_follows == "argmax":
        out.resize_(num_tokens, num_programs)
    num_partials = 0 if norm is None else norm.sum_squares.shape[1]
    tensors = (
        x,
        weight,
        x if bias is None else bias,
        x if norm is None else norm.sum_squares,
        x if residual is None else residual,
        x if gamma is None else gamma,
        out,
        partials,
    )
    numbers = (
        x.stride(0),
        0 if residual is None else residual.stride(0),
        num_outputs,
        num_partials,
        0.0 if norm is None else norm.eps,
    )
    constants = {
        "WIDTH": width,
        "WEIGHT_STRIDE": weight.stride(0),
        "ROWS": tile.rows,
        "IS_EVEN": num_outputs % tile.rows == 0,
        "IS_INTERLEAVED": is_interleaved,
        "EPILOGUE": epilogue,
        "ACTIVATION": activation,
        "HAS_BIAS": bias is not None,
        "NORM_BLOCK": triton.next_power_of_2(num_partials) if num_partials else 0,
    }
    if isinstance(tile, FmaTile):
        vector = 16 // weight.element_size()
        fma_kernel[(num_programs,)](
            *tensors,
            *numbers,
            NUM_TOKENS=num_tokens,
            TILE_ROWS=tile.tile_rows,
            COLUMNS=vector * 32 * tile.num_warps,
            VECTOR=vector,
            DEPTH=tile.depth,
            **constants,
            **launch_options(tile.num_warps, pdl, x.device),
        )
    elif tile.splits == 1 or what_follows != "plain" or norm is not None:
        _launch_dot(tensors, numbers, constants, replace(tile, splits=1), num_tokens, pdl)
    else:
        sums = torch.empty(tile.splits, num_tokens, num_outputs, device=x.device)
        tensors = *tensors[:6], sums, partials
        _launch_dot(tensors, numbers, constants | {"HAS_BIAS": False}, tile, num_tokens, pdl)
        sum_splits(sums, bias, out, pdl=pdl)
    return partials


def _tile(x: Tensor, weight: Tensor, what_follows: WhatFollows, num_outputs: int) -> Tile:
    num_tokens, width = x.shape
    kind = matrix_kind(what_follows, num_outputs, width)
    tile = product_tile(capability(x.device), kind, width, weight.element_size(), num_tokens)
    if tile is None:
        raise ValueError(
            f"gemv: there is no tile for {num_tokens} tokens and {weight.dtype} {tuple(weight.shape)} ({kind}), "
            "because the library is faster; pass one, or call products.linear"
        )
    return tile


def _launch_dot(
    tensors: tuple[Tensor, ...],
    numbers: tuple[int | float, ...],
    constants: dict[str, object],
    tile: DotTile,
    num_tokens: int,
    pdl: bool,
) -> None:
    x, weight = tensors[:2]
    num_outputs, width = int(numbers[2]), x.shape[1]
    columns_a_split = triton.cdiv(triton.cdiv(width, tile.columns), tile.splits) * tile.columns
    prefetched = tile.prefetched
    while prefetched > max(0, width - (tile.splits - 1) * columns_a_split):
        prefetched //= 2
    dot_kernel[(triton.cdiv(num_outputs, tile.rows), tile.splits)](
        *tensors,
        *numbers,
        num_tokens,
        TOKENS=max(MIN_DOT_TOKENS, triton.next_power_of_2(num_tokens)),
        COLUMNS=tile.columns,
        NUM_STAGES=tile.num_stages,
        SPLITS=tile.splits,
        PREFETCHED=prefetched,
        **constants,
        **launch_options(tile.num_warps, pdl, weight.device),
    )


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, norm: DeferredNorm | None, *, is_fused: bool) -> None:
    num_tokens = x.shape[0]
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or x.dtype != weight.dtype:
        raise ValueError(
            f"gemv: x is {x.dtype} {tuple(x.shape)}, weight {weight.dtype} {tuple(weight.shape)}; "
            "both must have one type, two axes and the same width"
        )
    most = MAX_FUSED_TOKENS if is_fused else MAX_TOKENS
    if not 1 <= num_tokens <= most:
        raise ValueError(f"gemv: {num_tokens} tokens; takes 1 to {most}, more belong to a product with nothing fused")
    if x.stride(1) != 1 or weight.stride(1) != 1:
        raise ValueError(f"gemv: rows must be contiguous; the strides are {x.stride()} and {weight.stride()}")
    if bias is not None and (bias.shape != weight.shape[:1] or not bias.is_contiguous()):
        raise ValueError(f"gemv: bias is {tuple(bias.shape)}, it must be ({weight.shape[0]},) and contiguous")
    if norm is not None and (
        norm.sum_squares.ndim != 2
        or norm.sum_squares.shape[0] != num_tokens
        or norm.sum_squares.dtype != torch.float32
        or not norm.sum_squares.is_contiguous()
    ):
        raise ValueError(
            f"gemv: sums of squares are {norm.sum_squares.dtype} {tuple(norm.sum_squares.shape)}; "
            f"they must be float32, contiguous, with {num_tokens} rows"
        )
