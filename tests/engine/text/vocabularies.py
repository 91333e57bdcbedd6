"""Small vocabularies of every kind of tokenizer, made on the spot."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from engine.text.vocabulary import byte_alphabet

CORPUS = (
    "the cat sat on the mat. the dog ate the cat food, and then the dog sat on the log; hello, hello world! "
    "naïve café 🦙🦙 привет мир aaaa aaa aa a ==== === == the theme of these there thesis"
)


def byte_level_metadata(**changes: Any) -> dict[str, Any]:
    """GGUF metadata of a byte-level BPE: 256 bytes, some merges, two control tokens, a user-defined one."""
    tokens = list(byte_alphabet().values())
    merges = ["t h", "th e", "Ġ the", "h e", "l l", "he ll", "hell o", "Ġ hello", "a a", "aa aa"]
    for merge in merges:
        tokens.append(merge.replace(" ", ""))
    tokens += ["<|bos|>", "<|im_end|>", "<think>"]
    num_tokens = len(tokens)
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (num_tokens - 3) + [3, 3, 4],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": num_tokens - 3,
        "tokenizer.ggml.eos_token_id": num_tokens - 2,
    }
    return changed(metadata, changes)


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    """GGUF metadata of a SentencePiece BPE with byte fallback, its pieces taken from a corpus by frequency."""
    counts: Counter[str] = Counter()
    for word in re.findall(r"\S+|\s+", CORPUS):
        spelled = "▁" + word if not word.isspace() else word.replace(" ", "▁")
        for start in range(len(spelled)):
            for end in range(start + 2, min(len(spelled), start + 6) + 1):
                counts[spelled[start:end]] += 1
    pieces = [piece for piece, count in counts.most_common(120) if count > 1]
    characters = sorted(set(CORPUS.replace(" ", "▁")) - set("🦙é"))
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + pieces + characters
    num_special = 3 + 256
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * num_special + [-float(rank) for rank in range(len(tokens) - num_special)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - num_special),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return changed(metadata, changes)


def changed(metadata: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Metadata with `tokenizer.ggml.` keys replaced, or dropped where the new value is None."""
    for key, value in changes.items():
        metadata["tokenizer.ggml." + key] = value
    return {key: value for key, value in metadata.items() if value is not None}


def write_files(folder: Path, files: dict[str, Any]) -> Path:
    """A model's folder: text as it is, bytes as they are, anything else as JSON; weights are an empty file."""
    folder.mkdir(exist_ok=True)
    for name, content in {"model.safetensors": b"", **files}.items():
        data = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content))
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


@cache
def tokenizer_json() -> str:
    """A small byte-level tokenizer.json with special and added tokens, a BOS template and a request to cut inputs."""
    metadata = byte_level_metadata()
    tokens = metadata["tokenizer.ggml.tokens"][:-3]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|bos|>"), AddedToken("<|im_end|>")])
    tokenizer.add_tokens([AddedToken("<think>")])
    bos_id = tokenizer.token_to_id("<|bos|>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", bos_id)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    return tokenizer.to_str()
