"""A checkpoint of a real model's shape with random weights: what speed needs, and nothing that must be downloaded.

    python benchmarks/random_model.py FOLDER [--shape qwen2.5-7b] [--device cuda]

Weights are drawn from N(0, 0.02) as most models are initialised, which keeps logits finite and makes a token's
successor as good as random, so greedy text does not end in one word for ever. The rows of the head that belong to the
special tokens are zero: these are never the likeliest token, so no answer ends early. The tokenizer is byte-level BPE
over invented words of up to three syllables, with as many tokens as the head has rows. Shards are drawn on the device
and written by several threads; config.json comes last and marks a folder that is complete.
Source of the shape: config.json of Qwen/Qwen2.5-7B-Instruct. Used by benchmarks/gpu.py and its tests.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, BinaryIO

import torch

STANDARD_DEVIATION = 0.02
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NUM_BYTES = 256
SYLLABLES = tuple(a + b for a, b in product("bdfghjklmnprstvwxzcq", "aeiou"))
FIRST_WORD = NUM_BYTES + len(SYLLABLES)
"""Token ids from here to the special tokens are words with a space before them; any row of them encodes to itself."""
SPACE = "\u0120"
"""A space, as byte-level BPE writes it."""
NUM_WRITERS = 8

CHAT_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@dataclass(frozen=True)
class Shape:
    """What decides how fast a model is."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "num_hidden_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "attention_dropout": 0.0,
            "initializer_range": STANDARD_DEVIATION,
            "torch_dtype": "bfloat16",
            "bos_token_id": self.vocab_size - 3,
            "eos_token_id": self.vocab_size - 1,
        }

    def shards(self) -> list[dict[str, tuple[int, ...]]]:
        """Shape of each tensor by name, a dictionary a file: the embedding, each few layers, norm and head."""
        hidden, query, kv = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shards: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (self.vocab_size, hidden)}]
        layers_a_shard = -(-self.num_layers // NUM_WRITERS)
        for number in range(self.num_layers):
            if number % layers_a_shard == 0:
                shards.append({})
            layer = f"model.layers.{number}"
            shards[-1] |= {
                f"{layer}.input_layernorm.weight": (hidden,),
                f"{layer}.self_attn.q_proj.weight": (query, hidden),
                f"{layer}.self_attn.q_proj.bias": (query,),
                f"{layer}.self_attn.k_proj.weight": (kv, hidden),
                f"{layer}.self_attn.k_proj.bias": (kv,),
                f"{layer}.self_attn.v_proj.weight": (kv, hidden),
                f"{layer}.self_attn.v_proj.bias": (kv,),
                f"{layer}.self_attn.o_proj.weight": (hidden, query),
                f"{layer}.post_attention_layernorm.weight": (hidden,),
                f"{layer}.mlp.gate_proj.weight": (self.intermediate_size, hidden),
                f"{layer}.mlp.up_proj.weight": (self.intermediate_size, hidden),
                f"{layer}.mlp.down_proj.weight": (hidden, self.intermediate_size),
            }
        shards.append({"model.norm.weight": (hidden,), "lm_head.weight": (self.vocab_size, hidden)})
        return shards


SHAPES = {
    "qwen2.5-7b": Shape(28, 3584, 28, 4, 128, 18944, 152064, 32768),
    "tiny": Shape(2, 64, 4, 2, 16, 128, 1024, 2048),
}


def ensure_model(folder: Path, shape: Shape, device: str = "cpu") -> bool:
    """Writes the model unless it is there whole; returns whether it was written."""
    if is_complete(folder, shape):
        return False
    write_model(folder, shape, device)
    return True


def is_complete(folder: Path, shape: Shape) -> bool:
    """Whether the folder holds a model of this shape. A folder with another model in it is not one of ours."""
    config = folder / "config.json"
    return config.exists() and json.loads(config.read_text("utf-8")) == shape.config


def write_model(folder: Path, shape: Shape, device: str = "cpu", seed: int = 0) -> None:
    """Writes all files; the same seed and kind of device give the same weights.

    Raises:
        FileExistsError: the folder holds the configuration of another model.
    """
    begin_folder(folder, shape)
    shards = shape.shards()
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        jobs = [
            pool.submit(_write_shard, folder / name, shard, device, seed * len(shards) + number)
            for number, (name, shard) in enumerate(zip(names, shards, strict=True))
        ]
        total = sum(job.result() for job in jobs)
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    end_folder(folder, weight_map, total, shape.config)


def begin_folder(folder: Path, shape: Shape) -> None:
    """Writes all but weights and configuration.

    Raises:
        FileExistsError: as `write_model`.
    """
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} holds another model; name a new folder or delete this one")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "tokenizer.json", tokenizer(shape.vocab_size))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE,
        },
    )
    ends = [shape.vocab_size - 1, shape.vocab_size - 3]
    _write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": ends, "pad_token_id": ends[1]})


