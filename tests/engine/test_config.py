"""ModelConfig from config.json and GGUF metadata: every family, both dialects, and the refusal of what is broken."""

from __future__ import annotations

import copy
import json
import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from engine.config import ConfigError, KVGroup, ModelConfig
from engine.rope import Rope
from modelfiles.source import ModelSource

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}


def hf(architecture: str = "LlamaForCausalLM", **changes: Any) -> ModelConfig:
    return ModelConfig.from_hf(LLAMA | {"architectures": [architecture]} | changes)


# ---- config.json


def test_llama() -> None:
    config = hf()
    assert config == ModelConfig(
        architecture="llama",
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=160,
        num_layers=6,
        num_heads=8,
        num_kv_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope=Rope(500000.0, 8),
        windows=(None,) * 6,
        attention_scale=8**-0.5,
        bos_token_id=1,
        eos_token_ids=(2,),
        num_parameters=2 * 64000 + 64 + 6 * (64 * 64 * 2 + 64 * 16 * 2 + 3 * 64 * 160 + 128),
        quantization="BF16",
    )
    assert config.kv_groups == (KVGroup(None, (0, 1, 2, 3, 4, 5)),)
    assert (config.q_size, config.kv_size, config.rotary_dim, config.family) == (64, 16, 8, "llama")


def test_biases_of_llama() -> None:
    plain, biased = hf(), hf(attention_bias=True, mlp_bias=True)
    assert (biased.qkv_bias, biased.output_bias, biased.mlp_bias) == (True, True, True)
    assert biased.num_parameters - plain.num_parameters == 6 * (64 + 16 + 16 + 64 + 160 + 160 + 64)


def test_mistral_has_its_window_everywhere() -> None:
    config = hf("MistralForCausalLM", sliding_window=16, head_dim=16)
    assert config.kv_groups == (KVGroup(16, (0, 1, 2, 3, 4, 5)),)
    assert config.architecture == "mistral"
    assert config.family == "llama"
    assert hf("MistralForCausalLM", sliding_window=None).kv_groups[0].window is None
    # Version 0.1 of the architecture had a window of 4096 unless told otherwise: here, more than the context.
    assert hf("MistralForCausalLM").kv_groups[0].window is None
    assert hf("MistralForCausalLM", max_position_embeddings=32768).kv_groups[0].window == 4096
    assert hf("MistralForCausalLM", sliding_window=2048).kv_groups[0].window is None
    assert hf("MistralForCausalLM", sliding_window=2047).kv_groups[0].window == 2047


def test_llama_ignores_windows_that_it_does_not_have() -> None:
    assert hf(sliding_window=16, layer_types=["sliding_attention"] * 6).kv_groups[0].window is None


def test_qwen2_windows_only_where_switched_on() -> None:
    assert hf("Qwen2ForCausalLM", sliding_window=16).windows == (None,) * 6
    config = hf("Qwen2ForCausalLM", sliding_window=16, use_sliding_window=True, max_window_layers=4)
    assert config.kv_groups == (KVGroup(None, (0, 1, 2, 3)), KVGroup(16, (4, 5)))
    assert config.qkv_bias
    assert not config.output_bias


def test_qwen3_norms_its_heads() -> None:
    config = hf("Qwen3ForCausalLM")
    assert config.qk_norm
    assert not config.qkv_bias
    assert config.head_dim == 128, "the family's default, not hidden_size / num_heads"


def test_gemma() -> None:
    config = hf("GemmaForCausalLM", head_dim=32, hidden_act="gelu", num_key_value_heads=1)
    assert config.activation == "gelu_tanh", "early files say gelu and mean its tanh form"
    assert config.norm_offset == 1.0
    assert config.embedding_scale == 8.0
    assert config.tie_word_embeddings
    assert config.attention_softcap is None


