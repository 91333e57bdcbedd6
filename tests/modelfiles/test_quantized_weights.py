"""Where a quantisation is described, and how many weights its tensors stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelfiles.quantized_weights import find_quantization, num_weights, packed_bits, quantization_level
from modelfiles.source import ModelSource

AWQ = {"quant_method": "awq", "bits": 4}
IN_CONFIG = "quantization_config in config.json"


def source_of(folder: Path, files: dict[str, str]) -> ModelSource:
    for name, text in ({"model.safetensors": ""} | files).items():
        (folder / name).write_text(text)
    return ModelSource.from_path(folder)


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({}, {}, None),
        ({"quantization_config": {}}, {}, None),
        ({"quantization_config": AWQ}, {"quantize_config.json": '{"bits": 8}'}, (AWQ, IN_CONFIG)),
        ({"text_config": {"quantization_config": AWQ}}, {}, (AWQ, IN_CONFIG)),
        ({}, {"quantize_config.json": '{"bits": 8}'}, ({"quant_method": "gptq", "bits": 8}, "quantize_config.json")),
        ({}, {"quant_config.json": '{"w_bit": 4}'}, ({"quant_method": "awq", "w_bit": 4}, "quant_config.json")),
        ({}, {"quantize_config.json": json.dumps(AWQ)}, (AWQ, "quantize_config.json")),
        ({}, {"quantize_config.json": "[1]"}, None),
        ({}, {"quantize_config.json": "{", "quant_config.json": "[" * 100_000}, None),
    ],
)  # fmt: skip
def test_where_it_is_described(
    config: dict[str, Any], files: dict[str, str], expected: tuple[dict[str, Any], str] | None, tmp_path: Path
) -> None:
    assert find_quantization(source_of(tmp_path, files), config) == expected


def groups(*weights: object) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {str(number): {"weights": item} for number, item in enumerate(weights)},
    }


@pytest.mark.parametrize(
    ("quantization", "level", "bits"),
    [
        ({"quant_method": "awq", "w_bit": 4}, "AWQ-INT4", 4),
        ({"quant_method": "gptq", "bits": 8}, "GPTQ-INT8", 8),
        ({"quant_method": "gptq", "bits": "4"}, "GPTQ", 0),
        ({"quant_method": "gptq", "bits": 0}, "GPTQ", 0),
        ({"quant_method": "fp8"}, "FP8", 0),
        ({"quant_method": "hqq"}, "HQQ", 0),
        ({"quant_method": 7}, "", 0),
        (groups({"type": "int", "num_bits": 4}), "INT4", 4),
        (groups({"type": "float", "num_bits": 8}, {"type": "int", "num_bits": 4}), "FP8+INT4", 4),
        (groups({"type": "text", "num_bits": 8}, None, 4), "COMPRESSED-TENSORS", 0),
        ({"quant_method": "compressed-tensors", "config_groups": []}, "COMPRESSED-TENSORS", 0),
    ],
)
def test_how_it_is_called(quantization: dict[str, Any], level: str, bits: int) -> None:
    assert quantization_level(quantization) == level
    assert packed_bits(quantization) == bits


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("a.qweight", 96), ("a.weight_packed", 96), ("a.weight", 12), ("a.bias", 12), ("scales.weight", 12),
        ("a.qzeros", 0), ("a.scales", 0), ("a.g_idx", 0), ("a.weight_scale_inv", 0), ("a.k_scale", 0),
    ],
)  # fmt: skip
def test_what_a_tensor_stands_for(name: str, count: int) -> None:
    assert num_weights(name, (3, 4), 4) == count
