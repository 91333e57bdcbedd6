"""From a checkpoint to DecoderWeights: names, shapes, fused projections, one tensor at a time out of the memory map.

Every tensor is looked up by its role (`models.tensor_names`), compared with the shape that the configuration asks
for, and handed to a QuantMethod as the file holds it. No tensor may be left over: an unknown one usually means a bias
or a norm that would silently be missing from the computation. All this is looked at once for all tensors before the
first byte of one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

import torch

from engine.architectures import BY_NAME
from engine.config import ModelConfig
from engine.execution.errors import WeightsError
from engine.models.decoder import DecoderLayer, DecoderWeights
from engine.models.layers import Linear
from engine.models.tensor_names import TensorNames
from engine.quantization.base import QuantMethod, segments_from_checkpoint
from engine.quantization.checkpoint import CheckpointTensor
from engine.quantization.gguf_blocks import DECODERS
from modelfiles.gguf import GGMLType, GGUFModel, open_shards
from modelfiles.safetensors import SafetensorsModel
from modelfiles.source import ModelSource

Tensor = torch.Tensor
OnProgress = Callable[[int, int], None]
"""Called with the bytes read and the bytes of all tensors."""

SAFETENSORS_TYPES = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
MAX_NAMED = 5
"""Tensors that an error names; the rest are counted."""


class Checkpoint(AbstractContextManager["Checkpoint"]):
    """An open checkpoint of either format; remembers which tensors were taken."""

    def __init__(self, file: GGUFModel | SafetensorsModel, names: TensorNames, on_progress: OnProgress | None) -> None:
        self.names = names
        self._file = file
        self._tensors: Mapping[str, tuple[tuple[int, ...], str, int]] = {
            name: (tuple(t.shape), t.type.name if hasattr(t, "type") else t.dtype, t.num_bytes)
            for name, t in file.tensors.items()
        }
        self._taken: dict[str, int] = {}
        self._on_progress = on_progress
        self.total_bytes = sum(num_bytes for _, _, num_bytes in self._tensors.values())

    @classmethod
    def open(cls, source: ModelSource, config: ModelConfig, on_progress: OnProgress | None = None) -> Checkpoint:
        """
        Raises:
            GGUFError, SafetensorsError: a file is broken.
        """
        is_gguf = source.format == "gguf"
        file = open_shards(source.gguf_files) if is_gguf else SafetensorsModel.open(source.files)
        names = TensorNames.detect(file.tensors, is_gguf=is_gguf, has_post_norms=config.post_norms)
        return cls(file, names, on_progress)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def has(self, role: str, layer: int | None = None, suffix: str = "weight") -> bool:
        return self.names.name(role, layer, suffix) in self._tensors

    def take(
        self,
        role: str,
        shape: tuple[int, ...],
        layer: int | None = None,
        suffix: str = "weight",
        *,
        row_order: tuple[int, ...] | None = None,
        more_rows: bool = False,
    ) -> CheckpointTensor:
        """A tensor of the expected shape.

        Args:
            more_rows: the tensor may have more rows than `shape` says (a vocabulary padded for the training's sake).

        Raises:
            WeightsError: it is missing, has another shape, or a type that Hob cannot read.
        """
        name = self.names.name(role, layer, suffix)
        if name not in self._tensors:
            raise WeightsError(
                f'the tensor "{name}" of shape {list(shape)} is missing; the file is incomplete or not of this '
                "architecture"
            )
        actual, type_name, num_bytes = self._tensors[name]
        padded = more_rows and actual[1:] == shape[1:] and actual[0] >= shape[0]
        if actual != shape and not padded:
            raise WeightsError(
                f'the tensor "{name}" has the shape {list(actual)}; the configuration asks for {list(shape)}'
            )
        type = SAFETENSORS_TYPES.get(type_name) or GGMLType.__members__.get(type_name)
        if type is None or type not in DECODERS:
            readable = ", ".join(type.name for type in DECODERS)
            raise WeightsError(f'the tensor "{name}" has the type {type_name}; these can be read: {readable}')
        self._taken[name] = num_bytes
        return CheckpointTensor(name, actual, type, self._file.data(name), row_order)

    def report_progress(self) -> None:
        """What was taken has been read."""
        if self._on_progress is not None:
            self._on_progress(sum(self._taken.values()), self.total_bytes)

    def check_all_taken(self, tied_head: bool) -> None:
        """Also forgets what was taken: a second pass may follow.

        Raises:
            WeightsError: tensors are left over, which are named.
        """
        surplus = [name for name in self._tensors if name not in self._taken and not self.names.is_ignored(name)]
        if tied_head:  # some checkpoints save a tied head a second time
            surplus = [name for name in surplus if name != self.names.name("head")]
        if surplus:
            raise WeightsError(
                f"{len(surplus)} tensors play no part in the architecture: {_named(surplus)}; running without them "
                "would give wrong answers"
            )
        self._taken.clear()


def load_weights(
    checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> DecoderWeights:
    """Reads all tensors of a model.

    Raises:
        WeightsError: tensors are missing, superfluous, misshapen or of an unknown type.
    """
    _read(_Checker(checkpoint, config, dtype, device))
    return _read(_Loader(checkpoint, config, dtype, device))


def _read(loader: _Loader) -> DecoderWeights:
    config = loader.config
    embedding = loader.linear([("embedding", config.vocab_size)], None, config.hidden_size, more_rows=True)
    head = embedding
    if not config.tie_word_embeddings:
        head = loader.linear([("head", config.vocab_size)], None, config.hidden_size, more_rows=True)
    layers = tuple(loader.layer(number) for number in range(config.num_layers))
    final_norm = loader.norm("final_norm", config.hidden_size)
    loader.checkpoint.check_all_taken(config.tie_word_embeddings)
    return DecoderWeights(
        embedding=embedding, layers=layers, final_norm=final_norm, head=head, num_bytes=loader.num_bytes
    )


def weights_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """What `load_weights` will hold, while every type is expanded."""
    return config.num_parameters * dtype.itemsize


def half_split_order(num_heads: int, head_dim: int, rotary_dim: int) -> tuple[int, ...]:
    """Rows of Q or K in a file that rotates neighbours (2j, 2j + 1), in the order that rotates (j, j + rotary_dim / 2).

    Source: LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py, which this undoes.
    """
    head = [*range(0, rotary_dim, 2), *range(1, rotary_dim, 2), *range(rotary_dim, head_dim)]
    return tuple(start * head_dim + row for start in range(num_heads) for row in head)


class _Loader:
    """Builds layers out of a checkpoint's tensors."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.dtype = dtype
        self.device = device
        self.num_bytes = 0
        self.orders: dict[str, tuple[int, ...]] = {}
        if config.interleaved_rope:
            for role, heads in (("q", config.num_heads), ("k", config.num_kv_heads)):
                self.orders[role] = half_split_order(heads, config.head_dim, config.rotary_dim)

    def layer(self, number: int) -> DecoderLayer:
        config, hidden = self.config, self.config.hidden_size
        qkv = [("q", config.q_size), ("k", config.kv_size), ("v", config.kv_size)]
        gate_up = [("gate", config.intermediate_size), ("up", config.intermediate_size)]
        if self.checkpoint.has("qkv", number):
            qkv = [("qkv", config.q_size + 2 * config.kv_size)]
        if not self.checkpoint.has("gate", number):
            gate_up = [("gate_up", 2 * config.intermediate_size)]
        return DecoderLayer(
            attention_norm=self.norm("attention_norm", hidden, number),
            qkv=self.linear(qkv, number, hidden, bias=config.qkv_bias),
            q_norm=self.norm("q_norm", config.head_dim, number) if config.qk_norm else None,
            k_norm=self.norm("k_norm", config.head_dim, number) if config.qk_norm else None,
            attention_output=self.linear(
                [("attention_output", hidden)], number, config.q_size, bias=config.output_bias
            ),
            post_attention_norm=self.norm("post_attention_norm", hidden, number) if config.post_norms else None,
            mlp_norm=self.norm("mlp_norm", hidden, number),
            gate_up=self.linear(gate_up, number, hidden, bias=config.mlp_bias),
            down=self.linear([("down", hidden)], number, config.intermediate_size, bias=config.mlp_bias),
            post_mlp_norm=self.norm("post_mlp_norm", hidden, number) if config.post_norms else None,
        )

    def linear(
        self,
        parts: Sequence[tuple[str, int]],
        layer: int | None,
        num_columns: int,
        *,
        bias: bool = False,
        more_rows: bool = False,
    ) -> Linear:
        """A projection fused from (role, rows) parts."""
        tensors = [
            self.checkpoint.take(role, (rows, num_columns), layer, row_order=self.orders.get(role), more_rows=more_rows)
            for role, rows in parts
        ]
        fused_bias = None
        if bias:
            biases = [
                self._expand(self.checkpoint.take(role, (rows,), layer, "bias"), self.orders.get(role))
                for role, rows in parts
            ]
            fused_bias = torch.cat(biases).to(self.dtype)
        linear = Linear(self._segments(tensors), fused_bias)
        self.num_bytes += linear.num_bytes
        return linear

    def norm(self, role: str, width: int, layer: int | None = None) -> Tensor:
        """Weights of an RMSNorm. Gemma's stay float32 (`kernels.rms_norm`), and as safetensors lack their offset."""
        weight = self._expand(self.checkpoint.take(role, (width,), layer)) + self.config.norm_offset
        if not BY_NAME[self.config.architecture].unit_offset_norm:
            weight = weight.to(self.dtype)
        self.num_bytes += weight.nbytes
        return weight

    def _segments(self, tensors: Sequence[CheckpointTensor]) -> tuple[QuantMethod, ...]:
        segments = segments_from_checkpoint(tensors, self.dtype, self.device)
        self.checkpoint.report_progress()
        return segments

    def _expand(self, tensor: CheckpointTensor, order: tuple[int, ...] | None = None) -> Tensor:
        """A vector, float32."""
        out = torch.empty(1, tensor.num_columns, device=self.device)
        tensor.expand_into(out)
        self.checkpoint.report_progress()
        return out[0] if order is None else out[0, list(order)]


class _Checker(_Loader):
    """Takes every tensor as its parent does, and reads none."""

    def _segments(self, tensors: Sequence[CheckpointTensor]) -> tuple[QuantMethod, ...]:
        return ()

    def _expand(self, tensor: CheckpointTensor, order: tuple[int, ...] | None = None) -> Tensor:
        return torch.empty(0, device=self.device)


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"
