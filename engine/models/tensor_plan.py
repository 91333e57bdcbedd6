"""What a checkpoint must hold for a ModelConfig: each tensor's name and shape; and whether a model's files hold it.

Compared are the tables of tensors that the files carry; no tensor is read and torch is not imported. So `create` asks
`check_tensors` before a model is stored, and `execution.weights` asks the same before its first read. No tensor may be
left over: an unknown one usually means a bias or a norm that would silently be missing from the computation.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.config import ModelConfig
from engine.models.tensor_names import TensorNames
from modelfiles.gguf import BLOCK_LAYOUT, GGMLType, GGUFModel, GGUFTensor, open_shards
from modelfiles.safetensors import SafeTensor, SafetensorsModel
from modelfiles.source import ModelSource

StoredTensor = GGUFTensor | SafeTensor
"""A tensor as its file's table describes it."""

# No weights are of these: Q8_1 is what ggml turns activations into.
UNREADABLE_TYPES = (GGMLType.F64, GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64, GGMLType.Q8_1)
READABLE_TYPES = tuple(type for type in BLOCK_LAYOUT if type not in UNREADABLE_TYPES)
"""Those that quantization.gguf_blocks expands; safetensors' F32, F16 and BF16 bear the same names."""

MAX_NAMED = 5
"""Tensors that an error names; the rest are counted."""


class TensorPlanError(ValueError):
    """A checkpoint that does not hold the model its configuration describes; the message names the tensor."""


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that must be there."""

    name: str
    shape: tuple[int, ...]
    """Outermost dimension first: [rows] or [rows, columns]."""
    more_rows: bool = False
    """There may be more rows: a vocabulary padded for the training's sake."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of `shape` can be used."""
        if self.more_rows:
            return shape[1:] == self.shape[1:] and shape[:1] >= self.shape[:1]
        return shape == self.shape


def open_weights(source: ModelSource) -> GGUFModel | SafetensorsModel:
    """A model's weights of either format, as a context manager.

    Raises:
        GGUFError, SafetensorsError: a file is broken.
    """
    return open_shards(source.gguf_files) if source.format == "gguf" else SafetensorsModel.open(source.files)


def check_tensors(config: ModelConfig, source: ModelSource) -> None:
    """Whether the tensors in a model's files are those of its configuration.

    Raises:
        TensorPlanError: as check_table.
        GGUFError, SafetensorsError: a file is broken.
    """
    with open_weights(source) as file:
        names = TensorNames.detect(file.tensors, is_gguf=source.format == "gguf", has_post_norms=config.post_norms)
        check_table(config, names, file.tensors)


def check_table(config: ModelConfig, names: TensorNames, tensors: Mapping[str, StoredTensor]) -> None:
    """Whether a table of tensors is that of a configuration.

    Raises:
        TensorPlanError: a tensor is missing, superfluous, misshapen or of a type that Hob cannot read.
    """
    surplus = set(tensors)
    for planned in tensor_plan(config, names, tensors):
        tensor = tensors.get(planned.name)
        if tensor is None:
            raise TensorPlanError(
                f'the tensor "{planned.name}" of shape {list(planned.shape)} is missing; the file is incomplete or not '
                "of this architecture"
            )
        if not planned.fits(tuple(tensor.shape)):
            raise TensorPlanError(
                f'the tensor "{planned.name}" has the shape {list(tensor.shape)}; the configuration asks for '
                f"{list(planned.shape)}"
            )
        if GGMLType.__members__.get(type_name(tensor)) not in READABLE_TYPES:
            readable = ", ".join(type.name for type in READABLE_TYPES)
            raise TensorPlanError(
                f'the tensor "{planned.name}" has the type {type_name(tensor)}; these can be read: {readable}'
            )
        surplus.discard(planned.name)
    if config.tie_word_embeddings:  # some checkpoints save a tied head a second time
        surplus.discard(names.name("head"))
    unknown = [name for name in tensors if name in surplus and not names.is_ignored(name)]
    if unknown:
        raise TensorPlanError(
            f"{len(unknown)} tensors play no part in the architecture: {_named(unknown)}; running without them would "
            "give wrong answers"
        )


def tensor_plan(config: ModelConfig, names: TensorNames, present: Container[str]) -> Iterator[PlannedTensor]:
    """All tensors of a model.

    Args:
        present: names of the tensors that are there; they tell whether projections are fused.
    """
    vocabulary = (config.vocab_size, config.hidden_size)
    yield PlannedTensor(names.name("embedding"), vocabulary, more_rows=True)
    if not config.tie_word_embeddings:
        yield PlannedTensor(names.name("head"), vocabulary, more_rows=True)
    for layer in range(config.num_layers):
        yield from _layer_plan(config, names, present, layer)
    yield PlannedTensor(names.name("final_norm"), (config.hidden_size,))


def qkv_roles(names: TensorNames, present: Container[str], layer: int) -> tuple[str, ...]:
    """Roles of the matrices that hold a layer's Q, K and V, in this order."""
    return ("qkv",) if names.name("qkv", layer) in present else ("q", "k", "v")


def gate_up_roles(names: TensorNames, present: Container[str], layer: int) -> tuple[str, ...]:
    """Roles of the matrices that hold a layer's gate and up; GGUF calls both fused what it calls up alone."""
    return ("gate", "up") if names.name("gate", layer) in present else ("gate_up",)


def type_name(tensor: StoredTensor) -> str:
    """What a file calls the type of a tensor's elements; where Hob reads it, a name of GGMLType."""
    return tensor.dtype if isinstance(tensor, SafeTensor) else tensor.type.name


def _layer_plan(
    config: ModelConfig, names: TensorNames, present: Container[str], layer: int
) -> Iterator[PlannedTensor]:
    hidden, q, kv, intermediate = config.hidden_size, config.q_size, config.kv_size, config.intermediate_size
    norms = {"attention_norm": hidden, "mlp_norm": hidden}
    if config.qk_norm:
        norms |= {"q_norm": config.head_dim, "k_norm": config.head_dim}
    if config.post_norms:
        norms |= {"post_attention_norm": hidden, "post_mlp_norm": hidden}
    for role, width in norms.items():
        yield PlannedTensor(names.name(role, layer), (width,))
    rows = {"q": q, "k": kv, "v": kv, "qkv": q + 2 * kv}
    rows |= {"gate": intermediate, "up": intermediate, "gate_up": 2 * intermediate}
    matrices = [
        *((role, rows[role], hidden, config.qkv_bias) for role in qkv_roles(names, present, layer)),
        ("attention_output", hidden, q, config.output_bias),
        *((role, rows[role], hidden, config.mlp_bias) for role in gate_up_roles(names, present, layer)),
        ("down", hidden, intermediate, config.mlp_bias),
    ]
    for role, num_rows, num_columns, has_bias in matrices:
        yield PlannedTensor(names.name(role, layer), (num_rows, num_columns))
        if has_bias:
            yield PlannedTensor(names.name(role, layer, "bias"), (num_rows,))


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"
