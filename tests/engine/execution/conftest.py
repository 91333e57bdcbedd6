"""A tiny random Llama of this folder's own, so that these tests run without any data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

TINY = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def save_tiny(folder: Path, kind: str = "Llama", **settings: object) -> torch.nn.Module:
    """Random weights, large enough for logits that differ; returns Transformers' model."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(TINY | settings))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.25)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def windowed_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two KV groups: layers with a window of 12 and layers without."""
    folder = tmp_path_factory.mktemp("windowed")
    save_tiny(folder, "Gemma2", sliding_window=12, head_dim=8, query_pre_attn_scalar=8, pad_token_id=0)
    return folder
