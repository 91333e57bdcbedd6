"""Products of a weight matrix with few tokens: y = x @ W.T, with what follows fused into the store.

Decoding reads each weight once a step, so the time is that of the bytes. For up to four tokens `_fma_kernel` streams W
with plain multiply-adds: the threads of a program span a row, each loads 16 bytes of every row of the tile and the same
of x, so that no value changes hands until one sum at the end, and several tiles are in flight. Beyond, multiply-adds
would be the limit, and `_dot_kernel` gives 16 tokens to the tensor cores. Programs own whole rows of W: nothing is
accumulated across programs, and results do not vary from run to run. Sums are in float32.

Which tile, and which of the two: `tiles.gemv_tiles`. What follows the product, and the norm that is deferred into it:
`gemv_epilogue`. Called by the runner of decode steps; longer batches go to the library's matrix product.

Source: the order of loads before `wait_for_predecessor` is programmatic dependent launch, CUDA C++ programming guide;
Zhang & Sennrich 2019, arXiv:1910.07467 (RMSNorm); Shazeer 2020, arXiv:2002.05202 (gated units).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl

from engine.kernels import gemv_epilogue as epilogues
from engine.kernels.gemv_epilogue import GATED, finish
from engine.kernels.launch import capability, dot_operand, launch_options, wait_for_predecessor
from engine.kernels.tiles import DOT_ROWS_OF_X, GemvTiles, MatrixKind, gemv_tiles

Tensor = torch.Tensor

ACTIVATIONS = {
    "silu": epilogues.SILU.value,
    "gelu": epilogues.GELU.value,
    "gelu_tanh": epilogues.GELU_TANH.value,
}


class DeferredNorm(NamedTuple):
    """An RMSNorm whose weight is already in x; the division by the root mean square is left to the reader."""

    sum_squares: Tensor
    """float32 [num_tokens, num_partials]: their sum over a row is that of the squares of the residual stream."""
    eps: float


@triton.jit
def _append(items, item):
    """The tuple with one more item; Triton knows no star in it."""
    return items + (item,)  # noqa: RUF005 - the star is what Triton does not know


@triton.jit
def _load_tile(
    weight_ptr,
    rows,  # int64 [ROWS], rows of the matrix
    chunk,  # which COLUMNS of the row
    stride,  # elements from row to row
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """[ROWS, COLUMNS], zero beyond the width. Weights are read once a step: they leave the cache first."""
    column = chunk * COLUMNS + tl.arange(0, COLUMNS)
    pointers = weight_ptr + rows[:, None] * stride + column[None, :]
    if WIDTH % COLUMNS == 0:
        return tl.load(pointers, eviction_policy="evict_first")
    else:
        return tl.load(pointers, mask=(column < WIDTH)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _ring_tile(
    weight_ptr,
    rows,  # int64 [ROWS], first or gate rows
    up_offset,
    stride,
    T: tl.constexpr,  # the tile's number: chunk T // HALVES of the gate rows, or of the up rows where T is odd
    HALVES: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    return _load_tile(weight_ptr, rows + (T % HALVES) * up_offset, T // HALVES, stride, WIDTH, COLUMNS)


@triton.jit
def _fma_kernel(
    x_ptr,  # [num_tokens, WIDTH]
    weight_ptr,  # [num_outputs, WIDTH]; GATED: twice as many rows
    bias_ptr,  # this and the next six: as in gemv_epilogue.finish
    sum_squares_ptr,
    residual_ptr,
    gamma_ptr,
    out_ptr,
    partials_ptr,
    x_stride,  # elements from row to row
    weight_stride,
    residual_stride,
    num_outputs,
    gate_step,
    up_offset,
    num_partials,
    eps,
    NUM_TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,  # outputs a program, a power of two
    COLUMNS: tl.constexpr,  # VECTOR elements of every row for each thread
    VECTOR: tl.constexpr,  # elements in 16 bytes
    DEPTH: tl.constexpr,  # tiles in flight
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORM_BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    HALVES: tl.constexpr = 2 if EPILOGUE == GATED else 1
    NUM_CHUNKS: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = tl.minimum(rows, num_outputs - 1) * gate_step  # programs at the end compute the last row again

    ring = ()
    for t in tl.static_range(DEPTH):
        if t < NUM_CHUNKS * HALVES:
            tile = _ring_tile(weight_ptr, inside, up_offset, weight_stride, t, HALVES, WIDTH, COLUMNS)
            ring = _append(ring, tile)
    wait_for_predecessor(PDL)

    sums = ()  # for each half and token [ROWS, COLUMNS // VECTOR], one element a thread and row
    for _ in tl.static_range(HALVES * NUM_TOKENS):
        sums = _append(sums, tl.zeros((ROWS, COLUMNS // VECTOR), tl.float32))
    for chunk in tl.static_range(NUM_CHUNKS):
        column = chunk * COLUMNS + tl.arange(0, COLUMNS)
        xs = ()
        for token in tl.static_range(NUM_TOKENS):
            x = tl.load(x_ptr + token * x_stride + column, mask=column < WIDTH, other=0.0)
            xs = _append(xs, x.to(tl.float32))
        new_sums = ()
        for half in tl.static_range(HALVES):
            weights = ring[0].to(tl.float32)  # type: ignore[misc] # a tuple that Triton unrolls, empty to mypy
            ring = ring[1:]
            # Written out twice, because a name for the tile's number would make it a run-time value.
            if chunk * HALVES + half + DEPTH < NUM_CHUNKS * HALVES:
                tile = _ring_tile(
                    weight_ptr, inside, up_offset, weight_stride, chunk * HALVES + half + DEPTH, HALVES, WIDTH, COLUMNS
                )
                ring = _append(ring, tile)
            for token in tl.static_range(NUM_TOKENS):
                product = tl.reshape(weights * xs[token][None, :], (ROWS, COLUMNS // VECTOR, VECTOR))
                new_sums = _append(new_sums, sums[half * NUM_TOKENS + token] + tl.sum(product, axis=2))
        sums = new_sums

    for token in tl.static_range(NUM_TOKENS):
        y = tl.sum(sums[token], axis=1)[:, None]  # [ROWS, 1]
        y_up = y
        if EPILOGUE == GATED:
            y_up = tl.sum(sums[NUM_TOKENS + token], axis=1)[:, None]
        finish(
            y, y_up, rows, token + tl.arange(0, 1), bias_ptr, sum_squares_ptr, residual_ptr, gamma_ptr, out_ptr,
            partials_ptr, residual_stride, NUM_TOKENS, num_outputs, gate_step, up_offset, WIDTH, num_partials, eps,
            EPILOGUE, ACTIVATION, HAS_BIAS, NORM_BLOCK,
        )  # fmt: skip


@triton.jit
def _dot_kernel(
    x_ptr,  # this and the next parameters: as in _fma_kernel
    weight_ptr,
    bias_ptr,
    sum_squares_ptr,
    residual_ptr,
    gamma_ptr,
    out_ptr,
    partials_ptr,
    x_stride,
    weight_stride,
    residual_stride,
    num_tokens,  # at most TOKENS
    num_outputs,
    gate_step,
    up_offset,
    num_partials,
    eps,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORM_BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = tl.minimum(rows, num_outputs - 1) * gate_step
    tokens = tl.arange(0, TOKENS)
    y = tl.zeros((ROWS, TOKENS), tl.float32)
    y_up = tl.zeros((ROWS, TOKENS), tl.float32)
    wait_for_predecessor(PDL)
    for chunk in tl.range(0, (WIDTH + COLUMNS - 1) // COLUMNS, num_stages=NUM_STAGES):
        column = chunk * COLUMNS + tl.arange(0, COLUMNS)
        mask = (tokens < num_tokens)[None, :] & (column < WIDTH)[:, None]
        x = tl.load(x_ptr + tokens[None, :] * x_stride + column[:, None], mask=mask, other=0.0)  # [COLUMNS, TOKENS]
        x = dot_operand(x.to(weight_ptr.dtype.element_ty))
        weights = _load_tile(weight_ptr, inside, chunk, weight_stride, WIDTH, COLUMNS)
        y = tl.dot(dot_operand(weights), x, y, input_precision="ieee")
        if EPILOGUE == GATED:
            weights = _load_tile(weight_ptr, inside + up_offset, chunk, weight_stride, WIDTH, COLUMNS)
            y_up = tl.dot(dot_operand(weights), x, y_up, input_precision="ieee")
    finish(
        y, y_up, rows, tokens, bias_ptr, sum_squares_ptr, residual_ptr, gamma_ptr, out_ptr,
        partials_ptr, residual_stride, num_tokens, num_outputs, gate_step, up_offset, WIDTH, num_partials, eps,
        EPILOGUE, ACTIVATION, HAS_BIAS, NORM_BLOCK,
    )  # fmt: skip


def gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    out_dtype: torch.dtype | None = None,
    tiles: GemvTiles | None = None,
    pdl: bool = False,
) -> Tensor:
    """x @ weight.T + bias.

    Args:
        x: [num_tokens, width], 1 to 16 tokens; with `norm`, times the norm's weight but not yet divided.
        weight: [num_outputs, width]; bfloat16, float16 or float32.
        bias: [num_outputs].
        norm: completes the norm of `x`.
        out_dtype: the type of `x` by default. float32 spares a rounding where a kernel of ours reads the result.
        tiles: instead of the table's choice; what measurements vary.
        pdl: load weights while the kernel before still runs, on devices that can.

    Returns:
        [num_tokens, num_outputs].

    Raises:
        ValueError: shapes or types that do not fit, or elements of a row that do not lie together.
    """
    out = torch.empty(x.shape[0], weight.shape[0], dtype=out_dtype or x.dtype, device=x.device)
    _launch(x, weight, bias, norm, out, epilogues.PLAIN, "plain", tiles, pdl)
    return out


def gemv_residual(
    x: Tensor,
    weight: Tensor,
    residual: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    tiles: GemvTiles | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """Adds x @ weight.T + bias to `residual`, in place, and begins the norm that follows.

    The first result is not divided by the root mean square yet, so float16 can overflow in models whose residual stream
    passes 65504 (Gemma); bfloat16 and float32 cannot.

    Args:
        x: as for `gemv`.
        weight: as for `gemv`.
        residual: float32 [num_tokens, num_outputs], overwritten.
        gamma: [num_outputs], weight of the norm that follows, its offset added.
        bias: as for `gemv`.
        norm: as for `gemv`.
        tiles: as for `gemv`.
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
    partials = _launch(x, weight, bias, norm, out, epilogues.RESIDUAL, "residual", tiles, pdl, residual, gamma)
    return out, partials


