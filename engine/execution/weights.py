"""From a checkpoint to DecoderWeights: fused projections, one tensor at a time out of the memory map.

Every tensor is looked up by its role (`models.tensor_names`) and handed to a QuantMethod as the file holds it; on its
way to a GPU it goes through `staging`. That all are there in the shapes of the configuration, and no others, is looked
at before the first byte of one is read (`models.tensor_plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from types import TracebackType

import torch

from engine.architectures import BY_NAME
from engine.config import ModelConfig
from engine.execution.errors import WeightsError
from engine.execution.staging import Staging
from engine.models.decoder import DecoderLayer, DecoderWeights
from engine.models.layers import Linear
from engine.models.tensor_names import TensorNames
from engine.models.tensor_plan import (
    StoredTensor,
    TensorPlanError,
    check_table,
    gate_up_roles,
    matrix_shape,
    open_weights,
    present_suffix,
    qkv_roles,
    scheme_parts,
    stored_scheme,
    type_name,
)
from engine.quantization.base import QuantMethod
from engine.quantization.checkpoint import CheckpointTensor, Destination
from engine.quantization.quantized_tensor import CheckpointMatrix, FilePart, QuantizedTensor, QuantizedTensorError
from engine.quantization.selection import Matrix, segments_from_checkpoint
from modelfiles.gguf import GGMLType, GGUFModel
from modelfiles.safetensors import SafetensorsModel
from modelfiles.source import ModelSource

Tensor = torch.Tensor
OnProgress = Callable[[int, int], None]
"""Called with the bytes read and the bytes of all tensors."""


class Checkpoint(AbstractContextManager["Checkpoint"]):
    """An open checkpoint of either format; counts what was taken."""

    def __init__(
        self,
        file: GGUFModel | SafetensorsModel,
        config: ModelConfig,
        names: TensorNames,
        on_progress: OnProgress | None,
    ) -> None:
        self.config = config
        self.names = names
        self.tensors: dict[str, StoredTensor] = {**file.tensors}
        self._file = file
        self._on_progress = on_progress
        self._taken_bytes = 0
        self.total_bytes = sum(tensor.num_bytes for tensor in self.tensors.values())

    @classmethod
    def open(cls, source: ModelSource, config: ModelConfig, on_progress: OnProgress | None = None) -> Checkpoint:
        """
        Raises:
            GGUFError, SafetensorsError: a file is broken.
        """
        file = open_weights(source)
        is_gguf = source.format == "gguf"
        names = TensorNames.detect(file.tensors, is_gguf=is_gguf, has_post_norms=config.post_norms)
        return cls(file, config, names, on_progress)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def check(self) -> None:
        """
        Raises:
            WeightsError: tensors are missing, superfluous, misshapen or of an unknown type.
        """
        try:
            check_table(self.config, self.names, self.tensors)
        except TensorPlanError as error:
            raise WeightsError(str(error)) from error

    def check_values(self) -> None:
        """Looks at the small tensors that go with quantised matrices.

        Raises:
            WeightsError: one holds what it cannot.
        """
        if self.config.stored_quantization is None:
            return
        try:
            self._check_quantized()
        except QuantizedTensorError as error:
            raise WeightsError(str(error)) from error

    def take(
        self,
        role: str,
        layer: int | None = None,
        suffix: str = "weight",
        *,
        row_order: tuple[int, ...] | None = None,
    ) -> CheckpointTensor:
        """A tensor that `check` has seen."""
        name = self.names.name(role, layer, suffix)
        tensor = self.tensors[name]
        self._taken_bytes += tensor.num_bytes
        return CheckpointTensor(
            name, tuple(tensor.shape), GGMLType[type_name(tensor)], self._file.data(name), row_order
        )

    def matrix(self, role: str, layer: int | None = None) -> Matrix:
        """What the table says of a matrix that `check` has seen."""
        scheme = stored_scheme(self.config, self.names, self.tensors, role, layer)
        if scheme is not None:
            return Matrix(scheme, *matrix_shape(self.config, role))
        tensor = self.tensors[self.names.name(role, layer)]
        num_rows, num_columns = tensor.shape
        return Matrix(GGMLType[type_name(tensor)], num_rows, num_columns)

    def take_matrix(
        self, role: str, layer: int | None = None, *, row_order: tuple[int, ...] | None = None
    ) -> CheckpointMatrix:
        """A matrix that `check` has seen, quantised or not."""
        matrix = self._quantized(role, layer)
        if matrix is None:
            return self.take(role, layer, row_order=row_order)
        self._taken_bytes += sum(len(part.data) for part in matrix.parts.values())
        return matrix

    def take_spare_bias(self, role: str, layer: int | None) -> None:
        """Counts a bias of zeros, which a quantising tool added to a model without biases, as read."""
        if tensor := self.tensors.get(self.names.name(role, layer, "bias")):
            self._taken_bytes += tensor.num_bytes

    def _check_quantized(self) -> None:
        for role, layer, has_bias in self._matrices():
            if (matrix := self._quantized(role, layer)) is not None:
                matrix.check()
            name = self.names.name(role, layer, "bias")
            if not has_bias and name in self.tensors and any(self._file.data(name)):
                raise WeightsError(
                    f'the tensor "{name}" is a bias that is not zero, but the configuration has none; running without '
                    "it would give wrong answers"
                )

    def _matrices(self) -> Iterator[tuple[str, int | None, bool]]:
        """(role, layer, whether it has a bias)"""
        config = self.config
        if not config.tie_word_embeddings:
            yield "head", None, False
        for layer in range(config.num_layers):
            yield from ((role, layer, config.qkv_bias) for role in qkv_roles(self.names, self.tensors, layer))
            yield "attention_output", layer, config.output_bias
            yield from ((role, layer, config.mlp_bias) for role in gate_up_roles(self.names, self.tensors, layer))
            yield "down", layer, config.mlp_bias

    def _quantized(self, role: str, layer: int | None) -> QuantizedTensor | None:
        names, tensors = self.names, self.tensors
        scheme = stored_scheme(self.config, names, tensors, role, layer)
        if scheme is None:
            return None
        module = names.module(role, layer)
        parts = {}
        for part in scheme_parts(scheme, self.config, names, role, layer):
            suffix = present_suffix(part, module, tensors)
            if tensor := tensors.get(f"{module}.{suffix}"):
                data = self._file.data(tensor.name)
                parts[suffix] = FilePart(tensor.name, type_name(tensor), tuple(tensor.shape), data)
        return QuantizedTensor(module, scheme, *matrix_shape(self.config, role), parts)

    def report_progress(self) -> None:
        """What was taken has been read."""
        if self._on_progress is not None:
            self._on_progress(self._taken_bytes, self.total_bytes)


def load_weights(
    checkpoint: Checkpoint,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    weight_dtype: torch.dtype | None = None,
    offloaded: Collection[int] = (),
) -> DecoderWeights:
    """Reads all tensors of a model.

    Args:
        weight_dtype: what unquantised matrices of layers are quantised to, as Destination has it.
        offloaded: layers whose matrices stay in the host's memory, for `models.offload.LayerStream`; their norms and
            biases are on the device all the same.

    Raises:
        WeightsError: tensors are missing, superfluous, misshapen or of an unknown type; a file cannot be read; or a
            weight that should be quantised is no number.
    """
    checkpoint.check()
    checkpoint.check_values()
    try:
        with ExitStack() as stack:
            staging = stack.enter_context(Staging(device)) if device.type == "cuda" else None
            loader = _Loader(checkpoint, config, Destination(device, dtype, staging), weight_dtype, offloaded)
            embedding = loader.linear(["embedding"])
            head = embedding if config.tie_word_embeddings else loader.linear(["head"])
            layers = tuple(loader.layer(number) for number in range(config.num_layers))
            final_norm = loader.norm("final_norm")
    except QuantizedTensorError as error:
        raise WeightsError(str(error)) from error
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what pieces were expanded through
    return DecoderWeights(
        embedding=embedding, layers=layers, final_norm=final_norm, head=head, num_bytes=loader.num_bytes
    )


def layer_roles(names: TensorNames, present: Mapping[str, StoredTensor], layer: int) -> tuple[tuple[str, ...], ...]:
    """Roles of the matrices of each Linear of a layer: qkv, attention_output, gate_up and down."""
    return qkv_roles(names, present, layer), ("attention_output",), gate_up_roles(names, present, layer), ("down",)


def half_split_order(num_heads: int, head_dim: int, rotary_dim: int) -> tuple[int, ...]:
    """Rows of Q or K in a file that rotates neighbours (2j, 2j + 1), in the order that rotates (j, j + rotary_dim / 2).

    Source: LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py, which this undoes.
    """
    head = [*range(0, rotary_dim, 2), *range(1, rotary_dim, 2), *range(rotary_dim, head_dim)]
    return tuple(start * head_dim + row for start in range(num_heads) for row in head)


class _Loader:
    """Builds layers out of a checkpoint's tensors."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        destination: Destination,
        weight_dtype: torch.dtype | None,
        offloaded: Collection[int],
    ) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.destination = destination
        self.weight_dtype = weight_dtype
        self.offloaded = offloaded
        self.num_bytes = 0
        self.orders: dict[str, tuple[int, ...]] = {}
        if config.interleaved_rope:
            for role, heads in (("q", config.num_heads), ("k", config.num_kv_heads)):
                self.orders[role] = half_split_order(heads, config.head_dim, config.rotary_dim)

    def layer(self, number: int) -> DecoderLayer:
        config, names, present = self.config, self.checkpoint.names, self.checkpoint.tensors
        qkv, attention_output, gate_up, down = layer_roles(names, present, number)
        return DecoderLayer(
            attention_norm=self.norm("attention_norm", number),
            qkv=self.linear(qkv, number, bias=config.qkv_bias),
            q_norm=self.norm("q_norm", number) if config.qk_norm else None,
            k_norm=self.norm("k_norm", number) if config.qk_norm else None,
            attention_output=self.linear(attention_output, number, bias=config.output_bias),
            post_attention_norm=self.norm("post_attention_norm", number) if config.post_norms else None,
            mlp_norm=self.norm("mlp_norm", number),
            gate_up=self.linear(gate_up, number, bias=config.mlp_bias),
            down=self.linear(down, number, bias=config.mlp_bias),
            post_mlp_norm=self.norm("post_mlp_norm", number) if config.post_norms else None,
        )

    def linear(self, roles: Sequence[str], layer: int | None = None, *, bias: bool = False) -> Linear:
        """A projection fused from the matrices of these roles, one below the other."""
        tensors = [self.checkpoint.take_matrix(role, layer, row_order=self.orders.get(role)) for role in roles]
        fused_bias = None
        if bias:
            biases = [self._expand(self.checkpoint.take(role, layer, "bias"), self.orders.get(role)) for role in roles]
            fused_bias = torch.cat(biases).to(self.destination.dtype)
        else:
            for role in roles:
                self.checkpoint.take_spare_bias(role, layer)
        linear = Linear(self._segments(tensors, layer), fused_bias)
        self.num_bytes += linear.num_bytes
        return linear

    def norm(self, role: str, layer: int | None = None) -> Tensor:
        """Weights of an RMSNorm. Gemma's stay float32 (`kernels.rms_norm`), and as safetensors lack their offset."""
        weight = self._expand(self.checkpoint.take(role, layer)) + self.config.norm_offset
        if not BY_NAME[self.config.architecture].unit_offset_norm:
            weight = weight.to(self.destination.dtype)
        self.num_bytes += weight.nbytes
        return weight

    def _segments(self, tensors: Sequence[CheckpointMatrix], layer: int | None) -> tuple[QuantMethod, ...]:
        destination = self.destination
        if layer is not None:
            destination = replace(destination, is_offloaded=layer in self.offloaded, weight_dtype=self.weight_dtype)
        segments = segments_from_checkpoint(tensors, destination)
        self.checkpoint.report_progress()
        return segments

    def _expand(self, tensor: CheckpointTensor, order: tuple[int, ...] | None = None) -> Tensor:
        """A vector, float32."""
        out = torch.empty(1, tensor.num_columns, device=self.destination.device)
        tensor.expand_into(out)
        self.checkpoint.report_progress()
        return out[0] if order is None else out[0, list(order)]
