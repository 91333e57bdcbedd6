"""LoRA adapters written by hand, in PEFT's layout and in llama.cpp's, and models with one merged into their weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from modelfiles.gguf import GGMLType, NewTensor, write_gguf

Tensor = torch.Tensor
Updates = Mapping[str, tuple[Tensor, Tensor]]
"""Module of the base, such as "model.layers.0.self_attn.q_proj" -> A [rank, columns], B [rows, rank]."""

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
EVERYTHING = (*ATTENTION, *MLP)
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def random_updates(
    base: Path, targets: Iterable[str] = EVERYTHING, *, rank: int = 4, seed: int = 1, size: float = 0.3
) -> dict[str, tuple[Tensor, Tensor]]:
    """For matrices of a model in the hub's layout; `size` is that of B A beside the matrix it is for."""
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for name, weight in sorted(load_file(base / "model.safetensors").items()):
        module = name.removesuffix(".weight")
        if any(module.endswith(f".{target}") for target in targets):
            rows, columns = weight.shape
            a = torch.randn(rank, columns, generator=generator) / columns**0.5
            b = torch.randn(rows, rank, generator=generator)
            b *= size * weight.float().norm() / (b @ a).norm()
            updates[module] = (a, b)
    assert updates
    return updates


def write_peft(
    folder: Path, updates: Updates, *, alpha: float, dtype: torch.dtype = torch.float32, **config: Any
) -> Path:
    """An adapter as PEFT's save_pretrained lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (a, b) in updates.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.to(dtype).contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.to(dtype).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = next(iter(updates.values()))[0].shape[0]
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "task_type": "CAUSAL_LM"}
    settings |= {"modules_to_save": None, "init_lora_weights": True, "rank_pattern": {}, "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


def write_gguf_adapter(
    path: Path, updates: Updates, *, alpha: float, heads: Mapping[str, int], **metadata: Any
) -> Path:
    """An adapter as llama.cpp's convert_lora_to_gguf.py writes it for Llama.

    Args:
        heads: of "self_attn.q_proj" and "self_attn.k_proj", whose rows are put into the order of neighbours.
    """
    tensors = []
    for module, (a, b) in updates.items():
        _, _, layer, target = module.split(".", 3)
        if target in heads:
            halves = b.view(heads[target], 2, -1, b.shape[1])
            b = halves.transpose(1, 2).reshape(b.shape)
        name = f"blk.{layer}.{GGUF_NAMES[target]}.weight"
        for suffix, tensor in (("lora_a", a), ("lora_b", b)):
            data = tensor.float().contiguous().numpy().tobytes()
            tensors.append(NewTensor(f"{name}.{suffix}", tuple(tensor.shape), GGMLType.F32, data))
    header = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    write_gguf(path, header | {"adapter.lora.alpha": float(alpha)} | metadata, tensors)
    return path


def merge(base: Path, folder: Path, *changes: tuple[Updates, float]) -> Path:
    """The base with adapters merged into its weights by hand: updates, each with its scale."""
    shutil.copytree(base, folder)
    tensors = {name: tensor.float() for name, tensor in load_file(base / "model.safetensors").items()}
    for updates, scale in changes:
        for module, (a, b) in updates.items():
            tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + scale * (b.double() @ a.double()).float()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def adapter_files(*paths: Path) -> dict[str, str]:
    """Files of one or several adapters, as AddAdapter takes them."""
    files = {}
    for number, path in enumerate(paths):
        prefix = f"{number}/" if len(paths) > 1 else ""
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        files |= {f"{prefix}{file.name}": str(file) for file in found}
    return files
