"""Differences to the state on the device: one launch writes any number of single integers of an arena.

The runner keeps all rows' state (tokens, block tables, sampling parameters) in one allocation and sends what changed
as (offset, value) pairs before a step, in place of a copy for each tensor. Floats travel as their bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.launch import launch_options, wait_for_predecessor

Tensor = torch.Tensor

BLOCK = 1024


@triton.jit(do_not_specialize=["offsets_ptr", "values_ptr", "num_changes"])
def _patch_kernel(
    arena_ptr,  # int32 [n], changed
    offsets_ptr,  # int32 [num_changes]; below 0: skipped
    values_ptr,  # int32 [num_changes]
    num_changes,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_predecessor(PDL)
    change = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    offset = tl.load(offsets_ptr + change, mask=change < num_changes, other=-1)
    value = tl.load(values_ptr + change, mask=change < num_changes, other=0)
    tl.store(arena_ptr + offset, value, mask=offset >= 0)


def apply_patch(arena: Tensor, offsets: Tensor, values: Tensor, *, pdl: bool = False) -> None:
    """arena[offsets] = values.

    Args:
        arena: int32 [n], contiguous; changed.
        offsets: int32 [num_changes], below n and each at most once, contiguous; what is below 0 is skipped.
        values: int32 [num_changes], contiguous.
        pdl: overlap with the kernel before, on devices that can.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    num_changes = offsets.shape[0]
    for name, tensor, shape in (
        ("arena", arena, (arena.numel(),)),
        ("offsets", offsets, (num_changes,)),
        ("values", values, (num_changes,)),
    ):
        if tensor.shape != shape or tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(
                f"apply_patch: {name} is {tensor.dtype} {tuple(tensor.shape)}; it must be torch.int32 {shape} and "
                "contiguous"
            )
    if num_changes == 0:
        return
    _patch_kernel[(triton.cdiv(num_changes, BLOCK),)](
        arena, offsets, values, num_changes, BLOCK=BLOCK, **launch_options(4, pdl, arena.device)
    )
