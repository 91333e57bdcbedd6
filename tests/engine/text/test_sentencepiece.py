"""The readers of SentencePiece vocabularies against sentencepiece itself, with models that it trains here."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from engine.text.charsmap import Charsmap
from engine.text.segmenters import normalized_spaces
from engine.text.sentencepiece_bpe import SentencePieceBPE
from engine.text.sentencepiece_model import message_fields, read_sentencepiece_model
from engine.text.tokenizer import Tokenizer, TokenizerError
from engine.text.vocabulary import Vocabulary
from tests.engine.text.vocabularies import CORPUS, byte_level_metadata, sentencepiece_metadata

TEXTS = st.text(alphabet="ate hogs.,=\u00e9\ufb01\u2126\u3000\U0001f999\u0301", max_size=30) | st.text(max_size=20)


def train(**options: Any) -> bytes:
    """A model of ~100 pieces, the same each time."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split(". ") * 3),
        model_writer=file,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
        **options,
    )
    return file.getvalue()


BYTES_AND_SPACES = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
MODELS = {
    "bpe-bytes": train(model_type="bpe", vocab_size=340, **BYTES_AND_SPACES),
    "bpe-nfkc": train(model_type="bpe", vocab_size=90),
    "bpe-no-prefix": train(model_type="bpe", vocab_size=90, add_dummy_prefix=False),
    "unigram-nfkc": train(model_type="unigram", vocab_size=90),
    "unigram-bytes": train(model_type="unigram", vocab_size=340, **BYTES_AND_SPACES),
}


def assert_same_ids(name: str, ours: list[int], theirs: list[int], oracle: Any) -> None:
    """Equal; but a unigram model may cut a text into the same pieces in two orders, as "=" "==" and "==" "=", whose
    scores are the same sum."""
    if name.startswith("unigram") and sorted(ours) == sorted(theirs):
        assert oracle.decode(ours) == oracle.decode(theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", MODELS)
@given(text=TEXTS)
def test_ids_and_text_equal_sentencepieces(name: str, text: str) -> None:
    oracle = sentencepiece.SentencePieceProcessor(model_proto=MODELS[name])
    encoder = read_sentencepiece_model(MODELS[name]).encoder
    assert_same_ids(name, encoder.encode(text, parse_special=False), oracle.encode(text), oracle)


@pytest.mark.parametrize("name", ["unigram-nfkc", "unigram-bytes"])
@given(text=TEXTS)
def test_unigram_from_gguf(name: str, text: str) -> None:
    """The same model through GGUF's keys, as the converter writes them."""
    oracle = sentencepiece.SentencePieceProcessor(model_proto=MODELS[name])
    ids = UNIGRAM_GGUF[name].encode(text, add_special=False, parse_special=False)
    assert_same_ids(name, ids, oracle.encode(text), oracle)
    assert UNIGRAM_GGUF[name].encode(text)[-1] == 2, "models of this kind end their input with EOS"


def unigram_metadata(name: str) -> dict[str, Any]:
    oracle = sentencepiece.SentencePieceProcessor(model_proto=MODELS[name])
    ids = range(oracle.get_piece_size())
    kinds = [6 if oracle.is_byte(i) else 2 if oracle.is_unknown(i) else 3 if oracle.is_control(i) else 1 for i in ids]
    metadata = {
        "model": "t5",
        "tokens": [oracle.id_to_piece(i) for i in ids],
        "scores": [oracle.get_score(i) for i in ids],
        "token_type": kinds,
        "unknown_token_id": 0,
        "eos_token_id": 2,
        "remove_extra_whitespaces": "nfkc" in name,
        "precompiled_charsmap": list(charsmap(MODELS[name])),
    }
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}


def charsmap(model: bytes) -> bytes:
    """Field 2 of normalizer_spec, field 3 of the model."""
    normalizer = dict(message_fields(model))[3]
    assert isinstance(normalizer, bytes)
    found = dict(message_fields(normalizer)).get(2, b"")
    assert isinstance(found, bytes)
    return found


UNIGRAM_GGUF = {name: Tokenizer.from_gguf(unigram_metadata(name)) for name in ("unigram-nfkc", "unigram-bytes")}


def brute_force(scores: dict[str, float], text: str) -> list[str]:
    """The specification of the merge order: of all neighbours the best union, of equals the leftmost."""
    symbols = list(text)
    while True:
        candidates = [
            (-scores[left + right], index)
            for index, (left, right) in enumerate(itertools.pairwise(symbols))
            if left + right in scores
        ]
        if not candidates:
            return symbols
        _, index = min(candidates)
        symbols[index : index + 2] = [symbols[index] + symbols[index + 1]]


