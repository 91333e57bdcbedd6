"""Tiny random models of every architecture: Transformers' logits, in one chunk, in odd ones, token by token."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.engine.execution.driver import Driver, load_runner

TOLERANCE = 1e-4
SIZES = {
    "vocab_size": 199, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24}


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


LONG = {
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.4, 1.9],
    "long_factor": [1.1, 1.9, 2.7, 4.0, 6.0, 9.0],
    "original_max_position_embeddings": 64,
}
# name: (configuration class, settings, length of the prompt)
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("LlamaConfig", {}, 75),
    "llama-tied-mha-wide": (
        "LlamaConfig", {"tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 20}, 75,
    ),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}, 75),
    "llama-linear": ("LlamaConfig", rope("linear", factor=4.0), 75),
    "llama-dynamic-within": ("LlamaConfig", rope("dynamic", factor=4.0), 75),
    "llama-llama3": (
        "LlamaConfig",
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
        200,
    ),
    "llama-yarn": ("LlamaConfig", rope("yarn", factor=4.0, original_max_position_embeddings=64), 200),
    "mistral-window": ("MistralConfig", {"sliding_window": 16}, 75),
    "mistral-window-not-of-blocks": ("MistralConfig", {"sliding_window": 21}, 130),
    "mistral-no-window": ("MistralConfig", {"sliding_window": None, "head_dim": 8}, 75),
    "qwen2": ("Qwen2Config", {}, 75),
    "qwen2-window-in-upper-layers": (
        "Qwen2Config", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}, 75,
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 16}, 75),
    "gemma": ("GemmaConfig", {"head_dim": 16}, 75),
    "gemma2": (
        "Gemma2Config",
        {**GEMMA, "sliding_window": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        75,
    ),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "sliding_window": 16, "num_hidden_layers": 7}, 75),
    "phi3": ("Phi3Config", {"sliding_window": None}, 75),
    "phi3-window": ("Phi3Config", {"sliding_window": 16}, 75),
    "phi3-longrope-beyond-original": ("Phi3Config", {"sliding_window": None, **rope("longrope", **LONG)}, 200),
    "phi4-partial-rotary": ("Phi3Config", {"sliding_window": None, **rope("default", partial_rotary_factor=0.67)}, 75),
}  # fmt: skip


def make_model(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A model of random weights, saved to `folder`. Norms and biases are random too, so that none can be forgotten."""
    kind, settings, _ = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**(SIZES | settings))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.2)
    model.to(dtype).save_pretrained(folder)
    return model


def reference_logits(model: torch.nn.Module, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].float()


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_in_any_chunks(name: str, tmp_path: Path) -> None:
    model = make_model(name, tmp_path)
    length = CASES[name][2]
    token_ids = torch.randint(3, 199, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = reference_logits(model, token_ids)
    assert expected.std() > 0.1, "a model that says nothing tests nothing"
    runner = load_runner(tmp_path, num_blocks=64)
    torch.testing.assert_close(
        runner.decoder.logits(runner.hidden_states([token_ids])), expected, atol=TOLERANCE, rtol=TOLERANCE
    )
    driver = Driver(runner, seed=7)
    assert runner.kv_cache is not None
    for chunks in ([length], [1, 15, 17, 3], [33, 2], [1]):
        for k, v in runner.kv_cache.layers:  # what is not written must not matter
            k.fill_(torch.nan)
            v.fill_(torch.nan)
        logits = driver.prompt_logits(token_ids, itertools.cycle(chunks))
        torch.testing.assert_close(logits, expected[-1], atol=TOLERANCE, rtol=TOLERANCE)
