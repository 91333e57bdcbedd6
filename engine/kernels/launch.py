"""What a launcher asks about the device, and the first lines of a kernel that overlaps with the one before it.

Programmatic dependent launch (PDL) lets a kernel start while its predecessor still runs. A kernel loads what does not
depend on the predecessor (weights), then calls `wait_for_predecessor`; only after it may it touch activations. The
successor is let go after the wait, so at most two kernels overlap, and whatever is older than the direct predecessor is
complete and may be read before the wait. The instruction assembles for compute capability 9.0 and later only.

Triton's interpreter runs kernels on the CPU, without a compiler; numpy has no bfloat16 and multiplies the bits as
integers, so there a `tl.dot` takes float32 operands.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

MIN_PDL_CAPABILITY = 90

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in the interpreter. Decided when triton is imported, like the meaning of `@triton.jit`."""
DOT_IN_FLOAT32: tl.constexpr = tl.constexpr(INTERPRETED)


@triton.jit
def wait_for_predecessor(PDL: tl.constexpr):
    """The kernels before this one are complete, and the next one may start to load its weights."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def dot_operand(x):
    """`x` as `tl.dot` can take it here."""
    if DOT_IN_FLOAT32:
        return x.to(tl.float32)
    else:
        return x


def capability(device: torch.device) -> int:
    """Compute capability as one number: 89 for 8.9; 0 for a CPU."""
    return _capability(device) if device.type == "cuda" else 0


@cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors; 1 for the interpreter."""
    return _num_processors(device) if device.type == "cuda" else 1


@cache
def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def forget_devices() -> None:
    """What was asked of devices is asked again: for who pretends to have another one."""
    _capability.cache_clear()
    _num_processors.cache_clear()


def launch_options(num_warps: int, pdl: bool, device: torch.device) -> dict[str, int | bool]:
    """Keyword arguments of a launch.

    Args:
        pdl: whether the caller wants the kernel to overlap with its predecessor; ignored where the device cannot.
    """
    # Whether a product and a sum become one instruction is said, because Triton's default for it is changing.
    options: dict[str, int | bool] = {"num_warps": num_warps, "enable_fp_fusion": True, "PDL": False}
    if pdl and capability(device) >= MIN_PDL_CAPABILITY:
        options |= {"PDL": True, "launch_pdl": True}
    return options
