"""Segmenters: plain text -> token ids, one class for each algorithm that a vocabulary may be made for.

A segmenter sees text without special tokens; engine.text.encoders cuts those out first. The byte-level and the unigram
ones wrap the `tokenizers` package. SentencePiece's BPE is in engine.text.sentencepiece_bpe, WordPiece below.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Protocol

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from engine.text.charsmap import Charsmap
from engine.text.pre_tokenizers import PreTokenizer
from engine.text.vocabulary import SPACE, TokenizerError, TokenType, Vocabulary

MAX_MERGES = 1 << 23


class Segmenter(Protocol):
    """Text -> ids."""

    def segment(self, text: str, is_start: bool) -> list[int]:
        """Ids of `text`, which is not empty.

        Args:
            is_start: the text starts the prompt or follows a special token, where SentencePiece puts its space.
        """
        ...


class ByteLevelBPE:
    """GPT-2's BPE over bytes: `tokenizer.ggml.model` = "gpt2"."""

    def __init__(self, vocabulary: Vocabulary, merges: Sequence[object], pre_tokenizer: PreTokenizer) -> None:
        """Raises TokenizerError where a merge is no pair of tokens whose union is a token."""
        model = models.BPE(
            vocab=vocabulary.ids,
            merges=_merge_pairs(merges, vocabulary),
            ignore_merges=pre_tokenizer.ignore_merges,
        )
        self._tokenizer = Tokenizer(model)
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre_tokenizer.patterns]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])

    def segment(self, text: str, is_start: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _merge_pairs(merges: Sequence[object], vocabulary: Vocabulary) -> list[tuple[str, str]]:
    if len(merges) > MAX_MERGES:
        raise TokenizerError(f"the vocabulary has {len(merges)} merges; the limit is {MAX_MERGES}")
    pairs = []
    for rank, merge in enumerate(merges):
        # The first part may itself start with a space, hence the search from the second character.
        cut = merge.find(" ", 1) if isinstance(merge, str) else -1
        if not isinstance(merge, str) or cut < 0:
            raise TokenizerError(f"merge {rank} is not two tokens with a space between them")
        left, right = merge[:cut], merge[cut + 1 :]
        for part in (left, right, left + right):
            if part not in vocabulary.ids:
                raise TokenizerError(f"merge {rank} speaks of {part[:40]!r}, which is no token of the vocabulary")
        pairs.append((left, right))
    return pairs


class Unigram:
    """SentencePiece's unigram model: `tokenizer.ggml.model` = "t5", and tokenizer.model files of that type."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        unknown_id: int,
        *,
        charsmap: bytes = b"",
        add_space_prefix: bool = True,
        remove_extra_whitespaces: bool = True,
    ) -> None:
        """`charsmap` is SentencePiece's compiled normalisation, empty for none."""
        # A token of another type must never be chosen for plain text: its score puts it out of reach.
        choosable = (TokenType.NORMAL, TokenType.UNUSED, TokenType.USER_DEFINED, TokenType.UNDEFINED)
        scores = [
            (0.0 if kind == TokenType.USER_DEFINED else vocabulary.score(token_id)) if kind in choosable else -1e9
            for token_id, kind in enumerate(vocabulary.types)
        ]
        has_bytes = len(vocabulary.byte_ids()) == 256
        pieces = list(zip(vocabulary.tokens, scores, strict=True))
        self._tokenizer = Tokenizer(models.Unigram(pieces, unknown_id, has_bytes))
        self._normalize = Charsmap(charsmap).normalize
        self._add_space_prefix = add_space_prefix
        self._remove_extra_whitespaces = remove_extra_whitespaces

    def segment(self, text: str, is_start: bool) -> list[int]:
        text = normalized_spaces(self._normalize(text), self._remove_extra_whitespaces)
        if not text:
            return []
        if self._add_space_prefix:
            text = " " + text
        return self._tokenizer.encode(text.replace(" ", SPACE), add_special_tokens=False).ids


def normalized_spaces(text: str, remove_extra: bool) -> str:
    """Text without spaces at its ends, and with one where there were several, if `remove_extra`."""
    return " ".join(part for part in text.split(" ") if part) if remove_extra else text


class WordPiece:
    """BERT's longest match from the left: `tokenizer.ggml.model` = "bert".

    GGUF files spell tokens that start a word with U+2581 in front, and the others bare, where BERT's own vocabulary has
    them bare and with "##".
    """

    def __init__(self, vocabulary: Vocabulary, unknown_id: int, *, lowercase: bool, strip_accents: bool) -> None:
        self._ids = vocabulary.ids
        self._unknown_id = unknown_id
        # By the first two characters, so that a text of one long word is not searched for what no token begins with.
        self._longest: dict[str, int] = {}
        for token in vocabulary.tokens:
            self._longest[token[:2]] = max(len(token), self._longest.get(token[:2], 1))
        self._lowercase = lowercase
        self._strip_accents = strip_accents

    def segment(self, text: str, is_start: bool) -> list[int]:
        return [token_id for word in self._words(text) for token_id in self._word_ids(SPACE + word)]

    def _word_ids(self, word: str) -> list[int]:
        """Ids of a word; the unknown token where some part of it matches nothing."""
        ids, start = [], 0
        while start < len(word):
            longest = self._longest.get(word[start : start + 2], 1)
            for end in range(min(len(word), start + longest), start, -1):
                token_id = self._ids.get(word[start:end])
                if token_id is not None:
                    ids.append(token_id)
                    start = end
                    break
            else:
                return [self._unknown_id]
        return ids

    def _words(self, text: str) -> list[str]:
        """Words between blanks; punctuation and Chinese characters are words of their own."""
        words: list[list[str]] = [[]]  # characters: a string of a million of them would be copied for each
        dropped = {"Cc", "Cf", "Cs", "Co"} | ({"Mn", "Mc", "Me"} if self._strip_accents else set())
        for character in unicodedata.normalize("NFD", text) if self._strip_accents else text:
            category = unicodedata.category(character)
            if character in _BLANK_CHARACTERS:
                words.append([])
            elif character in "\0\ufffd" or category in dropped:
                continue
            elif category[0] == "P" or (category[0] == "S" and character < "\x7f") or _is_chinese(character):
                words += [[self._folded(character)], []]
            else:
                words[-1].append(self._folded(character))
        return ["".join(word) for word in words if word]

    def _folded(self, character: str) -> str:
        lower = character.lower()
        # A few capitals have a lower case of two characters; the reference maps one to one and leaves those.
        return lower if self._lowercase and len(lower) == 1 else character


_BLANK_CHARACTERS = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | frozenset(
    map(chr, range(0x2000, 0x200B))
)
# BERT's list, with the slip in its last range that every implementation repeats.
_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def _is_chinese(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _CHINESE)
