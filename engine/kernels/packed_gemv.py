"""Products of a quantised matrix with one or two tokens, with what follows fused into the store.

What `gemv` is for plain weights: the same four products with the same results, for matrices that stay quantised as
`quantization.packed_format` describes. x is rounded to 8 bits in groups of 32, so it takes bfloat16 and float16 only;
float32 belongs to `packed_product`, which rounds nothing. Called by the runner of decode steps. Which tile is in
`packed_gemv_tiles`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels import gemv_epilogue as epilogues
from engine.kernels.gemv import ACTIVATIONS, DeferredNorm
from engine.kernels.launch import INTERPRETED, capability, launch_options
from engine.kernels.packed_gemv_kernel import packed_gemv_kernel
from engine.kernels.packed_gemv_tiles import MAX_TOKENS, PackedGemvTile, packed_gemv_tile
from engine.kernels.product_tiles import WhatFollows, matrix_kind
from engine.quantization.packed_format import Code, PackedWeight, Scale

Tensor = torch.Tensor

CHUNK_COLUMNS = 32
"""Columns of a row that a thread takes at a time: eight of each quarter of a unit."""
MIN_FP8_CAPABILITY = 89
"""From here on there is an instruction that makes float16 of FP8 codes."""
MIN_NORM_BLOCK = 1024
"""Partial sums that a kernel is compiled for, if there are no more, so that one kernel serves most producers."""
ALIGNMENT = 16
"""Bytes of a load of x."""


def is_multipliable(weight: PackedWeight, dtype: torch.dtype, num_tokens: int = 1) -> bool:
    """Whether these products take such a matrix and x."""
    group, unit = weight.format.group, weight.unit
    fits = weight.format.scale == Scale.ROW or (group % 8 == 0 and (unit % group == 0 or group % unit == 0))
    return fits and dtype in (torch.bfloat16, torch.float16) and 1 <= num_tokens <= MAX_TOKENS


def packed_gemv(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    tile: PackedGemvTile | None = None,
    pdl: bool = False,
) -> Tensor:
    """x @ weight.T + bias.

    Args:
        x: [num_tokens, num_columns], 1 or 2 tokens, bfloat16 or float16; with `norm` times its weight but not yet
            divided.
        weight: the matrix.
        bias: [num_rows].
        norm: completes the norm of `x`.
        out: [num_tokens, num_rows], elements of a row together; made where it is not given.
        out_dtype: of what is made, the type of `x` by default.
        tile: instead of the table's choice; what measurements vary.
        pdl: load weights while the kernel before still runs, on devices that can.

    Returns:
        `out`.

    Raises:
        ValueError: shapes, types or numbers of tokens that do not fit.
    """
    if out is None:
        out = torch.empty(x.shape[0], weight.num_rows, dtype=out_dtype or x.dtype, device=x.device)
    elif out.shape != (x.shape[0], weight.num_rows) or out.stride(1) != 1:
        raise ValueError(
            f"packed_gemv: out is {tuple(out.shape)} with strides {out.stride()}; it must be "
            f"({x.shape[0]}, {weight.num_rows}), elements of a row together"
        )
    _launch(x, weight, bias, norm, out, "plain", tile, pdl)
    return out


def packed_gemv_residual(
    x: Tensor,
    weight: PackedWeight,
    residual: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    tile: PackedGemvTile | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `gemv.gemv_residual`: adds to the residual stream and begins the norm that follows.

    Args:
        x: as for `packed_gemv`.
        weight: the matrix.
        residual: float32 [num_tokens, num_rows], overwritten.
        gamma: [num_rows], weight of the norm that follows, its offset added.
        bias: as for `packed_gemv`.
        norm: as for `packed_gemv`.
        tile: as for `packed_gemv`.
        pdl: as for `packed_gemv`.

    Returns:
        gamma * residual, typed like `x`; and what DeferredNorm.sum_squares takes.

    Raises:
        ValueError: as `packed_gemv`.
    """
    shape = x.shape[0], weight.num_rows
    if residual.shape != shape or residual.dtype != torch.float32 or residual.stride(1) != 1:
        raise ValueError(
            f"packed_gemv_residual: residual is {residual.dtype} {tuple(residual.shape)} with strides "
            f"{residual.stride()}; it must be float32 {shape}, elements of a row together"
        )
    if gamma.shape != shape[1:] or not gamma.is_contiguous():
        raise ValueError(f"packed_gemv_residual: gamma is {tuple(gamma.shape)}; it must be ({shape[1]},), contiguous")
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    partials = _launch(x, weight, bias, norm, out, "residual", tile, pdl, residual=residual, gamma=gamma)
    return out, partials


