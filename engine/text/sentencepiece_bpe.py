"""SentencePieceBPE: the merge order of SentencePiece's BPE, exactly: `tokenizer.ggml.model` = "llama".

Of all neighbours whose union is a token, those whose union has the best score merge first, the leftmost of equals.
This is not the BPE of a merge list: there the rank belongs to a pair, here to the union, so that "aaa" = "a" + "aa" =
"aa" + "a" ties and the left one wins. A merge list rebuilt from scores gets repeated characters wrong, and takes longer
to build than the rest of a model's vocabulary to load; hence this module and no wrapper over `tokenizers`.

Long text is fast because it is cut into words first, where no token of the vocabulary could reach across (SentencePiece
trains BPE with spaces only at the starts of tokens), and words repeat: their ids are remembered.
Source: sentencepiece src/bpe_model.cc; llama.cpp src/llama-vocab.cpp, llm_tokenizer_spm.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable

from engine.text.vocabulary import SPACE, TokenizerError, TokenType, Vocabulary

MAX_REMEMBERED_WORDS = 1 << 15
MAX_REMEMBERED_CHARS = 32
WORDS = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
MERGEABLE = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED, TokenType.UNDEFINED)


class SentencePieceBPE:
    """Segments text by scores, with bytes for characters that are no token."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        unknown_id: int | None,
        *,
        add_space_prefix: bool = True,
        normalize: Callable[[str], str] = str,
    ) -> None:
        """Raises TokenizerError where characters outside the vocabulary would have no spelling at all."""
        # Control and byte tokens stay out of reach of plain text, however it is spelled.
        self._scored = {
            vocabulary.tokens[token_id]: (-vocabulary.score(token_id), token_id)
            for token_id in vocabulary.of_type(*MERGEABLE)
        }
        self._byte_ids = vocabulary.byte_ids()
        self._unknown_id = unknown_id
        if unknown_id is None and len(self._byte_ids) < 256:
            raise TokenizerError("the vocabulary has neither an unknown token nor a token for every byte")
        self._add_space_prefix = add_space_prefix
        self._normalize = normalize
        # A token with a space after something else reaches across words; then the text is one word.
        crosses = re.compile(f"[^{SPACE}]{SPACE}")
        self._cuts_words = not any(crosses.search(token) for token in self._scored)
        self._remembered: dict[str, list[int]] = {}

    def segment(self, text: str, is_start: bool) -> list[int]:
        text = self._normalize(text)
        if is_start and self._add_space_prefix and text:
            text = SPACE + text
        text = text.replace(" ", SPACE)
        ids: list[int] = []
        for word in WORDS.findall(text) if self._cuts_words else [text]:
            known = self._remembered.get(word)
            ids += self._merged(word) if known is None else known
        if len(self._byte_ids) == 256:
            return ids
        # Unknown characters side by side are one unknown token.
        return [id for index, id in enumerate(ids) if id != self._unknown_id or index == 0 or ids[index - 1] != id]

    def _merged(self, word: str) -> list[int]:
        """Ids of one word."""
        # symbols[i] starts at character i of the word; a merge leaves "" at its right half. before/after link the rest.
        symbols = list(word)
        before = list(range(-1, len(word) - 1))
        after = [*range(1, len(word)), -1]
        queue: list[tuple[float, int, str, int]] = []  # (-score, left, union, right): best score first, then leftmost
        scored = self._scored

        def offer(left: int, right: int) -> None:
            union = symbols[left] + symbols[right]
            found = scored.get(union)
            if found is not None:
                heapq.heappush(queue, (found[0], left, union, right))

        for left in range(len(word) - 1):
            offer(left, left + 1)
        while queue:
            _, left, union, right = heapq.heappop(queue)
            # A merge since may have used up one of the two, or made one longer.
            if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != len(union):
                continue
            symbols[left], symbols[right] = union, ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
                offer(left, after[left])
            if before[left] >= 0:
                offer(before[left], left)
        ids = [token_id for symbol in symbols if symbol for token_id in self._symbol_ids(symbol)]
        if len(self._remembered) < MAX_REMEMBERED_WORDS and len(word) <= MAX_REMEMBERED_CHARS:
            self._remembered[word] = ids
        return ids

    def _symbol_ids(self, symbol: str) -> list[int]:
        found = self._scored.get(symbol)
        if found is not None:
            return [found[1]]
        ids = [self._byte_ids.get(byte, self._unknown_id) for byte in symbol.encode()]
        if self._unknown_id is not None and self._unknown_id in ids:
            return [self._unknown_id]
        return [token_id for token_id in ids if token_id is not None]
