"""A quantised safetensors checkpoint of random codes, for measuring speed where no real model can be.

    python benchmarks/random_quantized.py FOLDER [--shape qwen2.5-7b] [--form awq] [--device cuda]

Codes are drawn as bytes, scales such that weights have about the spread of a trained model's; embedding and head are
those of `random_model`, whose shapes and vocabulary these are. A layer is drawn once and written as every layer, which
no measurement can tell: what a layer reads is long gone from the caches when the next one comes. Used by `gpu_quant`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_model import (
    NUM_WRITERS,
    SHAPES,
    STANDARD_DEVIATION,
    Shape,
    begin_folder,
    drawn,
    end_folder,
    write_header,
)


@dataclass(frozen=True)
class Stored:
    """A tensor of a file."""

    type: str
    shape: tuple[int, ...]
    data: memoryview

    @classmethod
    def of(cls, type: str, array: np.ndarray[Any, Any]) -> Stored:
        return cls(type, array.shape, memoryview(np.ascontiguousarray(array).reshape(-1)).cast("B"))


Matrix = Callable[[np.random.Generator, int, int, int], dict[str, Stored]]
"""(generator, rows, columns, group) -> its tensors, by the last part of their names."""


def _fp8(generator: np.random.Generator, rows: int, columns: int, group: int) -> dict[str, Stored]:
    codes = generator.integers(0, 256, (rows, columns), dtype=np.uint8)
    codes[(codes & 127) == 127] = 0  # NaN
    scales = np.full((rows, 1), STANDARD_DEVIATION / 107, dtype=np.float32)
    return {"weight": Stored.of("F8_E4M3", codes), "weight_scale": Stored.of("F32", scales)}


def _awq(generator: np.random.Generator, rows: int, columns: int, group: int) -> dict[str, Stored]:
    codes = generator.integers(-(1 << 31), 1 << 31, (columns, rows // 8), dtype=np.int32)
    zeros = np.full((columns // group, rows // 8), 0x88888888 - (1 << 32), dtype=np.int32)
    scales = np.full((columns // group, rows), STANDARD_DEVIATION / 4.6, dtype=np.float16)
    return {
        "qweight": Stored.of("I32", codes),
        "qzeros": Stored.of("I32", zeros),
        "scales": Stored.of("F16", scales),
    }


def _fp8_config(group: int) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": groups,
        "ignore": ["lm_head"],
    }


def _awq_config(group: int) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}


FORMS: dict[str, tuple[Matrix, Callable[[int], dict[str, Any]]]] = {
    "fp8": (_fp8, _fp8_config),
    "awq": (_awq, _awq_config),
}
"""How matrices are drawn, and the quantization_config that says so."""


def ensure_quantized(folder: Path, shape: Shape, form: str, device: str = "cpu") -> bool:
    """Writes the model unless it is there whole; returns whether it was written."""
    config = shape.config | {"quantization_config": FORMS[form][1](_group(shape))}
    there = folder / "config.json"
    if there.exists() and json.loads(there.read_text("utf-8")) == config:
        return False
    begin_folder(folder, shape)
    outer: dict[str, tuple[int, ...]] = {}
    layer: dict[str, tuple[int, ...]] = {}
    for tensors in shape.shards():
        for name, size in tensors.items():
            if not name.startswith("model.layers."):
                outer[name] = size
            elif name.startswith("model.layers.0."):
                layer[name.removeprefix("model.layers.0.")] = size
    generator = torch.Generator(device).manual_seed(0)
    stored = _layer(layer, form, _group(shape), generator)
    shards = {
        f"layer-{number:03}.safetensors": (f"model.layers.{number}.", stored) for number in range(shape.num_layers)
    }
    plain = {name: Stored("BF16", size, drawn(name, size, generator)) for name, size in outer.items()}
    shards["outer.safetensors"] = "", plain
    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        total = sum(pool.map(lambda name: _write(folder / name, *shards[name]), shards))
    weight_map = {prefix + name: file for file, (prefix, tensors) in shards.items() for name in tensors}
    end_folder(folder, weight_map, total, config)
    return True


def _group(shape: Shape) -> int:
    """Columns that share a scale, where rows are cut into groups."""
    return math.gcd(128, shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_dim)


def _layer(layer: dict[str, tuple[int, ...]], form: str, group: int, generator: torch.Generator) -> dict[str, Stored]:
    """The tensors of a layer by their names within it, of which matrices become several."""
    draw, codes = FORMS[form][0], np.random.default_rng(0)
    stored: dict[str, Stored] = {}
    for name, size in layer.items():
        if len(size) == 2:
            parts = draw(codes, *size, group)
            stored |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}
        else:
            stored[name] = Stored("BF16", size, drawn(name, size, generator))
    return stored


def _write(path: Path, prefix: str, tensors: dict[str, Stored]) -> int:
    with path.open("wb") as file:
        total = write_header(
            file, {prefix + name: (one.type, one.shape, one.data.nbytes) for name, one in tensors.items()}
        )
        for tensor in tensors.values():
            file.write(tensor.data)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen2.5-7b")
    parser.add_argument("--form", choices=list(FORMS), default="awq")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    ensure_quantized(args.folder, SHAPES[args.shape], args.form, args.device)


if __name__ == "__main__":
    main()
