"""Tokenizer: flags, special tokens, side files, and the refusal of broken vocabularies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.text.pre_tokenizers import PRE_TOKENIZERS
from engine.text.segmenters import ByteLevelBPE
from engine.text.tokenizer import MAX_TEXT_CHARS, Tokenizer, TokenizerError
from engine.text.vocabulary import Vocabulary
from modelfiles.named_templates import joined_templates
from modelfiles.source import ModelSource
from tests.engine.text.vocabularies import byte_level_metadata, sentencepiece_metadata, tokenizer_json, write_files

BYTE_LEVEL = Tokenizer.from_gguf(byte_level_metadata())
SENTENCEPIECE = Tokenizer.from_gguf(sentencepiece_metadata())


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
@given(text=st.text())
@example(text="\u2581")
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, parse_special=False)
    # SentencePiece writes a space as U+2581, so that this character of a text comes back as a space.
    assert tokenizer.decode(ids) == (text.replace("\u2581", " ") if tokenizer is SENTENCEPIECE else text)
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)


@given(text=st.text(alphabet="<|bosim_end>thk a", max_size=60))
def test_a_strangers_text_never_becomes_a_special_token(text: str) -> None:
    for wrapped in (text, f"<|bos|>{text}<|im_end|>", "<s>" + text):
        for tokenizer in (BYTE_LEVEL, SENTENCEPIECE):
            assert tokenizer.special_ids.isdisjoint(tokenizer.encode(wrapped, False, parse_special=False))


def test_special_tokens_are_parsed_where_asked_for() -> None:
    bos, end, think = (BYTE_LEVEL.token_id(text) for text in ("<|bos|>", "<|im_end|>", "<think>"))
    assert BYTE_LEVEL.encode("<|bos|>the<think><|im_end|>", False) == [bos, BYTE_LEVEL.token_id("the"), think, end]
    # A user-defined token is text, matched always; a control token is none, matched on request.
    assert think in BYTE_LEVEL.encode("<think>", parse_special=False)
    assert BYTE_LEVEL.decode([bos, think, end]) == "<think>"
    assert BYTE_LEVEL.decode([bos, think, end], skip_special=False) == "<|bos|><think><|im_end|>"
    assert BYTE_LEVEL.special_ids == {bos, end}


def test_ten_thousand_special_tokens_in_a_row() -> None:
    ids = BYTE_LEVEL.encode("<|im_end|>" * 10_000, False)
    assert ids == [BYTE_LEVEL.token_id("<|im_end|>")] * 10_000


@pytest.mark.parametrize(
    ("changes", "prefix", "suffix"),
    [
        ({}, 0, 0),
        ({"add_bos_token": True}, 1, 0),
        ({"add_bos_token": True, "add_eos_token": True}, 1, 1),
        ({"pre": "llama-bpe"}, 1, 0),
        ({"pre": "llama-bpe", "add_bos_token": False}, 0, 0),
        ({"pre": "llama-bpe", "bos_token_id": None}, 0, 0),
    ],
)
def test_bos_and_eos_of_byte_level_files(changes: dict[str, Any], prefix: int, suffix: int) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level_metadata(**changes))
    ids = tokenizer.encode("the cat")
    bare = tokenizer.encode("the cat", add_special=False)
    assert (tokenizer.add_bos, tokenizer.add_eos) == (bool(prefix), bool(suffix))
    assert ids[prefix : len(ids) - suffix] == bare
    assert ids[:prefix] == [tokenizer.bos_id] * prefix
    assert set(ids[len(ids) - suffix :]) <= tokenizer.eos_ids


def test_a_rendered_template_gets_no_second_bos() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level_metadata(add_bos_token=True))
    assert tokenizer.encode("<|bos|>the") == tokenizer.encode("the")
    assert tokenizer.encode("<|bos|>the", parse_special=False)[0] == tokenizer.bos_id


def test_sentencepiece_defaults() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece_metadata(bos_token_id=None, eos_token_id=None, unknown_token_id=None))
    assert tokenizer.add_bos
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == {2}
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def test_sentencepiece_spaces() -> None:
    plain = Tokenizer.from_gguf(sentencepiece_metadata(add_space_prefix=False))
    the, bare = (SENTENCEPIECE.token_id(text) for text in ("▁the", "the"))
    assert SENTENCEPIECE.encode("the", False) == [the]
    assert plain.encode("the", False) == [bare]
    assert plain.encode(" the", False) == [the]
    # A text after a special token starts anew; the space of the second is its own when decoded.
    assert SENTENCEPIECE.encode("the</s>the", False) == [the, 2, the]
    assert SENTENCEPIECE.decode([the, the]) == "the the"
    assert plain.decode([the, the]) == " the the"
    assert SENTENCEPIECE.token_bytes(the) == b" the"
    assert SENTENCEPIECE.token_bytes(3 + 0xE9) == b"\xe9"


def test_phi3_special_tokens_take_the_blanks_behind_them() -> None:
    metadata = sentencepiece_metadata()
    the = SENTENCEPIECE.encode("the", False)
    assert Tokenizer.from_gguf(metadata).encode("</s>\n the", False) != [2, *the]
    metadata["general.name"] = "Phi-3 mini"
    assert Tokenizer.from_gguf(metadata).encode("</s>\n the", False) == [2, *the]


def test_end_tokens_of_a_gguf_file() -> None:
    metadata = sentencepiece_metadata(eot_token_id=300, eom_token_id=301)
    assert Tokenizer.from_gguf(metadata).eos_ids == {2, 300, 301}
    # Known by its text, and control from then on, though the file calls it normal.
    metadata = sentencepiece_metadata()
    metadata["tokenizer.ggml.tokens"][-1] = "<end_of_turn>"
    tokenizer = Tokenizer.from_gguf(metadata)
    last = tokenizer.vocab_size - 1
    assert tokenizer.eos_ids == {2, last}
    assert tokenizer.decode([last]) == ""
    assert tokenizer.encode("<end_of_turn>", False) == [last]


def test_the_harmony_end_token_ends_a_channel_only() -> None:
    metadata = sentencepiece_metadata()
    metadata["tokenizer.ggml.tokens"][-3:] = ["<|end|>", "<|call|>", "<|return|>"]
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.eos_ids == {2, tokenizer.vocab_size - 2, tokenizer.vocab_size - 1}


@pytest.mark.parametrize(("text", "character"), [("\ud800", 0), ("ab\udfffc", 2)])
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
def test_lone_surrogates_are_refused(tokenizer: Tokenizer, text: str, character: int) -> None:
    with pytest.raises(TokenizerError, match=f"lone surrogate at character {character}"):
        tokenizer.encode(text)


def test_a_giant_text_is_refused_at_once() -> None:
    with pytest.raises(TokenizerError, match="the limit is"):
        BYTE_LEVEL.encode("a" * (MAX_TEXT_CHARS + 1))


@pytest.mark.parametrize("token_id", [-1, BYTE_LEVEL.vocab_size, 1 << 40])
def test_ids_outside_the_vocabulary_are_refused(token_id: int) -> None:
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        BYTE_LEVEL.decode([token_id])


def _token(metadata: dict[str, Any], index: int, text: Any) -> dict[str, Any]:
    metadata["tokenizer.ggml.tokens"][index] = text
    return metadata


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "tokenizer.ggml.model is ''"),
        (byte_level_metadata(model="rwkv"), "Hob knows the tokenizers"),
        (byte_level_metadata(model=7), "must be a string"),
        (byte_level_metadata(pre="nobody"), "'nobody', a pre-tokenizer"),
        (byte_level_metadata(tokens=None), "tokens is missing"),
        (byte_level_metadata(tokens="abc"), "must be an array"),
        (_token(byte_level_metadata(), 5, 5), "token 5 is not a string"),
        (_token(byte_level_metadata(), 5, "x" * (1 << 20)), "token 5 has 1048576 characters"),
        (_token(byte_level_metadata(), 5, "#"), "tokens 2 and 5 are both '#'"),
        (byte_level_metadata(token_type=[1]), "269 tokens but 1 token types"),
        (byte_level_metadata(token_type=[1] * 268 + [7]), "token 268 has type 7"),
        (byte_level_metadata(token_type=[1] * 268 + [-1]), "token 268 has type -1"),
        (byte_level_metadata(scores=[0.0] * 270), "269 tokens but 270 scores"),
        (byte_level_metadata(scores=[float("nan")] * 269), "not a finite number"),
        (byte_level_metadata(merges=None), "merges is missing"),
        (byte_level_metadata(merges=["the"]), "merge 0 is not two tokens"),
        (byte_level_metadata(merges=["t h", "z q"]), "merge 1 speaks of 'zq'"),
        (byte_level_metadata(merges=[3]), "merge 0 is not two tokens"),
        (byte_level_metadata(bos_token_id=269), "bos_token_id is 269, outside the vocabulary of 269"),
        (byte_level_metadata(eos_token_id=-1), "eos_token_id is -1"),
        (byte_level_metadata(eot_token_id=1 << 32), "eot_token_id is 4294967296"),
        (byte_level_metadata(eos_token_id=True), "must be a token id"),
        (byte_level_metadata(add_bos_token="yes"), "must be true or false"),
        (_token(sentencepiece_metadata(), 10, "<0x-1>"), "byte token 10 is '<0x-1>'"),
        (_token(sentencepiece_metadata(), 10, "<0xGG>"), "byte token 10 is '<0xGG>'"),
        (_token(sentencepiece_metadata(), 10, "<0x100>"), "byte token 10 is '<0x100>'"),
        (_token(sentencepiece_metadata(), 10, "<0x08>"), "are both '<0x08>'"),
        (_token(sentencepiece_metadata(), 3 + 0xAB, "<0xaC>"), "stands for the same byte"),
        (sentencepiece_metadata(scores=None), "scores is missing"),
        (sentencepiece_metadata(model="t5", precompiled_charsmap=[1, 2]), "shorter than it says"),
        (sentencepiece_metadata(model="t5", precompiled_charsmap=[1, 999]), "must hold bytes"),
    ],
)
def test_broken_gguf_vocabularies_are_refused(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_gguf(metadata)


@pytest.mark.parametrize("num_tokens", [1, 2, 3])
def test_tiny_vocabularies_do_not_break_the_defaults(num_tokens: int) -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"][:num_tokens],
        "tokenizer.ggml.scores": [0.0] * num_tokens,
    }
    tokenizer = Tokenizer.from_gguf(metadata)
    assert set(tokenizer.encode("abc")) <= set(range(num_tokens))
    assert tokenizer.eos_ids <= set(range(num_tokens))


def test_empty_tokens_get_a_name() -> None:
    tokenizer = Tokenizer.from_gguf(_token(sentencepiece_metadata(), -1, ""))
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    assert tokenizer.token_id("") is None


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_keeps_every_character(name: str) -> None:
    metadata = byte_level_metadata()
    tokens = metadata["tokenizer.ggml.tokens"]
    segmenter = ByteLevelBPE(Vocabulary(tokens), metadata["tokenizer.ggml.merges"], PRE_TOKENIZERS[name])
    text = "I'LL buy 12345 ÄPFEL, 東京 for ~$3.50\r\n\r\n  e\u0301t c'est\tça!… ١٢٣ 🦙🦙 हिन्दी   "
    spelled = "".join(tokens[token_id] for token_id in segmenter.segment(text, True))
    assert spelled == "".join(tokens[token_id] for token_id in BYTE_LEVEL.encode(text, False))


# ---- folders of the Hugging Face hub


def load(tmp_path: Path, **files: Any) -> Tokenizer:
    """A tokenizer from a folder; "__" in an argument's name is a dot."""
    named = {name.replace("__", "."): content for name, content in files.items()}
    return Tokenizer.from_source(ModelSource.from_path(write_files(tmp_path / "model", named)))


