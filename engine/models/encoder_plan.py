"""What a checkpoint must hold for an EncoderConfig: each tensor's role, name and shape; and whether files hold it.

As `models.tensor_plan` for decoders: only tables of tensors are looked at, and torch is not imported, so that `create`
asks the same as a load. No tensor may be left over but those of heads that give no vectors.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from engine.encoder_architectures import GGUF_NAMES
from engine.encoder_config import EncoderConfig
from engine.models.tensor_plan import (
    READABLE_NAMES,
    PlannedTensor,
    StoredTensor,
    TensorPlanError,
    named_tensors,
    open_weights,
    type_name,
)
from modelfiles.source import ModelSource

IGNORED = (
    "position_ids", "cls.predictions.", "cls.seq_relationship.", "lm_head.", "vocab_transform.", "vocab_layer_norm.",
    "vocab_projector.", "pooler.", "rotary_emb.inv_freq",
)  # fmt: skip
"""Parts of names in safetensors files: heads for training and buffers, of which no vector depends."""
OLD_SUFFIXES = {"weight": "gamma", "bias": "beta"}
"""What the first checkpoints call the parts of a norm."""


@dataclass(frozen=True)
class EncoderNames:
    """Names in one checkpoint."""

    config: EncoderConfig
    is_gguf: bool
    prefix: str
    present: Container[str]

    @classmethod
    def detect(cls, config: EncoderConfig, present: Mapping[str, object], *, is_gguf: bool) -> EncoderNames:
        """The naming whose embedding is there; where none is, the plain one, so that errors read well."""
        for prefix in () if is_gguf else config.row.prefixes:
            names = cls(config, is_gguf, prefix, present)
            if names.name("word_embedding") in present:
                return names
        return cls(config, is_gguf, "", present)

    def name(self, role: str, layer: int | None = None, suffix: str = "weight") -> str:
        """The tensor's name."""
        roles = GGUF_NAMES if self.is_gguf else self.config.row.hf_names
        base = roles[role].format(i=layer)
        # Classifiers stand beside the model and not in it.
        prefix = "" if base.startswith(("classifier", "pre_classifier")) else self.prefix
        old = f"{prefix}{base}.{OLD_SUFFIXES[suffix]}"
        return old if not self.is_gguf and old in self.present else f"{prefix}{base}.{suffix}"

    def qkv_roles(self, layer: int) -> tuple[str, ...]:
        """Roles of the matrices that hold a layer's Q, K and V, in this order."""
        roles = GGUF_NAMES if self.is_gguf else self.config.row.hf_names
        is_fused = "qkv" in roles and ("q" not in roles or self.name("qkv", layer) in self.present)
        return ("qkv",) if is_fused else ("q", "k", "v")

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor that plays no role may be there all the same."""
        return not self.is_gguf and any(part in name for part in IGNORED)


def encoder_plan(names: EncoderNames) -> Iterator[PlannedTensor]:
    """All tensors of a model."""
    config, row = names.config, names.config.row
    hidden = config.hidden_size
    yield PlannedTensor(names.name("word_embedding"), (config.vocab_size, hidden), more_rows=True)
    if config.type_vocab_size:
        yield PlannedTensor(names.name("type_embedding"), (config.type_vocab_size, hidden))
    if not row.is_rotary:
        yield PlannedTensor(names.name("position_embedding"), (config.num_positions, hidden))
    if row.has_relative_bias:
        yield PlannedTensor(names.name("relative_bias"), (config.num_relative_buckets, config.num_heads))
    yield from _norm(names, "embedding_norm", None)
    for layer in range(config.num_layers):
        for role in (*names.qkv_roles(layer), "attention_output", *(["gate"] if row.is_gated else []), "up", "down"):
            rows, columns = matrix_shape(config, role)
            yield PlannedTensor(names.name(role, layer), (rows, columns))
            if row.has_biases:
                yield PlannedTensor(names.name(role, layer, "bias"), (rows,))
        yield from _norm(names, "attention_norm", layer)
        yield from _norm(names, "output_norm", layer)
    if config.is_ranker:
        for role in (["head_dense"] if config.has_head_dense else []) + ["head_output"]:
            rows = hidden if role == "head_dense" else config.num_labels
            yield PlannedTensor(names.name(role), (rows, hidden), other_shapes=((hidden,),) if rows == 1 else ())
            yield PlannedTensor(names.name(role, suffix="bias"), (rows,))


def matrix_shape(config: EncoderConfig, role: str) -> tuple[int, int]:
    """[rows, columns] of a layer's matrix, one a row an output."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    shapes = {"qkv": (3 * hidden, hidden), "gate": (intermediate, hidden), "up": (intermediate, hidden)}
    return shapes.get(role, (hidden, intermediate) if role == "down" else (hidden, hidden))


def check_encoder_tensors(config: EncoderConfig, source: ModelSource) -> None:
    """Whether the tensors in a model's files are those of its configuration.

    Raises:
        TensorPlanError: as check_encoder_table.
        GGUFError, SafetensorsError: a file is broken.
    """
    with open_weights(source) as file:
        names = EncoderNames.detect(config, file.tensors, is_gguf=source.format == "gguf")
        check_encoder_table(names, file.tensors)


def check_encoder_table(names: EncoderNames, tensors: Mapping[str, StoredTensor]) -> None:
    """Whether a table of tensors is that of a configuration.

    Raises:
        TensorPlanError: a tensor is missing, superfluous, misshapen or of a type that Hob cannot read.
    """
    surplus = set(tensors)
    for planned in encoder_plan(names):
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
        if type_name(tensor) not in READABLE_NAMES:
            raise TensorPlanError(
                f'the tensor "{planned.name}" has the type {type_name(tensor)}; these can be read: '
                f"{', '.join(READABLE_NAMES)}"
            )
        surplus.discard(planned.name)
    unknown = [name for name in tensors if name in surplus and not names.is_ignored(name)]
    if unknown:
        raise TensorPlanError(
            f"{len(unknown)} tensors play no part in the architecture: {named_tensors(unknown)}; running without them "
            "would give wrong answers"
        )


def _norm(names: EncoderNames, role: str, layer: int | None) -> Iterator[PlannedTensor]:
    for suffix in ("weight", "bias"):
        yield PlannedTensor(names.name(role, layer, suffix), (names.config.hidden_size,))