def end_folder(folder: Path, weight_map: dict[str, str], total_bytes: int, config: dict[str, Any]) -> None:
    """Writes the index of the shards, and the configuration last."""
    metadata = {"total_size": total_bytes}
    _write_json(folder / "model.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map})
    _write_json(folder / "config.json", config)


def _write_shard(path: Path, tensors: dict[str, tuple[int, ...]], device: str, seed: int) -> int:
    """Draws and writes a file; returns the bytes of its tensors."""
    generator = torch.Generator(device).manual_seed(seed)
    with path.open("wb") as file:
        total = write_header(file, {name: ("BF16", shape, 2 * math.prod(shape)) for name, shape in tensors.items()})
        for name, shape in tensors.items():
            file.write(drawn(name, shape, generator))
    return total


def write_header(file: BinaryIO, tensors: dict[str, tuple[str, tuple[int, ...], int]]) -> int:
    """Writes what begins a safetensors file; returns the bytes of its tensors.

    Args:
        tensors: name -> (type, shape, bytes).
    """
    header, offset = {}, 0
    for name, (dtype, shape, num_bytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    return offset


def drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> memoryview:
    """The bytes of a bfloat16 tensor."""
    tensor = torch.ones(shape, dtype=torch.bfloat16, device=generator.device)
    if "norm" not in name:
        tensor.normal_(0.0, STANDARD_DEVIATION, generator=generator)
    if name == "lm_head.weight":
        tensor[-len(SPECIAL_TOKENS) :] = 0.0
    return memoryview(tensor.view(torch.uint8).cpu().numpy()).cast("B")


# ---- tokenizer


def tokenizer(vocab_size: int) -> dict[str, Any]:
    """tokenizer.json with exactly `vocab_size` tokens: bytes, syllables, words, and the special tokens last."""
    vocab = {character: byte for byte, character in enumerate(_byte_alphabet())}
    merges: list[list[str]] = []
    for left, right in islice(_pairs(), vocab_size - NUM_BYTES - len(SPECIAL_TOKENS)):
        merges.append([left, right])
        vocab[left + right] = len(vocab)
    first = vocab_size - len(SPECIAL_TOKENS)
    assert len(vocab) == first, "there are too few invented words"
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": first + index, "content": token, **flags} for index, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _pairs() -> Iterator[tuple[str, str]]:
    """Merges in the order of their rank: letters to syllables, then words syllable by syllable from their space on."""
    yield from ((syllable[0], syllable[1]) for syllable in SYLLABLES)
    yield from product((SPACE,), SYLLABLES)
    for num_more in (1, 2):
        for syllables in product(SYLLABLES, repeat=num_more + 1):
            yield SPACE + "".join(syllables[:-1]), syllables[-1]


def _byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen2.5-7b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    ensure_model(args.folder, SHAPES[args.shape], args.device)


if __name__ == "__main__":
    main()
