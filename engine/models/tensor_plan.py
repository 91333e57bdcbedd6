"""What a checkpoint must hold for a ModelConfig: each tensor's name and shape; and whether a model's files hold it.

Compared are the tables of tensors that the files carry; no tensor is read and torch is not imported. So `create` asks
`check_tensors` before a model is stored, and `execution.weights` asks the same before its first read. No tensor may be
left over: an unknown one usually means a bias or a norm that would silently be missing from the computation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.config import ModelConfig
from engine.models.tensor_names import TensorNames
from engine.quantization.scheme import PACKINGS, StoredPart, WeightScheme, stored_parts
from modelfiles.gguf import BLOCK_LAYOUT, GGMLType, GGUFModel, GGUFTensor, open_shards
from modelfiles.quantized_weights import COMPANIONS, PACKED
from modelfiles.safetensors import SafeTensor, SafetensorsModel
from modelfiles.source import ModelSource

StoredTensor = GGUFTensor | SafeTensor
"""A tensor as its file's table describes it."""

# No weights are of these: Q8_1 is what ggml turns activations into.
UNREADABLE_TYPES = (GGMLType.F64, GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64, GGMLType.Q8_1)
READABLE_TYPES = tuple(type for type in BLOCK_LAYOUT if type not in UNREADABLE_TYPES)
"""Those that quantization.gguf_blocks expands; safetensors' F32, F16 and BF16 bear the same names."""

READABLE_NAMES = tuple(type.name for type in READABLE_TYPES)

FLOAT_NAMES = ("F32", "F16", "BF16")
"""Types of weights that are not quantised."""
CODE_NAMES = ("I8", "F8_E4M3")
"""Types of those that are, one an element."""
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
    other_shapes: tuple[tuple[int, ...], ...] = ()
    """Those that mean the same."""
    types: tuple[str, ...] = READABLE_NAMES
    """What a file may call its type."""
    is_optional: bool = False

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of `shape` can be used."""
        if self.more_rows:
            return shape[1:] == self.shape[1:] and shape[:1] >= self.shape[:1]
        return shape == self.shape or shape in self.other_shapes


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
    _check_described(config, tensors)
    surplus = set(tensors)
    for planned in tensor_plan(config, names, tensors):
        tensor = tensors.get(planned.name)
        if tensor is None:
            if planned.is_optional:
                continue
            raise TensorPlanError(
                f'the tensor "{planned.name}" of shape {list(planned.shape)} is missing; the file is incomplete or not '
                "of this architecture"
            )
        if not planned.fits(tuple(tensor.shape)):
            raise TensorPlanError(
                f'the tensor "{planned.name}" has the shape {list(tensor.shape)}; the configuration asks for '
                f"{list(planned.shape)}"
            )
        if type_name(tensor) not in planned.types:
            raise TensorPlanError(
                f'the tensor "{planned.name}" has the type {type_name(tensor)}; these can be read: '
                f"{', '.join(planned.types)}"
            )
        surplus.discard(planned.name)
    if config.tie_word_embeddings:  # some checkpoints save a tied head a second time
        surplus.discard(names.name("head"))
    unknown = [name for name in tensors if name in surplus and not names.is_ignored(name)]
    if unknown:
        raise TensorPlanError(
            f"{len(unknown)} tensors play no part in the architecture: {named_tensors(unknown)}; running without them "
            "would give wrong answers"
        )


def tensor_plan(
    config: ModelConfig, names: TensorNames, present: Mapping[str, StoredTensor]
) -> Iterator[PlannedTensor]:
    """All tensors of a model.

    Args:
        present: the tensors that are there; they tell whether projections are fused, and which are quantised.

    Raises:
        TensorPlanError: a matrix cannot be quantised as the configuration says.
    """
    for role in ("embedding",) if config.tie_word_embeddings else ("embedding", "head"):
        yield from _matrix_plan(config, names, present, role, None)
    for layer in range(config.num_layers):
        yield from _layer_plan(config, names, present, layer)
    yield PlannedTensor(names.name("final_norm"), (config.hidden_size,))


def qkv_roles(names: TensorNames, present: Mapping[str, StoredTensor], layer: int) -> tuple[str, ...]:
    """Roles of the matrices that hold a layer's Q, K and V, in this order."""
    return ("qkv",) if names.has_matrix("qkv", layer, present) else ("q", "k", "v")


def gate_up_roles(names: TensorNames, present: Mapping[str, StoredTensor], layer: int) -> tuple[str, ...]:
    """Roles of the matrices that hold a layer's gate and up; GGUF calls both fused what it calls up alone."""
    return ("gate", "up") if names.has_matrix("gate", layer, present) else ("gate_up",)


def matrix_shape(config: ModelConfig, role: str) -> tuple[int, int]:
    """[rows, columns] of a matrix, one a row an output."""
    hidden, q, kv, intermediate = config.hidden_size, config.q_size, config.kv_size, config.intermediate_size
    return {
        "embedding": (config.vocab_size, hidden),
        "head": (config.vocab_size, hidden),
        "q": (q, hidden),
        "k": (kv, hidden),
        "v": (kv, hidden),
        "qkv": (q + 2 * kv, hidden),
        "attention_output": (hidden, q),
        "gate": (intermediate, hidden),
        "up": (intermediate, hidden),
        "gate_up": (2 * intermediate, hidden),
        "down": (hidden, intermediate),
    }[role]


