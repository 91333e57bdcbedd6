"""What happens to a product of `gemv` before it is stored: the second half of the kernel that uses tensor cores.

The kernel without them does the same for scalars (`gemv_fma`). A program holds y = W x for `ROWS` rows of the matrix
and `TOKENS` tokens, in float32. What becomes of it:

    PLAIN     out = y
    RESIDUAL  residual += y;  out = gamma * residual;  partials[token, program] = sum of the program's residual ** 2
    GATED     out = activation(y_gate) * y_up
    ARGMAX    partials[token, program], out[token, program] = the program's largest y, and its row

each after y has been multiplied by 1 / rms (where the norm is deferred) and the bias added.

The deferred norm: a norm's statistics need the whole residual stream, so a kernel of its own would run between two
products. Instead whoever writes the stream also writes gamma * residual and a sum of squares for each program;
whoever reads it multiplies that vector, and its finished products by 1 / sqrt(sum / width + eps). Sums are over a
fixed number of programs in a fixed order, so results do not vary from run to run.
"""

from __future__ import annotations

import triton
import triton.language as tl

PLAIN: tl.constexpr = tl.constexpr(0)
RESIDUAL: tl.constexpr = tl.constexpr(1)
GATED: tl.constexpr = tl.constexpr(2)
ARGMAX: tl.constexpr = tl.constexpr(3)

SILU: tl.constexpr = tl.constexpr(0)
GELU: tl.constexpr = tl.constexpr(1)
GELU_TANH: tl.constexpr = tl.constexpr(2)

NO_ROW: tl.constexpr = tl.constexpr(2147483647)


@triton.jit
def sigmoid(x):
    """Of float32; exp never overflows, and small results keep their precision."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def tanh(x):
    """Of float32, by exp alone, which the interpreter has too."""
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(x >= 0.0, y, -y)


@triton.jit
def activate(
    x,
    ACTIVATION: tl.constexpr,  # SILU, GELU or GELU_TANH
):
    """The activation of a gated unit, on float32."""
    if ACTIVATION == SILU:
        return x * sigmoid(x)
    elif ACTIVATION == GELU:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def inverse_rms(
    sum_squares_ptr,  # float32 [num_tokens, num_partials]
    tokens,  # int32 [TOKENS]
    num_tokens,
    num_partials,
    width,  # elements of the normed vector
    eps,
    BLOCK: tl.constexpr,  # power of two >= num_partials
):
    """1 / sqrt(mean of squares + eps): [TOKENS]."""
    partial = tl.arange(0, BLOCK)
    mask = (partial < num_partials)[:, None] & (tokens < num_tokens)[None, :]
    pointers = sum_squares_ptr + tokens[None, :] * num_partials + partial[:, None]
    sums = tl.load(pointers, mask=mask, other=0.0)  # [BLOCK, TOKENS]
    return tl.rsqrt(tl.sum(sums, axis=0) / width + eps)


@triton.jit
def finish(
    y,  # float32 [ROWS, TOKENS]; of the gate rows for GATED
    y_up,  # float32 [ROWS, TOKENS] of the up rows for GATED, else anything
    rows,  # int32 [ROWS], outputs: rows of the matrix, or of its gate half
    tokens,  # int32 [TOKENS]
    bias_ptr,  # [rows of the matrix], or anything unless HAS_BIAS
    sum_squares_ptr,  # float32 [num_tokens, num_partials], or anything unless NORM_BLOCK
    residual_ptr,  # [num_tokens, num_outputs], RESIDUAL
    gamma_ptr,  # [num_outputs], RESIDUAL: weight of the norm that follows
    out_ptr,  # [num_tokens, num_outputs]; ARGMAX: int32 [num_tokens, num_programs]
    partials_ptr,  # float32 [num_tokens, num_programs], RESIDUAL and ARGMAX
    residual_stride,  # elements from token to token
    num_tokens,
    num_outputs,
    gate_step,  # rows of the matrix from one output's gate row to the next's: 2 where gate and up alternate
    up_offset,  # rows from an output's gate row to its up row
    width,  # columns of the matrix
    num_partials,
    eps,
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORM_BLOCK: tl.constexpr,  # power of two >= num_partials; 0: the input needs no norm
):
    """Stores a program's share of the result. Whatever is loaded is asked for before any of it is used."""
    mask = (rows < num_outputs)[:, None] & (tokens < num_tokens)[None, :]  # [ROWS, TOKENS]
    if EPILOGUE == RESIDUAL:
        gamma = tl.load(gamma_ptr + rows, mask=rows < num_outputs, other=0.0).to(tl.float32)
        stream = residual_ptr + tokens[None, :] * residual_stride + rows[:, None]
        residual = tl.load(stream, mask=mask, other=0.0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + rows * gate_step, mask=rows < num_outputs, other=0.0).to(tl.float32)
        if EPILOGUE == GATED:
            up_rows = rows * gate_step + up_offset
            bias_up = tl.load(bias_ptr + up_rows, mask=rows < num_outputs, other=0.0).to(tl.float32)
    if NORM_BLOCK > 0:
        scale = inverse_rms(sum_squares_ptr, tokens, num_tokens, num_partials, width, eps, NORM_BLOCK)
        y = y * scale[None, :]
        if EPILOGUE == GATED:
            y_up = y_up * scale[None, :]
    if HAS_BIAS:
        y += bias[:, None]
        if EPILOGUE == GATED:
            y_up += bias_up[:, None]

    program, num_programs = tl.program_id(0), tl.num_programs(0)
    here = tokens[None, :] * num_outputs + rows[:, None]  # [ROWS, TOKENS]
    if EPILOGUE == ARGMAX:
        # A NaN would lose every comparison; as infinity it wins, and the end of the step sees that no token did.
        y = tl.where(y == y, y, float("inf"))
        y = tl.where(mask, y, float("-inf"))
        best = tl.max(y, axis=0)  # [TOKENS]
        row = tl.min(tl.where((y == best[None, :]) & mask, rows[:, None], NO_ROW), axis=0)
        there = tokens * num_programs + program
        tl.store(partials_ptr + there, best, mask=tokens < num_tokens)
        tl.store(out_ptr + there, row, mask=tokens < num_tokens)
    else:
        if EPILOGUE == RESIDUAL:
            y = tl.where(mask, y + residual, 0.0)
            tl.store(stream, y, mask=mask)
            tl.store(partials_ptr + tokens * num_programs + program, tl.sum(y * y, axis=0), mask=tokens < num_tokens)
            y = y * gamma[:, None]
        if EPILOGUE == GATED:
            y = activate(y, ACTIVATION) * y_up
        tl.store(out_ptr + here, y.to(out_ptr.dtype.element_ty), mask=mask)
