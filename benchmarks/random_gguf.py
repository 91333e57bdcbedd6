"""A GGUF of random weights in llama.cpp's usual mixes of types, for measuring speed where no real model can be.

    python benchmarks/random_gguf.py FILE [--shape qwen3-0.6b] [--mix q4_k_m]

Blocks are drawn as bytes: codes at random, scales such that weights have about the spread of a trained model's. The
vocabulary is that of `random_model`. The same file runs in llama.cpp.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import random_model
from random_model import SPECIAL_TOKENS, STANDARD_DEVIATION, tokenizer

from modelfiles.gguf import BLOCK_LAYOUT, GGMLType, GGUFType, GGUFValue, NewTensor, write_gguf

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Shape(random_model.Shape):
    """Of a GGUF model. Qwen3's heads are normed; Qwen2's projections have biases instead."""

    architecture: str = "qwen3"
    is_tied: bool = True
    """Whether the head is the embedding."""

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each matrix by name."""
        hidden, query, kv = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        matrices = {"token_embd": (self.vocab_size, hidden)}
        if not self.is_tied:
            matrices["output"] = (self.vocab_size, hidden)
        for layer in range(self.num_layers):
            matrices |= {
                f"blk.{layer}.attn_q": (query, hidden),
                f"blk.{layer}.attn_k": (kv, hidden),
                f"blk.{layer}.attn_v": (kv, hidden),
                f"blk.{layer}.attn_output": (hidden, query),
                f"blk.{layer}.ffn_gate": (self.intermediate_size, hidden),
                f"blk.{layer}.ffn_up": (self.intermediate_size, hidden),
                f"blk.{layer}.ffn_down": (hidden, self.intermediate_size),
            }
        return matrices

    def vectors(self) -> dict[str, int]:
        """Widths of norms and biases by name."""
        vectors = {"output_norm.weight": self.hidden_size}
        for layer in range(self.num_layers):
            vectors |= {f"blk.{layer}.{name}.weight": self.hidden_size for name in ("attn_norm", "ffn_norm")}
            if self.architecture == "qwen3":
                vectors |= {f"blk.{layer}.{name}.weight": self.head_dim for name in ("attn_q_norm", "attn_k_norm")}
            else:
                kv = self.num_kv_heads * self.head_dim
                widths = {"attn_q": self.num_heads * self.head_dim, "attn_k": kv, "attn_v": kv}
                vectors |= {f"blk.{layer}.{name}.bias": width for name, width in widths.items()}
        return vectors

    def metadata(self) -> dict[str, GGUFValue]:
        name = self.architecture
        return {
            "general.architecture": name,
            f"{name}.context_length": self.max_position_embeddings,
            f"{name}.embedding_length": self.hidden_size,
            f"{name}.block_count": self.num_layers,
            f"{name}.feed_forward_length": self.intermediate_size,
            f"{name}.attention.head_count": self.num_heads,
            f"{name}.attention.head_count_kv": self.num_kv_heads,
            f"{name}.attention.key_length": self.head_dim,
            f"{name}.attention.value_length": self.head_dim,
            f"{name}.attention.layer_norm_rms_epsilon": 1e-6,
            f"{name}.rope.freq_base": 1e6,
        }

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(size) for size in self.matrices().values()) + sum(self.vectors().values())


SHAPES = {
    "qwen3-0.6b": Shape(28, 1024, 16, 8, 128, 3072, 151936, 4096),
    "qwen2.5-7b": Shape(**asdict(random_model.SHAPES["qwen2.5-7b"]), architecture="qwen2", is_tied=False),
    "small": Shape(4, 256, 4, 2, 64, 512, 1024, 4096),
}


def _q4_0(rng: np.random.Generator, num_blocks: int) -> Bytes:
    blocks = rng.integers(0, 256, (num_blocks, 18), dtype=np.uint8)
    _put(blocks, 0, STANDARD_DEVIATION / 4.6)
    return blocks


def _q8_0(rng: np.random.Generator, num_blocks: int) -> Bytes:
    blocks = rng.integers(0, 256, (num_blocks, 34), dtype=np.uint8)
    _put(blocks, 0, STANDARD_DEVIATION / 74)
    return blocks


