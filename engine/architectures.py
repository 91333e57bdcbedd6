"""The table of architectures: what each family does that its description does not say.

A row holds facts that are fixed for a family. What varies between checkpoints of a family (sizes, windows, biases that
are optional) stands in config.json or in the GGUF metadata and ends up in ModelConfig beside these.
`hf_defaults` are the values that a config.json of the family may leave out (Gemma 3's leave out nearly everything).
Sources: transformers' configuration_*.py for the defaults; llama.cpp src/llama-arch.cpp for the GGUF names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Architecture:
    """One row."""

    name: str
    hf_classes: tuple[str, ...]
    """What `architectures` in config.json names; classes without a head are saved by those who embed."""
    gguf_name: str
    """What `general.architecture` names; also the family that is shown to users."""
    qkv_bias: bool = False
    """Fixed biases; families where `attention_bias` decides leave this False."""
    qk_norm: bool = False
    """RMSNorm over each head of Q and K before the rotation."""
    post_norms: bool = False
    """Norms after attention and after the MLP too, before the residual sum."""
    unit_offset_norm: bool = False
    """Checkpoints hold RMSNorm weights minus one. Files in GGUF never do: their converter adds it."""
    scale_embedding: bool = False
    """Embeddings are multiplied by the square root of the hidden size."""
    fused_projections: bool = False
    """Checkpoints hold qkv_proj and gate_up_proj."""
    full_attention_every: int = 1
    """Layers i with (i + 1) % n == 0 see the whole context, the rest a window; 1: all see it; 0: none does."""
    interleaved_rope_in_gguf: bool = False
    """GGUF files permute Q and K so that a rotation takes neighbours (2j, 2j + 1), not halves (j, j + d/2)."""
    hf_defaults: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


_GEMMA_DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "vocab_size": 256000,
}

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("llama", ("LlamaForCausalLM", "LlamaModel"), "llama", interleaved_rope_in_gguf=True),
    Architecture(
        "mistral",
        ("MistralForCausalLM", "MistralModel"),
        "llama",
        full_attention_every=0,
        interleaved_rope_in_gguf=True,
        hf_defaults={"sliding_window": 4096, "num_key_value_heads": 8},
    ),
    Architecture(
        "qwen2",
        ("Qwen2ForCausalLM", "Qwen2Model"),
        "qwen2",
        qkv_bias=True,
        hf_defaults={"sliding_window": 4096, "max_window_layers": 28},
    ),
    Architecture(
        "qwen3",
        ("Qwen3ForCausalLM", "Qwen3Model"),
        "qwen3",
        qk_norm=True,
        hf_defaults={"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
    ),
    Architecture(
        "gemma",
        ("GemmaForCausalLM", "GemmaModel"),
        "gemma",
        unit_offset_norm=True,
        scale_embedding=True,
        hf_defaults=_GEMMA_DEFAULTS,
    ),
    Architecture(
        "gemma2",
        ("Gemma2ForCausalLM", "Gemma2Model"),
        "gemma2",
        post_norms=True,
        unit_offset_norm=True,
        scale_embedding=True,
        full_attention_every=2,
        hf_defaults=_GEMMA_DEFAULTS
        | {
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    Architecture(
        "gemma3",
        ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "Gemma3TextModel"),
        "gemma3",
        qk_norm=True,
        post_norms=True,
        unit_offset_norm=True,
        scale_embedding=True,
        full_attention_every=6,
        hf_defaults=_GEMMA_DEFAULTS
        | {
            "vocab_size": 262208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
    ),
    Architecture("phi3", ("Phi3ForCausalLM", "Phi3Model"), "phi3", fused_projections=True, full_attention_every=0),
)

BY_NAME: Mapping[str, Architecture] = MappingProxyType({row.name: row for row in ARCHITECTURES})
BY_HF_CLASS: Mapping[str, Architecture] = MappingProxyType(
    {hf_class: row for row in ARCHITECTURES for hf_class in row.hf_classes}
)
# "llama" is Llama and Mistral: converted Mistral files say "llama" and carry no window. The first row wins.
BY_GGUF_NAME: Mapping[str, Architecture] = MappingProxyType({row.gguf_name: row for row in reversed(ARCHITECTURES)})
