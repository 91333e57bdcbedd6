"""The begin of a step, without the host: every token's id, its embedding, the first norm, and its rotary angles.

    residual = embedding[tokens[row, position]] * scale
    hidden   = residual / sqrt(mean(residual ** 2) + eps) * gamma
    cos, sin = cos(position * inv_freq) * cos_factor, sin(position * inv_freq) * sin_factor     for each kind of layer

One program a token, decode and prefill alike. Roundings are those of the decoder in plain torch: the scaled embedding
to the embedding's type (Gemma), the stream to its own, the norm as in `rms_norm`. Products and sums are not fused, and
sine and cosine reduce large angles exactly, so that angles are `Rotary.angles` at any position. A row below 0 is
padding and gets zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import triton
import triton.language as tl

from engine.kernels.launch import launch_options, wait_for_predecessor

Tensor = torch.Tensor

MAX_ROTARIES = 2


class RotaryFactors(Protocol):
    """What a Rotary of engine/models knows; float32 [rotary_dim] each."""

    @property
    def inv_freq(self) -> Tensor: ...
    @property
    def cos_factor(self) -> Tensor: ...
    @property
    def sin_factor(self) -> Tensor: ...


@triton.jit
def _store_angles(
    token,  # int64
    position,
    inv_freq_ptr,  # float32 [DIM]
    cos_factor_ptr,  # float32 [DIM]
    sin_factor_ptr,  # float32 [DIM]
    cos_ptr,  # float32 [num_tokens, DIM], written
    sin_ptr,  # float32 [num_tokens, DIM], written
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,  # power of two >= DIM
):
    element = tl.arange(0, BLOCK)
    mask = element < DIM
    angle = position.to(tl.float32) * tl.load(inv_freq_ptr + element, mask=mask, other=0.0)
    cos = tl.cos(angle) * tl.load(cos_factor_ptr + element, mask=mask, other=0.0)
    sin = tl.sin(angle) * tl.load(sin_factor_ptr + element, mask=mask, other=0.0)
    tl.store(cos_ptr + token * DIM + element, cos, mask=mask)
    tl.store(sin_ptr + token * DIM + element, sin, mask=mask)


@triton.jit(do_not_specialize=["rows_ptr", "positions_ptr"])
def _step_begin_kernel(
    rows_ptr,  # integers [num_tokens], rows of `tokens`; below 0: padding
    positions_ptr,  # integers [num_tokens]
    tokens_ptr,  # int32 [max_rows, max_tokens]
    embedding_ptr,  # [vocab_size, hidden_size]
    gamma_ptr,  # [hidden_size]
    inv_freq_ptr,  # float32 [ROTARY_DIM], as the next two
    cos_factor_ptr,
    sin_factor_ptr,
    local_inv_freq_ptr,  # float32 [LOCAL_DIM], as the next two: the second rotary's, unread unless LOCAL_DIM
    local_cos_factor_ptr,
    local_sin_factor_ptr,
    residual_ptr,  # [num_tokens, hidden_size], written
    hidden_ptr,  # [num_tokens, hidden_size], written
    cos_ptr,  # float32 [num_tokens, ROTARY_DIM], written, as the next
    sin_ptr,
    local_cos_ptr,  # float32 [num_tokens, LOCAL_DIM], written, as the next
    local_sin_ptr,
    tokens_stride,  # elements from row to row
    embedding_stride,
    hidden_size,
    embedding_scale,
    eps,
    ROTARY_DIM: tl.constexpr,
    ROTARY_BLOCK: tl.constexpr,  # power of two >= ROTARY_DIM
    LOCAL_DIM: tl.constexpr,  # 0: there is no second rotary
    LOCAL_BLOCK: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,  # power of two >= hidden_size
    IS_GATHERED: tl.constexpr,  # embeddings are those of the step's tokens, in their order
    PDL: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, HIDDEN_BLOCK)
    mask = column < hidden_size
    gamma = tl.load(gamma_ptr + column, mask=mask, other=0.0)
    wait_for_predecessor(PDL)

    row = tl.load(rows_ptr + index).to(tl.int64)
    is_used = row >= 0
    position = tl.load(positions_ptr + index)
    if IS_GATHERED:
        token = index
    else:
        token = tl.load(tokens_ptr + tl.where(is_used, row * tokens_stride + position, 0)).to(tl.int64)
    embedded = tl.load(embedding_ptr + token * embedding_stride + column, mask=mask, other=0.0)
    stream = (embedded.to(tl.float32) * embedding_scale).to(embedded.dtype).to(residual_ptr.dtype.element_ty)
    stream = tl.where(is_used, stream, 0.0)
    here = index * hidden_size + column
    tl.store(residual_ptr + here, stream, mask=mask)

    x = stream.to(tl.float32)  # [HIDDEN_BLOCK]
    inverse_rms = tl.rsqrt(tl.sum(x * x, axis=0) / hidden_size + eps)
    normed = (x * inverse_rms).to(gamma.dtype).to(tl.float32) * gamma.to(tl.float32)
    tl.store(hidden_ptr + here, normed.to(hidden_ptr.dtype.element_ty), mask=mask)

    _store_angles(
        index, position, inv_freq_ptr, cos_factor_ptr, sin_factor_ptr, cos_ptr, sin_ptr, ROTARY_DIM, ROTARY_BLOCK
    )
    if LOCAL_DIM > 0:
        _store_angles(
            index, position, local_inv_freq_ptr, local_cos_factor_ptr, local_sin_factor_ptr, local_cos_ptr,
            local_sin_ptr, LOCAL_DIM, LOCAL_BLOCK,
        )  # fmt: skip


def step_begin(
    rows: Tensor,
    positions: Tensor,
    tokens: Tensor,
    embedding: Tensor,
    gamma: Tensor,
    eps: float,
    rotaries: Sequence[RotaryFactors],
    residual: Tensor,
    *,
    embedding_scale: float = 1.0,
    is_gathered: bool = False,
    pdl: bool = False,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Embeds a step's tokens, and computes what its first layer reads.

    Args:
        rows: int32 or int64 [num_tokens]: each token's row of `tokens`; below 0 it is padding.
        positions: int32 or int64 [num_tokens]: its column.
        tokens: int32 [max_rows, max_tokens].
        embedding: [vocab_size, hidden_size].
        gamma: [hidden_size], weight of the first norm, its offset added; float32 or of the embedding's type.
        eps: of that norm.
        rotaries: one or two.
        residual: [num_tokens, hidden_size], written: the embeddings times the scale; zeros for padding.
        embedding_scale: Gemma's; rounded to the embedding's type, as the product is.
        is_gathered: `embedding` is [num_tokens, hidden_size], looked up by `packed_rows.packed_token_rows`.
        pdl: overlap with the kernel before, on devices that can.

    Returns:
        The norm of `residual`, typed like `embedding`, zeros for padding; and cos and signed sin for each rotary,
        float32 [num_tokens, 1, rotary_dim].

    Raises:
        ValueError: shapes or types that do not fit.
    """
    num_tokens, hidden_size = residual.shape
    _check(rows, positions, tokens, embedding, gamma, rotaries, residual)
    device = residual.device
    hidden = torch.empty(num_tokens, hidden_size, dtype=embedding.dtype, device=device)
    dims = [rotary.inv_freq.shape[0] for rotary in rotaries]
    angles = [(torch.empty(num_tokens, 1, dim, device=device), torch.empty(num_tokens, 1, dim, device=device))
              for dim in dims]  # fmt: skip
    if num_tokens == 0:
        return hidden, angles
    block = triton.next_power_of_2(hidden_size)
    main, local = rotaries[0], rotaries[-1]
    has_local = len(rotaries) > 1
    # Angles are promised to the bit of float32 products; that is worth more here than a fused multiply-add.
    options = launch_options(min(16, max(1, block // 512)), pdl, device) | {"enable_fp_fusion": False}
    _step_begin_kernel[(num_tokens,)](
        rows, positions, tokens, embedding, gamma,
        main.inv_freq, main.cos_factor, main.sin_factor, local.inv_freq, local.cos_factor, local.sin_factor,
        residual, hidden, *angles[0], *angles[-1],
        tokens.stride(0), embedding.stride(0), hidden_size,
        torch.tensor(embedding_scale, dtype=embedding.dtype).item(), eps,
        ROTARY_DIM=dims[0], ROTARY_BLOCK=triton.next_power_of_2(dims[0]),
        LOCAL_DIM=dims[1] if has_local else 0, LOCAL_BLOCK=triton.next_power_of_2(dims[-1]),
        HIDDEN_BLOCK=block, IS_GATHERED=is_gathered, **options,
    )  # fmt: skip
    return hidden, angles


def _check(
    rows: Tensor,
    positions: Tensor,
    tokens: Tensor,
    embedding: Tensor,
    gamma: Tensor,
    rotaries: Sequence[RotaryFactors],
    residual: Tensor,
) -> None:
    """
    Raises:
        ValueError: as `step_begin`.
    """
    num_tokens, hidden_size = residual.shape
    shapes = {
        "rows": (rows, (num_tokens,)),
        "positions": (positions, (num_tokens,)),
        "gamma": (gamma, (hidden_size,)),
        "residual": (residual, (num_tokens, hidden_size)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(f"step_begin: {name} is {tuple(tensor.shape)}; it must be {shape} and contiguous")
    if tokens.dtype != torch.int32 or tokens.stride(1) != 1:
        raise ValueError(
            f"step_begin: tokens is {tokens.dtype}, strides {tokens.stride()}; it must be int32 and its rows contiguous"
        )
    if embedding.shape[1] != hidden_size or embedding.stride(1) != 1:
        raise ValueError(
            f"step_begin: embedding is {tuple(embedding.shape)}, strides {embedding.stride()}; its rows must be of "
            f"{hidden_size} elements, as residual's, and contiguous"
        )
    if not 1 <= len(rotaries) <= MAX_ROTARIES:
        raise ValueError(f"step_begin: {len(rotaries)} rotaries; there must be one or two")
    for rotary in rotaries:
        factors = rotary.inv_freq, rotary.cos_factor, rotary.sin_factor
        if any(x.dtype != torch.float32 or x.shape != factors[0].shape or not x.is_contiguous() for x in factors):
            raise ValueError(
                "step_begin: inv_freq, cos_factor and sin_factor of a rotary must be contiguous float32 and alike, but "
                f"are {', '.join(f'{x.dtype} {tuple(x.shape)}' for x in factors)}"
            )
