"""Adapters that cannot be applied are refused in a sentence, before a tensor is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import ModelConfig
from engine.models.adapter_plan import fused_rows, num_elements, plan_adapter
from engine.models.peft_config import AdapterError
from modelfiles.adapter_files import group_adapters
from modelfiles.source import ModelSource
from tests.engine.lora_files import EVERYTHING, random_updates, write_gguf_adapter, write_peft

HEADS = {"self_attn.q_proj": 8, "self_attn.k_proj": 4}
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(data_dir: Path) -> Path:
    return data_dir / "models" / "stories260K" / "hf"


@pytest.fixture(scope="module")
def config(base: Path) -> ModelConfig:
    return ModelConfig.from_source(ModelSource.from_path(base))


def halves(rows: int, columns: int, rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(rank, columns), torch.ones(rows, rank)


def why(config: ModelConfig, path: Path) -> str:
    with pytest.raises(AdapterError) as refusal:
        plan_adapter(config, ModelSource.from_path(path))
    return str(refusal.value)


def test_all_matrices_of_all_layers(base: Path, config: ModelConfig, tmp_path: Path) -> None:
    updates = random_updates(base, EVERYTHING, rank=4)
    peft = plan_adapter(config, ModelSource.from_path(write_peft(tmp_path / "a", updates, alpha=8)))
    gguf = write_gguf_adapter(tmp_path / "a.gguf", updates, alpha=8, heads=HEADS)
    other = plan_adapter(config, ModelSource.from_path(gguf))
    for plan in (peft, other):
        assert len(plan.updates) == 5 * 7
        assert {(update.rank, update.scale) for update in plan.updates} == {(4, 2.0)}
        assert num_elements(config, plan) == sum(a.numel() + b.numel() for a, b in updates.values())
    assert {(u.layer, u.role) for u in peft.updates} == {(u.layer, u.role) for u in other.updates}
    assert (peft.is_permuted, other.is_permuted) == (False, True)
    assert fused_rows(config, "v") == ("qkv", slice(96, 128))


@pytest.mark.parametrize(
    ("patterns", "alphas"),
    [
        ({"q_proj": 2, "layers.0.self_attn.q_proj": 4}, (2, 2)),
        ({"layers.0.self_attn.q_proj": 4, "q_proj": 2}, (4, 2)),
        ({r"^model\.layers\.1\.self_attn\.q_proj$": 3}, (8, 3)),
        ({r"layers\.(1|2)\..*q_proj": 5, "_proj": 7}, (8, 5)),
        ({"self_attn": 6, "self_attn.q_pro": 6}, (8, 8)),
    ],
)
def test_patterns_of_alpha(config: ModelConfig, tmp_path: Path, patterns: dict[str, int], alphas: Any) -> None:
    """As PEFT takes them: the first whose end is the module's, in whole parts."""
    updates = {f"model.layers.{layer}.self_attn.q_proj": halves(64, 64) for layer in (0, 1)}
    folder = write_peft(tmp_path / "lora", updates, alpha=8, alpha_pattern=patterns)
    plan = plan_adapter(config, ModelSource.from_path(folder))
    assert tuple(update.scale * 2 for update in plan.updates) == alphas


def test_names_with_the_adapters_name_and_of_multimodal_models(config: ModelConfig, tmp_path: Path) -> None:
    for number, (prefix, suffix) in enumerate([("", ".default"), ("base_model.model.language_model.", "")]):
        folder = write_peft(tmp_path / str(number), {Q: halves(64, 64)}, alpha=1)
        rewrite(
            folder,
            lambda name, p=prefix, s=suffix: name.replace("base_model.model.", p).replace(".weight", s + ".weight"),
        )
        assert [u.role for u in plan_adapter(config, ModelSource.from_path(folder)).updates] == ["q"]


def test_updates_of_what_sees_images_are_passed_over(config: ModelConfig, tmp_path: Path) -> None:
    updates = {Q: halves(64, 64), "model.vision_tower.encoder.layers.0.self_attn.q_proj": halves(9, 9)}
    plan = plan_adapter(config, ModelSource.from_path(write_peft(tmp_path / "lora", updates, alpha=1)))
    assert [update.layer for update in plan.updates] == [0]


def test_fused_projections_in_gguf(data_dir: Path, tmp_path: Path) -> None:
    """GGUF calls gate and up in one what it calls up alone."""
    phi3 = ModelConfig.from_source(ModelSource.from_path(data_dir / "models" / "synthetic-phi3" / "hf"))
    for number, (rows, role) in enumerate([(160, "up"), (320, "gate_up")]):
        updates = {"model.layers.1.mlp.up_proj": halves(rows, 64)}
        path = tmp_path / f"{number}.gguf"
        write_gguf_adapter(path, updates, alpha=2, heads={}, **{"general.architecture": "phi3"})
        plan = plan_adapter(phi3, ModelSource.from_path(path))
        assert [(update.layer, update.role) for update in plan.updates] == [(1, role)]
        assert not plan.is_permuted