def gemv_gated(
    x: Tensor,
    gate_up: Tensor,
    activation: str,
    bias: Tensor | None = None,
    *,
    layout: Literal["split", "interleaved"] = "split",
    norm: DeferredNorm | None = None,
    tiles: GemvTiles | None = None,
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
        tiles: as for `gemv`.
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
        x, gate_up, bias, norm, out, epilogues.GATED, "gated", tiles, pdl,
        activation=ACTIVATIONS[activation], is_interleaved=layout == "interleaved",
    )  # fmt: skip
    return out


def gemv_argmax(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: DeferredNorm | None = None,
    tiles: GemvTiles | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """The largest of x @ weight.T + bias among the rows of each program; `step_end` finds the largest of all.

    The products are not kept. A soft cap, being monotonic, needs no regard.

    Args:
        x: as for `gemv`.
        weight: as for `gemv`, without rows that only pad the vocabulary.
        bias: as for `gemv`.
        norm: as for `gemv`.
        tiles: as for `gemv`.
        pdl: as for `gemv`.

    Returns:
        Values, float32 [num_tokens, num_programs], infinite where a product was NaN; and their rows, int32, the lowest
        of equals.

    Raises:
        ValueError: as `gemv`.
    """
    rows = torch.empty(0, dtype=torch.int32, device=x.device)  # as wide as there are programs
    values = _launch(x, weight, bias, norm, rows, epilogues.ARGMAX, "argmax", tiles, pdl)
    return values, rows


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: DeferredNorm | None,
    out: Tensor,
    epilogue: tl.constexpr,
    kind: MatrixKind,
    tiles: GemvTiles | None,
    pdl: bool,
    residual: Tensor | None = None,
    gamma: Tensor | None = None,
    activation: int = 0,
    is_interleaved: bool = False,
) -> Tensor:
    """Launches either kernel. Returns the partial results, one for each token and program; sizes `out` for ARGMAX."""
    _check(x, weight, bias, norm)
    num_tokens, width = x.shape
    num_outputs = weight.shape[0] // 2 if kind == "gated" else weight.shape[0]
    if tiles is None:
        tiles = gemv_tiles(capability(x.device), kind, num_outputs, width, weight.element_size())
    use_fma = num_tokens <= tiles.max_fma_tokens
    tile = tiles.fma if use_fma else tiles.dot
    num_programs = triton.cdiv(num_outputs, tile.rows)
    has_partials = kind in ("residual", "argmax")
    partials = torch.empty(num_tokens, num_programs if has_partials else 0, device=x.device)
    if kind == "argmax":
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
        x.stride(0),
        weight.stride(0),
        0 if residual is None else residual.stride(0),
    )
    numbers = (
        num_outputs,
        2 if is_interleaved else 1,
        1 if is_interleaved else num_outputs,
        num_partials,
        0.0 if norm is None else norm.eps,
    )
    constants = {
        "WIDTH": width,
        "ROWS": tile.rows,
        "EPILOGUE": epilogue,
        "ACTIVATION": activation,
        "HAS_BIAS": bias is not None,
        "NORM_BLOCK": triton.next_power_of_2(num_partials) if num_partials else 0,
    } | launch_options(tile.num_warps, pdl, x.device)
    if use_fma:
        vector = 16 // weight.element_size()
        columns = vector * 32 * tiles.fma.num_warps
        _fma_kernel[(num_programs,)](
            *tensors,
            *numbers,
            NUM_TOKENS=num_tokens,
            COLUMNS=columns,
            VECTOR=vector,
            DEPTH=tiles.fma.depth,
            **constants,
        )
    else:
        _dot_kernel[(num_programs,)](
            *tensors,
            num_tokens,
            *numbers,
            TOKENS=DOT_ROWS_OF_X,
            COLUMNS=tiles.dot.columns,
            NUM_STAGES=tiles.dot.num_stages,
            **constants,
        )
    return partials


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, norm: DeferredNorm | None) -> None:
    num_tokens = x.shape[0]
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or x.dtype != weight.dtype:
        raise ValueError(
            f"gemv: x is {x.dtype} {tuple(x.shape)}, weight {weight.dtype} {tuple(weight.shape)}; "
            "both must have one type, two axes and the same width"
        )
    if not 1 <= num_tokens <= DOT_ROWS_OF_X:
        raise ValueError(f"gemv: {num_tokens} tokens; takes 1 to {DOT_ROWS_OF_X}, more belong to a matrix product")
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
