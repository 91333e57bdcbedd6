"""GGUF metadata (`tokenizer.ggml.*`) -> the parts of a Tokenizer, with llama.cpp's rules for what a file leaves out.

Sources: ggml docs/gguf.md; llama.cpp src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.text.encoders import Encoder, VocabularyEncoder
from engine.text.end_tokens import end_token_ids
from engine.text.parts import TokenizerParts
from engine.text.pre_tokenizers import PRE_TOKENIZERS
from engine.text.segmenters import ByteLevelBPE, Unigram, WordPiece
from engine.text.sentencepiece_bpe import SentencePieceBPE
from engine.text.vocabulary import (
    SPECIAL_TYPES,
    TokenizerError,
    TokenType,
    Vocabulary,
    byte_level_bytes,
    sentencepiece_bytes,
)
from modelfiles.named_templates import gguf_chat_template

PREFIX = "tokenizer.ggml."
ID_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # so spelled in the format
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
END_ID_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True)
class _Model:
    """What `tokenizer.ggml.model` implies where the file is silent."""

    build: Callable[[_Metadata, Vocabulary, Mapping[str, int]], Encoder]
    default_ids: Mapping[str, int]
    adds_bos: bool = False
    adds_eos: bool = False


class _Metadata:
    """Typed reads of the tokenizer's keys."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.values = metadata

    def array(self, key: str) -> Sequence[Any]:
        value = self.values.get(PREFIX + key, [])
        if not isinstance(value, list | tuple):
            raise TokenizerError(f"{PREFIX}{key} must be an array, not {type(value).__name__}")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise TokenizerError(f"{key} must be a string, not {type(value).__name__}")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(PREFIX + key, default)
        if not isinstance(value, bool):
            raise TokenizerError(f"{PREFIX}{key} must be true or false, not {str(value)[:40]}")
        return value

    def token_id(self, key: str, num_tokens: int) -> int | None:
        value = self.values.get(PREFIX + key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise TokenizerError(f"{PREFIX}{key} must be a token id, not {str(value)[:40]}")
        if not 0 <= value < num_tokens:
            raise TokenizerError(f"{PREFIX}{key} is {value}, outside the vocabulary of {num_tokens} tokens")
        return value

    def charsmap(self) -> bytes:
        values = self.array("precompiled_charsmap")
        if not all(isinstance(value, int) and -128 <= value < 256 for value in values):
            raise TokenizerError(f"{PREFIX}precompiled_charsmap must hold bytes")
        return bytes(value & 0xFF for value in values)


def tokenizer_parts_from_gguf(values: Mapping[str, Any]) -> TokenizerParts:
    """Raises TokenizerError: keys are missing, of a wrong type or out of bounds, or the kind is unknown."""
    metadata = _Metadata(values)
    kind = metadata.text(PREFIX + "model", "")
    if kind not in MODELS:
        known = ", ".join(MODELS)
        raise TokenizerError(f"{PREFIX}model is {kind[:60]!r}; Hob knows the tokenizers {known}")
    model = MODELS[kind]
    vocabulary = _vocabulary(metadata)
    num_tokens = len(vocabulary.tokens)
    ids = {name: model.default_ids[name] for name in model.default_ids if model.default_ids[name] < num_tokens}
    for name, key in ID_KEYS.items():
        token_id = metadata.token_id(key, num_tokens)
        if token_id is not None:
            ids[name] = token_id
    prefix, suffix = _affixes(metadata, kind, model, ids)
    named_ends = {metadata.token_id(key, num_tokens) for key in END_ID_KEYS} - {None}
    ends = _end_token_ids(vocabulary) | {token_id for token_id in named_ends if token_id is not None}
    if "eos_token" in ids:
        ends.add(ids["eos_token"])
    return TokenizerParts(
        encoder=model.build(metadata, vocabulary, ids),
        bos_id=ids.get("bos_token"),
        eos_ids=ends,
        prefix_ids=prefix,
        suffix_ids=suffix,
        between_ids=_between(kind, suffix, ids),
        special_tokens={name: vocabulary.tokens[token_id] for name, token_id in ids.items()},
        chat_template=gguf_chat_template(values),
    )


def _vocabulary(metadata: _Metadata) -> Vocabulary:
    tokens = metadata.array("tokens")
    if not tokens:
        raise TokenizerError(f"{PREFIX}tokens is missing; a model cannot be served without its vocabulary")
    vocabulary = Vocabulary(tokens, metadata.array("scores"), metadata.array("token_type"))
    # Files that call an end token a normal one are common; as text it would reach the user.
    wrong = [end for end in _end_token_ids(vocabulary) if vocabulary.types[end] not in SPECIAL_TYPES]
    if not wrong:
        return vocabulary
    types = list(vocabulary.types)
    for token_id in wrong:
        types[token_id] = TokenType.CONTROL
    return Vocabulary(vocabulary.tokens, vocabulary.scores, types)


def _end_token_ids(vocabulary: Vocabulary) -> set[int]:
    """End tokens known by their text.

    "</s>" only where the file calls it special: Qwen's vocabulary has it as the HTML that it also is.
    """

    def find(text: str) -> int | None:
        token_id = vocabulary.ids.get(text)
        is_plain = token_id is not None and vocabulary.types[token_id] == TokenType.NORMAL
        return None if is_plain and text == "</s>" else token_id

    return end_token_ids(find)


def _affixes(metadata: _Metadata, kind: str, model: _Model, ids: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """Ids before and after a prompt."""
    if kind == "bert":
        first = ids.get("cls_token", ids.get("bos_token"))
        return [id for id in (first,) if id is not None], [ids["sep_token"]] if "sep_token" in ids else []
    pre = PRE_TOKENIZERS.get(metadata.text(PREFIX + "pre", "default")) if kind == "gpt2" else None
    adds_bos = metadata.boolean("add_bos_token", model.adds_bos or (pre is not None and pre.add_bos))
    adds_eos = metadata.boolean("add_eos_token", model.adds_eos)
    prefix = [ids["bos_token"]] if adds_bos and "bos_token" in ids else []
    return prefix, [ids["eos_token"]] if adds_eos and "eos_token" in ids else []


def _between(kind: str, suffix: list[int], ids: Mapping[str, int]) -> list[int]:
    """Ids between the texts of a pair: BERT ends the first as it ends the second, RoBERTa separates them besides."""
    separator = [ids["sep_token"]] if "sep_token" in ids else suffix[-1:]
    return suffix if kind == "bert" else [*suffix, *separator]


def _byte_level(metadata: _Metadata, vocabulary: Vocabulary, ids: Mapping[str, int]) -> Encoder:
    name = metadata.text(PREFIX + "pre", "default")
    if name not in PRE_TOKENIZERS:
        raise TokenizerError(f"{PREFIX}pre is {name[:60]!r}, a pre-tokenizer that Hob does not know")
    merges = metadata.array("merges")
    if PREFIX + "merges" not in metadata.values:  # an empty list is a vocabulary of bytes
        raise TokenizerError(f"{PREFIX}merges is missing; a vocabulary of byte-level BPE needs it")
    return VocabularyEncoder(vocabulary, ByteLevelBPE(vocabulary, merges, PRE_TOKENIZERS[name]), byte_level_bytes)


def _sentencepiece(metadata: _Metadata, vocabulary: Vocabulary, ids: Mapping[str, int]) -> Encoder:
    if not vocabulary.scores:
        raise TokenizerError(f"{PREFIX}scores is missing; a SentencePiece vocabulary merges by scores")
    add_space_prefix = metadata.boolean("add_space_prefix", True)
    segmenter = SentencePieceBPE(vocabulary, ids.get("unk_token"), add_space_prefix=add_space_prefix)
    return VocabularyEncoder(
        vocabulary,
        segmenter,
        sentencepiece_bytes,
        strips_leading_space=add_space_prefix,
        strips_right=_phi3_strips_right(metadata, vocabulary),
    )


def _phi3_strips_right(metadata: _Metadata, vocabulary: Vocabulary) -> list[str]:
    """Phi-3's special tokens take the blanks behind them along; the format has no key for it, only the name tells."""
    name = metadata.text("general.name", "").lower()
    if "phi-3" not in name and "phi3" not in name:
        return []
    literals = vocabulary.of_type(*SPECIAL_TYPES, TokenType.USER_DEFINED)
    kept = ("<unk>", "<s>", "<|endoftext|>")
    return [token for token_id in literals if (token := vocabulary.tokens[token_id]) not in kept]


def _unigram(metadata: _Metadata, vocabulary: Vocabulary, ids: Mapping[str, int]) -> Encoder:
    if not vocabulary.scores or "unk_token" not in ids:
        raise TokenizerError(f"{PREFIX}scores or the unknown token is missing; a unigram vocabulary needs both")
    add_space_prefix = metadata.boolean("add_space_prefix", True)
    segmenter = Unigram(
        vocabulary,
        ids["unk_token"],
        charsmap=metadata.charsmap(),
        add_space_prefix=add_space_prefix,
        remove_extra_whitespaces=metadata.boolean("remove_extra_whitespaces", True),
    )
    return VocabularyEncoder(vocabulary, segmenter, sentencepiece_bytes, strips_leading_space=add_space_prefix)


def _wordpiece(metadata: _Metadata, vocabulary: Vocabulary, ids: Mapping[str, int]) -> Encoder:
    if "unk_token" not in ids:
        raise TokenizerError(f"{PREFIX}unknown_token_id is missing; a WordPiece vocabulary needs it")
    lowercase = metadata.boolean("normalizer.lowercase", True)
    segmenter = WordPiece(
        vocabulary,
        ids["unk_token"],
        lowercase=lowercase,
        strip_accents=metadata.boolean("normalizer.strip_accents", lowercase),
    )
    return VocabularyEncoder(vocabulary, segmenter, sentencepiece_bytes, strips_leading_space=True)


MODELS: Mapping[str, _Model] = {
    "gpt2": _Model(_byte_level, {}),
    "llama": _Model(_sentencepiece, {"bos_token": 1, "eos_token": 2, "unk_token": 0}, adds_bos=True),
    "t5": _Model(_unigram, {"eos_token": 1, "unk_token": 2, "pad_token": 0}, adds_eos=True),
    "bert": _Model(
        _wordpiece, {"bos_token": 101, "unk_token": 100, "sep_token": 102, "pad_token": 0, "mask_token": 103}
    ),
}
"""`tokenizer.ggml.model` -> how to build it."""
