"""Quantising a stored model, as the worker is told to by messages.Quantize; also the way in for scripts.

A model is written into a folder, tensor by tensor, with at most a piece of one in memory beside the memory map. Files
get their names when they are whole. Cancelling is the end of the process; whoever made the folder removes it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from engine.any_config import is_encoder
from engine.conversion.errors import ConversionError
from engine.conversion.file_types import SAFETENSORS_FILE_TYPES, parse_file_type
from engine.conversion.gguf_job import write_quantized_gguf
from engine.conversion.safetensors_job import write_quantized_safetensors
from engine.messages import Quantize, Quantized
from modelfiles.source import ModelSource

GGUF_FILE = "model.gguf"


def quantize_model(message: Quantize, on_progress: Callable[[int, int], None]) -> Quantized:
    """Does what the message says.

    Raises:
        FileTypeError: the type is unknown.
        ConversionError: the model cannot become that.
        ConfigError, TokenizerError, TensorPlanError, GGUFError, SafetensorsError: its files are broken.
        OSError: the disk refused.
    """
    if message.num_threads:
        torch.set_num_threads(message.num_threads)
    source = ModelSource({name: Path(path) for name, path in message.files.items()})
    file_type = parse_file_type(message.file_type)
    if is_encoder(source):
        raise ConversionError(
            "models that read and do not write (BERT and its kin) are small and are not quantised; leave quantize out"
        )
    folder = Path(message.folder)
    if file_type in SAFETENSORS_FILE_TYPES:
        written = write_quantized_safetensors(source, folder, file_type, on_progress)
        return Quantized(files={path.name: str(path) for path in written})
    notes = write_quantized_gguf(source, folder / GGUF_FILE, file_type, on_progress)
    return Quantized(files={GGUF_FILE: str(folder / GGUF_FILE)}, notes=list(notes))
