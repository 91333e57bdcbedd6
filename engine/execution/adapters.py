"""Reading LoRA adapters: the files of a model's ADAPTERs become one Adapter on the device.

Several adapters of one model add up. What they add to, and that it fits, `models.adapter_plan` has looked up; here the
tensors are read, Q's and K's rows are put into the order that the engine rotates, and scales are multiplied in.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from engine.config import ModelConfig
from engine.execution.weights import half_split_order
from engine.models.adapter_plan import (
    AdapterPlan,
    Update,
    fused_rows,
    num_elements,
    open_adapter,
    permuted_roles,
    plan_adapter,
)
from engine.models.lora import Adapter, LinearUpdate, Part
from engine.models.tensor_plan import StoredTensor, type_name
from engine.quantization.checkpoint import CheckpointTensor
from modelfiles.gguf import GGMLType, GGUFModel
from modelfiles.safetensors import SafetensorsModel
from modelfiles.source import ModelSource

Tensor = torch.Tensor


def adapter_bytes(config: ModelConfig, sources: Sequence[ModelSource], dtype: torch.dtype) -> int:
    """What `load_adapter` will hold. Raises as it does."""
    return sum(num_elements(config, plan_adapter(config, source)) for source in sources) * dtype.itemsize


def load_adapter(
    config: ModelConfig, sources: Sequence[ModelSource], dtype: torch.dtype, device: torch.device
) -> Adapter:
    """The sum of the adapters in these files.

    Raises:
        AdapterError: one cannot be applied to this model.
        SourceError, GGUFError, SafetensorsError: a file is broken.
    """
    halves: dict[tuple[int, str], list[tuple[slice, Tensor, Tensor]]] = {}
    with ExitStack() as stack:
        for source in sources:
            plan, file = plan_adapter(config, source), open_adapter(source)
            stack.callback(file.close)
            reader = _Reader(config, plan, file)
            for update in plan.updates:
                matrix, rows = fused_rows(config, update.role)
                a, b = (half.to(device, dtype) for half in reader.read(update))
                halves.setdefault((update.layer, matrix), []).append((rows, a, b))
    layers: list[dict[str, LinearUpdate]] = [{} for _ in range(config.num_layers)]
    for (layer, matrix), updates in halves.items():
        layers[layer][matrix] = _linear_update(updates)
    return Adapter(tuple(layers))


def _linear_update(updates: Sequence[tuple[slice, Tensor, Tensor]]) -> LinearUpdate:
    parts, start = [], 0
    for rows, a, b in updates:
        parts.append(Part(rows, slice(start, start + len(a)), b))
        start += len(a)
    return LinearUpdate(torch.cat([a for _, a, _ in updates]), tuple(parts))


class _Reader:
    """Reads the tensors of one adapter."""

    def __init__(self, config: ModelConfig, plan: AdapterPlan, file: GGUFModel | SafetensorsModel) -> None:
        self._file = file
        self._orders = {
            role: list(half_split_order(heads, config.head_dim, config.rotary_dim))
            for role, heads in permuted_roles(config, plan)
        }

    def read(self, update: Update) -> tuple[Tensor, Tensor]:
        """A, and B times the scale; float32."""
        a, b = self._tensor(update.a), self._tensor(update.b).mul_(update.scale)
        order = self._orders.get(update.role)
        return a, b if order is None else b[order]

    def _tensor(self, name: str) -> Tensor:
        stored: StoredTensor = self._file.tensors[name]
        shape = tuple(stored.shape)
        out = torch.empty(shape, dtype=torch.float32)
        CheckpointTensor(name, shape, GGMLType[type_name(stored)], self._file.data(name)).expand_into(out)
        return out
