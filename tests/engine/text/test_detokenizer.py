"""Detokenizer: whatever the ids and however they are split, what comes out is the full decode, cut at a stop string."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.text.detokenizer import Detokenizer
from engine.text.stop_strings import StopMatcher
from engine.text.tokenizer import Tokenizer, TokenizerError
from tests.engine.text.vocabularies import byte_level_metadata, sentencepiece_metadata

BYTE_LEVEL = Tokenizer.from_gguf(byte_level_metadata())
SENTENCEPIECE = Tokenizer.from_gguf(sentencepiece_metadata())
tokenizers = st.sampled_from([BYTE_LEVEL, SENTENCEPIECE])


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """The specification, by trying every end: the stop string that ends first, of those the one that starts first."""
    for end in range(1, len(text) + 1):
        found = [string for string in stop if string and text[:end].endswith(string)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def split(ids: Sequence[int], cuts: Sequence[int]) -> list[Sequence[int]]:
    borders = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    return [ids[start:end] for start, end in itertools.pairwise(borders)]


def check(tokenizer: Tokenizer, ids: Sequence[int], cuts: Sequence[int], stop: Sequence[str]) -> None:
    truth, stopped = cut_at_stop(tokenizer.decode(ids), stop)
    most_held = max((len(string) - 1 for string in stop if string), default=0)
    detokenizer = Detokenizer(tokenizer, stop)
    text, pushed = "", 0
    for piece in split(ids, cuts):
        text += detokenizer.push(piece)
        pushed += len(piece)
        assert truth.startswith(text)
        # Only the beginning of a stop string is held back, and that of a character, which is at most three U+FFFD here.
        known = cut_at_stop(tokenizer.decode(ids[:pushed]), stop)[0]
        assert len(text) >= min(len(known), len(truth)) - most_held - 3
    text += detokenizer.flush()
    assert text == truth
    assert detokenizer.stopped == stopped
    if stopped is not None:
        assert detokenizer.push(ids) + detokenizer.flush() == ""


@given(
    tokenizer=tokenizers,
    text=st.text(),
    cuts=st.lists(st.integers(0, 200), max_size=8),
    stop=st.lists(st.text(max_size=4), max_size=3),
)
@example(BYTE_LEVEL, "naïve 🦙 café", list(range(40)), [])
@example(SENTENCEPIECE, " leading", [1], ["ing"])
def test_text_in_pieces(tokenizer: Tokenizer, text: str, cuts: list[int], stop: list[str]) -> None:
    check(tokenizer, tokenizer.encode(text, False, parse_special=False), cuts, stop)


@given(
    tokenizer=tokenizers,
    ids=st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=5),
)
def test_any_ids_in_pieces(tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    """Half characters, invalid bytes and special tokens included."""
    check(tokenizer, ids, cuts, [])


@given(
    text=st.text(alphabet="ab<", max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    stop=st.lists(st.text(alphabet="ab<", max_size=5), max_size=4),
)
@example("aab", [1, 2], ["ab", "aab"])
@example("aaab", [1, 2, 3], ["aab"])
@example("bababa<", [3], ["baba<"])
@example("abab<", [2, 4], ["abab<<", "bab<"])
@example("aabaab", [1, 2, 3, 4, 5], ["aabaaa", "baab"])
def test_stop_strings_that_almost_occur(text: str, cuts: list[int], stop: list[str]) -> None:
    check(BYTE_LEVEL, BYTE_LEVEL.encode(text, False), cuts, stop)


def test_no_more_is_held_back_than_must_be() -> None:
    matcher = StopMatcher(["</end>", "xyz"])
    assert matcher.feed("hello <") == ("hello ", None)
    assert matcher.feed("/e") == ("", None)
    assert matcher.feed("m> x") == ("</em> ", None)
    assert matcher.feed("x") == ("x", None)
    assert matcher.feed("yz!") == ("", "xyz")


def test_partial_characters_wait() -> None:
    llama = "🦙".encode()
    ids = [BYTE_LEVEL.encode(text, False)[0] for text in "a"] + BYTE_LEVEL.encode("🦙", False)
    assert len(ids) == 1 + len(llama)
    detokenizer = Detokenizer(BYTE_LEVEL)
    assert [detokenizer.push([token_id]) for token_id in ids] == ["a", "", "", "", "🦙"]
    detokenizer = Detokenizer(BYTE_LEVEL)
    assert detokenizer.push(ids[:-1]) == "a"
    assert detokenizer.flush() == "\ufffd"


def test_the_prefix_space_belongs_to_the_prompt() -> None:
    the, end = SENTENCEPIECE.token_id("▁the"), 2
    assert the is not None
    assert Detokenizer(SENTENCEPIECE).push([the, the]) == "the the"
    assert Detokenizer(SENTENCEPIECE, prompt_ids=[1, end]).push([the]) == "the", "special tokens are no text"
    assert Detokenizer(SENTENCEPIECE, prompt_ids=[1, the]).push([the]) == " the"
    plain = Tokenizer.from_gguf(sentencepiece_metadata(add_space_prefix=False))
    assert Detokenizer(plain).push([the]) == " the"


@given(prompt=st.text(max_size=20), answer=st.text(max_size=20), tokenizer=tokenizers)
def test_prompt_and_answer_join(prompt: str, answer: str, tokenizer: Tokenizer) -> None:
    """The answer's text is what it adds to the decoded prompt, where the prompt ends with a whole character."""
    prompt_ids = tokenizer.encode(prompt, parse_special=False)
    ids = tokenizer.encode(answer, False, parse_special=False)
    detokenizer = Detokenizer(tokenizer, prompt_ids=prompt_ids)
    text = detokenizer.push(ids) + detokenizer.flush()
    assert tokenizer.decode(prompt_ids) + text == tokenizer.decode([*prompt_ids, *ids])