def rewrite(folder: Path, name_of: Callable[[str], str]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name_of(name): tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "IA3"}, "the adapter is of the type 'IA3'"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, r"whole weights of its own (lm_head)"),
        ({"bias": "all"}, "trains biases"),
        ({"fan_in_fan_out": True}, "the other way round"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "trained on other weights than the base's"),
        ({"r": 3}, "have the rank 2, but adapter_config.json says 3"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "the pattern '(a+)+b' in adapter_config.json cannot be used"),
        ({"alpha_pattern": {".*q_.*": 1}}, "it repeats too much"),
        (
            {"rank_pattern": {f"{n}|x": 2 for n in range(99)}},
            "99 patterns that are regular expressions; 64 are allowed",
        ),
        ({"lora_parameters": {"rank": 8, "scale": 20.0}}, "is MLX's"),
        ({"lora_alpha": None}, "lacks peft_type, r or lora_alpha"),
        ({"r": "many"}, "adapter_config.json cannot be read"),
    ],
)
def test_configurations_that_ask_for_more(
    config: ModelConfig, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    assert reason in why(config, write_peft(tmp_path / "lora", {Q: halves(64, 64)}, alpha=1, **settings))


@pytest.mark.parametrize(
    ("updates", "reason"),
    [
        ({Q: halves(64, 48)}, "has the shape [2, 48]; beside the model's matrix of 64 x 64 it must be [rank, 64]"),
        ({Q: halves(128, 64)}, "has the shape [128, 2]; beside the model's matrix of 64 x 64 it must be [64, rank]"),
        ({"model.layers.5.self_attn.q_proj": halves(64, 64)}, "does not have (it is llama with 5 layers)"),
        ({"model.layers.0.self_attn.rotary": halves(64, 64)}, "which the model does not have"),
        ({"vision.layers.0.self_attn.q_proj": halves(64, 64)}, "which the model does not have"),
        ({"model.vision_tower.layers.0.self_attn.q_proj": halves(64, 64)}, "so it changes nothing"),
        ({"lm_head": halves(512, 64)}, '"lm_head"; Hob applies updates to the matrices of layers only'),
    ],
)
def test_matrices_of_another_model(config: ModelConfig, tmp_path: Path, updates: Any, reason: str) -> None:
    assert reason in why(config, write_peft(tmp_path / "lora", updates, alpha=1))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("lora_B.weight", "lora_magnitude_vector.weight", "DoRA"),
        ("lora_B.weight", "lora_B.bias", "they are biases"),
        ("self_attn.q_proj.lora_B.weight", "embed_tokens.weight", "they change the embedding"),
        ("q_proj.lora_B.weight", "q_proj.weight", "they are whole weights"),
        ("q_proj.lora_B.weight", "k_proj.lora_B.weight", "is missing; the file is incomplete"),
        ("lora_B.weight", "lora_A.other.weight", "are for the same matrix"),
    ],
)
def test_tensors_that_are_no_updates(config: ModelConfig, tmp_path: Path, old: str, new: str, reason: str) -> None:
    folder = write_peft(tmp_path / "lora", {Q: halves(64, 64)}, alpha=1)
    rewrite(folder, lambda name: name.replace(old, new))
    assert reason in why(config, folder)


def test_whole_numbers_are_no_weights(config: ModelConfig, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "lora", {Q: halves(64, 64)}, alpha=1, dtype=torch.int32)
    assert "has the type I32; these can be read: F32" in why(config, folder)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"general.architecture": "qwen2"}, "for the architecture 'qwen2', but the model's is 'llama'"),
        ({"adapter.type": "control_vector"}, "its adapter.type is 'control_vector'"),
        ({"adapter.lora.alpha": float("nan")}, "must be a finite number"),
        ({"adapter.alora.invocation_tokens": [1, 2]}, "certain tokens only"),
    ],
)
def test_gguf_files_that_are_no_adapter_of_this_model(
    config: ModelConfig, tmp_path: Path, metadata: dict[str, Any], reason: str
) -> None:
    path = write_gguf_adapter(tmp_path / "a.gguf", {Q: halves(64, 64)}, alpha=1, heads=HEADS, **metadata)
    assert reason in why(config, path)


def test_a_configuration_must_be_there_and_be_text(config: ModelConfig, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "lora", {Q: halves(64, 64)}, alpha=1)
    (folder / "adapter_config.json").write_text(json.dumps([1]))
    assert "adapter_config.json cannot be read" in why(config, folder)
    (folder / "adapter_config.json").unlink()
    assert "there is no adapter_config.json" in why(config, folder)


def test_files_are_grouped_by_folder() -> None:
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert group_adapters({name: name for name in (*names, "README.md")}) == ({name: name for name in names},)
    several = {f"{n}/{name}": n for n in (1, 2) for name in names} | {"3/a.gguf": 3, "b.gguf": 4}
    assert group_adapters(several) == (
        {"a.gguf": 3}, {"b.gguf": 4}, dict.fromkeys(names, 1), dict.fromkeys(names, 2)
    )  # fmt: skip
