"""A safetensors model -> one with its layers' matrices in 8 bits and a scale for each output row: fp8 or int8.

Written beside the weights is a config.json with the quantization_config that says so: fp8 in the words of vLLM's "fp8"
method, int8 in those of compressed-tensors. Embedding, head, norms and biases stay as they are. Called by
`engine.conversion.quantize`.

Source: compressed-tensors' "int-quantized" format; transformers' FineGrainedFP8Config and vLLM's fp8 for the keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.config import ModelConfig
from engine.conversion.atomic_file import atomic_file
from engine.conversion.errors import ConversionError
from engine.conversion.progress import Progress
from engine.conversion.source_tensors import check_is_float
from engine.models.tensor_names import LAYER_ROLES, TensorNames
from engine.models.tensor_plan import check_table
from engine.quantization.checkpoint import CheckpointTensor
from engine.quantization.row_types import NotFiniteError, quantize_rows
from modelfiles.gguf import GGMLType
from modelfiles.safetensors import SafeTensor, SafetensorsModel
from modelfiles.safetensors_writer import NewSafeTensor, write_safetensors
from modelfiles.source import ModelSource

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


@dataclass(frozen=True)
class RowType:
    """An 8-bit type with a scale for each row of a matrix."""

    dtype: str
    """As safetensors calls it."""
    torch_dtype: torch.dtype
    description: Mapping[str, Any]
    """config.json's quantization_config."""


ROW_TYPES: dict[str, RowType] = {
    "FP8": RowType(
        "F8_E4M3",
        torch.float8_e4m3fn,
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": None,
            "ignored_layers": ["lm_head"],
        },
    ),
    "INT8": RowType(
        "I8",
        torch.int8,
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "num_bits": 8,
                        "type": "int",
                        "symmetric": True,
                        "strategy": "channel",
                        "dynamic": False,
                    },
                    "input_activations": None,
                    "output_activations": None,
                }
            },
            "ignore": ["lm_head"],
        },
    ),
}


def write_quantized_safetensors(
    source: ModelSource, folder: Path, file_type: str, on_progress: Callable[[int, int], None]
) -> tuple[Path, ...]:
    """Writes the weights and config.json into `folder`, each whole or not at all.

    Args:
        file_type: "FP8" or "INT8".
        on_progress: called with the bytes read and the bytes of all tensors.

    Raises:
        ConversionError: the source is quantised or a GGUF file, or a weight is no finite number.
        ConfigError, TensorPlanError, SafetensorsError: the source is broken.
    """
    if source.format != "safetensors":
        raise ConversionError(f"{file_type} is made of safetensors, and the source is GGUF; take Q8_0 for it")
    row_type = ROW_TYPES[file_type]
    config = ModelConfig.from_source(source)
    with SafetensorsModel.open(source.files) as model:
        check_is_float(model.tensors)
        names = TensorNames.detect(model.tensors, is_gguf=False, has_post_norms=config.post_norms)
        check_table(config, names, model.tensors)
        matrices = _matrices(config, names)
        progress = Progress(sum(tensor.num_bytes for tensor in model.tensors.values()), on_progress)
        tensors: list[NewSafeTensor] = []
        for tensor in model.tensors.values():
            data = model.data(tensor.name)
            if tensor.name in matrices:
                tensors += _quantized(tensor, data, row_type, progress)
            else:
                tensors.append(_copied(tensor, data, progress))
        with atomic_file(folder / WEIGHTS_FILE) as path:
            write_safetensors(path, tensors)
    described = json.loads(source.read_text(CONFIG_FILE) or "{}") | {"quantization_config": row_type.description}
    with atomic_file(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    return folder / WEIGHTS_FILE, folder / CONFIG_FILE


def _matrices(config: ModelConfig, names: TensorNames) -> frozenset[str]:
    """Names of the matrices of all layers."""
    roles = [role for role in LAYER_ROLES if not role.endswith("norm")]
    return frozenset(names.name(role, layer) for role in roles for layer in range(config.num_layers))


def _copied(tensor: SafeTensor, data: memoryview, progress: Progress) -> NewSafeTensor:
    def pieces() -> Iterator[memoryview]:
        yield data
        progress.advance(len(data))

    return NewSafeTensor(tensor.name, tensor.dtype, tensor.shape, pieces)


def _quantized(tensor: SafeTensor, data: memoryview, row_type: RowType, progress: Progress) -> list[NewSafeTensor]:
    """The matrix in 8 bits, and behind it its scales, which are found while it is written."""
    content = CheckpointTensor(tensor.name, tensor.shape, GGMLType[tensor.dtype], data)
    scales = torch.empty(content.num_rows, 1)
    bytes_per_row = len(data) // content.num_rows

    def pieces() -> Iterator[bytes]:
        for start, stop, values in content.pieces():
            try:
                codes, scales[start:stop] = quantize_rows(values, row_type.torch_dtype)
            except NotFiniteError as error:
                raise ConversionError(
                    f'the tensor "{tensor.name}" has a value that is no finite number, in row {start + error.row}; the '
                    "source is damaged"
                ) from error
            yield codes.view(torch.uint8).numpy().tobytes()
            progress.advance((stop - start) * bytes_per_row)

    def scale_pieces() -> Iterator[bytes]:
        yield scales.numpy().tobytes()

    return [
        NewSafeTensor(tensor.name, row_type.dtype, tensor.shape, pieces),
        NewSafeTensor(f"{tensor.name}_scale", "F32", (content.num_rows, 1), scale_pieces),
    ]