def test_tokenizer_json(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, tokenizer__json=tokenizer_json(), tokenizer_config__json={"bos_token": "<|bos|>"})
    bos, end, think = (tokenizer.token_id(text) for text in ("<|bos|>", "<|im_end|>", "<think>"))
    assert tokenizer.encode("the cat") == [bos, *tokenizer.encode("the cat", add_special=False)]
    assert len(tokenizer.encode("a b c d e f g", add_special=False)) == 13, "the file's truncation is not for us"
    assert tokenizer.encode("<|im_end|><think>", False) == [end, think]
    plain = tokenizer.encode("<|im_end|><think>", False, parse_special=False)
    assert plain[-1] == think
    assert end not in plain
    assert tokenizer.decode([bos, think, end]) == "<think>"
    assert tokenizer.add_bos
    assert tokenizer.special_ids == {bos, end}
    assert tokenizer.eos_ids == {end}
    assert tokenizer.vocab_size == max(bos, end, think) + 1


@pytest.fixture(scope="module")
def from_json(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load(tmp_path_factory.mktemp("json"), tokenizer__json=tokenizer_json())


@given(text=st.text())
def test_tokenizer_json_round_trip(from_json: Tokenizer, text: str) -> None:
    assert from_json.decode(from_json.encode(text, parse_special=False)) == text


@pytest.mark.parametrize(("flag", "adds"), [(True, True), (False, False), (None, True)])
def test_the_flag_wins_over_the_post_processor(tmp_path: Path, flag: bool | None, adds: bool) -> None:
    config = {"bos_token": {"content": "<|bos|>", "lstrip": False}, "add_bos_token": flag}
    assert load(tmp_path, tokenizer__json=tokenizer_json(), tokenizer_config__json=config).add_bos is adds


def test_end_tokens_of_side_files(tmp_path: Path) -> None:
    files = {
        "generation_config__json": {"eos_token_id": [7, 8]},
        "config__json": {"eos_token_id": 9, "text_config": {"eos_token_id": 10}},
        "special_tokens_map__json": {"eos_token": "a"},
    }
    tokenizer = load(tmp_path, tokenizer__json=tokenizer_json(), **files)
    assert tokenizer.eos_ids == {7, 8, 9, 10, tokenizer.token_id("a"), tokenizer.token_id("<|im_end|>")}
    assert tokenizer.special_tokens == {"eos_token": "a"}


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({}, None),
        ({"tokenizer_config__json": {"chat_template": "A"}}, "A"),
        ({"chat_template__json": {"chat_template": "B"}}, "B"),
        ({"chat_template__jinja": "C", "tokenizer_config__json": {"chat_template": "A"}}, "C"),
        (
            {
                "tokenizer_config__json": {
                    "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
                }
            },
            joined_templates("D", "T"),
        ),
        ({"tokenizer_config__json": {"chat_template": [{"name": "rag", "template": "R"}]}}, "R"),
        ({"tokenizer_config__json": {"chat_template": [{"name": "../x"}, 3]}}, None),
        ({"tokenizer_config__json": {"chat_template": 5}}, None),
    ],
)
def test_chat_template(tmp_path: Path, files: dict[str, Any], template: str | None) -> None:
    assert load(tmp_path, tokenizer__json=tokenizer_json(), **files).chat_template == template


