"""stories3M padded with zeros to a width of 256, so that every row is a whole number of K-quant blocks.

The same function as the original: a RMSNorm over more elements sees smaller squares, which its weights and its epsilon
make up for, and two heads of eight give zeros. `data/models/stories3M-pad256/gguf` are llama.cpp's quantisations of
these weights; ours are compared with them by `quantize_quality.py` and by tests.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WIDTH, NUM_HEADS = 256, 8
Tensor = torch.Tensor


def write_padded_stories(original: Path, folder: Path) -> Path:
    """Write the padded model into `folder` as safetensors in float32.

    Args:
        original: stories3M in the layout of the Hugging Face hub.
    """
    folder.mkdir(parents=True)
    config = json.loads((original / "config.json").read_text())
    width, num_heads, num_kv_heads = (
        config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    head_dim = width // num_heads
    shrink = width / WIDTH
    padded = {
        name: _padded(name, tensor, shrink, head_dim, num_heads // num_kv_heads)
        for name, tensor in load_file(original / "model.safetensors").items()
    }
    changes = {
        "hidden_size": WIDTH,
        "num_attention_heads": NUM_HEADS,
        "head_dim": head_dim,
        "rms_norm_eps": config["rms_norm_eps"] * shrink,
    }
    save_file(padded, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | changes))
    for path in original.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, folder / path.name)
    return folder


def _padded(name: str, tensor: Tensor, shrink: float, head_dim: int, group: int) -> Tensor:
    if tensor.ndim == 1:
        return _with_zeros(tensor * shrink**0.5, WIDTH, 0)
    if "q_proj" in name:
        return _with_zeros(_padded_heads(tensor, head_dim, group), WIDTH, 1)
    if "o_proj" in name:
        return _with_zeros(_padded_heads(tensor.t(), head_dim, group).t(), WIDTH, 0).contiguous()
    return _with_zeros(tensor, WIDTH, 0 if "down_proj" in name else 1)


def _padded_heads(rows: Tensor, head_dim: int, group: int) -> Tensor:
    """One head of zeros behind the `group` heads of each KV head."""
    heads = rows.unflatten(0, (-1, group, head_dim))
    zeros = heads.new_zeros(len(heads), NUM_HEADS // len(heads) - group, head_dim, rows.shape[1])
    return torch.cat([heads, zeros], dim=1).flatten(0, 2)


def _with_zeros(tensor: Tensor, size: int, dim: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim).contiguous()
