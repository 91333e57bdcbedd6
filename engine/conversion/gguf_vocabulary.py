"""A Hugging Face tokenizer as GGUF metadata: the inverse of `engine.text.gguf_tokenizer`.

Two kinds of vocabulary become GGUF: byte-level BPE ("gpt2"), and SentencePiece's BPE ("llama"), be it in
tokenizer.model or, with a merge list for scores, in tokenizer.json. GGUF names a pre-tokenizer where tokenizer.json
spells its expression out; the name is found by trying: probes must come out as the same ids. Used by `gguf_job`.

Source: ggml's docs/gguf.md; the vocabularies of convert_hf_to_gguf.py (llama.cpp), get_vocab_base_pre for the idea of
probing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.conversion.errors import ConversionError
from engine.text.gguf_tokenizer import ID_KEYS, PREFIX
from engine.text.hf_tokenizer import tokenizer_parts_from_files
from engine.text.parts import TokenizerParts
from engine.text.pre_tokenizers import PRE_TOKENIZERS
from engine.text.sentencepiece_model import read_sentencepiece_model
from engine.text.tokenizer import Tokenizer
from engine.text.vocabulary import BYTE_TOKEN, TokenType
from modelfiles.gguf import GGUFType, GGUFValue
from modelfiles.source import ModelSource

PRE_TOKENIZER_NAMES = (
    "llama-bpe", "qwen2", "gpt-2", "smollm", "tekken", "gpt-4o", "falcon3", "dbrx", "deepseek-llm", "deepseek-coder",
    "deepseek-v3", "qwen35", "falcon", "viking", "poro-chat", "default",
)  # fmt: skip
"""Tried in this order, after those whose expression tokenizer.json spells out."""
PROBES = (
    "Hello, world! It's 3.14159 o'clock; we'll see 1234567 of THEM, don't you?\n\n\nNew line\tand  tabs   spaces ",
    "for (int i = 0; i < 10; ++i) { x[i] += 0xFF; }  // camelCase HTTPServer snake_case\r\n",
    "Ünïcödé naïve café, Привет мир, 你好世界 2024年, こんにちは, مرحبا, 🦙🙂 ½ ²",
)
ADDED_SCORE = -1000.0
"""What llama.cpp's converter writes for tokens outside the trained vocabulary; they are found as they are spelled."""
END_KEYS = ("eot_token_id", "eom_token_id")
TYPES = {
    f"{PREFIX}token_type": GGUFType.INT32,
    f"{PREFIX}scores": GGUFType.FLOAT32,
    f"{PREFIX}merges": GGUFType.STRING,
}


@dataclass
class _Token:
    text: str
    type: TokenType
    score: float = ADDED_SCORE


def vocabulary_metadata(source: ModelSource, num_rows: int, end_ids: Sequence[int]) -> dict[str, GGUFValue]:
    """The keys of a tokenizer, with as many tokens as the embedding has rows; `TYPES` has those of its arrays.

    Args:
        end_ids: what the model's configuration calls an end of text.

    Raises:
        ConversionError: GGUF has no such tokenizer, or it would encode text in another way there.
        TokenizerError: the tokenizer's files are broken.
    """
    parts = tokenizer_parts_from_files(source)
    description = _read_json(source, "tokenizer.json")
    common = _special_tokens(parts, num_rows, end_ids)
    model = description.get("model") or {}
    if "tokenizer.model" in source.files:
        candidates = iter([_from_sentencepiece(source, description, num_rows)])
    elif model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise ConversionError(f"a tokenizer of the type {model.get('type')} cannot become GGUF; BPE can")
    elif "ByteLevel" in set(_node_types([description.get("pre_tokenizer"), description.get("decoder")])):
        candidates = _from_byte_level(description, num_rows)
    else:
        candidates = iter([_from_merges(description, num_rows)])
    wanted = Tokenizer(parts)
    for candidate in candidates:
        metadata = {**candidate, **common}
        if _encodes_alike(metadata, wanted):
            return metadata
    raise ConversionError(
        "the tokenizer would encode text in another way as GGUF, whose readers know no such pre-tokenizer; leave "
        "quantize out, or take fp8 or int8"
    )


def _encodes_alike(metadata: Mapping[str, GGUFValue], wanted: Tokenizer) -> bool:
    tokenizer = Tokenizer.from_gguf(metadata)
    return all(
        tokenizer.encode(probe, parse_special=False) == wanted.encode(probe, parse_special=False) for probe in PROBES
    )


def _special_tokens(parts: TokenizerParts, num_rows: int, end_ids: Sequence[int]) -> dict[str, GGUFValue]:
    metadata: dict[str, GGUFValue] = {}
    for name, key in ID_KEYS.items():
        token_id = parts.encoder.token_id(parts.special_tokens.get(name, ""))
        if token_id is not None and token_id < num_rows:
            metadata[PREFIX + key] = token_id
    others = [token_id for token_id in end_ids if token_id != metadata.get(f"{PREFIX}eos_token_id")]
    if others and f"{PREFIX}eos_token_id" not in metadata:
        metadata[f"{PREFIX}eos_token_id"] = others.pop(0)
    metadata |= {PREFIX + key: token_id for key, token_id in zip(END_KEYS, others, strict=False)}
    metadata[f"{PREFIX}add_bos_token"] = parts.bos_id is not None and parts.bos_id in parts.prefix_ids
    metadata[f"{PREFIX}add_eos_token"] = bool(parts.suffix_ids)
    if parts.chat_template:
        metadata["tokenizer.chat_template"] = parts.chat_template
    return metadata


# ---- the three kinds


