"""ModelConfig: what a runner, the scheduler and `show` must know of a model, from config.json or from GGUF metadata.

Frozen, checked, and free of torch: a hostile or broken description ends here with a ConfigError that names the key.
Every difference between the families is data in this class, so that one decoder runs them all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from engine.architectures import BY_NAME
from engine.config_fields import ConfigError
from engine.config_gguf import TensorData, TensorInfo, fields_from_gguf
from engine.config_hf import fields_from_hf
from engine.pooling import Pooling, pooling_of_files
from engine.quantization.checkpoint_config import StoredQuantization, read_quantization
from engine.rope import Rope
from modelfiles.gguf import open_shards
from modelfiles.quantized_weights import find_quantization, quantization_level
from modelfiles.safetensors import SafetensorsModel
from modelfiles.source import ModelSource

__all__ = ["Activation", "ConfigError", "KVGroup", "ModelConfig"]

Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True)
class KVGroup:
    """Layers that share block tables, because they keep the same positions."""

    window: int | None
    """A query sees itself and the `window - 1` tokens before it; None sees everything before it."""
    layers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer."""

    architecture: str
    """Row of engine.architectures: "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3"."""
    vocab_size: int
    """Rows of the embedding; the tokenizer may know fewer tokens."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    local_rope: Rope | None = None
    """Rotation of the layers with a window, where it differs (Gemma 3)."""
    windows: tuple[int | None, ...] = ()
    """Attention window of each layer in tokens, the query's own included; empty: none has one."""
    activation: Activation = "silu"
    attention_scale: float = 0.0
    """Factor on Q.K; 0 stands for head_dim ** -0.5."""
    attention_softcap: float | None = None
    """Logits x become cap * tanh(x / cap), before the mask."""
    final_softcap: float | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    """Added to RMSNorm weights as stored: 1 for Gemma's safetensors."""
    embedding_scale: float = 1.0
    """Factor on embeddings; Gemma rounds it to the computing dtype first."""
    fused_projections: bool = False
    """The checkpoint holds Q, K, V in one matrix and gate, up in another."""
    interleaved_rope: bool = False
    """Rotated pairs are (2j, 2j + 1) instead of (j, j + rotary_dim / 2)."""
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    """Ids that the files call an end; Tokenizer.eos_ids adds those that are known by their text."""
    num_parameters: int = 0
    quantization: str = "unknown"
    """As users know it: "F32", "F16", "BF16", "Q4_K_M", "AWQ-INT4", ..."""
    stored_quantization: StoredQuantization | None = None
    """How a safetensors checkpoint keeps its matrices, where they are quantised; a GGUF file's tensors say it each."""
    pooling: Pooling | None = None
    """How a model that is made for embedding does it; None of one that writes."""

    def __post_init__(self) -> None:
        if self.architecture not in BY_NAME:
            raise ConfigError(f"architecture {self.architecture!r} is not in Hob's table: {', '.join(BY_NAME)}")
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads evenly; "
                "the first must be a multiple of the second"
            )
        for rope in (self.rope, self.local_rope):
            if rope is not None and (rope.rotary_dim % 2 or not 2 <= rope.rotary_dim <= self.head_dim):
                raise ConfigError(
                    f"the rotary dimension is {rope.rotary_dim}; it must be even, at least 2 and at most the head's "
                    f"dimension, {self.head_dim}"
                )
        windows = self.windows or (None,) * self.num_layers
        if len(windows) != self.num_layers:
            raise ConfigError(f"attention windows are given for {len(windows)} layers of {self.num_layers}")
        object.__setattr__(self, "windows", windows)
        if self.attention_scale == 0:
            object.__setattr__(self, "attention_scale", self.head_dim**-0.5)
        if self.num_parameters == 0:
            object.__setattr__(self, "num_parameters", self._count_parameters())

    @property
    def family(self) -> str:
        """The name under which GGUF files and users know the architecture: Mistral is "llama" there."""
        return BY_NAME[self.architecture].gguf_name

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def rotary_dim(self) -> int:
        return self.rope.rotary_dim

    @property
    def kv_groups(self) -> tuple[KVGroup, ...]:
        """Layers by window, in the order of each group's first layer.

        A window that spans the whole context counts as none: a group less, and nothing to mask.
        """
        groups: dict[int | None, list[int]] = {}
        for layer, window in enumerate(self.windows):
            is_full = window is None or window >= self.max_position_embeddings
            groups.setdefault(None if is_full else window, []).append(layer)
        return tuple(KVGroup(window, tuple(layers)) for window, layers in groups.items())

    def rope_of(self, layer: int) -> Rope:
        """The rotation of a layer."""
        return self.rope if self.local_rope is None or self.windows[layer] is None else self.local_rope

    def _count_parameters(self) -> int:
        """Weights of the checkpoint, from the sizes; a tied head counts once."""
        hidden, q, kv = self.hidden_size, self.q_size, self.kv_size
        attention = 2 * hidden * q + 2 * hidden * kv
        attention += (q + 2 * kv) * self.qkv_bias + hidden * self.output_bias + 2 * self.head_dim * self.qk_norm
        mlp = 3 * hidden * self.intermediate_size + (2 * self.intermediate_size + hidden) * self.mlp_bias
        norms = hidden * (4 if self.post_norms else 2)
        embeddings = self.vocab_size * hidden * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * (attention + mlp + norms) + hidden + embeddings

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None) -> ModelConfig:
        """From the contents of config.json, and of generation_config.json, which may know more end-of-text ids.

        Raises:
            ConfigError: a key is missing, of a wrong type or out of bounds; or Hob does not run the architecture.
        """
        return cls(**fields_from_hf(config, generation_config or {}))

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        tensor_data: TensorData | None = None,
    ) -> ModelConfig:
        """From a GGUF file's metadata and tensor table.

        Args:
            tensor_data: the bytes of a tensor by name. Needed for files that keep their rope scaling in a tensor
                (Llama 3.1 and later, Phi-3 128k).

        Raises:
            ConfigError: as from_hf.
        """
        return cls(**fields_from_gguf(metadata, tensors, tensor_data))

    @classmethod
    def from_source(cls, source: ModelSource) -> ModelConfig:
        """From a model's files.

        Raises:
            ConfigError: as from_hf; or config.json is missing or is not JSON.
            GGUFError, SafetensorsError: the weights' file is broken.
        """
        if source.format == "safetensors":
            config = _read_json(source, "config.json")
            if config is None:
                raise ConfigError("config.json is missing; safetensors weights cannot be loaded without it")
            found = cls.from_hf(config, _read_json(source, "generation_config.json"))
            if (pooling := pooling_of_files(source)) is not None:
                # Nothing meets the head; many checkpoints are saved without it.
                found = replace(found, pooling=pooling, tie_word_embeddings=True, num_parameters=0)
            # None in config.json: an older tool may have left a file of its own.
            if found.stored_quantization is None and (described := find_quantization(source, config)):
                quantization, label = described
                return replace(
                    found,
                    quantization=quantization_level(quantization),
                    stored_quantization=read_quantization(quantization, label),
                )
            return found if found.quantization != "unknown" else replace(found, quantization=_stored_dtype(source))
        with open_shards(source.gguf_files) as model:
            return cls.from_gguf(model.metadata, model.tensors, model.data)


def _stored_dtype(source: ModelSource) -> str:
    """The dtype of most of the weights, for a config.json that does not say."""
    sizes: Counter[str] = Counter()
    with SafetensorsModel.open(source.files) as model:
        for tensor in model.tensors.values():
            sizes[tensor.dtype] += tensor.num_bytes
    return sizes.most_common(1)[0][0] if sizes else "unknown"


def _read_json(source: ModelSource, name: str) -> dict[str, Any] | None:
    text = source.read_text(name)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must hold a JSON object, not a {type(value).__name__}")
    return value
