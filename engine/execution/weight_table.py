"""WeightTable: what a model's weights will take on a device, from the table of tensors that its files carry.

Asked by the runner before anything is read: for the memory plan, and for the type to compute in. The answer is what
`weights.load_weights` will hold, because both ask `quantization.selection`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from engine.architectures import BY_NAME
from engine.config import ModelConfig
from engine.execution.weights import Checkpoint, layer_roles
from engine.models.tensor_plan import tensor_plan
from engine.quantization import int4_op
from engine.quantization.base import Dense
from engine.quantization.checkpoint import PLAIN_DTYPES, Destination
from engine.quantization.gguf_blocks import LINEAR_TYPES
from engine.quantization.packed import Packed, misfit
from engine.quantization.rounded import Rounded
from engine.quantization.row_types import ROW_TYPES
from engine.quantization.selection import Matrix, method_of, segments_bytes

Matrices = tuple[Matrix, ...]
"""Those of one Linear, in order."""


@dataclass(frozen=True)
class WeightSizes:
    """Bytes of weights in one place."""

    total_bytes: int
    layer_bytes: tuple[int, ...]
    """Of each layer, its matrices: what need not be on the device while other layers compute."""
    expanded_bytes: int = 0
    """The largest packed matrix of a layer in the computing type, as which it is multiplied by many tokens."""
    expanded_head_bytes: int = 0
    """The same of the head."""


@dataclass(frozen=True)
class WeightTable:
    """A model's tensors without their values."""

    outer: tuple[Matrices, ...]
    """The embedding, and the head where it is another matrix."""
    layers: tuple[tuple[Matrices, ...], ...]
    num_norm_elements: int
    num_bias_elements: int
    has_float32_norms: bool
    weight_dtype: torch.dtype | None = None
    """What unquantised matrices of layers are quantised to; None: they stay as they are."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: ModelConfig, weight_dtype: torch.dtype | None = None) -> WeightTable:
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
            weight_dtype=weight_dtype,
        )

    def sizes(self, device: torch.device, dtype: torch.dtype) -> WeightSizes:
        """What loading to a device for computing in `dtype` will hold."""
        outside, inside = self._destinations(device, dtype)
        layers = tuple(sum(segments_bytes(matrices, inside) for matrices in layer) for layer in self.layers)
        outer = sum(segments_bytes(matrices, outside) for matrices in self.outer)
        norm_itemsize = 4 if self.has_float32_norms else dtype.itemsize
        vectors = self.num_norm_elements * norm_itemsize + self.num_bias_elements * dtype.itemsize
        return WeightSizes(
            outer + sum(layers) + vectors,
            layers,
            max(_expanded_bytes(matrices, inside) for layer in self.layers for matrices in layer),
            _expanded_bytes(self.outer[-1], outside),
        )

    def notes(self, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
        """Sentences for whoever wonders why it is slower, or larger, than expected."""
        name = str(dtype).removeprefix("torch.")
        if device.type != "cpu":
            return self._expanded_there(device, dtype)
        notes = []
        if any(matrix.type in LINEAR_TYPES for matrix, _ in self._matrices(device, dtype)) and int4_op.layout() is None:
            notes.append(
                "torch has no fast product with 4-bit weights for this processor, so quantised weights are expanded "
                f"to {name}, which takes more memory and time"
            )
        if any(method_of(matrix, place) is Rounded for matrix, place in self._matrices(device, dtype)):
            label = ROW_TYPES[self.weight_dtype][0] if self.weight_dtype else ""
            notes.append(
                f"weights are rounded to {label} and kept in {name}: here they take the memory and time of "
                "unquantised ones"
            )
        return tuple(notes)

    def packed_share(self, device: torch.device, dtype: torch.dtype) -> float:
        """Part of the matrices' elements that stays quantised there."""
        total = packed = 0
        for matrix, destination in self._matrices(device, dtype):
            count = matrix.num_rows * matrix.num_columns
            total += count
            packed += 0 if issubclass(method_of(matrix, destination), Dense) else count
        return packed / total

    def _expanded_there(self, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
        """A sentence for each reason for which matrices do not stay quantised on a GPU."""
        counts: Counter[str] = Counter()
        total = 0
        for matrix, place in self._matrices(device, dtype):
            if matrix.type not in PLAIN_DTYPES or place.weight_dtype is not None:
                total += 1
                reason = misfit(matrix.type, matrix.num_rows, matrix.num_columns, place)
                counts.update([] if reason is None else [f"{reason} ({matrix.num_rows} x {matrix.num_columns})"])
        name = str(dtype).removeprefix("torch.")
        return tuple(
            f"{count} of {total} quantised matrices take more memory and time, because they are expanded to {name}: "
            f"{reason}"
            for reason, count in counts.items()
        )

    def _destinations(self, device: torch.device, dtype: torch.dtype) -> tuple[Destination, Destination]:
        """Where embedding and head go, and where layers do: the head stays as it is, as in other engines."""
        outside = Destination(device, dtype)
        return outside, replace(outside, weight_dtype=self.weight_dtype)

    def _matrices(self, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Matrix, Destination]]:
        outside, inside = self._destinations(device, dtype)
        yield from ((matrix, outside) for linear in self.outer for matrix in linear)
        yield from ((matrix, inside) for layer in self.layers for linear in layer for matrix in linear)


def _expanded_bytes(matrices: Matrices, destination: Destination) -> int:
    """What those of one Linear that are packed on a GPU take when they are expanded, one segment at a time at most."""
    return sum(
        matrix.num_rows * matrix.num_columns * destination.dtype.itemsize
        for matrix in matrices
        if method_of(matrix, destination) is Packed
    )
