"""Encoders in GGUF, written here under llama.cpp's names: the vectors and scores of what they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.any_config import capabilities_of, read_config
from engine.encoder_config import EncoderConfig
from engine.quantization.gguf_encoders import quantize
from modelfiles.gguf import GGMLType, NewTensor, write_gguf
from modelfiles.source import ModelSource
from tests.engine.embedding.encoders import (
    ENCODERS,
    RANKERS,
    hidden_states,
    load_encoder,
    make_encoder,
    random_texts,
    vectors_of,
)

# llama.cpp's name -> a part of Transformers'; "#" is the layer.
BERT = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "blk.#.attn_q": "encoder.layer.#.attention.self.query",
    "blk.#.attn_k": "encoder.layer.#.attention.self.key",
    "blk.#.attn_v": "encoder.layer.#.attention.self.value",
    "blk.#.attn_output": "encoder.layer.#.attention.output.dense",
    "blk.#.attn_output_norm": "encoder.layer.#.attention.output.LayerNorm",
    "blk.#.ffn_up": "encoder.layer.#.intermediate.dense",
    "blk.#.ffn_down": "encoder.layer.#.output.dense",
    "blk.#.layer_output_norm": "encoder.layer.#.output.LayerNorm",
}
XLM = {
    **{name: f"roberta.{part}" for name, part in BERT.items()},
    "cls": "classifier.dense",
    "cls.output": "classifier.out_proj",
}
NOMIC = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "blk.#.attn_q": "layers.#.self_attn.q_proj",
    "blk.#.attn_k": "layers.#.self_attn.k_proj",
    "blk.#.attn_v": "layers.#.self_attn.v_proj",
    "blk.#.attn_output": "layers.#.self_attn.o_proj",
    "blk.#.attn_output_norm": "layers.#.post_attention_layernorm",
    "blk.#.ffn_up": "layers.#.mlp.up_proj",
    "blk.#.ffn_gate": "layers.#.mlp.gate_proj",
    "blk.#.ffn_down": "layers.#.mlp.down_proj",
    "blk.#.layer_output_norm": "layers.#.post_mlp_layernorm",
}


def metadata(config: Any, architecture: str = "bert", **values: Any) -> dict[str, Any]:
    keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_epsilon": config.layer_norm_eps,
        "attention.causal": False,
        "pooling_type": 1,
    } | values
    return {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in keys.items()}


def tensors_of(model: torch.nn.Module, names: Mapping[str, str], matrices: GGMLType) -> list[NewTensor]:
    state, found = model.state_dict(), []
    for gguf, part in names.items():
        for layer in range(3) if "#" in gguf else [0]:
            for suffix in ("weight", "bias"):
                name = f"{part.replace('#', str(layer))}.{suffix}"
                if name in state:
                    found.append(new_tensor(f"{gguf.replace('#', str(layer))}.{suffix}", state[name], matrices))
    return found


def new_tensor(name: str, values: torch.Tensor, matrices: GGMLType = GGMLType.F32) -> NewTensor:
    is_matrix = values.ndim > 1 and values.shape[-1] % 32 == 0
    kind = matrices if is_matrix and not name.startswith(("token_types", "position")) else GGMLType.F32
    rows = values.detach().float().reshape(-1, values.shape[-1])
    return NewTensor(name, tuple(values.shape), kind, quantize(kind, rows).numpy().tobytes())


def without_padding_rows(tensors: list[NewTensor], table: torch.Tensor) -> list[NewTensor]:
    """RoBERTa's first rows of positions, which no token has, are cut off by the converter."""
    kept = [tensor for tensor in tensors if tensor.name != "position_embd.weight"]
    return [*kept, new_tensor("position_embd.weight", table[2:])]


def test_bert_gives_the_vectors_of_transformers(tmp_path: Path) -> None:
    model = make_encoder(ENCODERS["bert"], tmp_path / "hub")
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata(model.config, pooling_type=2), tensors_of(model, BERT, GGMLType.F32))
    texts = random_texts(9, 2, 40)
    expected = torch.stack([hidden_states(model, text)[0] for text in texts])
    torch.testing.assert_close(vectors_of(load_encoder(path), texts), expected, atol=1e-4, rtol=1e-4)
    config = read_config(ModelSource.from_path(path))
    assert (config.family, config.max_position_embeddings) == ("bert", 60)
    assert config.num_parameters == sum(p.numel() for name, p in model.named_parameters() if "pooler" not in name)
    assert capabilities_of(config) == {"embedding"}


