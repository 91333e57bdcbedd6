"""Decoders as embedders: pooled as their files say, or else by the last token; long texts in pieces; without a head."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from engine.any_config import capabilities_of, read_config
from engine.conversion.quantize import quantize_model
from engine.execution.model_runner import ModelRunner
from engine.messages import Quantize
from modelfiles.source import ModelSource
from tests.daemon.tiny_model import write_tiny_model
from tests.engine.embedding.encoders import (
    hidden_states,
    jobs_of,
    load_message,
    random_texts,
    vectors_of,
    write_pooling,
)

TOLERANCE = 1e-4
SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
LENGTHS = (1, 30, 4, 17, 3, 16)


def make_qwen3(folder: Path, class_name: str = "Qwen3Model", **settings: Any) -> Any:
    """As Qwen3-Embedding is saved: without a head, and so without "model." before its names."""
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(transformers.Qwen3Config(**(SIZES | settings))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model


def load(folder: Path, **options: Any) -> ModelRunner:
    return ModelRunner.load(load_message(folder, **options))


@pytest.mark.parametrize("pooling", ["lasttoken", "mean_tokens", "cls_token"])
def test_vectors_are_those_of_transformers(pooling: str, tmp_path: Path) -> None:
    model = make_qwen3(tmp_path)
    write_pooling(tmp_path, pooling)
    assert "embed_tokens.weight" in safetensors.torch.load_file(tmp_path / "model.safetensors")
    runner, texts = load(tmp_path), random_texts(*LENGTHS, vocab_size=320)
    states = [hidden_states(model, text) for text in texts]
    picked = {"lasttoken": [s[-1] for s in states], "mean_tokens": [s.mean(0) for s in states]}
    expected = torch.stack(picked.get(pooling) or [s[0] for s in states])
    torch.testing.assert_close(vectors_of(runner, texts), expected, atol=TOLERANCE, rtol=TOLERANCE)
    alone = torch.cat([vectors_of(runner, [text]) for text in texts])
    torch.testing.assert_close(vectors_of(runner, texts), alone, atol=1e-5, rtol=1e-5)
    in_pieces = vectors_of(runner, texts[1:2], max_tokens=7)
    torch.testing.assert_close(in_pieces, alone[1:2], atol=1e-5, rtol=1e-5)


def test_a_long_text_takes_a_piece_at_a_time(tmp_path: Path) -> None:
    make_qwen3(tmp_path)
    write_pooling(tmp_path, "lasttoken")
    runner = load(tmp_path)
    (text,) = random_texts(30, vocab_size=320)
    pieces = list(runner.embed(jobs_of([text]), 7))
    assert pieces[:-1] == [None] * 4
    assert pieces[-1] is not None


def test_a_model_that_writes_embeds_by_its_last_token(tmp_path: Path) -> None:
    model = make_qwen3(tmp_path, "Qwen3ForCausalLM")
    config = read_config(ModelSource.from_path(tmp_path))
    assert capabilities_of(config) is None
    texts = random_texts(5, 9, vocab_size=320)
    expected = torch.stack([hidden_states(model, text)[-1] for text in texts])
    torch.testing.assert_close(vectors_of(load(tmp_path), texts), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_model_with_a_pooling_is_one_for_embedding(tmp_path: Path) -> None:
    make_qwen3(tmp_path)
    write_pooling(tmp_path, "lasttoken", normalize=True)
    config = read_config(ModelSource.from_path(tmp_path))
    assert capabilities_of(config) == {"embedding"}
    vectors = vectors_of(load(tmp_path), random_texts(5, 9, vocab_size=320))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_a_quantised_one_keeps_its_pooling(tmp_path: Path) -> None:
    make_qwen3(tmp_path / "hub")
    write_tiny_model(tmp_path / "tiny")
    shutil.copy(tmp_path / "tiny" / "tokenizer.json", tmp_path / "hub")
    write_pooling(tmp_path / "hub", "lasttoken")
    source = ModelSource.from_path(tmp_path / "hub")
    files = {name: str(path) for name, path in source.files.items()}
    quantize_model(Quantize(files=files, folder=str(tmp_path), file_type="f16"), lambda done, total: None)
    found = read_config(ModelSource.from_path(tmp_path / "model.gguf"))
    assert capabilities_of(found) == {"embedding"}
    texts = random_texts(5, 9, vocab_size=200)
    of_hub, of_gguf = (load(path) for path in (tmp_path / "hub", tmp_path / "model.gguf"))
    similar = torch.cosine_similarity(vectors_of(of_hub, texts), vectors_of(of_gguf, texts))
    assert similar.min() > 0.999


def test_a_chain_that_is_not_all_computed_is_refused(tmp_path: Path) -> None:
    make_qwen3(tmp_path)
    write_pooling(tmp_path, "lasttoken")
    source = ModelSource.from_path(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    for changed, complaint in (
        ([*modules, dense], "modules.json names 'Dense'; Hob computes Transformer, Pooling and Normalize"),
        (modules[:1], "modules.json names no Pooling"),
        ({}, "modules.json must hold a list"),
        ([modules[0], modules[1] | {"path": "9_Pooling"}], "names 9_Pooling/config.json, which is not among the files"),
    ):
        (tmp_path / "modules.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=complaint):
            read_config(source)
    write_pooling(tmp_path, "max_tokens")
    with pytest.raises(ValueError, match="asks for nothing; Hob pools by mean"):
        read_config(source)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    assert capabilities_of(read_config(source)) == {"embedding"}