@given(
    scores=st.dictionaries(st.text("ab", min_size=2, max_size=5), st.integers(-3, 0), max_size=12),
    text=st.text("ab", min_size=1, max_size=24),
)
def test_merge_order_with_equal_scores(scores: dict[str, float], text: str) -> None:
    tokens = ["<unk>", "a", "b", *scores]
    vocabulary = Vocabulary(tokens, [0.0, 0.0, 0.0, *map(float, scores.values())], [2] + [1] * (len(tokens) - 1))
    segmenter = SentencePieceBPE(vocabulary, 0, add_space_prefix=False)
    assert [tokens[token_id] for token_id in segmenter.segment(text, True)] == brute_force(scores, text)


@given(text=st.text("ab ", min_size=1, max_size=24))
def test_tokens_that_reach_across_words(text: str) -> None:
    scores = {"a▁": -1.0, "▁a": -2.0, "a▁a": -3.0, "▁▁": -4.0, "b▁▁b": -5.0, "▁▁b": -6.0}
    tokens = ["<unk>", "a", "b", "▁", *scores]
    vocabulary = Vocabulary(tokens, [0.0] * 4 + list(scores.values()), [2] + [1] * (len(tokens) - 1))
    segmenter = SentencePieceBPE(vocabulary, 0, add_space_prefix=False)
    expected = brute_force(scores, text.replace(" ", "▁"))
    assert [tokens[token_id] for token_id in segmenter.segment(text, True)] == expected


def test_control_and_byte_tokens_are_out_of_reach_of_merges() -> None:
    metadata = sentencepiece_metadata()
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    tokens[262:265], scores[262:265] = ["<", ">", "s>"], [-90.0, -91.0, 0.0]
    tokenizer = Tokenizer.from_gguf(metadata)
    assert 1 not in tokenizer.encode("<s>", False, parse_special=False)
    assert 1 in tokenizer.encode("<s>", False)
    assert tokenizer.decode(tokenizer.encode("<0x41>")) == "<0x41>"


def test_unknown_characters_without_byte_tokens() -> None:
    vocabulary = Vocabulary(["<unk>", "a"], [0.0, 0.0], [2, 1])
    assert SentencePieceBPE(vocabulary, 0, add_space_prefix=False).segment("aéa", True) == [1, 0, 1]
    with pytest.raises(TokenizerError, match="neither an unknown token nor a token for every byte"):
        SentencePieceBPE(vocabulary, None)


NFKC = charsmap(MODELS["bpe-nfkc"])


@given(text=st.text())
def test_normalisation_equals_sentencepieces(text: str) -> None:
    oracle = sentencepiece.SentencePieceNormalizer(model_proto=MODELS["bpe-nfkc"])
    spaced = normalized_spaces(Charsmap(NFKC).normalize(text), remove_extra=True)
    assert spaced.replace(" ", "▁") == oracle.normalize(text).removeprefix("▁")


@pytest.mark.parametrize("data", [b"\0", b"\xff\xff\xff\xff", b"\x10\0\0\0abc", b"\0\0\0\0abc", b"\3\0\0\0abcd"])
def test_damaged_normalisation_is_refused(data: bytes) -> None:
    with pytest.raises(TokenizerError, match="precompiled_charsmap"):
        Charsmap(data)


@given(trie=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=300), rest=st.binary(max_size=8), text=st.text())
def test_hostile_normalisation_is_refused_or_harmless(trie: list[int], rest: bytes, text: str) -> None:
    data = struct.pack(f"<{len(trie) + 1}I", 4 * len(trie), *trie) + rest
    with contextlib.suppress(TokenizerError):
        Charsmap(data).normalize(text)


def test_a_leaf_outside_the_trie_is_no_match() -> None:
    units = [0] * 256
    units[ord("a")] = ord("a") | 1 << 8 | 0x1FFFFF << 10
    assert Charsmap(struct.pack("<257I", 1024, *units)).normalize("aba") == "aba"


def test_replacements_outside_the_map_are_refused() -> None:
    cut = NFKC[: 4 + int.from_bytes(NFKC[:4], "little")]
    with pytest.raises(TokenizerError, match="points outside"):
        Charsmap(cut).normalize("ﬁ")


def test_special_ids_beyond_the_pieces_are_refused() -> None:
    broken = b"\x0a\x03\x0a\x01a" + b"\x12\x06\x18\x02\xc8\x02\xe7\x07"  # one piece; BPE; bos_id = 999
    with pytest.raises(TokenizerError, match=r"bos_token of tokenizer\.model is 999"):
        read_sentencepiece_model(broken)


def test_the_two_metadata_makers_differ() -> None:
    """Guards the fixtures: a byte-level file and a SentencePiece one give different ids for the same text."""
    ids = [Tokenizer.from_gguf(make()).encode("the cat") for make in (byte_level_metadata, sentencepiece_metadata)]
    assert ids[0] != ids[1]
