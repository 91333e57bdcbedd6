"""A GGUF of random weights in llama.cpp's usual mixes of types, for measuring speed where no real model can be.

    python benchmarks/random_gguf.py FILE [--shape qwen3-0.6b] [--mix q4_k_m]

Blocks are drawn as bytes: codes at random, scales such that weights have about the spread of a trained model's. The
vocabulary is that of `random_model`. The same file runs in llama.cpp.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from random_model import SPECIAL_TOKENS, STANDARD_DEVIATION, tokenizer

Bytes = npt.NDArray[np.uint8]
Type = gguf.GGMLQuantizationType


@dataclass(frozen=True)
class Shape:
    """What decides how fast a model is; its head is its embedding."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each matrix by name."""
        hidden, query, kv = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        matrices = {"token_embd": (self.vocab_size, hidden)}
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

    @property
    def num_parameters(self) -> int:
        return sum(rows * columns for rows, columns in self.matrices().values())


SHAPES = {
    "qwen3-0.6b": Shape(28, 1024, 16, 8, 128, 3072, 151936),
    "small": Shape(4, 256, 4, 2, 64, 512, 1024),
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


DRAW: dict[Type, Callable[[np.random.Generator, int], Bytes]] = {
    Type.Q4_0: _q4_0,
    Type.Q8_0: _q8_0,
    Type.Q4_K: _q4_k,
    Type.Q6_K: _q6_k,
    Type.BF16: _bf16,
}


def _has_more_bits(name: str, num_layers: int) -> bool:
    """Whether Q4_K_M keeps a matrix in Q6_K. Source: use_more_bits of llama-quant.cpp."""
    if name == "token_embd":
        return True
    _, layer, role = name.split(".")
    number, eighth = int(layer), num_layers // 8
    is_chosen = number < eighth or number >= 7 * num_layers // 8 or (number - eighth) % 3 == 2
    return role in ("attn_v", "ffn_down") and is_chosen


def _type_of(mix: str, name: str, num_layers: int) -> Type:
    if mix == "q4_k_m":
        return Type.Q6_K if _has_more_bits(name, num_layers) else Type.Q4_K
    if mix == "q4_0":
        return Type.Q6_K if name == "token_embd" else Type.Q4_0
    return {"q8_0": Type.Q8_0, "bf16": Type.BF16}[mix]


MIXES = ("q4_k_m", "q4_0", "q8_0", "bf16")


def write_gguf(path: Path, shape: Shape, mix: str, seed: int = 0) -> None:
    """Writes the file under another name first, so that what is there is whole."""
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "qwen3", use_temp_file=False)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    _add_vocabulary(writer, shape.vocab_size)
    rng = np.random.default_rng(seed)
    norms = {"output_norm": shape.hidden_size}
    for layer in range(shape.num_layers):
        norms |= {f"blk.{layer}.{name}": shape.hidden_size for name in ("attn_norm", "ffn_norm")}
        norms |= {f"blk.{layer}.{name}": shape.head_dim for name in ("attn_q_norm", "attn_k_norm")}
    for name, width in norms.items():
        writer.add_tensor(f"{name}.weight", np.ones(width, dtype=np.float32))
    for name, (num_rows, num_columns) in shape.matrices().items():
        type = _type_of(mix, name, shape.num_layers)
        elements, _ = gguf.GGML_QUANT_SIZES[type]
        blocks = DRAW[type](rng, num_rows * num_columns // elements)
        writer.add_tensor(f"{name}.weight", blocks.reshape(num_rows, -1), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


def _add_vocabulary(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    model = tokenizer(vocab_size)["model"]
    tokens = [*model["vocab"], *SPECIAL_TOKENS]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(model["vocab"]) + [3] * len(SPECIAL_TOKENS))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen3-0.6b")
    parser.add_argument("--mix", choices=MIXES, default="q4_k_m")
    args = parser.parse_args()
    write_gguf(args.file, SHAPES[args.shape], args.mix)


if __name__ == "__main__":
    main()
