"""WeightTable: what a model's weights will take on a device, from the table of tensors that its files carry.

Asked by the runner before anything is read: for the memory plan, and for the type to compute in. The answer is what
`weights.load_weights` will hold, because both ask `quantization.selection`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from engine.architectures import BY_NAME
from engine.config import ModelConfig
from engine.execution.weights import Checkpoint, layer_roles
from engine.models.tensor_plan import tensor_plan
from engine.quantization import int4_op
from engine.quantization.base import Dense
from engine.quantization.checkpoint import Destination
from engine.quantization.gguf_blocks import LINEAR_TYPES
from engine.quantization.selection import Matrix, method_of, segments_bytes

Matrices = tuple[Matrix, ...]
"""Those of one Linear, in order."""


@dataclass(frozen=True)
class WeightSizes:
    """Bytes of weights in one place."""

    total_bytes: int
    layer_bytes: tuple[int, ...]
    """Of each layer, its matrices: what need not be on the device while other layers compute."""


@dataclass(frozen=True)
class WeightTable:
    """A model's tensors without their values."""

    outer: tuple[Matrices, ...]
    """The embedding, and the head where it is another matrix."""
    layers: tuple[tuple[Matrices, ...], ...]
    num_norm_elements: int
    num_bias_elements: int
    has_float32_norms: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: ModelConfig) -> WeightTable:
        """The table of a checkpoint that `check` has seen."""
        names, present = checkpoint.names, checkpoint.tensors
        outer = ["embedding"] if config.tie_word_embeddings else ["embedding", "head"]
        # Not what a quantised matrix consists of, which may be vectors too, nor biases of zeros.
        vectors = [
            planned
            for planned in tensor_plan(config, names, present)
            if len(planned.shape) == 1 and planned.name.endswith((".weight", ".bias")) and not planned.is_optional
        ]
        num_biases = sum(math.prod(vector.shape) for vector in vectors if vector.name.endswith(".bias"))
        return cls(
            outer=tuple((checkpoint.matrix(role),) for role in outer),
            layers=tuple(
                tuple(
                    tuple(checkpoint.matrix(role, layer) for role in roles)
                    for roles in layer_roles(names, present, layer)
                )
                for layer in range(config.num_layers)
            ),
            num_norm_elements=sum(math.prod(vector.shape) for vector in vectors) - num_biases,
            num_bias_elements=num_biases,
            has_float32_norms=BY_NAME[config.architecture].unit_offset_norm,
        )

    def sizes(self, device: torch.device, dtype: torch.dtype) -> WeightSizes:
        """What loading to a device for computing in `dtype` will hold."""
        destination = Destination(device, dtype)
        layers = tuple(sum(segments_bytes(matrices, destination) for matrices in layer) for layer in self.layers)
        outer = sum(segments_bytes(matrices, destination) for matrices in self.outer)
        norm_itemsize = 4 if self.has_float32_norms else dtype.itemsize
        vectors = self.num_norm_elements * norm_itemsize + self.num_bias_elements * dtype.itemsize
        return WeightSizes(outer + sum(layers) + vectors, layers)

    def notes(self, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
        """Sentences for whoever wonders why it is slower, or larger, than expected."""
        is_quantised = any(matrix.type in LINEAR_TYPES for matrix in self._matrices())
        if device.type != "cpu" or not is_quantised or int4_op.layout() is not None:
            return ()
        return (
            "torch has no fast product with 4-bit weights for this processor, so quantised weights are expanded to "
            f"{str(dtype).removeprefix('torch.')}, which takes more memory and time",
        )

    def packed_share(self, device: torch.device, dtype: torch.dtype) -> float:
        """Part of the matrices' elements that stays quantised there."""
        destination = Destination(device, dtype)
        total = packed = 0
        for matrix in self._matrices():
            count = matrix.num_rows * matrix.num_columns
            total += count
            packed += 0 if method_of(matrix, destination) is Dense else count
        return packed / total

    def _matrices(self) -> Iterator[Matrix]:
        for linear in (*self.outer, *(linear for layer in self.layers for linear in layer)):
            yield from linear