def test_special_tokens_are_skipped_and_may_be_stop_strings() -> None:
    the, end, bos = (BYTE_LEVEL.token_id(text) for text in ("the", "<|im_end|>", "<|bos|>"))
    assert the is not None
    assert end is not None
    assert bos is not None
    assert Detokenizer(BYTE_LEVEL).push([bos, the, end, the]) == "thethe"
    detokenizer = Detokenizer(BYTE_LEVEL, stop=["<|im_end|>", "they"])
    assert detokenizer.push([bos, the]) == ""
    assert detokenizer.push([end, the]) == "the", "held text comes out when the stop token ends it"
    assert detokenizer.stopped == "<|im_end|>"
    assert detokenizer.flush() == ""
    spelled = BYTE_LEVEL.encode("a<|im_end|>b", False, parse_special=False)
    detokenizer = Detokenizer(BYTE_LEVEL, stop=["<|im_end|>"])
    assert detokenizer.push(spelled) == "a"
    assert detokenizer.stopped == "<|im_end|>"


def test_a_stop_string_of_replaced_characters_is_found_at_the_end() -> None:
    half = BYTE_LEVEL.encode("é", False)[:1]
    detokenizer = Detokenizer(BYTE_LEVEL, stop=["a\ufffd"])
    assert detokenizer.push([*BYTE_LEVEL.encode("ba", False), *half]) == "b"
    assert detokenizer.flush() == ""
    assert detokenizer.stopped == "a\ufffd"


def test_empty_stop_strings_count_for_nothing() -> None:
    detokenizer = Detokenizer(BYTE_LEVEL, stop=["", ""])
    assert detokenizer.push(BYTE_LEVEL.encode("the cat", False)) == "the cat"
    assert detokenizer.stopped is None


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        Detokenizer(BYTE_LEVEL).push([BYTE_LEVEL.vocab_size])


def test_special_tokens_are_printed_for_whoever_reads_them() -> None:
    special = next(iter(BYTE_LEVEL.special_ids))
    name, ids = BYTE_LEVEL.token_text(special), BYTE_LEVEL.encode("ab")
    detokenizer = Detokenizer(BYTE_LEVEL, shown_ids={special})
    assert detokenizer.push([*ids, special, *ids]) == f"ab{name}ab"
    assert Detokenizer(BYTE_LEVEL).push([*ids, special, *ids]) == "abab"
    stopping = Detokenizer(BYTE_LEVEL, stop=[name], shown_ids={special})
    assert stopping.push([*ids, special, *ids]) == "ab"
    assert stopping.stopped == name
