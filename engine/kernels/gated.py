"""The gated unit of an MLP, where gate and up come from a product that does not fuse it: activation(gate) * up.

One program for a stretch of one token's row; loads and stores are of 16 bytes a thread, and all arithmetic between them
is in float32, rounded once. Called by the decoder of a GPU for steps of many tokens.

Source: Shazeer 2020, arXiv:2002.05202.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.gemv import ACTIVATIONS
from engine.kernels.gemv_epilogue import activate
from engine.kernels.launch import launch_options, wait_for_predecessor

Tensor = torch.Tensor

BLOCK = 1024
"""Outputs a program."""


@triton.jit
def _gated_kernel(
    gate_up_ptr,  # [num_tokens, 2 * width], gate first
    out_ptr,  # [num_tokens, width], written
    gate_up_stride,  # elements from token to token
    width,
    num_blocks,  # programs a token
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    program = tl.program_id(0)
    token = (program // num_blocks).to(tl.int64)
    column = program % num_blocks * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    wait_for_predecessor(PDL)
    row_ptr = gate_up_ptr + token * gate_up_stride
    gate = tl.load(row_ptr + column, mask=mask, other=0.0).to(tl.float32)  # [BLOCK]
    up = tl.load(row_ptr + width + column, mask=mask, other=0.0).to(tl.float32)
    y = activate(gate, ACTIVATION) * up
    tl.store(out_ptr + token * width + column, y.to(out_ptr.dtype.element_ty), mask=mask)


def gated(gate_up: Tensor, activation: str, *, pdl: bool = False) -> Tensor:
    """activation(gate) * up.

    Args:
        gate_up: [num_tokens, 2 * width], gate first; tokens may be any distance apart, elements lie together.
        activation: "silu", "gelu" or "gelu_tanh".
        pdl: overlap with the kernel before, on devices that can.

    Returns:
        [num_tokens, width], typed like `gate_up`, contiguous.

    Raises:
        ValueError: an odd number of columns, elements that lie apart, or an activation that is none of these.
    """
    num_tokens, columns = gate_up.shape
    if columns % 2 or gate_up.stride(1) != 1 or activation not in ACTIVATIONS:
        raise ValueError(
            f"gated: gate_up is {tuple(gate_up.shape)}, strides {gate_up.stride()}, activation {activation!r}; columns "
            f"must be even and lie together, and the activation one of {', '.join(ACTIVATIONS)}"
        )
    width = columns // 2
    out = torch.empty(num_tokens, width, dtype=gate_up.dtype, device=gate_up.device)
    if out.numel() == 0:
        return out
    block = min(BLOCK, triton.next_power_of_2(width))
    num_blocks = triton.cdiv(width, block)
    _gated_kernel[(num_tokens * num_blocks,)](
        gate_up,
        out,
        gate_up.stride(0),
        width,
        num_blocks,
        ACTIVATION=ACTIVATIONS[activation],
        BLOCK=block,
        **launch_options(max(1, block // 256), pdl, gate_up.device),
    )
    return out
