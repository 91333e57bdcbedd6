"""Encoders: text, special tokens included, -> ids; and ids -> the bytes they stand for.

VocabularyEncoder serves what was built from a vocabulary (GGUF, tokenizer.model), TokenizersEncoder a tokenizer.json,
which brings its own rules. engine.text.tokenizer.Tokenizer adds BOS and EOS, the chat template and the end tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from threading import Lock
from typing import Any, Protocol

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as RustTokenizer

from engine.text.segmenters import Segmenter
from engine.text.vocabulary import (
    SPACE,
    SPECIAL_TYPES,
    TokenizerError,
    TokenType,
    Vocabulary,
    byte_level_bytes,
    literal_bytes,
    sentencepiece_bytes,
)

MAX_JSON_BYTES = 1 << 26


class Encoder(Protocol):
    """The two directions, and what special tokens there are."""

    num_tokens: int
    """Ids lie below; a few may be unused."""
    special_ids: frozenset[int]
    strips_leading_space: bool
    """Whether decoding drops the space that encoding put in front."""

    def encode(self, text: str, parse_special: bool) -> list[int]: ...

    def token_text(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it, None for an id that is unused."""
        ...

    def token_id(self, text: str) -> int | None: ...

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text, exactly; empty for an id that is unused."""
        ...


class LiteralTokens:
    """Finds tokens that stand in text as they are spelled: leftmost first, longest of those, in linear time.

    The search is the added-token automaton of `tokenizers`, over a model that knows nothing else.
    """

    def __init__(self, texts: Sequence[str], strips_right: Collection[str] = ()) -> None:
        """`strips_right`: tokens that take the blanks behind them along."""
        self._finder = RustTokenizer(models.BPE())
        tokens = [AddedToken(text, normalized=False, special=False, rstrip=text in strips_right) for text in texts]
        self._finder.add_tokens(tokens)
        by_index = {index: text for text, index in self._finder.get_vocab(with_added_tokens=True).items()}
        self._texts = [by_index[index] for index in range(len(by_index))]

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """(start, end, token) of every occurrence, in order; `end` includes blanks that were taken along."""
        found = self._finder.encode_batch([text], add_special_tokens=False)[0]  # a batch does not hold up other threads
        return [(start, end, self._texts[index]) for index, (start, end) in zip(found.ids, found.offsets, strict=True)]


class VocabularyEncoder:
    """Literal tokens are cut out of the text, a segmenter does the rest."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        segmenter: Segmenter,
        spelling: Callable[[str], bytes],
        *,
        strips_leading_space: bool = False,
        strips_right: Collection[str] = (),
    ) -> None:
        """
        Args:
            spelling: bytes of a normal token.
            strips_right: special tokens that take the blanks behind them along.
        """
        self.num_tokens = len(vocabulary.tokens)
        self.special_ids = frozenset(vocabulary.of_type(*SPECIAL_TYPES))
        self.strips_leading_space = strips_leading_space
        self._vocabulary = vocabulary
        self._segmenter = segmenter
        self._spelling = spelling
        self._byte_of = {token_id: byte for byte, token_id in vocabulary.byte_ids().items()}
        user_defined = [vocabulary.tokens[token_id] for token_id in vocabulary.of_type(TokenType.USER_DEFINED)]
        special = [vocabulary.tokens[token_id] for token_id in sorted(self.special_ids)]
        self._user_defined = LiteralTokens(user_defined, strips_right)
        self._literals = LiteralTokens(user_defined + special, strips_right)

    def encode(self, text: str, parse_special: bool) -> list[int]:
        ids: list[int] = []
        position, is_start = 0, True
        for start, end, token in (self._literals if parse_special else self._user_defined).find(text):
            if start > position:
                ids += self._segmenter.segment(text[position:start], is_start)
            ids.append(self._vocabulary.ids[token])
            position, is_start = end, True
        if position < len(text):
            ids += self._segmenter.segment(text[position:], is_start)
        return ids

    def token_text(self, token_id: int) -> str | None:
        return self._vocabulary.tokens[token_id]

    def token_id(self, text: str) -> int | None:
        return self._vocabulary.ids.get(text)

    def token_bytes(self, token_id: int) -> bytes:
        kind = self._vocabulary.types[token_id]
        if kind == TokenType.BYTE:
            return bytes([self._byte_of[token_id]])
        token = self._vocabulary.tokens[token_id]
        return literal_bytes(token) if kind in (*SPECIAL_TYPES, TokenType.USER_DEFINED) else self._spelling(token)