def test_gemma2() -> None:
    config = hf("Gemma2ForCausalLM", sliding_window=16, query_pre_attn_scalar=144, head_dim=32)
    assert config.attention_scale == pytest.approx(1 / 12)
    assert (config.attention_softcap, config.final_softcap) == (50.0, 30.0)
    assert config.post_norms
    assert config.kv_groups == (KVGroup(16, (0, 2, 4)), KVGroup(None, (1, 3, 5)))
    assert hf("Gemma2ForCausalLM", attn_logit_softcapping=None).attention_softcap is None


def test_gemma3_names_almost_nothing() -> None:
    """As the makers' own file does: sizes within text_config, the rest are the family's defaults."""
    config = ModelConfig.from_hf(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "eos_token_id": [1, 106],
            "torch_dtype": "bfloat16",
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "vision_config": {"hidden_size": 1152},
        }
    )
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size) == (8, 4, 256, 262208)
    assert config.rope == Rope(1_000_000.0, 256, "linear", 8.0, 131072)
    assert config.local_rope == Rope(10_000.0, 256)
    full = (5, 11, 17, 23, 29)
    assert config.kv_groups[1] == KVGroup(None, full)
    assert config.kv_groups[0].window == 1024
    assert [layer for layer in range(34) if config.rope_of(layer) is config.rope] == list(full)
    assert config.eos_token_ids == (1, 106)
    assert config.num_parameters == pytest.approx(3.88e9, rel=0.01)


def test_gemma3_in_the_newer_dialect() -> None:
    config = hf(
        "Gemma3ForCausalLM",
        head_dim=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 3,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 2e6, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
        },
        rope_theta=None,
    )
    assert config.rope_of(1) == Rope(2e6, 8, "linear", 4.0, 2048)
    assert config.rope_of(0) == Rope(3e4, 8)


def test_phi3() -> None:
    longrope = {"type": "su", "short_factor": [1.0, 1.1, 1.2], "long_factor": [2.0, 3.0, 4.0]}
    config = hf(
        "Phi3ForCausalLM", rope_scaling=longrope, original_max_position_embeddings=512, partial_rotary_factor=0.75
    )
    assert config.fused_projections
    assert config.rotary_dim == 6
    assert config.rope.scaling == "longrope"
    assert config.rope.factor == 4.0
    assert config.rope.attention_factor == pytest.approx(1.1055, abs=1e-4)
    assert config.rope.inv_freq(512) != config.rope.inv_freq(513)
    assert hf("Phi3ForCausalLM", sliding_window=100).kv_groups == (KVGroup(100, (0, 1, 2, 3, 4, 5)),)


def test_both_dialects_of_rope_mean_the_same() -> None:
    classic = hf(rope_scaling=LLAMA3_ROPE, rope_theta=5e5)
    newer = hf(rope_parameters=LLAMA3_ROPE | {"rope_theta": 5e5}, rope_theta=None, torch_dtype=None, dtype="bfloat16")
    assert classic == newer
    assert classic.rope.scaling == "llama3"


def test_yarn_stretches_the_context() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    config = hf("Qwen2ForCausalLM", rope_scaling=yarn)
    assert config.max_position_embeddings == 8192
    assert config.rope.attention_factor == pytest.approx(1.1386, abs=1e-4)


def test_end_tokens_of_both_files_count() -> None:
    config = ModelConfig.from_hf(LLAMA | {"eos_token_id": [2, 3]}, {"eos_token_id": [3, 7]})
    assert config.eos_token_ids == (2, 3, 7)
    assert hf(eos_token_id=None).eos_token_ids == ()


