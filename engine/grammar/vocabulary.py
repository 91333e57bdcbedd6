"""GrammarVocabulary: a model's tokens as llguidance takes them, and the sets of them that thoughts need.

Masks are packed: bit t % 32 of word t // 32 says whether token t may come next. Ids that the model has and the
tokenizer has not (padded embeddings) are in no mask. Tokens that end a text are never text, whatever they are spelled
like; special tokens are no text either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt
from llguidance import LLTokenizer, TokenizerWrapper

from engine.config import ModelConfig
from engine.grammar.thought import closes_badly, continues_opening
from engine.text.tokenizer import Tokenizer
from modelfiles.source import ModelSource

Words = npt.NDArray[np.int32]

SPECIAL_MARK = b"\xff"
"""In front of a token's bytes it tells llguidance that the token is no text."""


class GrammarVocabulary:
    """One model's. Safe to share between threads once it is made."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Collection[int]) -> None:
        """
        Args:
            vocab_size: the model's; the tokenizer may have fewer tokens.
            end_ids: tokens that end a text.
        """
        num_tokens = min(tokenizer.vocab_size, vocab_size)
        self.token_bytes = [tokenizer.token_bytes(token_id) for token_id in range(num_tokens)]
        self.token_bytes += [b""] * (vocab_size - num_tokens)
        self.num_words = -(-vocab_size // 32)
        special_ids = {token_id for token_id in (*tokenizer.special_ids, *end_ids) if token_id < num_tokens}
        # Without any, some token must stand for the end of a text whose grammar is complete.
        self.end_ids = sorted({token_id for token_id in end_ids if token_id < num_tokens}) or [
            min(special_ids, default=num_tokens - 1)
        ]
        special_ids.update(self.end_ids, range(num_tokens, vocab_size))
        self.rust = LLTokenizer(
            TokenizerWrapper(_Tokens(tokenizer, self.token_bytes, self.end_ids[0], sorted(special_ids))),
            eos_token=self.end_ids,
        )
        self._no_end = self.words(set(range(num_tokens)) - set(self.end_ids))
        self._by_first_byte: list[list[int]] = [[] for _ in range(256)]
        for token_id, data in enumerate(self.token_bytes):
            if data:
                self._by_first_byte[data[0]].append(token_id)
        self._cache: dict[tuple[str, bytes, bytes], Words] = {}

    @classmethod
    def from_source(cls, source: ModelSource, vocab_size: int) -> GrammarVocabulary:
        """From a model's files. A second for a vocabulary of 150,000. Raises as `Tokenizer.from_source`."""
        tokenizer = Tokenizer.from_source(source)
        end_ids = {*tokenizer.eos_ids, *ModelConfig.from_source(source).eos_token_ids}
        return cls(tokenizer, vocab_size, end_ids)

    def words(self, token_ids: Iterable[int]) -> Words:
        """The mask of these tokens: int32 [num_words]."""
        bits = np.zeros(self.num_words * 32, dtype=np.uint8)
        bits[np.fromiter(token_ids, dtype=np.int64)] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def thinking_words(self, close_tag: bytes, matched: bytes) -> Words:
        """What may come inside a thought: anything but its end tokens, and the closing tag with an answer behind it.

        Args:
            matched: the beginning of the tag that the thought ends with by now.
        """
        return self._cached("thinking", close_tag, matched)

    def opening_words(self, open_tag: bytes, held: bytes) -> Words:
        """What continues an opening tag of which `held` is there."""
        return self._cached("opening", open_tag, held)

    def white_words(self) -> Words:
        """Tokens that are white space and nothing else."""
        return self._cached("white", b"", b"")

    def _cached(self, kind: str, tag: bytes, held: bytes) -> Words:
        key = kind, tag, held
        words = self._cache.get(key)
        if words is None:
            words = self._cache[key] = self._compute(kind, tag, held)
        return words

    def _compute(self, kind: str, tag: bytes, held: bytes) -> Words:
        tokens = self.token_bytes
        if kind == "white":
            return self.words(token_id for token_id, data in enumerate(tokens) if data.isspace())
        if kind == "opening":
            candidates = self._by_first_byte[tag[len(held)]] if held else range(len(tokens))
            # Ids without text would continue everything.
            texts = ((token_id, tokens[token_id]) for token_id in candidates if tokens[token_id])
            return self.words(token_id for token_id, data in texts if continues_opening(tag, held, data))
        last = tag[-1:]
        bad = (token_id for token_id, data in enumerate(tokens) if last in data[:-1] and closes_badly(tag, held, data))
        return self._no_end & ~self.words(bad)


class _Tokens:
    """The attributes that llguidance asks a tokenizer for."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], end_id: int, special_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = end_id
        self.special_token_ids = special_ids
        self.tokens = list(tokens)
        for token_id in special_ids:
            self.tokens[token_id] = SPECIAL_MARK + (tokens[token_id] or b"<%d>" % token_id)

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"), add_special=False, parse_special=False)
