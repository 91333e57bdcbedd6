"""EncoderConfig: what must be known of a model that reads and does not write, from config.json or from GGUF metadata.

The counterpart of `engine.config`, with the same promises: frozen, checked, and free of torch. `engine.any_config`
tells which of the two a model's files describe.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from engine.config_fields import (
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCAB_SIZE,
    MAX_WIDTH,
    ConfigError,
    Fields,
)
from engine.config_gguf import LABEL, TensorInfo, gguf_quantization, gguf_vocab_size
from engine.encoder_architectures import (
    ENCODER_BY_GGUF_NAME,
    ENCODER_BY_HF_CLASS,
    ENCODER_BY_NAME,
    EncoderArchitecture,
)
from engine.pooling import RANK, Pooling, pooling_of_files, pooling_of_gguf
from engine.rope import Rope
from modelfiles.gguf import open_shards
from modelfiles.safetensors import SafetensorsModel
from modelfiles.source import ModelSource

EncoderActivation = Literal["gelu", "gelu_tanh", "relu", "silu"]

ACTIVATIONS: Mapping[str, EncoderActivation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swiglu": "silu",
}
ALIASES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "dim"),
    "num_hidden_layers": ("n_layer", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "intermediate_size": ("n_inner", "hidden_dim"),
    "layer_norm_eps": ("layer_norm_epsilon",),
    "hidden_act": ("activation_function", "activation"),
    "rope_theta": ("rotary_emb_base",),
}
"""What Nomic's and DistilBERT's config.json call it."""
FIXED: Mapping[str, object] = {
    "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False, "prenorm": False,
    "causal": False, "parallel_block": False, "use_rms_norm": False, "qkv_proj_bias": False, "mlp_fc1_bias": False,
    "mlp_fc2_bias": False, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
    "moe_every_n_layers": 0,
}  # fmt: skip
"""Keys whose other values mean another computation."""
DEFAULT_POOLING = Pooling("mean")
"""Where no file says, as in sentence-transformers."""
ROPE_THETA = 1000.0
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A transformer that reads a text in both directions."""

    architecture: str
    """Row of engine.encoder_architectures."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_position_embeddings: int
    """Longest text in tokens, those around it included."""
    num_positions: int
    """Rows of the table of positions; 0 where positions are rotations."""
    position_offset: int = 0
    """Row of the first token."""
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-12
    activation: EncoderActivation = "gelu"
    rope: Rope | None = None
    num_relative_buckets: int = 0
    """Rows of the table of attention's biases by distance; 0 where there is none."""
    pooling: Pooling = DEFAULT_POOLING
    num_labels: int = 0
    """1 of a cross-encoder, which gives a score for two texts; 0 of a model that gives vectors."""
    has_head_dense: bool = False
    """Whether the head has a matrix and an activation before the one that gives the score."""
    num_parameters: int = 0
    quantization: str = "unknown"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"a width of {self.hidden_size} cannot be shared by {self.num_heads} attention heads")
        if self.num_labels > 1:
            raise ConfigError(
                f"the model tells {self.num_labels} classes apart; of models with a classifier Hob runs those with one "
                "class, which rerank documents"
            )
        if self.max_position_embeddings < 1:
            raise ConfigError(f"max_position_embeddings leaves {self.max_position_embeddings} tokens for a text")

    @property
    def row(self) -> EncoderArchitecture:
        """The family's row."""
        return ENCODER_BY_NAME[self.architecture]

    @property
    def family(self) -> str:
        """The name under which GGUF files and users know the architecture."""
        return self.row.gguf_name

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def is_ranker(self) -> bool:
        """Whether it gives scores for pairs, and no vectors."""
        return self.num_labels > 0

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """An encoder ends nothing."""
        return ()

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> EncoderConfig:
        """From the contents of config.json; pooling and number of parameters are elsewhere.

        Raises:
            ConfigError: a key is missing, of a wrong type or out of bounds; or Hob does not run the architecture.
        """
        name = encoder_class(config)
        if name is None:
            raise ConfigError("architectures in config.json names no encoder")
        row = ENCODER_BY_HF_CLASS[name]
        f = Fields(_with_known_names(config, row), "config.json")
        _check_fixed(f)
        hidden_size = f.integer("hidden_size", MAX_WIDTH)
        num_heads = f.integer("num_attention_heads", MAX_HEADS)
        positions = f.integer("max_position_embeddings", MAX_POSITIONS)
        # n_positions and rope scaling of Nomic's first files speak of what their rotation can be stretched to.
        offset = f.integer("pad_token_id", MAX_VOCAB_SIZE, minimum=0) + 1 if row.starts_behind_padding else 0
        is_ranker = name in row.hf_rankers
        return cls(
            architecture=row.name,
            vocab_size=f.integer("vocab_size", MAX_VOCAB_SIZE),
            hidden_size=hidden_size,
            intermediate_size=f.integer("intermediate_size", MAX_WIDTH),
            num_layers=f.integer("num_hidden_layers", MAX_LAYERS),
            num_heads=num_heads,
            max_position_embeddings=positions - offset,
            num_positions=0 if row.is_rotary else positions,
            position_offset=offset,
            type_vocab_size=f.integer("type_vocab_size", MAX_VOCAB_SIZE, minimum=0),
            layer_norm_eps=f.number("layer_norm_eps", maximum=1.0),
            activation=_activation(f),
            rope=_rope(f, hidden_size // num_heads) if row.is_rotary else None,
            num_relative_buckets=_num_relative_buckets(f) if row.has_relative_bias else 0,
            num_labels=_num_labels(f) if is_ranker else 0,
            has_head_dense=is_ranker,
            quantization=DTYPES.get(str(f.raw("dtype") or f.raw("torch_dtype")), "unknown"),
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> EncoderConfig:
        """From a GGUF file's metadata and tensor table.

        Raises:
            ConfigError: as from_hf.
        """
        row = ENCODER_BY_GGUF_NAME[Fields(metadata, LABEL).text("general.architecture")]
        f = Fields(metadata, LABEL, f"{row.gguf_name}.")
        if f.boolean("attention.causal", default=False):
            raise ConfigError(f"{f.name('attention.causal')} is true; Hob runs encoders that read in both directions")
        hidden_size = f.integer("embedding_length", MAX_WIDTH)
        num_heads = f.integer("attention.head_count", MAX_HEADS)
        context = f.integer("context_length", MAX_POSITIONS)
        table = tensors.get("position_embd.weight")
        pooling_type = f.optional_integer("pooling_type", 255, minimum=0)
        # Files of cross-encoders often leave the type to the command line; the head is only in theirs.
        is_ranker = pooling_type == RANK or (not pooling_type and "cls.output.weight" in tensors)
        theta = f.number("rope.freq_base", above=1.0, maximum=1e15, default=ROPE_THETA)
        return cls(
            architecture=row.name,
            vocab_size=gguf_vocab_size(f, metadata, tensors),
            hidden_size=hidden_size,
            intermediate_size=f.integer("feed_forward_length", MAX_WIDTH),
            num_layers=f.integer("block_count", MAX_LAYERS),
            num_heads=num_heads,
            max_position_embeddings=context if table is None else min(context, table.shape[0]),
            num_positions=0 if row.is_rotary else context if table is None else table.shape[0],
            type_vocab_size=tensors["token_types.weight"].shape[0] if "token_types.weight" in tensors else 0,
            layer_norm_eps=f.number("attention.layer_norm_epsilon", maximum=1.0, default=1e-12),
            activation="silu" if row.is_gated else "gelu",
            rope=Rope(theta, hidden_size // num_heads) if row.is_rotary else None,
            pooling=pooling_of_gguf(f) or DEFAULT_POOLING,
            num_labels=_num_gguf_labels(tensors) if is_ranker else 0,
            has_head_dense="cls.weight" in tensors,
            num_parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
            quantization=gguf_quantization(metadata, tensors),
        )

    @classmethod
    def from_source(cls, source: ModelSource) -> EncoderConfig:
        """From a model's files.

        Raises:
            ConfigError: as from_hf; or config.json is missing or is not JSON.
            GGUFError, SafetensorsError: the weights' file is broken.
        """
        if source.format == "gguf":
            with open_shards(source.gguf_files) as gguf:
                return cls.from_gguf(gguf.metadata, gguf.tensors)
        found = cls.from_hf(read_json_object(source, "config.json") or {})
        sizes: Counter[str] = Counter()
        with SafetensorsModel.open(source.files) as model:
            num_parameters = sum(math.prod(tensor.shape) for tensor in model.tensors.values())
            for tensor in model.tensors.values():
                sizes[tensor.dtype] += tensor.num_bytes
        quantization = found.quantization
        if quantization == "unknown" and sizes:
            quantization = sizes.most_common(1)[0][0]
        return replace(
            found,
            # Cross-encoders may bring a chain, too, of which nothing but the model counts.
            pooling=DEFAULT_POOLING if found.is_ranker else pooling_of_files(source) or DEFAULT_POOLING,
            max_position_embeddings=min(found.max_position_embeddings, _max_seq_length(source)),
            num_parameters=num_parameters,
            quantization=quantization,
        )


def encoder_class(config: Mapping[str, Any]) -> str | None:
    """The class that config.json names, where it is an encoder's."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return name if isinstance(name, str) and name in ENCODER_BY_HF_CLASS else None


def read_json_object(source: ModelSource, name: str) -> dict[str, Any] | None:
    """A file's JSON object; None where there is no such file.

    Raises:
        ConfigError: it is no JSON object.
    """
    text = source.read_text(name)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must hold an object, not {type(value).__name__}")
    return value


def _with_known_names(config: Mapping[str, Any], row: EncoderArchitecture) -> dict[str, Any]:
    """The row's defaults, under the file's keys, which get BERT's names."""
    named = {key: config[alias] for key, aliases in ALIASES.items() for alias in aliases if alias in config}
    return {**row.hf_defaults, **{key: value for key, value in {**named, **config}.items() if value is not None}}


def _check_fixed(f: Fields) -> None:
    for key, only in FIXED.items():
        value = f.raw(key)
        if value is not None and value != only:
            raise ConfigError(f"{f.name(key)} is {str(value)[:60]}; Hob runs encoders with {only}")


def _activation(f: Fields) -> EncoderActivation:
    name = f.text("hidden_act")
    if name not in ACTIVATIONS:
        raise ConfigError(f"{f.name('hidden_act')} is {name[:60]!r}; Hob knows {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _rope(f: Fields, head_dim: int) -> Rope:
    nested = f.mapping("rope_parameters")
    kind = nested.text("rope_type", default="default")
    if kind != "default":
        raise ConfigError(f"{nested.name('rope_type')} is {kind[:60]!r}; Hob runs encoders with plain rotation")
    fields = nested if nested.has("rope_theta") else f
    return Rope(fields.number("rope_theta", above=1.0, maximum=1e15, default=ROPE_THETA), head_dim)


def _num_relative_buckets(f: Fields) -> int:
    """Half of them are for either direction, and half of those for distances of their own."""
    number = f.integer("relative_attention_num_buckets", MAX_WIDTH, minimum=4)
    if number % 4:
        raise ConfigError(f"{f.name('relative_attention_num_buckets')} is {number}; it must be a multiple of 4")
    return number


def _num_labels(f: Fields) -> int:
    labels = f.raw("id2label")
    if isinstance(labels, Mapping):
        return len(labels)
    return f.integer("num_labels", MAX_VOCAB_SIZE, default=2)


def _num_gguf_labels(tensors: Mapping[str, TensorInfo]) -> int:
    """Where the head is not there, one: then it is missed."""
    return tensors["cls.output.weight"].shape[0] if "cls.output.weight" in tensors else 1


def _max_seq_length(source: ModelSource) -> int:
    """Where sentence-transformers would cut a text."""
    config = read_json_object(source, "sentence_bert_config.json")
    if config is None:
        return MAX_POSITIONS
    return Fields(config, "sentence_bert_config.json").integer("max_seq_length", MAX_POSITIONS, default=MAX_POSITIONS)