@pytest.mark.parametrize(
    ("changes", "quantization"),
    [
        ({}, "BF16"),
        ({"torch_dtype": "torch.float16"}, "F16"),
        ({"torch_dtype": None}, "unknown"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ-INT4"),
        ({"quantization_config": {}}, "BF16"),
    ],
)
def test_quantization_of_safetensors(changes: dict[str, Any], quantization: str) -> None:
    assert hf(**changes).quantization == quantization


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "rms_norm_eps",
    ],
)
@pytest.mark.parametrize("value", [None, 0, -1, 2**63, "8", 3.5e308, True, [], {}, float("nan"), float("inf")])
def test_every_number_is_checked(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        hf(**{key: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["EvilForCausalLM"], "auto_map": {"AutoModel": "evil.Evil"}},
            "'EvilForCausalLM' is not one",
        ),
        ({"architectures": []}, "architectures in config.json is missing"),
        ({"architectures": 3, "model_type": "mamba"}, "'mamba' is not one"),
        ({"num_attention_heads": 7}, "64, which 7 attention heads do not divide"),
        ({"num_key_value_heads": 3}, "8 attention heads cannot share 3 key-value heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads in config.json is 0"),
        ({"head_dim": 0}, "head_dim in config.json is 0"),
        ({"head_dim": 7}, "the rotary dimension is 7"),
        ({"partial_rotary_factor": 0.1}, "the rotary dimension is 0"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor in config.json is 1.5"),
        ({"rope_theta": 0.0}, "rope_theta in config.json is 0.0"),
        ({"rope_theta": 10**400}, "rope_theta in config.json is a huge integer"),
        ({"rope_scaling": {"type": "mystery"}}, "'mystery'; Hob knows default"),
        ({"rope_scaling": [1]}, "rope_scaling in config.json must be an object"),
        ({"rope_scaling": {"type": "linear"}}, "factor in rope_scaling in config.json is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor in rope_scaling in config.json is 0"),
        ({"rope_scaling": LLAMA3_ROPE | {"high_freq_factor": 1.0}}, "it must exceed low_freq_factor"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "holds 1 numbers"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [0.0] * 4}}, "short_factor"),
        ({"rope_scaling": {"type": "longrope", "short_factor": "abcd"}}, "must be a list of 4 numbers"),
        ({"hidden_act": "relu6"}, "hidden_act in config.json is 'relu6'"),
        ({"attention_bias": "yes"}, "attention_bias in config.json must be true or false"),
        ({"eos_token_id": 1000}, "eos_token_id in config.json is 1000, outside the vocabulary of 1000"),
        ({"eos_token_id": [2, -1]}, "eos_token_id in config.json is -1"),
        ({"eos_token_id": {"a": 1}}, "must hold token ids"),
        ({"text_config": [1]}, "text_config in config.json must be an object"),
        ({"use_bidirectional_attention": True}, "Hob runs causal decoders only"),
        ({"torch_dtype": 32}, "torch_dtype in config.json must be a string"),
    ],
)
def test_broken_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.").replace("(", r"\(")):
        ModelConfig.from_hf(LLAMA | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 0}, "sliding_window in config.json is 0"),
        ({"layer_types": ["full_attention"] * 5}, "one entry for each of 6 layers"),
        ({"layer_types": ["chunked_attention"] * 6}, "holds 'chunked_attention'"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ({"final_logit_softcapping": -1.0}, "final_logit_softcapping"),
    ],
)
def test_broken_gemma_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        hf("Gemma2ForCausalLM", **changes)


def test_a_configuration_is_checked_however_it_is_made() -> None:
    with pytest.raises(ConfigError, match="num_layers is 0"):
        replace(hf(), num_layers=0)
    with pytest.raises(ConfigError, match="windows are given for 2 layers of 6"):
        replace(hf(), windows=(None, 16))
    with pytest.raises(ConfigError, match="'mamba' is not in Hob's table"):
        replace(hf(), architecture="mamba")


# ---- GGUF


class TensorType(IntEnum):
    F32 = 0
    Q4_K = 12


@dataclass(frozen=True)
class Tensor:
    shape: tuple[int, ...]
    type: TensorType = TensorType.Q4_K