class TokenizersEncoder:
    """A tokenizer.json, as the `tokenizers` package reads it."""

    def __init__(self, data: bytes) -> None:
        """Raises TokenizerError where `data` is no tokenizer.json or spells its tokens in an unknown way."""
        if len(data) > MAX_JSON_BYTES:
            raise TokenizerError(f"tokenizer.json has {len(data)} bytes; the limit is {MAX_JSON_BYTES}")
        self._rust = _parsed(data)
        # A file may ask for cut or padded inputs; that is for training.
        self._rust.no_truncation()
        self._rust.no_padding()
        self._added = self._rust.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in self._added.items() if token.special)
        self.num_tokens = max(self._rust.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if self.num_tokens == 0:
            raise TokenizerError("tokenizer.json has no tokens")
        self._spelling, self.strips_leading_space = _spelling(self._rust)
        self._lock = Lock()

    def encode(self, text: str, parse_special: bool) -> list[int]:
        # The switch is a property of the shared object; another thread must not turn it in between.
        with self._lock:
            self._rust.encode_special_tokens = not parse_special
            # As a batch of one: only those are encoded without the interpreter's lock, and a long text takes a while.
            return self._rust.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def affixes(self) -> tuple[list[int], list[int]]:
        """Ids that the file's post-processor puts before and after a text."""
        with self._lock:
            self._rust.encode_special_tokens = False
            bare = self._rust.encode("a", add_special_tokens=False).ids
            full = self._rust.encode("a", add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        return [], []

    def between(self) -> list[int]:
        """Ids that the file's post-processor puts between the texts of a pair."""
        prefix, suffix = self.affixes()
        with self._lock:
            bare = self._rust.encode("a", add_special_tokens=False).ids
            full = self._rust.encode("a", "a", add_special_tokens=True).ids
        start, stop = len(prefix) + len(bare), len(full) - len(bare) - len(suffix)
        return full[start:stop]

    def token_text(self, token_id: int) -> str | None:
        return self._rust.id_to_token(token_id)

    def token_id(self, text: str) -> int | None:
        return self._rust.token_to_id(text)

    def token_bytes(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return literal_bytes(added.content)
        token = self._rust.id_to_token(token_id)
        return b"" if token is None else self._spelling(token)


def _parsed(data: bytes) -> RustTokenizer:
    try:
        return RustTokenizer.from_buffer(data)
    except Exception as error:  # what `tokenizers` raises has no narrower type
        raise TokenizerError(f"tokenizer.json cannot be read: {str(error)[:200]}") from error
    except BaseException as error:
        # A panic of the Rust code arrives as a BaseException that cannot be imported; KeyboardInterrupt must pass.
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError("tokenizer.json cannot be read: it breaks the parser") from error


def _spelling(rust: RustTokenizer) -> tuple[Callable[[str], bytes], bool]:
    """How the decoder of a tokenizer.json turns a token into bytes, and whether it drops a leading space."""
    state = json.loads(rust.decoder.__getstate__()) if rust.decoder is not None else {}
    steps = [state] if state.get("type") != "Sequence" else state["decoders"]
    by_type: dict[str, dict[str, Any]] = {step["type"]: step for step in steps if "type" in step}
    if "ByteLevel" in by_type:
        return byte_level_bytes, False
    if "WordPiece" in by_type:
        prefix = by_type["WordPiece"]["prefix"]
        return lambda token: _word_piece_bytes(token, prefix), True
    if "Metaspace" in by_type:
        sign = by_type["Metaspace"]["replacement"]
        strips = by_type["Metaspace"].get("prepend_scheme", "always") != "never"
    elif "Replace" in by_type:
        sign = by_type["Replace"]["pattern"].get("String", SPACE)
        strips = by_type.get("Strip", {}).get("start", 0) > 0
    else:
        raise TokenizerError(f"the decoder of tokenizer.json is of a kind that Hob does not know: {list(by_type)}")
    return lambda token: _byte_fallback(token) or sentencepiece_bytes(token.replace(sign, SPACE)), strips


def _byte_fallback(token: str) -> bytes:
    """The byte of "<0x0A>", and nothing for any other token."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            return b""
    return b""


def _word_piece_bytes(token: str, prefix: str) -> bytes:
    continues = bool(prefix) and token.startswith(prefix)
    return literal_bytes(token[len(prefix) :] if continues else " " + token)