def test_chat_template_of_a_gguf_file() -> None:
    metadata = byte_level_metadata() | {"tokenizer.chat_template": "{{ messages }}"}
    assert Tokenizer.from_gguf(metadata).chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither tokenizer.json nor tokenizer.model"),
        ({"tokenizer__json": "{"}, "tokenizer.json cannot be read"),
        ({"tokenizer__json": "[]"}, "tokenizer.json cannot be read"),
        ({"tokenizer__json": "\0\xff"}, "tokenizer.json cannot be read"),
        ({"tokenizer__json": tokenizer_json(), "tokenizer_config__json": "[1]"}, "must hold a JSON object"),
        ({"tokenizer__json": tokenizer_json(), "tokenizer_config__json": "{"}, "tokenizer_config.json is not JSON"),
        ({"tokenizer__json": tokenizer_json(), "config__json": "[" * 100_000}, "config.json is not JSON"),
        ({"tokenizer__json": tokenizer_json(), "config__json": {"eos_token_id": -3}}, "eos_token_id in config.json"),
        ({"tokenizer__json": tokenizer_json(), "generation_config__json": {"eos_token_id": ["x"]}}, "no token id"),
        ({"tokenizer__model": b"\x0a"}, "middle of a number"),
        ({"tokenizer__model": b"\x0a\xff\x01ab"}, "middle of a field"),
        ({"tokenizer__model": b"\xff" * 20}, "more than ten bytes"),
        ({"tokenizer__model": b"\x0f"}, "wire type 7"),
        ({"tokenizer__model": b""}, "the vocabulary has 0 tokens"),
        ({"tokenizer__model": b"\x08\x01"}, "a field has a wrong type"),
    ],
)
def test_broken_folders_are_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        load(tmp_path, **files)


