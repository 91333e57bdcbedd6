"""What a model's own files say about it: family, size, type of its weights, context length.

`create` writes these into the config blob, where `list` and `show` find them without opening gigabytes. The engine
reads the same files with far more care when it loads them; here only what is shown is read, and a missing or impossible
value is an error that names its key.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelfiles.gguf import GGUFModel, open_shards
from modelfiles.quantized_weights import find_quantization, num_weights, packed_bits, quantization_level
from modelfiles.safetensors import SafetensorsModel
from modelfiles.source import ModelSource
from registry.errors import CreateError

FILE_TYPE_NAMES = (
    "F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS "
    "Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - - TQ1_0 TQ2_0 MXFP4"
)
FILE_TYPES = dict(enumerate(FILE_TYPE_NAMES.split()))
"""general.file_type -> what people call it; source: enum llama_ftype in llama.h. "-" are formats that were removed."""

DTYPE_NAMES = {"F8_E4M3": "FP8", "F8_E5M2": "FP8"}
"""safetensors dtypes that people call otherwise."""


OTHER_KEYS = {"max_position_embeddings": ("max_trained_positions", "n_positions"), "hidden_size": ("n_embd", "dim")}
"""What encoders such as Nomic's and DistilBERT call it."""


@dataclass(frozen=True)
class ModelFacts:
    """A model in the words of `show`."""

    format: str
    family: str
    num_parameters: int
    file_type: str
    context_length: int
    embedding_length: int

    def config_keys(self) -> dict[str, Any]:
        """The facts under their keys in the config blob."""
        return {
            "model_format": self.format,
            "model_family": self.family,
            "model_families": [self.family],
            "model_type": human_number(self.num_parameters),
            "file_type": self.file_type,
            "context_length": self.context_length,
            "embedding_length": self.embedding_length,
        }


def model_facts(source: ModelSource) -> ModelFacts:
    """Read the facts from files that were checked before.

    Raises:
        CreateError: a value that every model has is missing or impossible.
        GGUFError, SafetensorsError: a file cannot be read after all.
    """
    if source.format == "gguf":
        with open_shards(source.gguf_files) as gguf:
            return _gguf_facts(gguf)
    with SafetensorsModel.open(source.files) as tensors:
        config = _config(source)
        found = find_quantization(source, config)
        return _safetensors_facts(config, found[0] if found else None, tensors)


def human_number(number: int) -> str:
    """A count as people say it: "7B", "2.8B", "500.50M", "5.90M", "260K", "12"."""
    for unit, size, digits in (("B", 10**9, 1), ("M", 10**6, 2), ("K", 10**3, 0)):
        if number >= size:
            return f"{number / size:.{0 if number % size == 0 else digits}f}{unit}"
    return str(number)


def _gguf_facts(model: GGUFModel) -> ModelFacts:
    architecture = model.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise CreateError("the GGUF file has no general.architecture that is a text; it is no model")
    types: Counter[str] = Counter()
    num_parameters = 0
    for tensor in model.tensors.values():
        num_parameters += math.prod(tensor.shape)
        types[tensor.type.name] += tensor.num_bytes
    if not types:
        raise CreateError("the GGUF file has no tensors; it is no model")
    number = model.metadata.get("general.file_type")
    file_type = FILE_TYPES.get(number, "-") if isinstance(number, int) else "-"
    _positive(model.metadata, f"{architecture}.block_count", "the GGUF file")
    return ModelFacts(
        format="gguf",
        family=architecture,
        num_parameters=num_parameters,
        file_type=types.most_common(1)[0][0] if file_type == "-" else file_type,
        context_length=_positive(model.metadata, f"{architecture}.context_length", "the GGUF file"),
        embedding_length=_positive(model.metadata, f"{architecture}.embedding_length", "the GGUF file"),
    )


def _config(source: ModelSource) -> dict[str, Any]:
    text = source.read_text("config.json")
    if text is None:
        raise CreateError("there is no config.json beside the weights; a safetensors model needs one")
    config = json.loads(text)
    if not isinstance(config, dict):
        raise CreateError("config.json is no JSON object")
    return config


def _safetensors_facts(
    config: dict[str, Any], quantization: dict[str, Any] | None, model: SafetensorsModel
) -> ModelFacts:
    family = config.get("model_type")
    if not isinstance(family, str) or not family:
        raise CreateError("config.json has no model_type that is a text")
    bytes_of: Counter[str] = Counter()
    num_parameters = 0
    bits = packed_bits(quantization) if quantization else 0
    for tensor in model.tensors.values():
        num_parameters += num_weights(tensor.name, tensor.shape, bits) if quantization else math.prod(tensor.shape)
        bytes_of[tensor.dtype] += tensor.num_bytes
    if not bytes_of:
        raise CreateError("the safetensors files have no tensors")
    dtype = bytes_of.most_common(1)[0][0]
    level = quantization_level(quantization) if quantization else ""
    # Models that also see or hear keep their language model's numbers one level down.
    inner = config.get("text_config")
    numbers = inner if isinstance(inner, dict) else config
    return ModelFacts(
        format="safetensors",
        family=family,
        num_parameters=num_parameters,
        file_type=level or DTYPE_NAMES.get(dtype, dtype),
        context_length=_positive(numbers, _key_of(numbers, "max_position_embeddings"), "config.json"),
        embedding_length=_positive(numbers, _key_of(numbers, "hidden_size"), "config.json"),
    )


def _key_of(numbers: Mapping[str, Any], key: str) -> str:
    """What this config.json calls it."""
    return next((name for name in (key, *OTHER_KEYS[key]) if name in numbers), key)


def _positive(values: Mapping[str, Any], key: str, where: str) -> int:
    value = values.get(key)
    if type(value) is not int or not 0 < value < 2**31:
        was = "is missing" if value is None else f"is {str(value)[:32]}"
        raise CreateError(f"{key} of {where} {was}; it must be a whole number from 1 to 2^31-1")
    return value