def _q4_k(rng: np.random.Generator, num_blocks: int) -> Bytes:
    blocks = rng.integers(0, 256, (num_blocks, 144), dtype=np.uint8)
    blocks[:, 4:12], blocks[:, 12:16] = 161, 17  # all scales and minima of the sub-blocks are 33
    _put(blocks, 0, STANDARD_DEVIATION / 4.6 / 33)
    _put(blocks, 2, STANDARD_DEVIATION / 4.6 / 33 * 7.5)
    return blocks


def _q6_k(rng: np.random.Generator, num_blocks: int) -> Bytes:
    blocks = rng.integers(0, 256, (num_blocks, 210), dtype=np.uint8)
    blocks[:, 192:208] = 64
    _put(blocks, 208, STANDARD_DEVIATION / 18.5 / 64)
    return blocks


def _bf16(rng: np.random.Generator, num_blocks: int) -> Bytes:
    values = rng.standard_normal(num_blocks, dtype=np.float32) * np.float32(STANDARD_DEVIATION)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(-1, 2)


def _put(blocks: Bytes, start: int, value: float) -> None:
    blocks[:, start : start + 2] = np.frombuffer(np.float16(value).tobytes(), dtype=np.uint8)


DRAW: dict[GGMLType, Callable[[np.random.Generator, int], Bytes]] = {
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q4_K: _q4_k,
    GGMLType.Q6_K: _q6_k,
    GGMLType.BF16: _bf16,
}


def _has_more_bits(name: str, num_layers: int) -> bool:
    """Whether Q4_K_M keeps a matrix in Q6_K. Source: use_more_bits of llama-quant.cpp."""
    _, layer, role = name.split(".")
    number, eighth = int(layer), num_layers // 8
    is_chosen = number < eighth or number >= 7 * num_layers // 8 or (number - eighth) % 3 == 2
    return role in ("attn_v", "ffn_down") and is_chosen


def type_of(mix: str, name: str, shape: Shape) -> GGMLType:
    is_head = name == ("token_embd" if shape.is_tied else "output")
    if mix == "q4_k_m":
        has_more = is_head or (name.startswith("blk.") and _has_more_bits(name, shape.num_layers))
        return GGMLType.Q6_K if has_more else GGMLType.Q4_K
    if mix == "q4_0":
        return GGMLType.Q6_K if is_head else GGMLType.Q4_0
    return {"q8_0": GGMLType.Q8_0, "bf16": GGMLType.BF16}[mix]


MIXES = ("q4_k_m", "q4_0", "q8_0", "bf16")


def write_model(path: Path, shape: Shape, mix: str, seed: int = 0) -> None:
    """Writes the file under another name first, so that what is there is whole."""
    part = path.with_suffix(".part")
    tensors = [
        NewTensor(name, (width,), GGMLType.F32, np.full(width, name.endswith("weight"), dtype=np.float32).tobytes())
        for name, width in shape.vectors().items()
    ]
    for number, (name, size) in enumerate(shape.matrices().items()):
        type = type_of(mix, name, shape)
        num_blocks = math.prod(size) // BLOCK_LAYOUT[type][0]
        draw = partial(_bytes_of, DRAW[type], [seed, number], num_blocks)
        tensors.append(NewTensor(f"{name}.weight", size, type, draw))
    types = {"tokenizer.ggml.token_type": GGUFType.INT32}  # llama.cpp reads no other
    write_gguf(part, shape.metadata() | vocabulary(shape.vocab_size), tensors, types=types)
    part.rename(path)


def _bytes_of(draw: Callable[[np.random.Generator, int], Bytes], seed: list[int], num_blocks: int) -> memoryview:
    return memoryview(draw(np.random.default_rng(seed), num_blocks).reshape(-1))


def vocabulary(vocab_size: int) -> dict[str, GGUFValue]:
    model = tokenizer(vocab_size)["model"]
    num_plain = len(model["vocab"])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [*model["vocab"], *SPECIAL_TOKENS],
        "tokenizer.ggml.token_type": [1] * num_plain + [3] * len(SPECIAL_TOKENS),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.eos_token_id": vocab_size - 1,
        "tokenizer.ggml.add_bos_token": False,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen3-0.6b")
    parser.add_argument("--mix", choices=MIXES, default="q4_k_m")
    args = parser.parse_args()
    write_model(args.file, SHAPES[args.shape], args.mix)


if __name__ == "__main__":
    main()
