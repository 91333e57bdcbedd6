"""Rope: frequencies and attention factors equal those of transformers, for every scaling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.config import ModelConfig
from engine.rope import Rope

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
}
FACTORS = [1.0 + 0.25 * j for j in range(32)]
LONG_FACTORS = [1.0 + 0.5 * j for j in range(32)]


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 1024, "beta_fast": 16, "beta_slow": 2},
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "mscale": 0.7,
            "mscale_all_dim": 0.9,
        },
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 2048,
        },
        {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 2.0,
            "high_freq_factor": 6.0,
            "original_max_position_embeddings": 8192,
        },
        {"rope_type": "longrope", "factor": 2.0, "short_factor": FACTORS, "long_factor": LONG_FACTORS},
    ],
    ids=["linear", "dynamic", "yarn", "yarn-betas", "yarn-mscale", "llama3", "llama3-wide", "longrope"],
)
@pytest.mark.parametrize("length", [100, 8192, 8193, 20000])
def test_equals_transformers(scaling: dict[str, Any], length: int) -> None:
    kind = scaling["rope_type"]
    oracle_class = Phi3Config if kind == "longrope" else LlamaConfig
    parameters = dict(scaling, rope_theta=SIZES["rope_theta"])
    if kind == "longrope":
        parameters["original_max_position_embeddings"] = 8192
    oracle = oracle_class(**{**SIZES, "rope_parameters": parameters, "original_max_position_embeddings": 8192})
    if kind != "longrope":
        oracle = oracle_class(**{**SIZES, "rope_parameters": parameters})
    expected, attention_factor = ROPE_INIT_FUNCTIONS[kind](oracle, torch.device("cpu"), seq_len=length)
    architecture = "Phi3ForCausalLM" if kind == "longrope" else "LlamaForCausalLM"
    rope = ModelConfig.from_hf(SIZES | {"architectures": [architecture], "rope_scaling": parameters}).rope
    torch.testing.assert_close(torch.tensor(rope.inv_freq(length)), expected, rtol=2e-6, atol=0)
    assert rope.attention_factor == pytest.approx(attention_factor)


def test_default() -> None:
    assert Rope(10_000.0, 4).inv_freq(100) == (1.0, 0.01)


def test_yarn_whose_ramp_has_no_width() -> None:
    """Both borders on one dimension: no division by zero."""
    rope = Rope(10_000.0, 2, "yarn", 4.0, 4, beta_fast=32.0, beta_slow=32.0)
    assert len(rope.inv_freq(16)) == 1


def test_dynamic_of_one_pair_keeps_its_theta() -> None:
    assert Rope(10_000.0, 2, "dynamic", 2.0, 16).inv_freq(64) == (1.0,)
