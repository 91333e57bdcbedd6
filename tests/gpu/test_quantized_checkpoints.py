"""Quantised safetensors on the GPU: they stay packed there where their columns allow, and the tokens are the CPU's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.execution.model_runner import ModelRunner
from engine.quantization.packed import Packed
from tests.engine.quantization import packers
from tests.gpu.engines import HAS_GPU, assert_equal, greedy, load, load_on_cpu
from tests.gpu.tiny_models import write_tiny

pytestmark = pytest.mark.gpu
GROUP = 16
PROMPTS = [[72, 101, 108, 108, 111], [5, 9, 33, 2, 71, 14, 14, 60, 8]]
COMPRESSED = {"quant_method": "compressed-tensors", "ignore": ["lm_head"]}


def described(form: str, **weights: object) -> dict[str, object]:
    return COMPRESSED | {"format": form, "config_groups": {"0": {"targets": ["Linear"], "weights": weights}}}


GROUPS_OF_4_BITS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": False}
FORMS: dict[str, tuple[dict[str, object], Callable[[np.random.Generator, int, int], packers.Packed]]] = {
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": GROUP}, lambda g, n, k: packers.awq(g, n, k, GROUP),
    ),
    "gptq-act-order": (
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
        lambda g, n, k: packers.gptq(g, n, k, GROUP, is_shuffled=True),
    ),
    "pack-quantized": (
        described("pack-quantized", **GROUPS_OF_4_BITS),
        lambda g, n, k: packers.pack_quantized(g, n, k, GROUP, is_symmetric=False),
    ),
    "int8": (
        described("int-quantized", num_bits=8, type="int", strategy="channel"),
        lambda g, n, k: packers.int8(g, n, k, (n, 1)),
    ),
    "gptq-8-bits": (
        {"quant_method": "gptq", "bits": 8, "group_size": GROUP}, lambda g, n, k: packers.gptq(g, n, k, GROUP, bits=8),
    ),
    "pack-quantized-symmetric": (
        described("pack-quantized", **(GROUPS_OF_4_BITS | {"symmetric": True})),
        lambda g, n, k: packers.pack_quantized(g, n, k, GROUP),
    ),
    "fp8-tensor": ({"quant_method": "fp8"}, lambda g, n, k: packers.fp8(g, n, k, (n, k), scale_shape=())),
    "fp8-channel": (
        described("float-quantized", num_bits=8, type="float", strategy="channel"),
        lambda g, n, k: packers.fp8(g, n, k, (1, k)),
    ),
    "fp8-blocks": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        lambda g, n, k: packers.fp8(g, n, k, (128, 128), suffix="weight_scale_inv"),
    ),
}  # fmt: skip


@pytest.fixture(params=FORMS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny Llama whose layers are quantised."""
    quantization, pack = FORMS[request.param]
    path, generator = tmp_path / "m", np.random.default_rng(0)
    write_tiny(path, "llama")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.endswith("_proj"):
            tensors |= packers.named(pack(generator, *tensor.shape).parts, module)
        else:
            tensors[name] = tensor
    save_file(tensors, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text()) | {"quantization_config": quantization}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("num_gpu_layers", [-1, 1], ids=["all-on-the-gpu", "layers-in-host-memory"])
def test_tokens_are_the_cpus(folder: Path, num_gpu_layers: int) -> None:
    expected = load_on_cpu(folder).generate(PROMPTS, greedy(24))
    llm = load(folder, num_gpu_layers=num_gpu_layers)
    assert_equal(llm.generate(PROMPTS, greedy(24)), expected)
    if HAS_GPU:
        runner = llm.engine._runner
        assert isinstance(runner, ModelRunner)
        layer = runner.decoder.weights.layers[0]
        assert all(isinstance(segment, Packed) for linear in (layer.qkv, layer.gate_up) for segment in linear.segments)


@pytest.mark.parametrize("num_gpu_layers", [-1, 1], ids=["all-on-the-gpu", "layers-in-host-memory"])
@pytest.mark.parametrize("weight_type", ["fp8", "int8"])
def test_weights_that_get_8_bits(weight_type: str, num_gpu_layers: int, tmp_path: Path) -> None:
    # A GPU packs matrices of whole pieces only; a CPU rounds all of them.
    write_tiny(tmp_path / "m", "qwen2-bias", num_attention_heads=8, intermediate_size=192)
    expected = load_on_cpu(tmp_path / "m", weight_type=weight_type).generate(PROMPTS, greedy(24))
    llm = load(tmp_path / "m", weight_type=weight_type, num_gpu_layers=num_gpu_layers)
    assert_equal(llm.generate(PROMPTS, greedy(24)), expected)
