"""Descriptions of quantised checkpoints: what each means, and those that Hob does not read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from engine.config_fields import ConfigError
from engine.quantization.checkpoint_config import read_quantization
from engine.quantization.module_patterns import ModulePattern
from engine.quantization.scheme import WeightScheme
from tests.engine.quantization.quantized_models import AWQ, FORMS, GPTQ, INT4, compressed

LAYER = "model.layers.1"
FP8 = {"quant_method": "fp8"}
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}


def scheme(quantization: dict[str, Any], module: str = f"{LAYER}.mlp.up_proj") -> WeightScheme | None:
    return read_quantization(quantization, "quantization_config in config.json").scheme_of(module)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (AWQ, WeightScheme("awq", 4, 1, 32, has_zeros=True)),
        ({"quant_method": "AWQ"}, WeightScheme("awq", 4, 1, 128, has_zeros=True)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": -1}, WeightScheme("awq", 4, 1, None, has_zeros=True)),
        (GPTQ, WeightScheme("gptq", 4, 1, 32, has_zeros=True, zero_offset=1)),
        (
            GPTQ | {"desc_act": True, "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"},
            WeightScheme("gptq", 8, 1, None, has_zeros=True, has_group_index=True),
        ),
        (FP8, WeightScheme("fp8", 8, None, None)),
        (FP8 | {"weight_block_size": [128, 64]}, WeightScheme("fp8", 8, 128, 64)),
        ({"quant_method": "fbgemm_fp8"}, WeightScheme("fp8", 8, 1, None)),
        (compressed("pack-quantized", INT4), WeightScheme("packed", 4, 1, 32)),
        (
            compressed("pack-quantized", INT4 | {"num_bits": 8, "symmetric": False, "actorder": "group"}),
            WeightScheme("packed", 8, 1, 32, has_zeros=True, has_group_index=True),
        ),
        (compressed("pack-quantized", INT4 | {"actorder": "static"}), WeightScheme("packed", 4, 1, 32)),
        (compressed("int-quantized", INT8), WeightScheme("int8", 8, 1, None)),
        (compressed("float-quantized", FLOAT8 | {"strategy": "tensor"}), WeightScheme("fp8", 8, None, None)),
        (
            compressed("float-quantized", FLOAT8 | {"strategy": "block", "block_structure": "128x64"}),
            WeightScheme("fp8", 8, 128, 64),
        ),
    ],
)
def test_what_a_description_means(quantization: dict[str, Any], expected: WeightScheme) -> None:
    assert scheme(quantization) == expected


@pytest.mark.parametrize("name", FORMS)
def test_a_head_is_left_out_where_the_form_says_so(name: str) -> None:
    form = FORMS[name]
    quantization = {"quant_method": "awq" if "awq" in name else "gptq"} | form.quantization
    found = scheme(quantization, "lm_head")
    lists = [quantization.get(key) for key in ("modules_to_not_convert", "ignored_layers", "ignore")]
    assert (found is None) == any("lm_head" in (entries or []) for entries in lists) or name == "compressed-mixed"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method in quantization_config in config.json is "
     "'bitsandbytes'; Hob reads awq, gptq, fp8, fbgemm_fp8, compressed-tensors: take the model in one of these"),
    ({"load_in_8bit": True}, "quant_method in quantization_config in config.json is missing"),
    ({"quant_method": ["awq"]}, "quant_method in quantization_config in config.json must be a string"),
    (AWQ | {"bits": 8}, "bits in quantization_config in config.json is 8; Hob reads AWQ of 4 bits"),
    (AWQ | {"w_bit": 8}, "bits in quantization_config in config.json and w_bit differ"),
    (AWQ | {"q_group_size": 64}, "group_size in quantization_config in config.json and q_group_size differ"),
    (AWQ | {"version": "gemv"}, "version in quantization_config in config.json is 'gemv'; Hob reads gemm"),
    (AWQ | {"group_size": 0}, "is 0; a group has at least one column, and -1 means all"),
    (AWQ | {"group_size": -2}, "group_size in quantization_config in config.json is -2; it must lie between -1 and"),
    (AWQ | {"group_size": "128"}, "must be an integer"),
    (AWQ | {"modules_to_not_convert": "lm_head"}, "modules_to_not_convert in quantization_config in config.json must"),
    (AWQ | {"modules_to_not_convert": [""]}, "must be a list of names"),
    (AWQ | {"modules_to_not_convert": ["a"] * 100_001}, "has 100001 entries; 100000 are allowed"),
    (GPTQ | {"bits": 3}, "is 3; Hob reads GPTQ of 4 and of 8 bits"),
    ({"quant_method": "gptq"}, "is 0; Hob reads GPTQ of 4 and of 8 bits"),
    (GPTQ | {"is_marlin_format": True}, "is true; Hob reads the formats gptq and gptq_v2"),
    (GPTQ | {"checkpoint_format": "marlin"}, "is 'marlin'; Hob reads gptq, gptq_v2"),
    (GPTQ | {"checkpoint_format": "gptq", "format": "gptq_v2"}, "and format differ"),
    (GPTQ | {"sym": 1}, "must be true or false"),
    (GPTQ | {"dynamic": {"+:.*down_proj": {"bits": 8}}}, "gives '+:.*down_proj' settings of its own"),
    (GPTQ | {"dynamic": {"-:(": {}}}, "has the expression '(': it is no regular expression"),
    (FP8 | {"weight_block_size": [128]}, "must be [rows, columns] of a block, not [128]"),
    (FP8 | {"weight_block_size": [128, 0]}, "must be [rows, columns] of a block"),
    (FP8 | {"fmt": "e5m2"}, "is 'e5m2'; Hob reads e4m3"),
    (FP8 | {"scale_fmt": "log"}, "is 'log'; Hob reads float, ue8m0"),
    (FP8 | {"activation_scheme": "sometimes"}, "is 'sometimes'; Hob reads dynamic, static"),
    (compressed("marlin-24", INT4), "format in quantization_config in config.json is 'marlin-24'; Hob reads pack"),
    (compressed("nvfp4-pack-quantized", INT4), "is 'nvfp4-pack-quantized'; Hob reads"),
    (compressed("pack-quantized", INT4 | {"num_bits": 3}), "is 3; Hob reads pack-quantized weights of 4 and 8 bits"),
    (compressed("pack-quantized", INT4 | {"type": "float"}), "is 'float'; Hob reads int"),
    (compressed("pack-quantized", INT4 | {"group_size": None}), "is missing"),
    (compressed("pack-quantized", INT4 | {"strategy": "block"}), "is 'block'; Hob reads pack-quantized weights with"),
    (compressed("pack-quantized", INT4 | {"strategy": "token"}), "is 'token'; Hob reads tensor, channel, group, block"),
    (
        compressed("pack-quantized", INT4 | {"strategy": "tensor", "symmetric": False}),
        "is false; Hob reads packed zero points of rows and groups only",
    ),
    (compressed("int-quantized", INT8 | {"dynamic": True}), "is true; weights have stored scales"),
    (compressed("float-quantized", FLOAT8 | {"symmetric": False}), "FP8 weights have no zero points"),
    (compressed("float-quantized", FLOAT8 | {"strategy": "block", "block_structure": "big"}), "must be [rows, col"),
    (compressed("int-quantized", INT8, config_groups={}), "has 0 groups; 1 to 64 are read"),
    (compressed("int-quantized", INT8, config_groups={"a": {}}), "num_bits in weights in a in config_groups"),
    (compressed("int-quantized", INT8, sparsity_config={"format": "sparse-24-bitmask"}), "has the format 'sparse-24-b"),
    (
        compressed("int-quantized", INT8, transform_config={"config_groups": {"u": {}}}),
        "transform_config in quantization_config in config.json rotates activations",
    ),
    (compressed("int-quantized", INT8, ignore=["re:(a+)+$"]), "has the expression '(a+)+$': it repeats or refers to"),
]  # fmt: skip


@pytest.mark.parametrize(("quantization", "expected"), BAD, ids=range(len(BAD)))
def test_what_hob_does_not_read(quantization: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_quantization(quantization, "quantization_config in config.json")
    assert expected in str(caught.value)


def test_a_real_description_of_bitsandbytes(data_dir: Path) -> None:
    config = json.loads((data_dir / "vocab/hf/Llama-3.1-8B-Instruct/config.json").read_text())
    with pytest.raises(ConfigError, match="'bitsandbytes'; Hob reads awq"):
        read_quantization(config["quantization_config"], "quantization_config in config.json")


# ---- modules


@pytest.mark.parametrize(
    ("pattern", "module", "matches"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "language_model.lm_head", True),
        ("layers.1", "model.layers.1.mlp.up_proj", True),
        ("layers.1", "model.layers.10.mlp.up_proj", False),
        ("up_proj", "model.layers.1.mlp.gate_up_proj", False),
        ("model.layers.1.", "model.layers.1.mlp.up_proj", True),
    ],
)
def test_a_part_of_a_name(pattern: str, module: str, matches: bool) -> None:
    assert ModulePattern.part(pattern).matches(module) is matches


@pytest.mark.parametrize(
    ("text", "module", "matches"),
    [
        (r".*lm_head", "lm_head", True),
        (r".*self_attn\.(q|k|v)_proj$", f"{LAYER}.self_attn.k_proj", True),
        (r".*self_attn\.(q|k|v)_proj$", f"{LAYER}.self_attn.o_proj", False),
        (r"mlp.*", f"{LAYER}.mlp.up_proj", False),
        (r"model\.layers\.[0-9]+\.mlp\..*", f"{LAYER}.mlp.up_proj", True),
        (r"model\.layers\.\d+\.(?:mlp|self_attn)\.", f"{LAYER}.mlp.up_proj", True),
    ],
)
def test_an_expression(text: str, module: str, matches: bool) -> None:
    assert ModulePattern.expression(text).matches(module) is matches


@pytest.mark.parametrize(
    "text",
    ["(a*)*b", "(a|aa)+$", "(?=a)", r"(a)\1", "a{1,9}{1,9}", "a*" * 5, "(a|b)(c|d)(e|f)", "a" * 257, "[", "a*+"],
)
def test_an_expression_that_could_take_long_or_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="it "):
        ModulePattern.expression(text)


def test_the_worst_expression_takes_no_time() -> None:
    pattern = ModulePattern.expression("(.*|.)(.*|.)_*.*!$"[:256])
    before = time.process_time()
    assert not pattern.matches("model.layers.10.self_attn.q_proj")
    assert time.process_time() - before < 1.0
