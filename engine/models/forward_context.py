"""ForwardContext: everything one forward pass needs beside the weights. Built by the runner, passed down as an
argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.kernels.reference import AttentionPlan
from engine.models.lora import AdapterTokens

Tensor = torch.Tensor


@dataclass(frozen=True)
class ForwardContext:
    """One step. Tokens of all rows lie behind each other, row by row."""

    token_ids: Tensor
    """int64 [num_tokens]"""
    positions: Tensor
    """int64 [num_tokens], absolute."""
    plans: Sequence[AttentionPlan]
    """One for each KV group of the model."""
    kv_cache: Sequence[tuple[Tensor, Tensor]]
    """K and V of each layer: [num_blocks, num_kv_heads, block_size, head_dim]."""
    kv_scales: Sequence[tuple[Tensor | None, Tensor | None]]
    """Their scales where they are of 8 bits: float32 [num_blocks, num_kv_heads, block_size]."""
    adapters: AdapterTokens | None = None
    """Which tokens have a LoRA adapter; None: none has."""
