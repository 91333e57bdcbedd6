"""What files say about their model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelfiles.gguf import write_gguf
from modelfiles.source import ModelSource
from registry.errors import CreateError
from registry.model_facts import human_number, model_facts
from tests.registry.weights import CONFIG, LLAMA, gguf_bytes, safetensors_bytes, write_files

INT8 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"type": "int", "num_bits": 8}}},
}


def gguf_source(folder: Path, metadata: dict[str, Any]) -> ModelSource:
    return ModelSource(write_files(folder, {"model.gguf": gguf_bytes(folder, metadata)}))


def safetensors_source(folder: Path, config: object, data: bytes = b"") -> ModelSource:
    files = {"model.safetensors": data or safetensors_bytes()}
    if config is not None:
        files["config.json"] = json.dumps(config).encode()
    return ModelSource(write_files(folder, files))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1K"),
        (260_032, "260K"),
        (5_900_000, "5.90M"),
        (134_515_008, "134.52M"),
        (7_000_000, "7M"),
        (7_000_000_000, "7B"),
        (7_615_616_512, "7.6B"),
        (1_000_000_000_000, "1000B"),
    ],
)
def test_numbers_as_people_say_them(number: int, text: str) -> None:
    assert human_number(number) == text


def test_a_gguf_files_facts_are_its_metadata(tmp_path: Path) -> None:
    facts = model_facts(gguf_source(tmp_path, LLAMA | {"general.file_type": 15}))
    assert facts.config_keys() == {
        "model_format": "gguf",
        "model_family": "llama",
        "model_families": ["llama"],
        "model_type": "64",
        "file_type": "Q4_K_M",
        "context_length": 64,
        "embedding_length": 32,
    }


@pytest.mark.parametrize("file_type", [..., "Q4", 4, 999, 1.5])
def test_without_a_known_file_type_the_tensors_tell(tmp_path: Path, file_type: object) -> None:
    metadata = {key: value for key, value in {**LLAMA, "general.file_type": file_type}.items() if value is not ...}
    assert model_facts(gguf_source(tmp_path, metadata)).file_type == "F16"


@pytest.mark.parametrize(
    "key", ["general.architecture", "llama.block_count", "llama.context_length", "llama.embedding_length"]
)
@pytest.mark.parametrize("value", [..., "", "x", 0, -1, 2**31, 2**63, 1.5, True, [1, 2]])
def test_a_missing_or_impossible_value_is_named(tmp_path: Path, key: str, value: object) -> None:
    if key == "general.architecture" and value == "x":
        return  # an architecture that nobody knows is the engine's to refuse
    metadata = {name: item for name, item in {**LLAMA, key: value}.items() if item is not ...}
    with pytest.raises(CreateError, match=key):
        model_facts(gguf_source(tmp_path, metadata))


def test_weights_without_tensors_are_no_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", LLAMA, [])
    with pytest.raises(CreateError, match="the GGUF file has no tensors"):
        model_facts(ModelSource.from_path(tmp_path / "model.gguf"))
    with pytest.raises(CreateError, match="the safetensors files have no tensors"):
        model_facts(safetensors_source(tmp_path, CONFIG, b"\x02" + bytes(7) + b"{}"))


@pytest.mark.parametrize(
    ("config", "file_type", "context_length"),
    [
        (CONFIG, "BF16", 128),
        (CONFIG | {"quantization_config": {"quant_method": "awq"}}, "AWQ-INT4", 128),
        (CONFIG | {"quantization_config": {"quant_method": "gptq"}}, "GPTQ", 128),
        (CONFIG | {"quantization_config": {"quant_method": "bitsandbytes", "bits": 4}}, "BITSANDBYTES", 128),
        (CONFIG | {"quantization_config": {"quant_method": "compressed-tensors"}}, "COMPRESSED-TENSORS", 128),
        (CONFIG | {"quantization_config": INT8}, "INT8", 128),
        (CONFIG | {"quantization_config": INT8 | {"config_groups": {}}}, "COMPRESSED-TENSORS", 128),
        (CONFIG | {"quantization_config": {"quant_method": 4}}, "BF16", 128),
        (CONFIG | {"quantization_config": "awq"}, "BF16", 128),
        (CONFIG | {"text_config": {"max_position_embeddings": 256, "hidden_size": 8}}, "BF16", 256),
    ],
)
def test_a_safetensors_models_facts(tmp_path: Path, config: object, file_type: str, context_length: int) -> None:
    facts = model_facts(safetensors_source(tmp_path, config))
    assert (facts.format, facts.family, facts.num_parameters) == ("safetensors", "llama", 12)
    assert (facts.file_type, facts.context_length, facts.embedding_length) == (file_type, context_length, 8)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "there is no config.json"),
        ([], "config.json is no JSON object"),
        ({}, "config.json has no model_type"),
        ({**CONFIG, "model_type": 7}, "config.json has no model_type"),
        ({**CONFIG, "hidden_size": "8"}, "hidden_size of config.json is 8"),
        ({"model_type": "llama"}, "max_position_embeddings of config.json is missing"),
    ],
)
def test_a_bad_config_is_named(tmp_path: Path, config: object, reason: str) -> None:
    with pytest.raises(CreateError, match=reason):
        model_facts(safetensors_source(tmp_path, config))


def test_real_models(data_dir: Path) -> None:
    for path, family, file_type, number in (
        ("stories3M/gguf/stories3M-Q4_K_M.gguf", "llama", "Q4_K_M", "3.15M"),
        ("stories3M-pad256/gguf/stories3M-pad256-IQ4_XS.gguf", "llama", "IQ4_XS", "4.39M"),
        ("synthetic-gemma2-swa16/hf", "gemma2", "F32", "255K"),
    ):
        keys = model_facts(ModelSource.from_path(data_dir / "models" / path)).config_keys()
        assert (keys["model_family"], keys["file_type"], keys["model_type"]) == (family, file_type, number)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "nomic_bert", "n_embd": 8, "n_positions": 8192, "max_trained_positions": 256},
        {"model_type": "distilbert", "dim": 8, "max_position_embeddings": 256},
    ],
)
def test_encoders_that_call_it_otherwise(config: dict[str, Any], tmp_path: Path) -> None:
    files = write_files(
        tmp_path, {"model.safetensors": safetensors_bytes(), "config.json": json.dumps(config).encode()}
    )
    facts = model_facts(ModelSource(files))
    assert (facts.context_length, facts.embedding_length) == (256, 8)
