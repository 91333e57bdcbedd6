"""A model of floating-point weights -> one GGUF file of a file type: tensor by tensor, a bounded piece at a time.

From GGUF (all metadata is kept) or from safetensors (metadata is made). Called by `engine.conversion.quantize`.

Source: llama_model_quantize_impl of src/llama-quant.cpp (llama.cpp) for what changes in the metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config import ModelConfig
from engine.conversion.atomic_file import atomic_file
from engine.conversion.errors import ConversionError
from engine.conversion.file_types import GGUF_FILE_TYPES, FileType, is_quantizable, tensor_type
from engine.conversion.gguf_metadata import check_description, describe
from engine.conversion.gguf_vocabulary import TYPES, vocabulary_metadata
from engine.conversion.progress import Progress
from engine.conversion.source_tensors import SourceTensor, check_is_float, gguf_tensors, hub_tensors
from engine.models.tensor_names import TensorNames
from engine.models.tensor_plan import check_table
from engine.quantization.gguf_encoders import UnquantizableError, quantize
from modelfiles.gguf import GGMLType, GGUFType, GGUFValue, NewTensor, open_shards, write_gguf
from modelfiles.safetensors import SafetensorsModel
from modelfiles.source import ModelSource

FILE_TYPE, VERSION = "general.file_type", "general.quantization_version"
QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION: how the blocks are laid out."""
DROPPED_PREFIXES = ("split.",)
"""Metadata of a source in several files; the result is one."""
PHI3_TOKEN = "<|endoftext|>"
"""Of Phi-3's own vocabulary; readers know by general.name, not by it, that special tokens take blanks along."""


@dataclass(frozen=True)
class _Plan:
    """A file that is to be written."""

    metadata: Mapping[str, GGUFValue]
    types: Mapping[str, GGUFType]
    tensors: Sequence[SourceTensor]
    tables: Sequence[NewTensor] = ()
    notes: tuple[str, ...] = ()


def write_quantized_gguf(
    source: ModelSource, target: Path, file_type: str, on_progress: Callable[[int, int], None]
) -> tuple[str, ...]:
    """Writes `target`, which is there whole or not at all.

    Args:
        file_type: a name in GGUF_FILE_TYPES, in whatever case.
        on_progress: called with the bytes read and the bytes of all tensors.

    Returns:
        Sentences about what the file has otherwise than its source.

    Raises:
        ConversionError: the source is quantised, or GGUF cannot hold it.
        ConfigError, TokenizerError, TensorPlanError, GGUFError, SafetensorsError: the source is broken.
    """
    row = GGUF_FILE_TYPES[file_type.lower()]
    config = ModelConfig.from_source(source)
    if source.format == "gguf":
        with open_shards(source.gguf_files) as model:
            check_is_float(model.tensors)
            metadata = {key: value for key, value in model.metadata.items() if not key.startswith(DROPPED_PREFIXES)}
            plan = _Plan(metadata, model.types, gguf_tensors(model))
            return _write(plan, config, target, row, on_progress)
    with SafetensorsModel.open(source.files) as hub:
        check_is_float(hub.tensors)
        names = TensorNames.detect(hub.tensors, is_gguf=False, has_post_norms=config.post_norms)
        check_table(config, names, hub.tensors)
        return _write(_hub_plan(source, hub, config), config, target, row, on_progress)


def _hub_plan(source: ModelSource, hub: SafetensorsModel, config: ModelConfig) -> _Plan:
    tensors = hub_tensors(hub, config)
    num_rows = next(tensor.shape[0] for tensor in tensors if tensor.name == "token_embd.weight")
    vocabulary = vocabulary_metadata(source, num_rows, config.eos_token_ids)
    description = describe(config, _name(config, vocabulary["tokenizer.ggml.tokens"]))
    metadata = {**description.metadata, **vocabulary}
    stand_ins = [NewTensor(tensor.name, tensor.shape, GGMLType.F32, b"") for tensor in tensors]
    tables = [NewTensor(name, (len(data) // 4,), GGMLType.F32, data) for name, data in description.tables.items()]
    check_description(config, description, [*stand_ins, *tables])
    return _Plan(metadata, TYPES, tensors, tables, description.notes)


def _name(config: ModelConfig, tokens: GGUFValue) -> str:
    """general.name, for want of a better one the family's. Phi-3's only where the vocabulary is its own, too."""
    if config.architecture != "phi3":
        return config.architecture
    return "Phi-3" if isinstance(tokens, list) and PHI3_TOKEN in tokens else "phi"


def _write(
    plan: _Plan, config: ModelConfig, target: Path, row: FileType, on_progress: Callable[[int, int], None]
) -> tuple[str, ...]:
    progress = Progress(sum(len(tensor.content.data) for tensor in plan.tensors), on_progress)
    has_output = any(tensor.name == "output.weight" for tensor in plan.tensors)

    def new_tensor(tensor: SourceTensor) -> NewTensor:
        type = GGMLType.F32 if len(tensor.shape) < 2 else tensor.content.type
        if is_quantizable(tensor.name, tensor.shape):
            type = tensor_type(
                row,
                tensor.name,
                tensor.shape[-1],
                num_layers=config.num_layers,
                heads_per_kv_head=config.num_heads // config.num_kv_heads,
                has_output=has_output,
            )
        return NewTensor(tensor.name, tensor.shape, type, lambda: _encoded(tensor, type, progress))

    metadata = {**plan.metadata, FILE_TYPE: row.number, VERSION: QUANTIZATION_VERSION}
    types = {**plan.types, FILE_TYPE: GGUFType.UINT32, VERSION: GGUFType.UINT32}
    with atomic_file(target) as path:
        write_gguf(path, metadata, [*plan.tables, *map(new_tensor, plan.tensors)], types=types)
    return plan.notes


def _encoded(tensor: SourceTensor, type: GGMLType, progress: Progress) -> Iterator[bytes]:
    """The tensor's bytes in the new file, piece by piece."""
    num_rows = tensor.content.num_rows
    bytes_per_row = len(tensor.content.data) // num_rows
    is_column = tensor.content.shape != tensor.shape  # a permuted bias, see source_tensors
    for values in tensor.pieces():
        try:
            blocks = quantize(type, values.view(1, -1) if is_column else values)
        except UnquantizableError as error:
            raise ConversionError(f'the tensor "{tensor.name}" {error}; the source is damaged or no model') from error
        yield blocks.numpy().tobytes()
        progress.advance(len(values) * bytes_per_row)
