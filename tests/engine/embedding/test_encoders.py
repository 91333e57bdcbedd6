"""Tiny random encoders: vectors and scores are those of Transformers with its states pooled by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from engine.encoder_config import EncoderConfig
from engine.execution.errors import ModelTooLarge, WeightsError
from modelfiles.source import ModelSource
from tests.engine.embedding.encoders import (
    ENCODERS,
    RANKERS,
    hidden_states,
    jobs_of,
    load_encoder,
    make_encoder,
    random_texts,
    vectors_of,
)

TOLERANCE = 1e-4
LENGTHS = (7, 1, 20, 7, 33)


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = make_encoder(ENCODERS[name], tmp_path)
    runner, texts = load_encoder(tmp_path), random_texts(*LENGTHS)
    expected = torch.stack([hidden_states(model, text).mean(0) for text in texts])
    assert expected.std() > 0.1, "a model that says nothing tests nothing"
    torch.testing.assert_close(vectors_of(runner, texts), expected, atol=TOLERANCE, rtol=TOLERANCE)
    alone = torch.cat([vectors_of(runner, [text]) for text in texts])
    torch.testing.assert_close(vectors_of(runner, texts), alone, atol=1e-5, rtol=1e-5)


def test_distances_of_all_lengths_are_told_as_transformers_tells_them(tmp_path: Path) -> None:
    model = make_encoder(ENCODERS["mpnet"], tmp_path)
    runner, texts = load_encoder(tmp_path), random_texts(298, 150)
    expected = torch.stack([hidden_states(model, text).mean(0) for text in texts])
    torch.testing.assert_close(vectors_of(runner, texts), expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", RANKERS)
def test_scores_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = make_encoder(RANKERS[name], tmp_path, num_labels=1)
    runner, texts, starts = load_encoder(tmp_path), random_texts(*LENGTHS[2:]), [5, 3, 20]
    assert runner.gives_scores
    expected = []
    for text, start in zip(texts, starts, strict=True):
        types = {"token_type_ids": torch.tensor([[0] * start + [1] * (len(text) - start)])} if name == "bert" else {}
        with torch.inference_mode():
            expected.append(torch.sigmoid(model(torch.tensor([text]), **types).logits[0]))
    scores = vectors_of(runner, texts, starts=starts)
    assert scores.std() > 1e-3
    torch.testing.assert_close(scores, torch.stack(expected), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "lasttoken"])
def test_pooling_is_what_the_files_say(pooling: str, tmp_path: Path) -> None:
    model = make_encoder(ENCODERS["bert"], tmp_path, pooling)
    texts = random_texts(*LENGTHS)
    states = [hidden_states(model, text) for text in texts]
    expected = {
        "mean_tokens": [state.mean(0) for state in states],
        "cls_token": [state[0] for state in states],
        "lasttoken": [state[-1] for state in states],
    }[pooling]
    found = vectors_of(load_encoder(tmp_path), texts)
    torch.testing.assert_close(found, torch.stack(expected), atol=TOLERANCE, rtol=TOLERANCE)


def test_dimensions_are_cut_before_the_length_becomes_1(tmp_path: Path) -> None:
    make_encoder(ENCODERS["bert"], tmp_path)
    runner, texts = load_encoder(tmp_path), random_texts(3, 9)
    raw = vectors_of(runner, texts)
    torch.testing.assert_close(vectors_of(runner, texts, normalize=True), raw / raw.norm(dim=1, keepdim=True))
    cut = raw[:, :5] / raw[:, :5].norm(dim=1, keepdim=True)
    torch.testing.assert_close(vectors_of(runner, texts, normalize=True, dimensions=5), cut)


def test_in_16_bits_a_text_points_where_it_did(tmp_path: Path) -> None:
    make_encoder(ENCODERS["bert"], tmp_path)
    texts = random_texts(*LENGTHS)
    exact = vectors_of(load_encoder(tmp_path), texts, normalize=True)
    for dtype, least in (("float16", 0.99999), ("bfloat16", 0.999)):
        rounded = vectors_of(load_encoder(tmp_path, dtype=dtype), texts, normalize=True)
        assert (exact * rounded).sum(1).min() > least


def test_a_vector_that_is_not_finite_is_told_and_the_others_are_not_touched(tmp_path: Path) -> None:
    model = make_encoder(ENCODERS["bert"], tmp_path)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[50] = torch.inf
    model.save_pretrained(tmp_path)
    runner = load_encoder(tmp_path)
    good, bad = [10, 11, 12], [10, 50, 12, 13]
    (vectors,) = runner.embed(jobs_of([good, bad]), 2048)
    assert vectors is not None
    assert [vector is None for vector in vectors] == [False, True]


def test_old_names_of_norms_are_read(tmp_path: Path) -> None:
    make_encoder(ENCODERS["bert"], tmp_path)
    texts = random_texts(4, 6)
    expected = vectors_of(load_encoder(tmp_path), texts)
    path = tmp_path / "model.safetensors"
    tensors = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in safetensors.torch.load_file(path).items()
    }
    assert any("gamma" in name for name in tensors)
    safetensors.torch.save_file(tensors, path)
    assert torch.equal(vectors_of(load_encoder(tmp_path), texts), expected)


def test_what_a_load_refuses(tmp_path: Path) -> None:
    make_encoder(ENCODERS["bert"], tmp_path)
    with pytest.raises(ModelTooLarge, match=r"the model needs .* MiB but 0\.1 MiB are free"):
        load_encoder(tmp_path, budget_bytes=100_000)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(WeightsError, match=r'tensor "encoder\.layer\.3\.attention\.self\.query\.weight" of shape'):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(WeightsError, match="16 tensors play no part in the architecture"):
        load_encoder(tmp_path)


def test_a_sentence_transformers_limit_counts(tmp_path: Path) -> None:
    make_encoder(ENCODERS["roberta"], tmp_path)
    config = EncoderConfig.from_source(ModelSource.from_path(tmp_path))
    assert (config.max_position_embeddings, config.position_offset, config.family) == (58, 2, "bert")
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 25, "do_lower_case": false}')
    assert EncoderConfig.from_source(ModelSource.from_path(tmp_path)).max_position_embeddings == 25
