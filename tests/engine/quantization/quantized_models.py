"""Tiny models whose matrices are quantised in the forms that tools publish: folders, and what they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from tests.daemon.tiny_model import write_tiny_model
from tests.engine.quantization import packers
from tests.engine.quantization.packers import Packed

Tensor = torch.Tensor
Pack = Callable[[np.random.Generator, int, int], Packed]

SIZES: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 256, "bos_token_id": 256,
    "eos_token_id": 258,
}  # fmt: skip
GROUP = 32
"""Three groups in a row of down_proj."""


@dataclass(frozen=True)
class Form:
    """How a tool quantises a model."""

    quantization: dict[str, Any]
    """quantization_config."""
    pack: Pack
    kind: str = "Llama"
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the model's configuration."""
    leaves: Callable[[str], bool] = lambda module: module == "lm_head"
    """Whether a module stays as it is."""
    side_file: str = ""
    """Where the description stands instead of config.json."""
    extra: Callable[[str, Packed], dict[str, Tensor]] = lambda module, packed: {}
    """Tensors of a module that mean nothing to us."""
    pack_others: Pack | None = None
    """For modules of attention, where they are packed another way."""


def make(form: Form, folder: Path) -> torch.nn.Module:
    """Writes the quantised model and returns the one that it stands for."""
    write_tiny_model(folder)
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    config = getattr(transformers, f"{form.kind}Config")(**(SIZES | form.settings))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
            module, _, last = name.rpartition(".")
            is_matrix = last == "weight" and parameter.ndim == 2 and not module.endswith("embed_tokens")
            if not is_matrix or form.leaves(module):
                tensors[name] = parameter.detach().clone()
                continue
            pack = form.pack_others if form.pack_others is not None and "self_attn" in module else form.pack
            packed = pack(generator, *parameter.shape)
            parameter.copy_(packed.values)
            tensors |= packers.named(packed.parts | form.extra(module, packed), module)
    written = config.to_dict() | {"architectures": [type(model).__name__]}
    if form.side_file:
        (folder / form.side_file).write_text(json.dumps(form.quantization))
    else:
        written["quantization_config"] = form.quantization
    (folder / "config.json").write_text(json.dumps(written))
    save_file(tensors, folder / "model.safetensors")
    return model