GGUF: dict[str, Any] = {
    "general.architecture": "llama",
    "general.file_type": 15,
    "llama.block_count": 6,
    "llama.context_length": 2048,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 160,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 500000.0,
    "llama.rope.dimension_count": 8,
    "tokenizer.ggml.tokens": ["x"] * 990,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
TENSORS = {"token_embd.weight": Tensor((1000, 64)), "output_norm.weight": Tensor((64,), TensorType.F32)}
HEAD = {"output.weight": Tensor((1000, 64))}


def gguf(architecture: str = "llama", tensors: dict[str, Tensor] | None = None, **changes: Any) -> ModelConfig:
    """A configuration from GGUF; "__" in an argument's name is a dot, and the architecture's prefix goes before."""
    metadata = {key.replace("llama.", f"{architecture}."): value for key, value in GGUF.items()}
    metadata["general.architecture"] = architecture
    for key, value in changes.items():
        metadata[f"{architecture}.{key.replace('__', '.')}"] = value
    return ModelConfig.from_gguf(metadata, TENSORS | (tensors or {}))


def test_gguf_llama() -> None:
    config = gguf(tensors=HEAD)
    assert config == replace(
        hf(), interleaved_rope=True, quantization="Q4_K_M", num_parameters=128064, tie_word_embeddings=False
    )
    assert gguf().tie_word_embeddings
    assert config.vocab_size == 1000, "rows of the embedding, which the tokens need not fill"


def test_gguf_head_counts_may_be_arrays_of_one_value() -> None:
    assert gguf(attention__head_count_kv=[2] * 6).num_kv_heads == 2
    with pytest.raises(ConfigError, match="differs between layers"):
        gguf(attention__head_count_kv=[2, 4, 2, 4, 2, 4])


def test_gguf_ends() -> None:
    metadata = GGUF | {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 2}
    assert ModelConfig.from_gguf(metadata, TENSORS).eos_token_ids == (2, 5)


@pytest.mark.parametrize(
    ("file_type", "name"),
    [(0, "F32"), (1, "F16"), (7, "Q8_0"), (30, "IQ4_XS"), (None, "Q4_K"), (1024 + 15, "Q4_K"), (4, "Q4_K")],
)
def test_gguf_file_type(file_type: int | None, name: str) -> None:
    """Without a file type, or with a guessed or a withdrawn one, the type of most weights counts."""
    assert ModelConfig.from_gguf(GGUF | {"general.file_type": file_type}, TENSORS).quantization == name


def test_gguf_gemma_families() -> None:
    gemma = gguf("gemma", attention__key_length=32, attention__value_length=32)
    assert (gemma.norm_offset, gemma.embedding_scale, gemma.activation) == (0.0, 8.0, "gelu_tanh")
    assert gemma.head_dim == 32
    gemma2 = gguf("gemma2", attn_logit_softcapping=50.0, final_logit_softcapping=30.0, attention__sliding_window=16)
    assert (gemma2.attention_softcap, gemma2.final_softcap, gemma2.post_norms) == (50.0, 30.0, True)
    assert gemma2.kv_groups == (KVGroup(16, (0, 2, 4)), KVGroup(None, (1, 3, 5)))
    gemma3 = gguf("gemma3", attention__sliding_window=16, rope__scaling__type="linear", rope__scaling__factor=8.0)
    assert gemma3.kv_groups == (KVGroup(16, (0, 1, 2, 3, 4)), KVGroup(None, (5,)))
    assert gemma3.rope_of(5).scaling == "linear"
    assert gemma3.rope_of(0) == Rope(10_000.0, 8)
    every_second = gguf("gemma3", attention__sliding_window=16, attention__sliding_window_pattern=[True, False] * 3)
    assert every_second.kv_groups[0].layers == (0, 2, 4)


def test_the_27b_gemmas_scale_attention_by_the_width() -> None:
    """No key says so; the depth does. Gemma 2 27B has query_pre_attn_scalar 144 = 4608 / 32 with heads of 128."""
    sizes = {"embedding_length": 4608, "attention__head_count": 32, "attention__key_length": 128, "block_count": 46}
    sizes |= {"attention__value_length": 128, "attention__head_count_kv": 16, "rope__dimension_count": 128}
    assert gguf("gemma2", **sizes).attention_scale == pytest.approx(1 / 12)
    assert gguf("gemma2", **(sizes | {"block_count": 42})).attention_scale == pytest.approx(128**-0.5)


def test_gguf_other_families() -> None:
    assert gguf("qwen2").qkv_bias
    assert not gguf("qwen2", attention__sliding_window=16).windows[0]
    assert gguf("qwen3").qk_norm
    assert not gguf("qwen3").interleaved_rope
    phi3 = gguf("phi3", tensors={"blk.0.attn_qkv.weight": Tensor((96, 64))}, attention__sliding_window=100)
    assert phi3.fused_projections
    assert gguf("phi3", attention__sliding_window=0).windows[0] is None
    assert phi3.kv_groups == (KVGroup(100, (0, 1, 2, 3, 4, 5)),)


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({}, Rope(500000.0, 8)),
        ({"rope__scaling__type": "none"}, Rope(500000.0, 8)),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 2.0}, Rope(500000.0, 8, "linear", 2.0)),
        ({"rope__scale_linear": 4.0}, Rope(500000.0, 8, "linear", 4.0)),
        (
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 512,
            },
            Rope(500000.0, 8, "yarn", 4.0, 512, 1.138629436111989),
        ),
    ],
)
def test_gguf_rope_scaling(changes: dict[str, Any], rope: Rope) -> None:
    assert gguf(**changes).rope == rope