def _from_sentencepiece(source: ModelSource, description: Mapping[str, Any], num_rows: int) -> dict[str, GGUFValue]:
    model = read_sentencepiece_model(source.files["tokenizer.model"].read_bytes())
    if not model.is_bpe:
        raise ConversionError("a unigram tokenizer.model cannot become the GGUF of a text model; BPE can")
    vocabulary = model.vocabulary
    tokens = {
        token_id: _Token(text, TokenType(vocabulary.types[token_id]), vocabulary.score(token_id))
        for token_id, text in enumerate(vocabulary.tokens)
    }
    tokens |= _added_tokens(source, description)
    return _as_llama(tokens, num_rows, adds_space=model.add_space_prefix)


def _from_merges(description: Mapping[str, Any], num_rows: int) -> dict[str, GGUFValue]:
    """SentencePiece's BPE out of a tokenizer.json, where the merge list stands for the scores: earlier is better."""
    vocab, merges = description["model"]["vocab"], description["model"]["merges"]
    scores: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        scores.setdefault("".join(pair), -float(rank))
    tokens = {
        token_id: _Token(
            text, TokenType.BYTE if BYTE_TOKEN.fullmatch(text) else TokenType.NORMAL, scores.get(text, 0.0)
        )
        for text, token_id in vocab.items()
    }
    if (unknown := vocab.get(description["model"].get("unk_token"))) is not None:
        tokens[unknown].type = TokenType.UNKNOWN
    tokens |= _added(description.get("added_tokens") or [])
    return _as_llama(tokens, num_rows, adds_space=_prepends_space(description))


def _from_byte_level(description: Mapping[str, Any], num_rows: int) -> Iterator[dict[str, GGUFValue]]:
    """One candidate for each name of a pre-tokenizer."""
    tokens = {token_id: _Token(text, TokenType.NORMAL) for text, token_id in description["model"]["vocab"].items()}
    tokens |= _added(description.get("added_tokens") or [])
    rows = _rows(tokens, num_rows)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in description["model"]["merges"]]
    for name in sorted(PRE_TOKENIZER_NAMES, key=lambda name: _unlikeness(name, description)):
        yield {
            f"{PREFIX}model": "gpt2",
            f"{PREFIX}pre": name,
            f"{PREFIX}tokens": [token.text for token in rows],
            f"{PREFIX}token_type": [int(token.type) for token in rows],
            f"{PREFIX}merges": merges,
        }


def _unlikeness(name: str, description: Mapping[str, Any]) -> tuple[bool, bool]:
    """Sorts a pre-tokenizer first whose expression is the one in tokenizer.json: probes alone cannot tell all apart."""
    row = PRE_TOKENIZERS[name]
    expressions = []
    for node in _nodes(description.get("pre_tokenizer")):
        if node["type"] == "Split" and isinstance(node.get("pattern"), dict):
            expressions.append(node["pattern"].get("Regex"))
        elif node["type"] == "ByteLevel" and node.get("use_regex", True):
            expressions.extend(PRE_TOKENIZERS["gpt-2"].patterns)
    ignores_merges = description["model"].get("ignore_merges") is True
    return tuple(expressions) != row.patterns, ignores_merges != row.ignore_merges


def _as_llama(tokens: Mapping[int, _Token], num_rows: int, *, adds_space: bool) -> dict[str, GGUFValue]:
    rows = _rows(tokens, num_rows)
    return {
        f"{PREFIX}model": "llama",
        f"{PREFIX}pre": "default",
        f"{PREFIX}tokens": [token.text for token in rows],
        f"{PREFIX}scores": [token.score for token in rows],
        f"{PREFIX}token_type": [int(token.type) for token in rows],
        f"{PREFIX}add_space_prefix": adds_space,
    }


def _rows(tokens: Mapping[int, _Token], num_rows: int) -> list[_Token]:
    """A token for each row of the embedding: llama.cpp wants as many, and ids that are unused get a name."""
    return [tokens.get(row) or _Token(f"[PAD{row}]", TokenType.UNUSED) for row in range(num_rows)]


# ---- tokens beside the trained vocabulary


def _added_tokens(source: ModelSource, description: Mapping[str, Any]) -> dict[int, _Token]:
    """From the first file that lists them."""
    if listed := description.get("added_tokens"):
        return _added(listed)
    decoder = _read_json(source, "tokenizer_config.json").get("added_tokens_decoder")
    if isinstance(decoder, dict) and decoder:
        return _added([{"id": int(token_id), **entry} for token_id, entry in decoder.items()])
    by_text = _read_json(source, "added_tokens.json")
    return _added([{"id": token_id, "content": text, "special": False} for text, token_id in by_text.items()])


def _added(listed: Sequence[Mapping[str, Any]]) -> dict[int, _Token]:
    return {
        entry["id"]: _Token(entry["content"], TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED)
        for entry in listed
    }


def _prepends_space(description: Mapping[str, Any]) -> bool:
    normalizers = _nodes(description.get("normalizer"))
    pre_tokenizers = _nodes(description.get("pre_tokenizer"))
    return any(node["type"] == "Prepend" for node in normalizers) or any(
        node["type"] == "Metaspace" and node.get("prepend_scheme", "always") != "never" for node in pre_tokenizers
    )


def _node_types(node: Any) -> Iterator[str]:
    return (found["type"] for found in _nodes(node))


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """All objects with a type in a part of tokenizer.json, those inside of sequences, too."""
    if isinstance(node, list):
        for item in node:
            yield from _nodes(item)
    elif isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node
        for key in ("normalizers", "pretokenizers", "decoders"):
            yield from _nodes(node.get(key))


def _read_json(source: ModelSource, name: str) -> dict[str, Any]:
    """A file that the tokenizer's own reader has read before, so that it is known to be sound."""
    text = source.read_text(name)
    value = json.loads(text) if text is not None else {}
    return value if isinstance(value, dict) else {}
