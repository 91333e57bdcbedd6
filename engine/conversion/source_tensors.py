"""A model's tensors under GGUF's names and in GGUF's conventions, whichever format they come from.

GGUF differs from safetensors in three ways: Q and K of Llama's kin have their rows permuted, Gemma's norms hold the
weights plus one, and a tied head is not written twice. `gguf_job` writes what is listed here; the reader's side of
these conventions is in `execution.weights`.

Source: LlamaModel.permute and GemmaModel.modify_tensors of convert_hf_to_gguf.py (llama.cpp).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from engine.architectures import BY_NAME
from engine.config import ModelConfig
from engine.conversion.errors import ConversionError
from engine.execution.weights import half_split_order
from engine.models.tensor_names import GLOBAL_ROLES, LAYER_ROLES, POST_NORM_ROLES, TensorNames
from engine.models.tensor_plan import StoredTensor, type_name
from engine.quantization.checkpoint import CheckpointTensor
from modelfiles.gguf import GGMLType, GGUFModel
from modelfiles.safetensors import SafetensorsModel

Tensor = torch.Tensor

FLOAT_TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class SourceTensor:
    """One tensor on its way into a new file."""

    name: str
    """In the new file."""
    shape: tuple[int, ...]
    content: CheckpointTensor
    offset: float = 0.0
    """Added to every value."""

    def pieces(self) -> Iterator[Tensor]:
        """Its values in order: float32 [n, num_columns], a bounded number at a time."""
        for _, _, values in self.content.pieces():
            yield values + self.offset if self.offset else values


def check_is_float(tensors: Mapping[str, StoredTensor]) -> None:
    """Quantising what is quantised adds the errors of both.

    Raises:
        ConversionError: a matrix is not made of floating-point numbers.
    """
    for name, tensor in tensors.items():
        if len(tensor.shape) > 1 and type_name(tensor) not in FLOAT_TYPES:
            raise ConversionError(
                f'quantization is only supported for F16, BF16 and F32 models; the tensor "{name}" is '
                f"{type_name(tensor)}: start from files that are not quantised"
            )


def gguf_tensors(model: GGUFModel) -> list[SourceTensor]:
    """The tensors of a GGUF model, as they are."""
    return [
        SourceTensor(tensor.name, tensor.shape, _content(tensor, model.data(tensor.name)))
        for tensor in model.tensors.values()
    ]


def hub_tensors(model: SafetensorsModel, config: ModelConfig) -> list[SourceTensor]:
    """The tensors of a safetensors model that GGUF has, in the order of the layers."""
    row = BY_NAME[config.architecture]
    old = TensorNames.detect(model.tensors, is_gguf=False, has_post_norms=config.post_norms)
    new = TensorNames(is_gguf=True, has_post_norms=config.post_norms)
    orders: dict[str, tuple[int, ...]] = {}
    if row.interleaved_rope_in_gguf:
        for role, heads in (("q", config.num_heads), ("k", config.num_kv_heads)):
            orders[role] = neighbour_order(heads, config.head_dim, config.rotary_dim)
    found = []
    for role, layer in _places(config):
        if role == "head" and config.tie_word_embeddings:
            continue
        for suffix in ("weight", "bias"):
            tensor = model.tensors.get(old.name(role, layer, suffix))
            if tensor is None:
                continue
            content = _content(tensor, model.data(tensor.name), orders.get(role))
            offset = config.norm_offset if role.endswith("norm") else 0.0
            found.append(SourceTensor(new.name(role, layer, suffix), tensor.shape, content, offset))
    return found


def neighbour_order(num_heads: int, head_dim: int, rotary_dim: int) -> tuple[int, ...]:
    """Rows of Q or K that rotates halves (j, j + rotary_dim / 2), in the order that rotates neighbours (2j, 2j + 1)."""
    order = half_split_order(num_heads, head_dim, rotary_dim)
    inverse = [0] * len(order)
    for row, file_row in enumerate(order):
        inverse[file_row] = row
    return tuple(inverse)


def _places(config: ModelConfig) -> Iterator[tuple[str, int | None]]:
    """(role, layer) of all tensors that a model may have."""
    roles = {**LAYER_ROLES, **POST_NORM_ROLES} if config.post_norms else LAYER_ROLES
    yield "embedding", None
    for layer in range(config.num_layers):
        yield from ((role, layer) for role in roles)
    yield from ((role, None) for role in GLOBAL_ROLES if role != "embedding")


def _content(tensor: StoredTensor, data: memoryview, row_order: tuple[int, ...] | None = None) -> CheckpointTensor:
    # A bias is permuted like the rows of its matrix, so it is taken for a matrix of one column.
    shape = (*tensor.shape, 1) if row_order and len(tensor.shape) == 1 else tuple(tensor.shape)
    return CheckpointTensor(tensor.name, shape, GGMLType[type_name(tensor)], data, row_order)
