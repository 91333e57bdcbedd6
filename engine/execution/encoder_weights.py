"""From a checkpoint to EncoderWeights: as `execution.weights`, for models that read and do not write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch

from engine.encoder_config import EncoderConfig
from engine.execution.errors import WeightsError
from engine.execution.staging import Staging
from engine.models.encoder import EncoderLayer, EncoderWeights, LayerNorm
from engine.models.encoder_plan import EncoderNames, check_encoder_table
from engine.models.layers import Linear
from engine.models.tensor_plan import StoredTensor, TensorPlanError, open_weights, type_name
from engine.quantization.checkpoint import CheckpointTensor, Destination
from engine.quantization.selection import segments_from_checkpoint
from modelfiles.gguf import GGMLType
from modelfiles.source import ModelSource

Tensor = torch.Tensor
OnProgress = Callable[[int, int], None]
"""Called with the bytes read and the bytes of all tensors."""


def load_encoder_weights(
    source: ModelSource,
    config: EncoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    on_progress: OnProgress | None = None,
) -> EncoderWeights:
    """Reads all tensors of a model.

    Raises:
        WeightsError: tensors are missing, superfluous, misshapen or of an unknown type; or a file cannot be read.
        GGUFError, SafetensorsError: a file is broken.
    """
    with open_weights(source) as file, ExitStack() as stack:
        names = EncoderNames.detect(config, file.tensors, is_gguf=source.format == "gguf")
        try:
            check_encoder_table(names, file.tensors)
        except TensorPlanError as error:
            raise WeightsError(str(error)) from error
        staging = stack.enter_context(Staging(device)) if device.type == "cuda" else None
        destination = Destination(device, dtype, staging)
        return _Loader(names, file.tensors, file.data, destination, on_progress).weights()


def stored_matrix_bytes(source: ModelSource) -> int:
    """Bytes of a model's tensors as its files hold them. Raises GGUFError, SafetensorsError."""
    with open_weights(source) as file:
        return sum(tensor.num_bytes for tensor in file.tensors.values())


class _Loader:
    """Builds layers out of a checkpoint's tensors."""

    def __init__(
        self,
        names: EncoderNames,
        tensors: Mapping[str, StoredTensor],
        data: Callable[[str], memoryview],
        destination: Destination,
        on_progress: OnProgress | None,
    ) -> None:
        self.names = names
        self.config = names.config
        self.tensors = tensors
        self.data = data
        self.destination = destination
        self.on_progress = on_progress
        self.num_bytes = 0
        self.taken_bytes = 0
        self.total_bytes = sum(tensor.num_bytes for tensor in tensors.values())

    def weights(self) -> EncoderWeights:
        config = self.config
        has_head = config.is_ranker
        return EncoderWeights(
            word_embedding=self.linear(["word_embedding"], has_bias=False),
            type_embedding=self.table("type_embedding") if config.type_vocab_size else None,
            position_embedding=None if config.row.is_rotary else self.table("position_embedding"),
            relative_bias=self.table("relative_bias") if config.row.has_relative_bias else None,
            embedding_norm=self.norm("embedding_norm"),
            layers=tuple(self.layer(number) for number in range(config.num_layers)),
            head_dense=self.linear(["head_dense"]) if has_head and config.has_head_dense else None,
            head_output=self.linear(["head_output"]) if has_head else None,
            num_bytes=self.num_bytes,
        )

    def layer(self, number: int) -> EncoderLayer:
        has_bias = self.config.row.has_biases
        return EncoderLayer(
            qkv=self.linear(self.names.qkv_roles(number), number, has_bias=has_bias),
            attention_output=self.linear(["attention_output"], number, has_bias=has_bias),
            attention_norm=self.norm("attention_norm", number),
            gate=self.linear(["gate"], number, has_bias=has_bias) if self.config.row.is_gated else None,
            up=self.linear(["up"], number, has_bias=has_bias),
            down=self.linear(["down"], number, has_bias=has_bias),
            output_norm=self.norm("output_norm", number),
        )

    def linear(self, roles: Sequence[str], layer: int | None = None, *, has_bias: bool = True) -> Linear:
        """A projection fused from the matrices of these roles, one below the other."""
        matrices = [self._take(self.names.name(role, layer)) for role in roles]
        segments = segments_from_checkpoint(matrices, self.destination)
        bias = None
        if has_bias:
            bias = torch.cat([self._vector(self.names.name(role, layer, "bias")) for role in roles])
        linear = Linear(segments, bias)
        self.num_bytes += linear.num_bytes
        self._report()
        return linear

    def norm(self, role: str, layer: int | None = None) -> LayerNorm:
        weight, bias = (self._vector(self.names.name(role, layer, suffix)) for suffix in ("weight", "bias"))
        self.num_bytes += weight.nbytes + bias.nbytes
        return LayerNorm(weight, bias, self.config.layer_norm_eps)

    def table(self, role: str) -> Tensor:
        """[rows, hidden_size]"""
        table = self._expand(self._take(self.names.name(role)))
        self.num_bytes += table.nbytes
        return table

    def _vector(self, name: str) -> Tensor:
        return self._expand(self._take(name))[0]

    def _expand(self, tensor: CheckpointTensor) -> Tensor:
        out = torch.empty(
            tensor.num_rows, tensor.num_columns, dtype=self.destination.dtype, device=self.destination.device
        )
        tensor.expand_into(out)
        return out

    def _take(self, name: str) -> CheckpointTensor:
        tensor = self.tensors[name]
        self.taken_bytes += tensor.num_bytes
        return CheckpointTensor(name, tuple(tensor.shape), GGMLType[type_name(tensor)], self.data(name))

    def _report(self) -> None:
        if self.on_progress is not None:
            self.on_progress(self.taken_bytes, self.total_bytes)
