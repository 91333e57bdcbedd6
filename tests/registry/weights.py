"""Weights of a few bytes, written with the project's own writer or by hand: sound ones, to be damaged by tests."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from modelfiles.gguf import GGMLType, NewTensor, write_gguf

LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.file_type": 1,
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.attention.head_count": 2,
}
LORA: dict[str, Any] = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
PROJECTOR: dict[str, Any] = {"general.architecture": "clip"}

CONFIG: dict[str, Any] = {"model_type": "llama", "max_position_embeddings": 128, "hidden_size": 8}


def gguf_bytes(folder: Path, metadata: dict[str, Any] | None = None, name: str = "token_embd.weight") -> bytes:
    """A GGUF file of one tensor of 2 x 32 halves."""
    path = folder / "scratch.gguf"
    write_gguf(path, metadata or LLAMA, [NewTensor(name, (2, 32), GGMLType.F16, bytes(128))])
    data = path.read_bytes()
    path.unlink()
    return data


def safetensors_bytes(name: str = "w", dtype: str = "BF16") -> bytes:
    """A safetensors file of one tensor of 3 x 4 elements of two bytes."""
    header = json.dumps({name: {"dtype": dtype, "shape": [3, 4], "data_offsets": [0, 24]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(24)


def write_files(folder: Path, files: dict[str, bytes]) -> dict[str, Path]:
    """Files on disk under names that say nothing, as in the store: name -> path."""
    paths = {}
    for index, (name, data) in enumerate(files.items()):
        paths[name] = folder / f"blob-{index}"
        paths[name].write_bytes(data)
    return paths
