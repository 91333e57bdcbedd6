"""RMSNorm over the last axis, with the addition of a residual stream before it where there is one.

    residual = x + residual                                         (optional, in place)
    y = residual / sqrt(mean(residual ** 2) + eps) * (weight + offset)

One program a row, which must fit a block (width <= 65536). Statistics in float32. The result is rounded to the type of
`weight` before the product with it, as Llama's reference does; float32 weights (Gemma) make that no rounding at all.

Source: Zhang & Sennrich 2019, arXiv:1910.07467.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.launch import launch_options, wait_for_predecessor

Tensor = torch.Tensor

MAX_WIDTH = 65536


@triton.jit
def _rms_norm_kernel(
    x_ptr,  # [num_rows, width]
    residual_ptr,  # [num_rows, width], overwritten by the sum; unread unless HAS_RESIDUAL
    weight_ptr,  # [width]
    y_ptr,  # [num_rows, width]
    x_stride,  # elements from row to row
    residual_stride,
    y_stride,
    width,
    eps,
    offset,  # added to the weight
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,  # power of two >= width
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # int64: row * stride passes 2**31 elements in a long prompt
    column = tl.arange(0, BLOCK)
    mask = column < width
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0)
    wait_for_predecessor(PDL)
    x = tl.load(x_ptr + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)  # [BLOCK]
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + row * residual_stride + column, mask=mask, other=0.0).to(tl.float32)
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + row * residual_stride + column, rounded, mask=mask)
        x = rounded.to(tl.float32)  # the statistics are those of the stream that later layers see
    inverse_rms = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    normed = (x * inverse_rms).to(weight.dtype).to(tl.float32)
    y = normed * (weight.to(tl.float32) + offset)
    tl.store(y_ptr + row * y_stride + column, y.to(y_ptr.dtype.element_ty), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, *, pdl: bool = False) -> Tensor:
    """x / sqrt(mean(x ** 2) + eps) * (weight + offset) over the last axis.

    Args:
        x: [..., width]; rows may be any distance apart, elements lie together.
        weight: [width], float32 or of the type of `x`.
        offset: 1.0 for Gemma weights that lack it.
        pdl: overlap with the kernel before, on devices that can.

    Returns:
        Shaped and typed like `x`, contiguous.

    Raises:
        ValueError: shapes disagree, a row does not lie together, or it is wider than MAX_WIDTH.
    """
    return _launch(x, None, weight, eps, offset, pdl)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0, *, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """rms_norm(x + residual), and x + residual, which overwrites `residual`.

    Args:
        x: [..., width], as for `rms_norm`.
        residual: shaped like `x`; float32 or of the type of `x`.
        weight: as for `rms_norm`.
        offset: as for `rms_norm`.
        pdl: as for `rms_norm`.

    Returns:
        The norm, typed like `x`, and `residual` itself.

    Raises:
        ValueError: as `rms_norm`; and where `residual` is not shaped like `x`.
    """
    if residual.shape != x.shape:
        raise ValueError(f"add_rms_norm: x is {tuple(x.shape)}, residual {tuple(residual.shape)}; they must be alike")
    return _launch(x, residual, weight, eps, offset, pdl), residual


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, offset: float, pdl: bool) -> Tensor:
    width = x.shape[-1]
    if weight.shape != (width,) or not weight.is_contiguous():
        raise ValueError(f"rms_norm: x is {tuple(x.shape)}, so weight must be ({width},), not {tuple(weight.shape)}")
    if width > MAX_WIDTH:
        raise ValueError(f"rms_norm: rows of {width} elements; at most {MAX_WIDTH} fit one program")
    rows = _as_rows(x, "x")
    stream = rows if residual is None else _as_rows(residual, "residual")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    _rms_norm_kernel[(rows.shape[0],)](
        rows,
        stream,
        weight,
        y,
        rows.stride(0),
        stream.stride(0),
        width,
        width,
        eps,
        offset,
        HAS_RESIDUAL=residual is not None,
        BLOCK=block,
        **launch_options(min(16, max(1, block // 256)), pdl, x.device),
    )
    return y


def _as_rows(x: Tensor, name: str) -> Tensor:
    """[..., width] -> [num_rows, width], without a copy: `residual` is written through it."""
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(f"rms_norm: the last axis of {name} must be contiguous, its strides are {x.stride()}")
    try:
        return x.view(-1, x.shape[-1])
    except RuntimeError as error:
        raise ValueError(
            f"rms_norm: the rows of {name} {tuple(x.shape)} with strides {x.stride()} are not evenly spaced; "
            "make it contiguous"
        ) from error
