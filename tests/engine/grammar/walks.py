"""Random walks: texts made of random tokens under a constraint's real masks, which see far more than any model writes.

A walk takes tokens that a mask allows, at random but with some will to end: left to chance, most texts would fill their
limit with one string. It checks every mask against the state: a token that is allowed is accepted.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np

from engine.constraint import Constraint
from engine.grammar.service import GrammarService
from engine.grammar.state import ConstraintState
from engine.grammar.vocabulary import GrammarVocabulary, Words

ENDING = b'"}],0'
"""Bytes that end strings, objects, arrays and numbers."""


class Walk(NamedTuple):
    """What came of it."""

    text: str
    is_complete: bool
    num_tokens: int


def service_for(vocabulary: GrammarVocabulary) -> GrammarService:
    """A service whose model has this vocabulary."""
    service = GrammarService({}, len(vocabulary.token_bytes))
    service._vocabulary = vocabulary
    return service


def mask_of(state: ConstraintState, num_words: int) -> Words:
    """The mask of the next token."""
    words = np.zeros(num_words, dtype=np.int32)
    if (matcher := state.matcher) is not None:
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    state.finish_mask(words)
    return words


def token_ids_of(words: Words) -> list[int]:
    """The tokens of a mask."""
    found: list[int] = np.unpackbits(words.view(np.uint8), bitorder="little").nonzero()[0].tolist()
    return found


def walk(service: GrammarService, constraint: Constraint, seed: int, max_tokens: int = 400) -> Walk:
    """One text."""
    state = service.state(constraint)
    vocabulary = service._vocabulary_of_model()
    chance = random.Random(seed)
    data = b""
    for number in range(max_tokens):
        allowed = token_ids_of(mask_of(state, vocabulary.num_words))
        assert allowed, f"no token may follow {data!r}"
        ends = [token for token in allowed if token in vocabulary.end_ids]
        if ends and chance.random() < 0.5:
            state.accept(ends[0])
            assert state.error is None
            assert state.is_over
            return Walk(data.decode(), True, number + 1)
        texts = [token for token in allowed if token not in vocabulary.end_ids] or ends
        # The longer a text is, the more it wants to end.
        ending = [token for token in texts if vocabulary.token_bytes[token][:1] in _bytes_of(ENDING)]
        token = chance.choice(ending if ending and chance.random() < 0.2 + number / 100 else texts)
        state.accept(token)
        assert state.error is None, state.error
        data += b"" if token in ends else vocabulary.token_bytes[token]
        if state.is_over:
            return Walk(data.decode(), True, number + 1)
    return Walk(data.decode("utf-8", "replace"), False, max_tokens)


def _bytes_of(data: bytes) -> list[bytes]:
    return [bytes([value]) for value in data]
