"""The KV cache: two tensors a layer. How many blocks there are: `execution.memory`.

K and V are separate tensors [num_blocks, num_kv_heads, block_size, head_dim], so that one head's tokens of a block lie
together. All layers have the same number of blocks; a block id of a KV group means that block in each of the group's
layers. Block 0 is nobody's (`scheduling.batch.DUMMY_BLOCK`). Memory is not cleared: attention never lets an unused slot
matter, and an operating system that hands out pages on first touch then charges for used blocks only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.config import ModelConfig
from engine.execution.device import available_bytes
from engine.execution.errors import ModelTooLarge

Tensor = torch.Tensor


@dataclass(frozen=True)
class KVCache:
    """Allocated blocks."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """(K, V) of each layer: [num_blocks + 1, num_kv_heads, block_size, head_dim]."""
    num_blocks: int
    """Usable ones, with ids 1 ... num_blocks."""
    block_size: int

    @classmethod
    def allocate(
        cls, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        """
        Raises:
            ModelTooLarge: more than is free. Asked before, because Linux promises memory that it does not have.
        """
        needs, has = (num_blocks + 1) * block_bytes(config, block_size, dtype), available_bytes(device)
        if needs > has:
            raise ModelTooLarge(f"a KV cache of {num_blocks} blocks", needs, has, "ask for fewer, or free memory")
        shape = num_blocks + 1, config.num_kv_heads, block_size, config.head_dim
        layers = tuple(
            (torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
            for _ in range(config.num_layers)
        )
        return cls(layers, num_blocks, block_size)

    @property
    def num_bytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self.layers)


def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block id over all layers."""
    return 2 * config.num_layers * config.num_kv_heads * block_size * config.head_dim * dtype.itemsize
