"""What a description of an encoder must not say, and what the hub's files of real families say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.any_config import capabilities_of, is_encoder, read_config
from engine.config_fields import ConfigError
from engine.conversion.errors import ConversionError
from engine.conversion.quantize import quantize_model
from engine.encoder_config import EncoderConfig
from engine.messages import Quantize
from engine.models.encoder_plan import check_encoder_tensors
from engine.models.tensor_plan import TensorPlanError
from modelfiles.source import ModelSource
from tests.engine.embedding.encoders import ENCODERS, RANKERS, make_encoder

BERT: dict[str, Any] = {
    "architectures": ["BertModel"], "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536, "vocab_size": 30522,
}  # fmt: skip
# As nomic-embed-text-v1.5 writes it.
NOMIC: dict[str, Any] = {
    "architectures": ["NomicBertModel"], "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": 3072,
    "n_positions": 8192, "max_trained_positions": 2048, "layer_norm_epsilon": 1e-12, "activation_function": "swiglu",
    "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_scaling_factor": None,
    "type_vocab_size": 2, "vocab_size": 30528, "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False,
    "prenorm": False, "use_rms_norm": False, "parallel_block": False, "causal": False,
}  # fmt: skip


def test_the_first_nomic_writes_its_own_names() -> None:
    config = EncoderConfig.from_hf(NOMIC)
    assert (config.hidden_size, config.num_layers, config.num_heads, config.intermediate_size) == (768, 12, 12, 3072)
    assert (config.max_position_embeddings, config.activation, config.num_positions) == (2048, "silu", 0)
    assert config.rope is not None
    assert (config.rope.theta, config.rope.rotary_dim, config.family) == (1000.0, 64, "nomic-bert")


def test_defaults_are_bert_s() -> None:
    config = EncoderConfig.from_hf(BERT)
    assert (config.max_position_embeddings, config.type_vocab_size, config.activation) == (512, 2, "gelu")
    assert (config.pooling.mode, config.is_ranker, config.eos_token_ids) == ("mean", False, ())


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (BERT | {"position_embedding_type": "relative_key"}, "position_embedding_type in config.json is relative_key"),
        (BERT | {"is_decoder": True}, "is_decoder in config.json is True; Hob runs encoders with False"),
        (BERT | {"hidden_act": "mish"}, "hidden_act in config.json is 'mish'"),
        (BERT | {"hidden_size": 100}, "a width of 100 cannot be shared by 12 attention heads"),
        (BERT | {"num_hidden_layers": 10**9}, "num_hidden_layers in config.json is 1000000000"),
        (BERT | {"layer_norm_eps": "x"}, "layer_norm_eps in config.json must be a number"),
        (NOMIC | {"moe_every_n_layers": 2}, "moe_every_n_layers in config.json is 2"),
        (NOMIC | {"rope_parameters": {"rope_type": "yarn"}}, "is 'yarn'; Hob runs encoders with plain rotation"),
        (
            BERT | {"architectures": ["RobertaModel"], "max_position_embeddings": 2},
            "max_position_embeddings leaves 0 tokens for a text",
        ),
        (
            BERT | {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}},
            "the model tells 3 classes apart",
        ),
        (BERT | {"architectures": ["BertForSequenceClassification"]}, "the model tells 2 classes apart"),
        ({"architectures": ["MPNetModel"], "relative_attention_num_buckets": 30}, "is 30; it must be a multiple of 4"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures in config.json names no encoder"),
    ],
)
def test_what_config_json_must_not_say(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        EncoderConfig.from_hf(config)


def test_a_ranker_s_chain_does_not_count(tmp_path: Path) -> None:
    make_encoder(RANKERS["bert"], tmp_path, num_labels=1)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.cross_encoder.Whatever"}]')
    assert capabilities_of(read_config(ModelSource.from_path(tmp_path))) == {"rerank"}


def test_files_that_are_broken(tmp_path: Path) -> None:
    make_encoder(ENCODERS["bert"], tmp_path)
    source = ModelSource.from_path(tmp_path)
    config = EncoderConfig.from_source(source)
    check_encoder_tensors(config, source)
    (tmp_path / "config.json").write_text(json.dumps(BERT | {"hidden_size": 384}))
    with pytest.raises(
        TensorPlanError, match=r'the tensor "embeddings\.word_embeddings\.weight" has the shape \[97, 32'
    ):
        check_encoder_tensors(EncoderConfig.from_source(source), source)
    for text, complaint in (("[", "config.json is not JSON"), ("[]", "config.json must hold an object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=complaint):
            is_encoder(source)


def test_encoders_are_not_quantised(tmp_path: Path) -> None:
    make_encoder(ENCODERS["bert"], tmp_path)
    files = {name: str(path) for name, path in ModelSource.from_path(tmp_path).files.items()}
    with pytest.raises(ConversionError, match="are small and are not quantised; leave quantize out"):
        quantize_model(Quantize(files=files, folder=str(tmp_path), file_type="q8_0"), lambda done, total: None)
