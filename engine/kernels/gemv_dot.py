"""y = x @ W.T for up to 128 tokens, on tensor cores.

Rows of W are the tall side of each `tl.dot` and tokens the narrow one, so that few tokens waste little. W is read once;
x is read again by every program, from the second-level cache, so that the more tokens there are the more rows a program
takes, and where that would leave processors without work its row is cut into `SPLITS` pieces: programs write partial
sums, and `sum_splits` adds them in a fixed order. So results do not vary from run to run.

The loop is pipelined by the compiler, which cannot put its first loads before the wait for the predecessor; instead the
first weights are brought into the second-level cache before it. Called by `gemv`. Sums are in float32.

Source: prefetch.global.L2 is in the PTX ISA manual, data movement instructions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.gemv_epilogue import GATED, finish
from engine.kernels.launch import dot_operand, launch_options, wait_for_predecessor

Tensor = torch.Tensor

SUM_BLOCK, SUM_WARPS = 1024, 4
"""Outputs a program where partial sums of split rows are added, and its warps."""


@triton.jit
def _prefetch(
    weight_ptr,  # the program's first row and column
    offsets,  # int32 [ROWS], elements from it to each row
    COLUMNS: tl.constexpr,  # of each row, a power of two; 0: none
):
    """Brings the first columns of some rows into the second-level cache."""
    SECTOR: tl.constexpr = 512 // weight_ptr.dtype.element_ty.primitive_bitwidth  # elements in 64 bytes
    if COLUMNS >= SECTOR:
        pointers = weight_ptr + (offsets[:, None] + (tl.arange(0, COLUMNS // SECTOR) * SECTOR)[None, :])
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def _load_weights(
    weight_ptr,
    offsets,  # int32 [ROWS]
    chunk,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """[ROWS, COLUMNS], zero beyond the width. Weights are read once a step: they leave the cache first."""
    column = chunk * COLUMNS + tl.arange(0, COLUMNS)
    pointers = weight_ptr + (offsets[:, None] + column[None, :])
    if WIDTH % COLUMNS == 0:
        return tl.load(pointers, eviction_policy="evict_first")
    else:
        return tl.load(pointers, mask=(column < WIDTH)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit(do_not_specialize=["num_tokens", "num_partials"])
def dot_kernel(
    x_ptr,  # [num_tokens, WIDTH]
    weight_ptr,  # [num_outputs, WIDTH]; GATED: twice as many rows
    bias_ptr,  # this and the next five: as in gemv_epilogue.finish
    sum_squares_ptr,
    residual_ptr,
    gamma_ptr,
    out_ptr,  # SPLITS > 1: float32 [SPLITS, num_tokens, num_outputs]
    partials_ptr,
    x_stride,  # elements from row to row
    residual_stride,
    num_outputs,
    num_partials,
    eps,
    num_tokens,  # at most TOKENS
    WIDTH: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,  # elements from row to row
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,  # outputs a program
    COLUMNS: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    SPLITS: tl.constexpr,  # programs that share a row; more than 1 with PLAIN only, without norm and bias
    PREFETCHED: tl.constexpr,  # columns that are brought into the cache ahead of the wait
    IS_EVEN: tl.constexpr,  # no program has rows beyond the last
    IS_INTERLEAVED: tl.constexpr,  # gate and up rows alternate
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORM_BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    STEP: tl.constexpr = 2 if IS_INTERLEAVED else 1
    NUM_CHUNKS: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    CHUNKS_A_SPLIT: tl.constexpr = (NUM_CHUNKS + SPLITS - 1) // SPLITS
    first = tl.program_id(0) * ROWS
    local = tl.arange(0, ROWS)
    if IS_EVEN:
        offsets = local * (STEP * WEIGHT_STRIDE)
    else:
        offsets = tl.minimum(local, num_outputs - 1 - first) * (STEP * WEIGHT_STRIDE)
    tokens = tl.arange(0, TOKENS)
    first_chunk = tl.program_id(1) * CHUNKS_A_SPLIT
    end_chunk = tl.minimum(first_chunk + CHUNKS_A_SPLIT, NUM_CHUNKS) if SPLITS > 1 else NUM_CHUNKS
    gate_ptr = weight_ptr + first.to(tl.int64) * (STEP * WEIGHT_STRIDE)
    up_row = 1 if IS_INTERLEAVED else num_outputs
    up_ptr = gate_ptr + tl.cast(up_row, tl.int64) * WEIGHT_STRIDE
    if PDL:
        _prefetch(gate_ptr + first_chunk * COLUMNS, offsets, PREFETCHED)
        if EPILOGUE == GATED:
            _prefetch(up_ptr, offsets, PREFETCHED)
    wait_for_predecessor(PDL)

    y = tl.zeros((ROWS, TOKENS), tl.float32)
    y_up = tl.zeros((ROWS, TOKENS), tl.float32)
    for chunk in tl.range(first_chunk, end_chunk, num_stages=NUM_STAGES):
        column = chunk * COLUMNS + tl.arange(0, COLUMNS)
        mask = (tokens < num_tokens)[None, :]
        if WIDTH % COLUMNS != 0:
            mask = mask & (column < WIDTH)[:, None]
        x = tl.load(x_ptr + (tokens * x_stride)[None, :] + column[:, None], mask=mask, other=0.0)  # [COLUMNS, TOKENS]
        x = dot_operand(x)
        weights = dot_operand(_load_weights(gate_ptr, offsets, chunk, WIDTH, COLUMNS))
        y = tl.dot(weights, x, y, input_precision="ieee")
        if EPILOGUE == GATED:
            weights = dot_operand(_load_weights(up_ptr, offsets, chunk, WIDTH, COLUMNS))
            y_up = tl.dot(weights, x, y_up, input_precision="ieee")
    if SPLITS > 1:
        out_ptr += tl.program_id(1).to(tl.int64) * num_tokens * num_outputs
    finish(
        y, y_up, first + local, tokens, bias_ptr, sum_squares_ptr, residual_ptr, gamma_ptr, out_ptr,
        partials_ptr, residual_stride, num_tokens, num_outputs, STEP, up_row, WIDTH, num_partials, eps,
        EPILOGUE, ACTIVATION, HAS_BIAS, NORM_BLOCK,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_tokens"])
def sum_splits_kernel(
    splits_ptr,  # float32 [SPLITS, num_tokens, num_outputs]
    bias_ptr,  # [num_outputs], or anything unless HAS_BIAS
    out_ptr,  # [num_tokens, num_outputs]
    num_outputs,
    num_tokens,
    out_stride,  # elements from token to token
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """out = the sum over the first axis, in its order, and the bias."""
    token = tl.program_id(1)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num_outputs
    y = tl.zeros((BLOCK,), tl.float32)
    if HAS_BIAS:
        y = tl.load(bias_ptr + row, mask=mask, other=0.0).to(tl.float32)
    wait_for_predecessor(PDL)
    for split in tl.static_range(SPLITS):
        y += tl.load(splits_ptr + (split * num_tokens + token).to(tl.int64) * num_outputs + row, mask=mask, other=0.0)
    tl.store(out_ptr + token.to(tl.int64) * out_stride + row, y.to(out_ptr.dtype.element_ty), mask=mask)


def sum_splits(sums: Tensor, bias: Tensor | None, out: Tensor, *, pdl: bool) -> None:
    """Adds what programs that share rows have written, and the bias.

    Args:
        sums: float32 [splits, num_tokens, num_outputs], contiguous.
        bias: [num_outputs].
        out: [num_tokens, num_outputs], written; elements of a row together.
        pdl: overlap with the kernel before, on devices that can.
    """
    splits, num_tokens, num_outputs = sums.shape
    sum_splits_kernel[(triton.cdiv(num_outputs, SUM_BLOCK), num_tokens)](
        sums,
        sums if bias is None else bias,
        out,
        num_outputs,
        num_tokens,
        out.stride(0),
        SPLITS=splits,
        BLOCK=SUM_BLOCK,
        HAS_BIAS=bias is not None,
        **launch_options(SUM_WARPS, pdl, out.device),
    )
