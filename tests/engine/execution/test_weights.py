"""Checkpoints that are not what their configuration says, in both formats; and those that are, under other names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import ModelConfig
from engine.execution.errors import WeightsError
from engine.execution.model_runner import ModelRunner
from engine.execution.weights import half_split_order
from engine.messages import Load
from engine.models.tensor_names import TensorNames
from modelfiles.source import ModelSource
from tests.engine.execution.conftest import save_tiny
from tests.engine.execution.driver import load_runner

Tensors = dict[str, torch.Tensor]
PROMPT = [5, 9, 33, 2, 71, 14, 14, 60]


def edited(source: Path, target: Path, edit: Callable[[Tensors], object]) -> Path:
    """A copy of a model with other tensors."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
    return target


def test_a_missing_tensor_is_named(tiny_dir: Path, tmp_path: Path) -> None:
    folder = edited(tiny_dir, tmp_path / "m", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(WeightsError, match=r'"model.layers.1.mlp.up_proj.weight" of shape \[48, 32\] is missing'):
        load_runner(folder)


def test_a_file_without_any_known_name_says_what_it_looked_for(tiny_dir: Path, tmp_path: Path) -> None:
    def rename(tensors: Tensors) -> None:
        renamed = {f"bert.{name}": tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    with pytest.raises(WeightsError, match=r'"model\.embed_tokens\.weight" of shape'):
        load_runner(edited(tiny_dir, tmp_path / "m", rename))


def test_superfluous_tensors_are_named_and_counted(tiny_dir: Path, tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors.update({f"model.layers.0.extra{n}.weight": torch.zeros(1) for n in range(8)})
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # old files have it

    with pytest.raises(WeightsError, match=r"8 tensors play no part .*extra0.* and 3 more; .*wrong answers") as error:
        load_runner(edited(tiny_dir, tmp_path / "m", add))
    assert "inv_freq" not in str(error.value)


def test_a_bias_that_the_configuration_denies_is_not_dropped(tiny_dir: Path, tmp_path: Path) -> None:
    folder = edited(
        tiny_dir, tmp_path / "m", lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})
    )
    with pytest.raises(WeightsError, match=r"1 tensors play no part .*q_proj.bias"):
        load_runner(folder)


@pytest.mark.parametrize("shape", [(32, 31), (31, 32), (33, 32), (32,)], ids=str)
def test_a_wrong_shape_is_shown_beside_the_right_one(shape: tuple[int, ...], tiny_dir: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    folder = edited(tiny_dir, tmp_path / "m", lambda tensors: tensors.update({name: torch.zeros(shape)}))
    with pytest.raises(WeightsError) as error:
        load_runner(folder)
    assert f"has the shape {list(shape)}; the configuration asks for [32, 32]" in str(error.value)


def test_an_unreadable_type_is_a_sentence(tiny_dir: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    folder = edited(tiny_dir, tmp_path / "m", lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    with pytest.raises(WeightsError, match=f'"{name}" has the type I8; these can be read: F32'):
        load_runner(folder)


def test_a_padded_vocabulary_is_cut(tiny_dir: Path, tmp_path: Path) -> None:
    def pad(tensors: Tensors) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], torch.full((31, 32), 9.0)])

    expected = load_runner(tiny_dir)
    padded = load_runner(edited(tiny_dir, tmp_path / "m", pad))
    logits = padded.decoder.logits(padded.hidden_states([PROMPT]))
    assert logits.shape == (len(PROMPT), 97)
    torch.testing.assert_close(logits, expected.decoder.logits(expected.hidden_states([PROMPT])))


def test_a_tied_head_may_be_saved_twice(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tied", tie_word_embeddings=True)
    single = load_runner(tmp_path / "tied")
    twice = load_runner(
        edited(
            tmp_path / "tied",
            tmp_path / "m",
            lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
        )
    )
    assert single.decoder.weights.head is single.decoder.weights.embedding
    assert twice.ready.weights_bytes == single.ready.weights_bytes == single.config.num_parameters * 4


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_model_inside_a_multimodal_checkpoint_is_found(prefix: str, tiny_dir: Path, tmp_path: Path) -> None:
    def rename(tensors: Tensors) -> None:
        outer = prefix.removesuffix("model.") if prefix.startswith("language") else ""
        renamed = {
            prefix + name.removeprefix("model.") if name.startswith("model.") else outer + name: tensor
            for name, tensor in tensors.items()
        }
        tensors.clear()
        tensors.update(renamed)
        tensors["vision_tower.patch.weight"] = torch.zeros(3)

    expected, found = load_runner(tiny_dir), load_runner(edited(tiny_dir, tmp_path / "m", rename))
    assert torch.equal(found.hidden_states([PROMPT]), expected.hidden_states([PROMPT]))


def test_shards_and_half_types_give_the_same_model(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "whole").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")  # type: ignore[operator]
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    model.save_pretrained(tmp_path / "one")  # type: ignore[operator]
    shards, one = load_runner(tmp_path / "shards"), load_runner(tmp_path / "one")
    assert torch.equal(shards.hidden_states([PROMPT]), one.hidden_states([PROMPT]))
    assert shards.config.quantization == "BF16"


def test_progress_ends_at_the_total(tiny_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    files = {name: str(path) for name, path in ModelSource.from_path(tiny_dir).files.items()}
    runner = ModelRunner.load(
        Load(files=files, dtype="float32", device="cpu", num_blocks=4), lambda done, total: seen.append((done, total))
    )
    assert seen == sorted(seen)
    assert seen[-1] == (runner.config.num_parameters * 4,) * 2
    assert runner.decoder.weights.num_bytes == runner.ready.weights_bytes


@pytest.mark.parametrize("is_missing", [True, False])
def test_no_tensor_is_read_of_a_file_that_lies(is_missing: bool, tiny_dir: Path, tmp_path: Path) -> None:
    """Not even those before the last one, which is wrong: nothing is ever reported as read."""

    def spoil(tensors: Tensors) -> None:
        if is_missing:
            del tensors["model.norm.weight"]
        else:
            tensors["model.layers.1.extra.weight"] = torch.zeros(1)

    folder = edited(tiny_dir, tmp_path / "m", spoil)
    files = {name: str(path) for name, path in ModelSource.from_path(folder).files.items()}
    seen: list[tuple[int, int]] = []
    with pytest.raises(WeightsError):
        ModelRunner.load(Load(files=files, device="cpu", num_blocks=4), lambda *progress: seen.append(progress))
    assert seen == []


# ---- GGUF


def permuted(values: torch.Tensor, role: str, config: dict[str, int]) -> torch.Tensor:
    """Rows of Q and K, weights and biases alike, in the order of neighbours that rotate together."""
    if role not in ("q", "k"):
        return values
    heads = config["num_attention_heads"] if role == "q" else config["num_key_value_heads"]
    return values.reshape(heads, 2, -1, *values.shape[1:]).transpose(1, 2).reshape(values.shape)


def gguf_of(folder: Path, target: Path, *, mixed: bool = False) -> Path:
    """The tiny Llama as llama.cpp's converter would write it: Q and K permuted, and quantised if `mixed`."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    names = TensorNames(is_gguf=False, has_post_norms=False)
    ours = TensorNames(is_gguf=True, has_post_norms=False)
    tensors = load_file(folder / "model.safetensors")
    roles = ["attention_norm", "q", "k", "v", "attention_output", "mlp_norm", "gate", "up", "down"]
    wanted = [(role, None) for role in ("embedding", "final_norm", "head")]
    wanted += [(role, layer) for layer in range(config["num_hidden_layers"]) for role in roles]  # type: ignore[misc]
    biased = ("q", "k", "v", "attention_output") if config["attention_bias"] else ()
    for role, layer in wanted:
        values = permuted(tensors[names.name(role, layer)], role, config)
        type = {"v": gguf.GGMLQuantizationType.Q8_0, "k": gguf.GGMLQuantizationType.Q4_0}.get(role) if mixed else None
        data = values.numpy() if type is None else gguf.quants.quantize(values.numpy(), type)
        writer.add_tensor(ours.name(role, layer), np.ascontiguousarray(data), raw_dtype=type)
        if role in biased:
            bias = permuted(tensors[names.name(role, layer, "bias")], role, config)
            writer.add_tensor(ours.name(role, layer, "bias"), bias.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "biases"])
def test_gguf_rows_of_q_and_k_are_put_back(has_bias: bool, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "m", attention_bias=has_bias)
    if has_bias:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_()
        model.save_pretrained(tmp_path / "m")  # type: ignore[operator]
    expected, runner = load_runner(tmp_path / "m"), load_runner(gguf_of(tmp_path / "m", tmp_path / "m.gguf"))
    assert torch.equal(runner.hidden_states([PROMPT]), expected.hidden_states([PROMPT]))


def test_one_projection_may_mix_types(tiny_dir: Path, tmp_path: Path) -> None:
    exact, runner = load_runner(tiny_dir), load_runner(gguf_of(tiny_dir, tmp_path / "m.gguf", mixed=True))
    layers = [runner.decoder.weights.layers[0].qkv.segments[0].embed(torch.arange(64)) for runner in (runner, exact)]
    errors = (layers[0] - layers[1]).abs()
    assert errors[:32].max() == 0, "Q is float32"
    assert 0 < errors[48:].max() < 0.02 < errors[32:48].max() < 0.2, "V is Q8_0, K is Q4_0"


def test_half_split_order_undoes_the_converters_permutation() -> None:
    order = half_split_order(num_heads=3, head_dim=10, rotary_dim=8)
    rows = torch.arange(30).view(3, 10)
    turned = rows[:, :8].reshape(3, 2, 4).transpose(1, 2).reshape(3, 8)
    permuted = torch.cat([turned, rows[:, 8:]], dim=1).flatten()
    assert torch.equal(permuted[list(order)], torch.arange(30))


def test_num_parameters_count_what_is_loaded(windowed_dir: Path) -> None:
    runner = load_runner(windowed_dir)
    config = ModelConfig.from_source(ModelSource.from_path(windowed_dir))
    assert runner.ready.weights_bytes == config.num_parameters * 4
