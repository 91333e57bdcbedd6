"""Sizes of a model whose weights all have one type, from its configuration alone: no file is needed to plan memory."""

from __future__ import annotations

import torch

from engine.config import ModelConfig
from engine.execution.weight_table import WeightSizes


def plain_sizes(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> WeightSizes:
    hidden = config.hidden_size
    elements = hidden * (2 * config.q_size + 2 * config.kv_size) + 3 * hidden * config.intermediate_size
    return WeightSizes(config.num_parameters * dtype.itemsize, (elements * dtype.itemsize,) * config.num_layers)