def test_rope_factors_in_tensors() -> None:
    factors = {"rope_freqs.weight": (1.0, 1.0, 2.0, 8.0)}
    short_long = {
        "rope_factors_short.weight": (1.0, 1.5, 2.0, 2.5),
        "rope_factors_long.weight": (1.0, 2.0, 3.0, 4.0),
    }
    for named in (factors, short_long):
        tensors = TENSORS | {name: Tensor((4,), TensorType.F32) for name in named}
        metadata = GGUF | {"llama.rope.scaling.original_context_length": 512, "llama.rope.scaling.attn_factor": 1.25}
        with pytest.raises(ConfigError, match="the tensors' data is needed"):
            ModelConfig.from_gguf(metadata, tensors)
        data = {name: memoryview(struct.pack("<4f", *values)) for name, values in named.items()}
        config = ModelConfig.from_gguf(metadata, tensors, data.__getitem__)
        assert config.rope.attention_factor == 1.25
        assert config.num_parameters == 64064, "tables are no parameters"
        plain = Rope(500000.0, 8).inv_freq(512)
        last = next(reversed(named.values()))
        expected = tuple(frequency / factor for frequency, factor in zip(plain, last, strict=True))
        assert config.rope.inv_freq(513) == expected


@pytest.mark.parametrize(
    ("tensor", "values"),
    [
        (Tensor((3,), TensorType.F32), (1.0, 1.0, 1.0, 1.0)),
        (Tensor((4,), TensorType.Q4_K), (1.0, 1.0, 1.0, 1.0)),
        (Tensor((4,), TensorType.F32), (1.0, 0.0, 1.0, 1.0)),
        (Tensor((4,), TensorType.F32), (1.0, float("nan"), 1.0, 1.0)),
    ],
)
def test_broken_rope_factors_are_refused(tensor: Tensor, values: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight"):
        ModelConfig.from_gguf(
            GGUF, TENSORS | {"rope_freqs.weight": tensor}, lambda name: memoryview(struct.pack("<4f", *values))
        )


REQUIRED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)