def packed_gemv_gated(
    x: Tensor,
    gate_up: PackedWeight,
    activation: str,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    tile: PackedGemvTile | None = None,
    pdl: bool = False,
) -> Tensor:
    """activation(x @ gate.T) * (x @ up.T).

    Args:
        x: as for `packed_gemv`.
        gate_up: all gate rows, then all up rows, a multiple of four each.
        activation: "silu", "gelu" or "gelu_tanh".
        bias: [num_rows], laid out as the rows of `gate_up`.
        norm: as for `packed_gemv`.
        tile: as for `packed_gemv`.
        pdl: as for `packed_gemv`.

    Returns:
        [num_tokens, num_rows / 2], typed like `x`.

    Raises:
        ValueError: as `packed_gemv`; an unknown activation.
    """
    if gate_up.num_rows % 8 or activation not in ACTIVATIONS:
        raise ValueError(
            f"packed_gemv_gated: {gate_up.num_rows} rows, activation {activation!r}; takes a multiple of 8 rows and "
            f"one of {', '.join(ACTIVATIONS)}"
        )
    out = torch.empty(x.shape[0], gate_up.num_rows // 2, dtype=x.dtype, device=x.device)
    _launch(x, gate_up, bias, norm, out, "gated", tile, pdl, activation=ACTIVATIONS[activation])
    return out


def packed_gemv_argmax(
    x: Tensor,
    weight: PackedWeight,
    num_rows: int,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    tile: PackedGemvTile | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `gemv.gemv_argmax`: the largest product among the rows of each program.

    Args:
        x: as for `packed_gemv`.
        weight: the matrix.
        num_rows: only so many of its rows count, the first.
        bias: as for `packed_gemv`.
        norm: as for `packed_gemv`.
        tile: as for `packed_gemv`.
        pdl: as for `packed_gemv`.

    Returns:
        Values, float32 [num_tokens, num_programs], infinite where a product was NaN; and their rows, int32, the lowest
        of equals.

    Raises:
        ValueError: as `packed_gemv`.
    """
    rows = torch.empty(0, dtype=torch.int32, device=x.device)  # as wide as there are programs
    values = _launch(x, weight, bias, norm, rows, "argmax", tile, pdl, num_outputs=num_rows)
    return values, rows


_EPILOGUES: dict[str, tl.constexpr] = {
    "plain": epilogues.PLAIN,
    "residual": epilogues.RESIDUAL,
    "gated": epilogues.GATED,
    "argmax": epilogues.ARGMAX,
}


def _launch(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    norm: DeferredNorm | None,
    out: Tensor,
    what_follows: WhatFollows,
    tile: PackedGemvTile | None,
    pdl: bool,
    *,
    residual: Tensor | None = None,
    gamma: Tensor | None = None,
    activation: int = 0,
    num_outputs: int | None = None,
) -> Tensor:
    """Returns the partial results, one for each token and program; sizes `out` for the search of the largest."""
    _check(x, weight, bias, norm)
    x = _ordered(x, weight)
    num_tokens, width = x.shape
    num_outputs = num_outputs or (weight.num_rows // 2 if what_follows == "gated" else weight.num_rows)
    num_chunks = width // CHUNK_COLUMNS
    if tile is None:
        is_normed = what_follows == "plain" and norm is not None
        kind = matrix_kind("normed" if is_normed else what_follows, num_outputs, width)
        tile = packed_gemv_tile(capability(x.device), kind, weight.format.code, num_chunks, num_tokens)
    rows = tile.rows
    while rows > 4 and weight.num_rows // (2 if what_follows == "gated" else 1) % rows:
        rows //= 2  # rows that programs have beyond the last must be rows of the matrix
    num_programs = triton.cdiv(num_outputs, rows)
    has_partials = what_follows in ("residual", "argmax")
    partials = torch.empty(num_tokens, num_programs if has_partials else 0, device=x.device)
    if what_follows == "argmax":
        out.resize_(num_tokens, num_programs)
    num_partials = 0 if norm is None else norm.sum_squares.shape[1]
    group, unit = weight.format.group, weight.unit
    packed_gemv_kernel[(num_programs,)](
        x,
        *map(_integers, weight.planes.tensors),
        x if bias is None else bias,
        x if norm is None else norm.sum_squares,
        x if residual is None else residual,
        x if gamma is None else gamma,
        out,
        partials,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        0 if what_follows == "argmax" else out.stride(0),
        num_outputs,
        num_partials,
        0.0 if norm is None else norm.eps,
        NUM_TOKENS=num_tokens,
        GROUPS=4 if group % (2 * unit) else 2 if group % (4 * unit) else 1,
        NATIVE=weight.format.code == Code.FP8 and capability(x.device) >= MIN_FP8_CAPABILITY,
        ROWS=rows,
        TILES=rows // 4 * (2 if what_follows == "gated" else 1),
        THREADS=32 * tile.num_warps,
        PASSES=triton.cdiv(num_chunks, 32 * tile.num_warps),
        DEPTH=tile.depth,
        EPILOGUE=_EPILOGUES[what_follows],
        ACTIVATION=activation,
        HAS_BIAS=bias is not None,
        NORM_BLOCK=max(MIN_NORM_BLOCK, triton.next_power_of_2(num_partials)) if num_partials else 0,
        **weight.constants,
        **launch_options(tile.num_warps, pdl, x.device),
    )
    return partials


def _integers(plane: Tensor) -> Tensor:
    """A plane as the kernel takes it."""
    if not plane.numel():  # never read, but the interpreter wants memory for it
        return plane.new_zeros(1, dtype=torch.int32) if INTERPRETED else plane
    return plane.view(torch.int32)


def _ordered(x: Tensor, weight: PackedWeight) -> Tensor:
    """x in the order of the planes' columns, rows aligned for loads of 16 bytes."""
    x = weight.ordered(x)
    size = x.element_size()
    is_aligned = x.storage_offset() * size % ALIGNMENT == 0 and (x.shape[0] == 1 or x.stride(0) * size % ALIGNMENT == 0)
    return x if is_aligned else x.clone(memory_format=torch.contiguous_format)


def _check(x: Tensor, weight: PackedWeight, bias: Tensor | None, norm: DeferredNorm | None) -> None:
    num_tokens = x.shape[0]
    if x.ndim != 2 or x.shape[1] != weight.num_columns or x.stride(1) != 1:
        raise ValueError(
            f"packed_gemv: x is {tuple(x.shape)} with strides {x.stride()}; it must have {weight.num_columns} columns "
            "that lie together"
        )
    if not is_multipliable(weight, x.dtype, num_tokens):
        raise ValueError(
            f"packed_gemv: {num_tokens} tokens of {x.dtype}, groups of {weight.format.group} in units of "
            f"{weight.unit}; takes 1 to {MAX_TOKENS} tokens of bfloat16 or float16 and groups that divide a unit or "
            "hold whole ones; packed_product takes the rest"
        )
    if bias is not None and (bias.shape != (weight.num_rows,) or not bias.is_contiguous()):
        raise ValueError(f"packed_gemv: bias is {tuple(bias.shape)}, it must be ({weight.num_rows},) and contiguous")
    if norm is not None and (
        norm.sum_squares.ndim != 2
        or norm.sum_squares.shape[0] != num_tokens
        or norm.sum_squares.dtype != torch.float32
        or not norm.sum_squares.is_contiguous()
    ):
        raise ValueError(
            f"packed_gemv: sums of squares are {norm.sum_squares.dtype} {tuple(norm.sum_squares.shape)}; "
            f"they must be float32, contiguous, with {num_tokens} rows"
        )