@given(data=st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_tokenizer_model(data: bytes) -> None:
    from engine.text.sentencepiece_model import read_sentencepiece_model

    with pytest.raises(TokenizerError):
        read_sentencepiece_model(data + b"\x07")


def test_importing_is_light() -> None:
    """The daemon imports this at its start: no torch, no transformers, no numpy."""
    code = "import sys, engine.text.detokenizer, engine.config; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "numpy", "huggingface_hub", "sentencepiece"} & set(loaded)


def test_what_stands_between_the_texts_of_a_pair(tmp_path: Path) -> None:
    """[CLS] a [SEP] b [SEP] of BERT, <s> a </s></s> b </s> of RoBERTa; see also test_golden.py."""
    roberta = {"model": "t5", "add_bos_token": True, "add_eos_token": True, "unknown_token_id": 0}
    for changes, expected in (({}, (2, 2)), ({"seperator_token_id": 1}, (2, 1))):
        tokenizer = Tokenizer.from_gguf(sentencepiece_metadata(**roberta, **changes))
        assert tokenizer.affixes == ((1,), (2,))
        assert tokenizer.between_ids == expected
    assert Tokenizer.from_gguf(byte_level_metadata()).between_ids == ()
    files = {"vocab.txt": "[UNK]\n[CLS]\n[SEP]\na\n##b\n", "tokenizer_config.json": {"do_lower_case": False}}
    word_piece = Tokenizer.from_source(ModelSource.from_path(write_files(tmp_path / "bert", files)))
    assert (word_piece.affixes, word_piece.between_ids) == (((1,), (2,)), (2,))
    assert word_piece.encode("a ab A") == [1, 3, 3, 4, 0, 2]


@pytest.mark.parametrize(
    ("vocabulary", "complaint"),
    [(b"a\nb\n", r"vocab.txt lacks \[UNK\], \[SEP\], \[CLS\]"), (b"\xff\n", "vocab.txt is not UTF-8")],
)
def test_a_vocab_txt_that_is_none(vocabulary: bytes, complaint: str, tmp_path: Path) -> None:
    source = ModelSource.from_path(write_files(tmp_path / "bert", {"vocab.txt": vocabulary}))
    with pytest.raises(TokenizerError, match=complaint):
        Tokenizer.from_source(source)
