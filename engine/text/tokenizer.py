"""Tokenizer: text <-> token ids for one model, with its special tokens and its chat template.

Built from whatever the model brings: GGUF metadata, a tokenizer.json, or a SentencePiece tokenizer.model. The daemon
encodes prompts with it and hands it to Detokenizer. Ids equal llama.cpp's for a GGUF file and those of the `tokenizers`
package for a tokenizer.json; the two differ in places, as their authors meant them to.

Pure but for its caches, and safe to share between threads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine.text.encoders import Encoder
from engine.text.gguf_tokenizer import tokenizer_parts_from_gguf
from engine.text.hf_tokenizer import tokenizer_parts_from_files
from engine.text.parts import TokenizerParts
from engine.text.vocabulary import TokenizerError
from modelfiles.gguf import open_shards
from modelfiles.source import ModelSource

__all__ = ["Tokenizer", "TokenizerError"]

MAX_TEXT_CHARS = 1 << 23
"""Longest text that is encoded at all, far beyond any context: a bound on the time one request can take."""


class Tokenizer:
    """One model's tokenizer."""

    def __init__(self, parts: TokenizerParts) -> None:
        self._encoder: Encoder = parts.encoder
        self.vocab_size = parts.encoder.num_tokens
        self.special_ids = parts.encoder.special_ids
        """Control and unknown tokens: no part of an answer's text."""
        self.strips_leading_space = parts.encoder.strips_leading_space
        """Whether a text's first space is SentencePiece's and not the writer's."""
        self.special_tokens: dict[str, str] = dict(parts.special_tokens)
        """What chat templates call them -> text: "bos_token" -> "<s>"."""
        self.bos_id = parts.bos_id
        self.eos_ids = frozenset(parts.eos_ids)
        self.chat_template = parts.chat_template
        """The model's Jinja chat template, None where it brings none."""
        self._prefix_ids = tuple(parts.prefix_ids)
        self._suffix_ids = tuple(parts.suffix_ids)
        self._between_ids = tuple(parts.between_ids)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_source(cls, source: ModelSource) -> Tokenizer:
        """From a model's files.

        Raises:
            TokenizerError: no tokenizer is among them, or it is broken or of an unknown kind.
            GGUFError, SourceError: a file is broken.
        """
        if source.format == "safetensors":
            return cls(tokenizer_parts_from_files(source))
        with open_shards(source.gguf_files) as model:
            return cls.from_gguf(model.metadata)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From a GGUF file's metadata. Raises TokenizerError."""
        return cls(tokenizer_parts_from_gguf(metadata))

    @property
    def add_bos(self) -> bool:
        """Whether `encode` puts BOS in front."""
        return self.bos_id is not None and self.bos_id in self._prefix_ids

    @property
    def add_eos(self) -> bool:
        """Whether `encode` puts an end token behind."""
        return bool(self._suffix_ids)

    @property
    def affixes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What `encode` puts before and behind a text."""
        return self._prefix_ids, self._suffix_ids

    @property
    def between_ids(self) -> tuple[int, ...]:
        """What stands between the two texts of a pair, which has the affixes around it."""
        return self._between_ids

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of a text.

        Args:
            add_special: put the tokens around it that the model expects around a prompt (BOS above all). A text that
                starts with BOS, as rendered chat templates do, gets no second one.
            parse_special: read "<|im_start|>" and the like as the tokens of that name. False is for text that a
                stranger wrote: it comes out as plain characters.

        Raises:
            TokenizerError: the text holds a lone surrogate, or is longer than MAX_TEXT_CHARS.
        """
        if len(text) > MAX_TEXT_CHARS:
            raise TokenizerError(f"the text has {len(text)} characters; the limit is {MAX_TEXT_CHARS}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the text holds a lone surrogate at character {error.start}") from error
        ids = self._encoder.encode(text, parse_special) if text else []
        if not add_special:
            return ids
        starts_with_prefix = bool(self._prefix_ids) and tuple(ids[: len(self._prefix_ids)]) == self._prefix_ids
        return [*(() if starts_with_prefix else self._prefix_ids), *ids, *self._suffix_ids]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            TokenizerError: an id lies outside the vocabulary.
        """
        skipped: Collection[int] = self.special_ids if skip_special else ()
        data = b"".join(self.token_bytes(token_id) for token_id in ids if token_id not in skipped)
        if self.strips_leading_space and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; those of a special token are its name.

        Raises:
            TokenizerError: the id lies outside the vocabulary.
        """
        known = self._bytes.get(token_id)
        if known is None:
            if not 0 <= token_id < self.vocab_size:
                raise TokenizerError(f"token id {token_id} lies outside the vocabulary of {self.vocab_size} tokens")
            known = self._bytes[token_id] = self._encoder.token_bytes(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """A token alone as text, as lists of log-probabilities show it; half a character becomes U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_id(self, text: str) -> int | None:
        """Id of the token that the vocabulary spells so, such as a special token's name."""
        return self._encoder.token_id(text)
