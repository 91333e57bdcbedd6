"""Texts to the token ids of an embedding or of a pair, cut to the context. Slow for long texts: called in a thread.

`daemon.embedding` calls it. What is around a text (BERT's [CLS] and [SEP]) counts and is never cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from daemon.errors import BadRequest, PromptTooLong
from daemon.workers import LoadedModel
from engine.text.tokenizer import Tokenizer
from modelfiles.parameters import check_options

TextInput = str | Sequence[int]
"""A text, or token ids of the model's own vocabulary, which are taken as they are."""

MIN_START_CHARS, CHARS_A_TOKEN, MARGIN_TOKENS = 4096, 16, 256
"""How much of a long text is encoded first, and how many tokens more than needed must come of it."""


@dataclass(frozen=True)
class Encoded:
    """Inputs as the engine takes them."""

    prompts: list[list[int]]
    is_truncated: bool
    second_starts: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.prompts))


def text_limit(model: LoadedModel, options: Mapping[str, Any]) -> int:
    """Tokens that a text may have, those around it included: what the model was trained on, or less where the request
    or the Modelfile says so."""
    asked = check_options(options).get("num_ctx")
    if asked is None:
        asked = check_options(model.stored.params).get("num_ctx") or model.default_context
    assert isinstance(asked, int)
    return min(asked, model.config.max_position_embeddings)


def encode_inputs(inputs: Sequence[TextInput], model: LoadedModel, limit: int, *, truncate: bool) -> Encoded:
    """Token ids of texts. Slow for long texts: call it off the event loop.

    Raises:
        BadRequest: a text is too long and may not be cut, or there is no token in it.
    """
    prompts, is_truncated = [], False
    prefix, suffix = model.tokenizer.affixes
    for index, one in enumerate(inputs):
        is_text = isinstance(one, str)
        around = (prefix, suffix) if is_text else ((), ())
        room = limit - len(around[0]) - len(around[1])
        ids, is_whole = _start_of(one, model.tokenizer, room) if isinstance(one, str) else (list(one), True)
        if len(ids) > room:
            _check_room(room, index, len(ids), is_whole=is_whole, truncate=truncate)
            ids, is_truncated = ids[:room], True
        prompt = [*around[0], *ids, *around[1]]
        if not prompt:
            raise BadRequest(f"input {index} has no tokens; there is nothing in it to embed", "input")
        if not is_text:
            _check_ids(prompt, index, model.config.vocab_size)
        prompts.append(prompt)
    return Encoded(prompts, is_truncated)


def encode_pairs(query: str, documents: Sequence[str], tokenizer: Tokenizer, limit: int, *, truncate: bool) -> Encoded:
    """Token ids of the query with each document. As `encode_inputs`; where both are too long together, the longer one
    is cut until they are equally long, then both, as cross-encoders are trained."""
    prefix, suffix = tokenizer.affixes
    room = limit - len(prefix) - len(tokenizer.between_ids) - len(suffix)
    query_ids, query_is_whole = _start_of(query, tokenizer, room)
    encoded = Encoded([], is_truncated=False)
    for index, document in enumerate(documents):
        first, (second, is_whole) = query_ids, _start_of(document, tokenizer, room)
        if (num_tokens := len(first) + len(second)) > room:
            is_whole = is_whole and query_is_whole
            _check_room(room - 1, index, num_tokens, is_whole=is_whole, truncate=truncate)
            num_first, num_second = longest_first(len(first), len(second), room)
            first, second = first[:num_first], second[:num_second]
            encoded = replace(encoded, is_truncated=True)
        head = [*prefix, *first, *tokenizer.between_ids]
        encoded.prompts.append([*head, *second, *suffix])
        encoded.second_starts.append(len(head))
    return encoded


def longest_first(num_first: int, num_second: int, room: int) -> tuple[int, int]:
    """How many tokens to keep of two texts that have more than `room` together: the longer one gives first, as in
    `tokenizers`."""
    half = room // 2
    shorter = min(num_first, num_second, half)
    return (shorter, room - shorter) if num_first <= num_second else (room - shorter, shorter)


def _start_of(text: str, tokenizer: Tokenizer, room: int) -> tuple[list[int], bool]:
    """Ids of a text, or of its beginning where that alone has far more than `room` tokens; and whether they are all.

    Of a book that is cut to 512 tokens, the first pages are encoded and not the rest. The last tokens of a beginning
    may be others than in the whole, for which the margin is.
    """
    num_chars = MIN_START_CHARS + CHARS_A_TOKEN * max(room, 0)
    while num_chars < len(text):
        ids = tokenizer.encode(text[:num_chars], add_special=False)
        if len(ids) > room + MARGIN_TOKENS:
            return ids, False
        num_chars *= 4
    return tokenizer.encode(text, add_special=False), True


def _check_room(room: int, index: int, num_tokens: int, *, is_whole: bool, truncate: bool) -> None:
    if not truncate:
        has = f"{num_tokens} tokens" if is_whole else f"more than {num_tokens} tokens"
        raise PromptTooLong(
            f"the input length exceeds the context length: input {index} has {has}, and there is room for "
            f"{max(room, 0)}; shorten it, raise num_ctx where the model allows it, or allow truncation",
            "input",
        )
    if room < 1:
        raise PromptTooLong(
            f"input after truncation exceeds maximum context length: of input {index} there is room for no token; "
            "raise num_ctx",
            "input",
        )


def _check_ids(prompt: Sequence[int], index: int, vocab_size: int) -> None:
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        wrong = next(token_id for token_id in prompt if not 0 <= token_id < vocab_size)
        raise BadRequest(
            f"input {index} holds token id {wrong}, but the model's ids are 0 to {vocab_size - 1}; send texts, unless "
            "the ids are made by the model's own tokenizer",
            "input",
        )
