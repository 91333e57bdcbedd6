"""Vocabulary: the tokens of a GGUF file or a SentencePiece model, checked, and what bytes each stands for.

Tokens come in two spellings. Byte-level BPE writes every byte as one printable character (GPT-2's table); SentencePiece
writes a space as U+2581 and a lone byte as "<0xNN>", and so do WordPiece vocabularies in GGUF. Control, unknown and
user-defined tokens are spelled as themselves in both.

Everything here is untrusted: counts, scores, types, ids and byte tokens are checked before anything indexes with them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache

MAX_TOKENS = 1 << 22
MAX_TOKEN_CHARS = 1 << 14
SPACE = "\u2581"
"""SentencePiece's sign for a space."""
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenizerError(ValueError):
    """A vocabulary that is broken, a tokenizer that Hob does not know, or text that cannot be encoded."""


class TokenType(IntEnum):
    """tokenizer.ggml.token_type, which is SentencePiece's piece type."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


LITERAL_TYPES = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
"""Tokens that are found in text as they are spelled, before anything else; the first two only where asked for."""
SPECIAL_TYPES = (TokenType.UNKNOWN, TokenType.CONTROL)
"""Tokens that are no part of an answer's text."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, with their scores (log-probabilities or merge order) and types."""

    tokens: Sequence[str]
    scores: Sequence[float] = ()
    types: Sequence[int] = ()
    ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises TokenizerError where lengths, types, scores or spellings are impossible."""
        tokens = _checked_tokens(self.tokens)
        if self.types and len(self.types) != len(tokens):
            raise TokenizerError(f"the vocabulary has {len(tokens)} tokens but {len(self.types)} token types")
        if self.scores and len(self.scores) != len(tokens):
            raise TokenizerError(f"the vocabulary has {len(tokens)} tokens but {len(self.scores)} scores")
        if not all(type(score) in (int, float) and math.isfinite(score) for score in self.scores):
            raise TokenizerError("a token's score is not a finite number")
        types = list(self.types) or [TokenType.NORMAL] * len(tokens)
        for token_id, token_type in enumerate(types):
            if not isinstance(token_type, int) or not 0 <= token_type <= TokenType.BYTE:
                raise TokenizerError(f"token {token_id} has type {str(token_type)[:40]}; types are 0 to 6")
        ids = {token: token_id for token_id, token in enumerate(tokens)}
        if len(ids) != len(tokens):
            first = next(token_id for token_id, token in enumerate(tokens) if ids[token] != token_id)
            raise TokenizerError(f"tokens {first} and {ids[tokens[first]]} are both {_shown(tokens[first])}")
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "types", types)
        object.__setattr__(self, "ids", ids)

    def of_type(self, *types: TokenType) -> list[int]:
        return [token_id for token_id, token_type in enumerate(self.types) if token_type in types]

    def score(self, token_id: int) -> float:
        return self.scores[token_id] if self.scores else 0.0

    def byte_ids(self) -> dict[int, int]:
        """Byte value -> id of the token that stands for it, "<0x0A>"."""
        found: dict[int, int] = {}
        for token_id in self.of_type(TokenType.BYTE):
            match = BYTE_TOKEN.fullmatch(self.tokens[token_id])
            if match is None:
                raise TokenizerError(
                    f"byte token {token_id} is {_shown(self.tokens[token_id])}; it must be spelled <0x00> to <0xFF>"
                )
            if found.setdefault(int(match[1], 16), token_id) != token_id:
                raise TokenizerError(
                    f"byte token {token_id} stands for the same byte as token {found[int(match[1], 16)]}"
                )
        return found


def _checked_tokens(tokens: Sequence[object]) -> list[str]:
    if not 1 <= len(tokens) <= MAX_TOKENS:
        raise TokenizerError(f"the vocabulary has {len(tokens)} tokens; it must have between 1 and {MAX_TOKENS}")
    checked = []
    for token_id, token in enumerate(tokens):
        if not isinstance(token, str):
            raise TokenizerError(f"token {token_id} is not a string")
        if len(token) > MAX_TOKEN_CHARS:
            raise TokenizerError(f"token {token_id} has {len(token)} characters; the limit is {MAX_TOKEN_CHARS}")
        # Padding tokens of some files are empty. An empty token would match everywhere: it gets a name of its own.
        checked.append(token or f"[EMPTY_{token_id}]")
    return checked


@cache
def byte_alphabet() -> dict[int, str]:
    """GPT-2's table: byte -> character. Printable bytes stand for themselves, the others for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@cache
def byte_of_character() -> dict[str, int]:
    return {character: byte for byte, character in byte_alphabet().items()}


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a token of byte-level BPE; a token with a character outside the table stands for itself."""
    table = byte_of_character()
    try:
        return bytes([table[character] for character in token])
    except KeyError:
        return literal_bytes(token)


def sentencepiece_bytes(token: str) -> bytes:
    return literal_bytes(token.replace(SPACE, " "))


def literal_bytes(token: str) -> bytes:
    return token.encode("utf-8", errors="replace")


def _shown(token: str) -> str:
    return repr(token if len(token) <= 40 else token[:40] + "...")