def compressed(form: str, weights: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A description as compressed-tensors writes it, with the keys that say nothing to us."""
    defaults = {"dynamic": False, "group_size": None, "block_structure": None, "actorder": None, "observer": "minmax"}
    group = {
        "targets": ["Linear"],
        "weights": defaults | {"symmetric": True} | weights,
        "input_activations": {"dynamic": True, "num_bits": 8, "strategy": "token", "symmetric": True, "type": "int"},
        "output_activations": None,
    }
    common = {
        "quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group},
        "ignore": ["lm_head"], "kv_cache_scheme": None, "quantization_status": "compressed", "sparsity_config": {},
        "transform_config": {},
    }  # fmt: skip
    return common | settings


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "desc_act": False, "damp_percent": 0.1}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
MIXED = compressed("mixed-precision", INT4 | {"symmetric": False})
MIXED["config_groups"]["group_0"] |= {"format": "pack-quantized", "targets": ["re:.*mlp\\.(gate|up|down)_proj$"]}
MIXED["config_groups"]["group_1"] = {
    "format": "float-quantized",
    "targets": ["re:.*self_attn.*"],
    "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
}


def _measured(module: str, packed: Packed) -> dict[str, Tensor]:
    """Ranges of activations, which static schemes and quantised caches leave."""
    scales = {"input_scale": torch.tensor(0.02)}
    return scales | ({"k_scale": torch.tensor([0.1])} if module.endswith("k_proj") else {})


FORMS: dict[str, Form] = {
    "awq": Form(AWQ, lambda g, n, k: packers.awq(g, n, k, GROUP)),
    "awq-with-layers-left-out": Form(
        AWQ | {"modules_to_not_convert": ["lm_head", "layers.1.self_attn", "up_proj"], "version": "GEMM"},
        lambda g, n, k: packers.awq(g, n, k, GROUP),
        leaves=lambda module: module == "lm_head" or "layers.1.self_attn" in module or module.endswith("up_proj"),
    ),
    "awq-described-beside": Form(
        {"w_bit": 4, "q_group_size": GROUP, "zero_point": True, "version": "GEMM"},
        lambda g, n, k: packers.awq(g, n, k, GROUP),
        side_file="quant_config.json",
    ),
    "awq-fused": Form(AWQ, lambda g, n, k: packers.awq(g, n, k, GROUP), kind="Phi3", settings={"sliding_window": None}),
    "gptq": Form(GPTQ, lambda g, n, k: packers.gptq(g, n, k, GROUP), kind="Qwen2"),
    "gptq-symmetric-act-order-tied": Form(
        GPTQ | {"sym": True, "desc_act": True, "checkpoint_format": "gptq"},
        lambda g, n, k: packers.gptq(g, n, k, GROUP, is_symmetric=True, is_shuffled=True),
        kind="Qwen2",
        settings={"tie_word_embeddings": True},
    ),
    "gptq-v2-8-bits-whole-rows-spare-biases": Form(
        {"bits": 8, "group_size": -1, "desc_act": True, "sym": True, "checkpoint_format": "gptq_v2"},
        lambda g, n, k: packers.gptq(g, n, k, k, bits=8, offset=0),
        side_file="quantize_config.json",
        extra=lambda module, packed: {"bias": torch.zeros(len(packed.values), dtype=torch.float16)},
    ),
    "gptq-with-modules-left-out": Form(
        GPTQ | {"format": "gptq", "dynamic": {"-:.*down_proj": {}}, "lm_head": False},
        lambda g, n, k: packers.gptq(g, n, k, GROUP, has_index=False),
        leaves=lambda module: module.endswith("down_proj") or module == "lm_head",
    ),
    "fp8-tensor": Form(
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        lambda g, n, k: packers.fp8(g, n, k, (n, k), scale_shape=()),
        extra=_measured,
    ),
    "fp8-channel": Form(
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
        lambda g, n, k: packers.fp8(g, n, k, (1, k)),
        kind="Qwen2",
    ),
    "fp8-blocks": Form(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"},
        lambda g, n, k: packers.fp8(g, n, k, (128, 128), suffix="weight_scale_inv", dtype=torch.bfloat16),
        kind="Qwen2",
        settings={"intermediate_size": 144},
    ),
    "compressed-int4": Form(
        compressed("pack-quantized", INT4 | {"actorder": "weight"}),
        lambda g, n, k: packers.pack_quantized(g, n, k, GROUP),
    ),
    "compressed-int4-act-order-with-head": Form(
        compressed("pack-quantized", INT4 | {"symmetric": False, "actorder": "group"}, ignore=[]),
        lambda g, n, k: packers.pack_quantized(g, n, k, GROUP, is_symmetric=False, is_shuffled=True),
        kind="Qwen2",
        leaves=lambda module: False,
    ),
    "compressed-int8": Form(
        compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
        lambda g, n, k: packers.int8(g, n, k, (n, 1)),
    ),
    "compressed-fp8": Form(
        compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
        lambda g, n, k: packers.fp8(g, n, k, (n, k), scale_shape=(1,)),
    ),
    "compressed-mixed": Form(
        MIXED,
        lambda g, n, k: packers.pack_quantized(g, n, k, GROUP, is_symmetric=False),
        kind="Qwen2",
        pack_others=lambda g, n, k: packers.fp8(g, n, k, (1, k)),
    ),
}
LEVELS = {"awq": "AWQ-INT4", "gptq": "GPTQ-INT4", "fp8": "FP8"} | {
    "gptq-v2-8-bits-whole-rows-spare-biases": "GPTQ-INT8",
    "compressed-int4": "INT4",
    "compressed-int4-act-order-with-head": "INT4",
    "compressed-int8": "INT8",
    "compressed-fp8": "FP8",
    "compressed-mixed": "FP8+INT4",
}


def level(name: str) -> str:
    """What `show` says of a form."""
    return LEVELS.get(name) or LEVELS[name.partition("-")[0]]