@pytest.mark.parametrize("key", REQUIRED)
@pytest.mark.parametrize(
    "value", [None, 0, -1, 2**31 + 1, 2**64 - 1, "8", True, [], [1, "1"], {}, float("nan"), float("inf"), -0.0]
)
def test_every_gguf_number_is_checked(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"llama.{key}"):
        ModelConfig.from_gguf(GGUF | {f"llama.{key}": value}, TENSORS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": None}, "general.architecture in the GGUF metadata is missing"),
        ({"general.architecture": 5}, "must be a string"),
        ({"general.architecture": "clip"}, "'clip' is not one that Hob runs"),
        ({"llama.attention.head_count": 7}, "which 7 attention heads do not divide"),
        ({"llama.attention.head_count_kv": 3}, "cannot share 3"),
        ({"llama.attention.head_count_kv": 0}, "head_count_kv in the GGUF metadata is 0"),
        ({"llama.rope.dimension_count": 0}, "dimension_count in the GGUF metadata is 0"),
        ({"llama.rope.dimension_count": 10}, "the rotary dimension is 10"),
        ({"llama.rope.freq_base": 0.0}, "freq_base in the GGUF metadata is 0"),
        ({"llama.rope.scaling.type": "ntk"}, "'ntk'; Hob knows"),
        ({"llama.attention.key_length": 16, "llama.attention.value_length": 8}, "keys of 16 and values of 8"),
        ({"tokenizer.ggml.tokens": ["x"] * 1001}, "1001 tokens, but token_embd.weight only 1000"),
        ({"tokenizer.ggml.eos_token_id": 1000}, "eos_token_id in the GGUF metadata is 1000"),
    ],
)
def test_broken_gguf_metadata_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_gguf(GGUF | changes, TENSORS)


# ---- real files


def test_real_configurations(data_dir: Path) -> None:
    expected = {
        "Llama-3.1-8B-Instruct": ("llama", 8030261248, "llama3", (128001, 128008, 128009)),
        "Mistral-7B-Instruct-v0.2": ("mistral", 7241732096, "default", (2,)),
        "Phi-3-mini": ("phi3", 3821079552, "longrope", (32000, 32001, 32007)),
        "gemma-2b-it": ("gemma", 2506172416, "default", (1,)),
    }
    for name, (architecture, num_parameters, scaling, ends) in expected.items():
        folder = data_dir / "vocab" / "hf" / name
        config, generation = (
            json.loads((folder / file).read_text()) for file in ("config.json", "generation_config.json")
        )
        if config.pop("quantization_config", None):  # in one, it is bitsandbytes'
            assert name == "Llama-3.1-8B-Instruct"
        found = ModelConfig.from_hf(config, generation)
        assert (found.architecture, found.num_parameters, found.rope.scaling, found.eos_token_ids) == (
            architecture,
            num_parameters,
            scaling,
            ends,
        )


def test_both_formats_of_a_model_agree(data_dir: Path) -> None:
    """Every model that is there as safetensors and GGUF: the same configuration, but for what the formats do."""
    checked = 0
    for folder in sorted((data_dir / "models").iterdir()):
        if not (folder / "hf").is_dir():
            continue
        config = ModelConfig.from_source(ModelSource.from_path(folder / "hf"))
        with safe_open(folder / "hf" / "model.safetensors", "np") as weights:
            sizes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
        assert config.num_parameters == sum(_product(size) for size in sizes)
        for path in (folder / "gguf").glob("*.gguf"):
            found = ModelConfig.from_source(ModelSource.from_path(path))
            assert found.quantization == path.stem.split("-", path.stem.count("-"))[-1]
            assert found.rms_norm_eps == pytest.approx(config.rms_norm_eps)
            neutral = {
                "rms_norm_eps": 1.0,
                "quantization": "",
                "interleaved_rope": False,
                "norm_offset": 0.0,
                "eos_token_ids": (),
            }
            assert replace(found, **neutral) == replace(config, **neutral)
            checked += 1
    assert checked > 10


def _product(size: list[int]) -> int:
    product = 1
    for length in size:
        product *= length
    return product


def test_from_source_without_config(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    for content, message in ((None, "config.json is missing"), ("{", "config.json is not JSON"), ("[]", "JSON object")):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=message):
            ModelConfig.from_source(ModelSource.from_path(tmp_path))


def test_the_weights_tell_their_dtype_where_the_configuration_does_not(tmp_path: Path) -> None:
    weights = {"a": torch.zeros(4, dtype=torch.float32), "b": torch.zeros(100, dtype=torch.float16)}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"torch_dtype": None}))
    assert ModelConfig.from_source(ModelSource.from_path(tmp_path)).quantization == "F16"


def test_reading_does_not_change_its_input() -> None:
    before = copy.deepcopy(LLAMA)
    ModelConfig.from_hf(LLAMA, {"eos_token_id": [3]})
    assert before == LLAMA
