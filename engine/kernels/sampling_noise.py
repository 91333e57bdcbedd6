"""The sampler's noise inside kernels, bit for bit that of `reference_sampling`; and the order of float32 numbers.

Called by the kernels that choose tokens. All arithmetic on noise is on uint32 and wraps.

Source: `engine.kernels.reference_sampling`; Appleby, MurmurHash3 (public domain).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _mix(x):
    """fmix32."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def noise_keys(seed, index):
    """key0, key1: uint32.

    seed: int64, not negative. index: int64, the generation number.
    """
    low, high = (seed & 0xFFFFFFFF).to(tl.uint32), (seed >> 32).to(tl.uint32)
    index = (index & 0xFFFFFFFF).to(tl.uint32)
    key0 = _mix(low ^ _mix(index + 0x9E3779B9))
    key1 = _mix((high ^ (index * 0xC2B2AE3D)) + low * 0x27D4EB2F)
    return key0, key1


@triton.jit
def perturbed(logit, token, key0, key1):
    """logit - log(e), with e the exponentially distributed number of (keys, token): the greatest is the draw.

    logit: float32, -inf where a filter removed the token. token: int32.
    """
    bits = _mix(_mix((token.to(tl.uint32) * 0x9E3779B1) ^ key0) + key1)
    u = (bits >> 1).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10  # * 2**-31 + 2**-32
    u = tl.minimum(u, 0.9999999403953552)  # 1 - 2**-24
    # -log1p(-u), Kahan's way: the rounding of 1 - u cancels in the quotient, so it is exact where u is small.
    rest = 1.0 - u
    is_tiny = rest == 1.0
    e = tl.where(is_tiny, u, u * tl.div_rn(tl.log(rest), tl.where(is_tiny, 1.0, rest - 1.0)))
    return logit - tl.log(e)


@triton.jit
def order_key(x):
    """int32 with the order of float32 `x`, which is not NaN; both zeros are one."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
