"""Which tensor of a checkpoint plays which role, for Hugging Face's names and for GGUF's.

A role is ours ("layer.q"); a row gives its name in both worlds, `{i}` being the layer. The same HF name can mean two
things: in a block with norms after attention and MLP (Gemma 2 and 3) `post_attention_layernorm` is that norm,
elsewhere it is the one before the MLP. `tensor_plan` and `execution.weights` look names up here and know no
architecture.

Source: transformers models/*/modeling_*.py; llama.cpp gguf-py/gguf/constants.py and tensor_mapping.py.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from modelfiles.quantized_weights import ACTIVATION_SCALES, PACKED

GLOBAL_ROLES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "embedding": ("model.embed_tokens", "token_embd"),
        "final_norm": ("model.norm", "output_norm"),
        "head": ("lm_head", "output"),
    }
)

LAYER_ROLES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "attention_norm": ("input_layernorm", "attn_norm"),
        "q": ("self_attn.q_proj", "attn_q"),
        "k": ("self_attn.k_proj", "attn_k"),
        "v": ("self_attn.v_proj", "attn_v"),
        "qkv": ("self_attn.qkv_proj", "attn_qkv"),
        "q_norm": ("self_attn.q_norm", "attn_q_norm"),
        "k_norm": ("self_attn.k_norm", "attn_k_norm"),
        "attention_output": ("self_attn.o_proj", "attn_output"),
        "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
        "gate": ("mlp.gate_proj", "ffn_gate"),
        "up": ("mlp.up_proj", "ffn_up"),
        "gate_up": ("mlp.gate_up_proj", "ffn_up"),
        "down": ("mlp.down_proj", "ffn_down"),
    }
)

POST_NORM_ROLES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "post_attention_norm": ("post_attention_layernorm", "post_attention_norm"),
        "mlp_norm": ("pre_feedforward_layernorm", "ffn_norm"),
        "post_mlp_norm": ("post_feedforward_layernorm", "post_ffw_norm"),
    }
)

HF_PREFIXES = ("", "language_model.", "model.language_model.")
"""What multimodal checkpoints put before a text model's names; the last stands in for "model." itself."""
BARE = "-model."
"""In the place of a prefix: checkpoints of a model without its head begin their names behind "model."."""

HF_IGNORED = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")
"""Endings of buffers that old checkpoints saved beside their weights."""
HF_IGNORED_PARTS = ("vision_tower.", "multi_modal_projector.", "embed_vision.")
"""Parts of a multimodal checkpoint that text does not need."""
MATRIX_SUFFIXES = ("weight", *PACKED)
"""Last parts of the name of what holds a matrix's elements."""
GGUF_IGNORED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Read by engine.config."""


@dataclass(frozen=True)
class TensorNames:
    """Names in one checkpoint."""

    is_gguf: bool
    has_post_norms: bool
    prefix: str = ""
    """Before Hugging Face's names, one of HF_PREFIXES, or BARE."""

    def name(self, role: str, layer: int | None = None, suffix: str = "weight") -> str:
        """The tensor's name: of a role of GLOBAL_ROLES without `layer`, else of LAYER_ROLES."""
        return f"{self.module(role, layer)}.{suffix}"

    def module(self, role: str, layer: int | None = None) -> str:
        """What the names of a role's tensors begin with."""
        if layer is None:
            base = GLOBAL_ROLES[role][self.is_gguf]
        else:
            roles = {**LAYER_ROLES, **POST_NORM_ROLES} if self.has_post_norms else LAYER_ROLES
            base = ("model.layers.{}.{}", "blk.{}.{}")[self.is_gguf].format(layer, roles[role][self.is_gguf])
        return self._with_prefix(base)

    def has_matrix(self, role: str, layer: int | None, present: Container[str]) -> bool:
        """Whether a matrix is there, quantised or not."""
        return any(self.name(role, layer, suffix) in present for suffix in MATRIX_SUFFIXES)

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor that plays no role may be there all the same."""
        if self.is_gguf:
            return name in GGUF_IGNORED
        is_of_activations = name.rpartition(".")[2] in ACTIVATION_SCALES
        return is_of_activations or name.endswith(HF_IGNORED) or any(part in name for part in HF_IGNORED_PARTS)

    def _with_prefix(self, base: str) -> str:
        if self.prefix == BARE:
            return base.removeprefix("model.")
        if self.prefix == "model.language_model.":
            return self.prefix + base.removeprefix("model.") if base.startswith("model.") else base
        return self.prefix + base

    @classmethod
    def detect(cls, names: Mapping[str, object], *, is_gguf: bool, has_post_norms: bool) -> TensorNames:
        """The naming whose embedding is among `names`; where none is, the plain one, so that errors read well."""
        for prefix in (*HF_PREFIXES, BARE) if not is_gguf else ("",):
            candidate = cls(is_gguf, has_post_norms, prefix)
            if candidate.name("embedding") in names:
                return candidate
        return cls(is_gguf, has_post_norms)