def stored_scheme(
    config: ModelConfig, names: TensorNames, present: Mapping[str, StoredTensor], role: str, layer: int | None
) -> WeightScheme | None:
    """How a matrix is quantised; None for one that is not. Where the configuration leaves it open, the file tells: a
    matrix that is there in floating point is read as it is.

    Raises:
        TensorPlanError: it is quantised and the configuration says that it is not.
    """
    if config.stored_quantization is None:
        return None
    module = names.module(role, layer)
    scheme = config.stored_quantization.scheme_of(module)
    plain = present.get(f"{module}.weight")
    is_float = plain is not None and type_name(plain) in FLOAT_NAMES
    packed = next((f"{module}.{suffix}" for suffix in PACKED if f"{module}.{suffix}" in present), None)
    # A head that is missing is missed as a plain one; the tools seldom quantise it.
    is_left = is_float or role == "embedding" or (role == "head" and plain is None)
    if packed is None and is_left:
        return None
    if scheme is None and (packed is not None or (plain is not None and type_name(plain) in CODE_NAMES)):
        raise TensorPlanError(
            f'the tensor "{packed or f"{module}.weight"}" is quantised, but quantization_config leaves {module} out'
        )
    return scheme


def scheme_parts(
    scheme: WeightScheme, config: ModelConfig, names: TensorNames, role: str, layer: int | None
) -> tuple[StoredPart, ...]:
    """The tensors of a quantised matrix.

    Raises:
        TensorPlanError: the scheme cannot hold a matrix of its size.
    """
    rows, columns = matrix_shape(config, role)
    if (misfit := scheme.misfit(rows, columns)) is not None:
        label = PACKINGS[scheme.packing].label
        raise TensorPlanError(f"{names.module(role, layer)} {misfit}; so it cannot be stored as {label}")
    return stored_parts(scheme, rows, columns)


def present_suffix(part: StoredPart, module: str, present: Mapping[str, StoredTensor]) -> str:
    """Under which of its names a tensor is there; the first where it is not."""
    return next((suffix for suffix in part.suffixes if f"{module}.{suffix}" in present), part.suffixes[0])


def type_name(tensor: StoredTensor) -> str:
    """What a file calls the type of a tensor's elements; where Hob reads it, a name of GGMLType."""
    return tensor.dtype if isinstance(tensor, SafeTensor) else tensor.type.name


def _check_described(config: ModelConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """Quantised weights that nothing describes would otherwise be reported as missing ones."""
    if config.stored_quantization is not None:
        return
    companions = {*COMPANIONS, *PACKED}
    name = next((name for name in tensors if name.rpartition(".")[2] in companions), None)
    if name is not None:
        raise TensorPlanError(
            f'the tensor "{name}" belongs to quantised weights, but config.json has no quantization_config that says '
            "how they are stored; get the model's files again, all of them"
        )


def _matrix_plan(
    config: ModelConfig, names: TensorNames, present: Mapping[str, StoredTensor], role: str, layer: int | None
) -> Iterator[PlannedTensor]:
    scheme = stored_scheme(config, names, present, role, layer)
    if scheme is None:
        more_rows = role in ("embedding", "head")
        yield PlannedTensor(names.name(role, layer), matrix_shape(config, role), more_rows=more_rows)
        return
    module = names.module(role, layer)
    for part in scheme_parts(scheme, config, names, role, layer):
        yield PlannedTensor(
            f"{module}.{present_suffix(part, module, present)}",
            part.shapes[0],
            other_shapes=part.shapes[1:],
            types=part.types,
            is_optional=part.is_optional,
        )


def _layer_plan(
    config: ModelConfig, names: TensorNames, present: Mapping[str, StoredTensor], layer: int
) -> Iterator[PlannedTensor]:
    hidden = config.hidden_size
    norms = {"attention_norm": hidden, "mlp_norm": hidden}
    if config.qk_norm:
        norms |= {"q_norm": config.head_dim, "k_norm": config.head_dim}
    if config.post_norms:
        norms |= {"post_attention_norm": hidden, "post_mlp_norm": hidden}
    for role, width in norms.items():
        yield PlannedTensor(names.name(role, layer), (width,))
    matrices = [
        *((role, config.qkv_bias) for role in qkv_roles(names, present, layer)),
        ("attention_output", config.output_bias),
        *((role, config.mlp_bias) for role in gate_up_roles(names, present, layer)),
        ("down", config.mlp_bias),
    ]
    for role, has_bias in matrices:
        yield from _matrix_plan(config, names, present, role, layer)
        if has_bias or config.stored_quantization is not None:
            # Tools gave every quantised matrix a bias, of zeros where the model has none; the load looks at its values.
            bias = matrix_shape(config, role)[:1]
            yield PlannedTensor(names.name(role, layer, "bias"), bias, is_optional=not has_bias)


def named_tensors(names: Sequence[str]) -> str:
    """Tensors for a sentence: the first of many."""
    shown = ", ".join(f'"{name}"' for name in names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"
