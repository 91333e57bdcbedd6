"""Tiny random models of every architecture, written without transformers, which a GPU machine may lack.

Widths are odd on purpose: heads that are no power of two, a window that no block divides.
Norms and biases are random too, so that none can be forgotten. The tokenizer is one of bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from engine.config import ModelConfig
from engine.models.tensor_names import TensorNames
from engine.models.tensor_plan import tensor_plan
from tests.daemon.tiny_model import write_tiny_model

VOCAB_SIZE = 259
"""That of the tokenizer; no tile divides it."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "bos_token_id": 256, "eos_token_id": 258, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 24, "tie_word_embeddings": True}
SOFTCAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
PHI3 = {"hidden_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "head_dim": 32},
    "llama-tied-mha": {"model_type": "llama", "num_key_value_heads": 4, "tie_word_embeddings": True},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral-window": {"model_type": "mistral", "head_dim": 32, "sliding_window": 21},
    "qwen2-bias": {"model_type": "qwen2", "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 32},
    "qwen3-qk-norm": {"model_type": "qwen3", "head_dim": 64},
    "gemma": {"model_type": "gemma", "head_dim": 32, "tie_word_embeddings": True},
    "gemma2-softcaps": {"model_type": "gemma2", "sliding_window": 16, **GEMMA, **SOFTCAPS},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 16, "num_hidden_layers": 7, **GEMMA},
    "phi3-fused": {"model_type": "phi3", "sliding_window": 19, **PHI3},
    "phi4-partial-rotary": {"model_type": "phi3", "sliding_window": None, "head_dim": 64, **PARTIAL},
}


def write_tiny(folder: Path, name: str, *, broken_token: int | None = None, **sizes: int) -> None:
    """Writes the files of a model into a new folder.

    Args:
        broken_token: its embedding becomes NaN, as in a damaged file; not for tied embeddings.
        sizes: in place of those of SIZES and of the architecture.
    """
    settings = SIZES | ARCHITECTURES[name] | sizes
    weights = random_weights(ModelConfig.from_hf(settings))
    if broken_token is not None:
        weights["model.embed_tokens.weight"][broken_token] = torch.nan
    write_tiny_model(folder)  # its tokenizer stays
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(weights, folder / "model.safetensors")


def random_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Large enough for texts that wander."""
    generator = torch.Generator().manual_seed(0)
    names = TensorNames(is_gguf=False, has_post_norms=config.post_norms)
    # What tells the plan whether projections are fused.
    fused = "qkv" if config.fused_projections else "gate"
    present: dict[str, Any] = {names.name(fused, layer): None for layer in range(config.num_layers)}
    weights = {}
    for planned in tensor_plan(config, names, present):
        noise = 0.2 * torch.randn(planned.shape, generator=generator)
        is_norm = "norm" in planned.name
        weights[planned.name] = noise + (1.0 - config.norm_offset if is_norm else 0.0)
    return weights
