"""The KV cache: two tensors a layer, or four. How many blocks there are: `execution.memory`.

K and V are separate tensors [num_blocks, num_kv_heads, block_size, head_dim], so that one head's tokens of a block lie
together. In a type of 8 bits each vector has a scale, [num_blocks, num_kv_heads, block_size] for K and for V
(`kernels.kv_types`). All layers have the same number of blocks; a block id of a KV group means that block in each of
the group's layers. Block 0 is nobody's (`scheduling.batch.DUMMY_BLOCK`). Memory is not cleared: attention never lets an
unused slot matter, and an operating system that hands out pages on first touch then charges for used blocks only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.config import ModelConfig
from engine.execution.device import available_bytes
from engine.execution.errors import ModelTooLarge
from engine.kernels.kv_types import SCALE_DTYPE, is_quantized

Tensor = torch.Tensor
Scales = tuple[Tensor, Tensor] | tuple[None, None]
"""Of K and of V: float32 [num_blocks + 1, num_kv_heads, block_size], or none."""


@dataclass(frozen=True)
class KVCache:
    """Allocated blocks."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """(K, V) of each layer: [num_blocks + 1, num_kv_heads, block_size, head_dim]."""
    scales: tuple[Scales, ...]
    """Of each layer."""
    num_blocks: int
    """Usable ones, with ids 1 ... num_blocks."""
    block_size: int

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        is_shared: bool = False,
    ) -> KVCache:
        """
        Args:
            is_shared: all layers write to the same blocks, one after the other. For whole prompts, which nobody goes on
                from: a layer's keys and values are needed no longer than the layer.

        Raises:
            ModelTooLarge: more than is free. Asked before, because Linux promises memory that it does not have.
        """
        num_layers = 1 if is_shared else config.num_layers
        needs = (num_blocks + 1) * block_bytes(config, block_size, dtype) * num_layers // config.num_layers
        has = available_bytes(device)
        if needs > has:
            raise ModelTooLarge(f"a KV cache of {num_blocks} blocks", needs, has, "ask for fewer, or free memory")
        shape = num_blocks + 1, config.num_kv_heads, block_size, config.head_dim
        layers = tuple(
            (torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
            for _ in range(num_layers)
        )
        scales: tuple[Scales, ...] = ((None, None),) * num_layers
        if is_quantized(dtype):
            scales = tuple(
                (
                    torch.empty(shape[:3], dtype=SCALE_DTYPE, device=device),
                    torch.empty(shape[:3], dtype=SCALE_DTYPE, device=device),
                )
                for _ in range(num_layers)
            )
        times = config.num_layers // num_layers
        return cls(layers * times, scales * times, num_blocks, block_size)

    @property
    def num_bytes(self) -> int:
        tensors = [tensor for pair in (*self.layers, *self.scales) for tensor in pair if tensor is not None]
        return sum(tensor.nbytes for tensor in tensors)


def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block id over all layers."""
    vector_bytes = config.head_dim * dtype.itemsize + (SCALE_DTYPE.itemsize if is_quantized(dtype) else 0)
    return 2 * config.num_layers * config.num_kv_heads * block_size * vector_bytes