@pytest.mark.parametrize(("matrices", "least"), [(GGMLType.F16, 0.9999), (GGMLType.Q8_0, 0.999)])
def test_smaller_types_stay_near(matrices: GGMLType, least: float, tmp_path: Path) -> None:
    sizes = ENCODERS["bert"][2] | {"intermediate_size": 64}
    model = make_encoder(("BertConfig", "BertModel", sizes), tmp_path / "hub")
    path, texts = tmp_path / "model.gguf", random_texts(9, 2, 40)
    write_gguf(path, metadata(model.config), tensors_of(model, BERT, matrices))
    exact, found = (vectors_of(load_encoder(where), texts) for where in (tmp_path / "hub", path))
    assert torch.cosine_similarity(exact, found).min() > least
    assert not torch.equal(exact, found)


def test_roberta_counts_positions_from_the_first_row(tmp_path: Path) -> None:
    model = make_encoder(ENCODERS["xlm-roberta"], tmp_path / "hub")
    path = tmp_path / "model.gguf"
    table = model.embeddings.position_embeddings.weight
    tensors = without_padding_rows(tensors_of(model, BERT, GGMLType.F32), table)
    write_gguf(path, metadata(model.config, context_length=58), tensors)
    texts = random_texts(9, 2, 58)
    torch.testing.assert_close(vectors_of(load_encoder(path), texts), vectors_of(load_encoder(tmp_path / "hub"), texts))


@pytest.mark.parametrize("pooling_type", [4, 0])
def test_a_ranker_gives_the_scores_of_transformers(pooling_type: int, tmp_path: Path) -> None:
    model = make_encoder(RANKERS["xlm-roberta"], tmp_path / "hub", num_labels=1)
    path = tmp_path / "model.gguf"
    tensors = without_padding_rows(
        tensors_of(model, XLM, GGMLType.F32), model.roberta.embeddings.position_embeddings.weight
    )
    write_gguf(path, metadata(model.config, context_length=58, pooling_type=pooling_type), tensors)
    runner, texts = load_encoder(path), random_texts(9, 12, 30)
    assert runner.gives_scores
    assert capabilities_of(runner.config) == {"rerank"}
    with torch.inference_mode():
        expected = [torch.sigmoid(model(torch.tensor([text])).logits[0]) for text in texts]
    found = vectors_of(runner, texts, starts=[4, 5, 6])
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_fused", [True, False])
def test_nomic_gives_the_vectors_of_transformers(is_fused: bool, tmp_path: Path) -> None:
    model = make_encoder(ENCODERS["nomic"], tmp_path / "hub")
    path, texts = tmp_path / "model.gguf", random_texts(9, 2, 40)
    tensors = tensors_of(model, NOMIC, GGMLType.F32)
    if is_fused:
        state = model.state_dict()
        tensors = [tensor for tensor in tensors if not tensor.name.endswith(("_q.weight", "_k.weight", "_v.weight"))]
        for layer in range(3):
            parts = [state[f"layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkv"]
            tensors.append(new_tensor(f"blk.{layer}.attn_qkv.weight", torch.cat(parts)))
    keys = metadata(model.config, "nomic-bert", **{"rope.freq_base": 1000.0})
    write_gguf(path, keys, tensors)
    expected = torch.stack([hidden_states(model, text).mean(0) for text in texts])
    torch.testing.assert_close(vectors_of(load_encoder(path), texts), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"attention.causal": True}, "bert.attention.causal in the GGUF metadata is true"),
        ({"pooling_type": 9}, r"bert.pooling_type in the GGUF metadata is 9; Hob knows 1 \(mean\)"),
        ({"attention.head_count": 5}, "a width of 32 cannot be shared by 5 attention heads"),
        ({"block_count": 0}, "bert.block_count in the GGUF metadata is 0"),
    ],
)
def test_what_a_description_must_not_say(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    model = make_encoder(ENCODERS["bert"], tmp_path / "hub")
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata(model.config, **changes), tensors_of(model, BERT, GGMLType.F32))
    with pytest.raises(ValueError, match=complaint):
        EncoderConfig.from_source(ModelSource.from_path(path))
