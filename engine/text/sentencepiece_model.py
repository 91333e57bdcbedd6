"""SentencePiece's tokenizer.model: a protobuf message, of which the few fields that matter are read here.

    ModelProto        1 pieces (repeated SentencePiece)  2 trainer_spec  3 normalizer_spec
    SentencePiece     1 piece (string)  2 score (float)  3 type (enum, default NORMAL)
    TrainerSpec       3 model_type (1 unigram, 2 BPE)  40-43 unk, bos, eos, pad id
    NormalizerSpec    2 precompiled_charsmap  3 add_dummy_prefix  4 remove_extra_whitespaces

Source: sentencepiece src/sentencepiece_model.proto; protobuf's encoding guide.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from engine.text.charsmap import Charsmap
from engine.text.encoders import VocabularyEncoder
from engine.text.segmenters import Segmenter, Unigram, normalized_spaces
from engine.text.sentencepiece_bpe import SentencePieceBPE
from engine.text.vocabulary import MAX_TOKENS, SPACE, TokenizerError, TokenType, Vocabulary, sentencepiece_bytes

MAX_MODEL_BYTES = 1 << 26
UNIGRAM, BPE = 1, 2
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
SPECIAL_ID_FIELDS = {40: "unk_token", 41: "bos_token", 42: "eos_token", 43: "pad_token"}

Value = int | float | bytes


@dataclass(frozen=True)
class SentencePieceModel:
    """An encoder, what it was made from, and the tokens that the file calls special."""

    encoder: VocabularyEncoder
    special_tokens: dict[str, str]
    vocabulary: Vocabulary
    is_bpe: bool
    """Its algorithm; the other is unigram."""
    add_space_prefix: bool


def read_sentencepiece_model(data: bytes) -> SentencePieceModel:
    """Raises TokenizerError: `data` is no SentencePiece model, or of a type other than BPE and unigram."""
    if len(data) > MAX_MODEL_BYTES:
        raise TokenizerError(f"tokenizer.model has {len(data)} bytes; the limit is {MAX_MODEL_BYTES}")
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Value] = {}
    normalizer: dict[int, Value] = {}
    for number, value in message_fields(data):
        if number == 1:
            if len(pieces) == MAX_TOKENS:
                raise TokenizerError(f"tokenizer.model has more than {MAX_TOKENS} pieces")
            pieces.append(_piece(_as_bytes(value)))
        elif number == 2:
            trainer.update(message_fields(_as_bytes(value)))
        elif number == 3:
            normalizer.update(message_fields(_as_bytes(value)))
    tokens, scores, types = zip(*pieces, strict=True) if pieces else ((), (), ())
    vocabulary = Vocabulary(tokens, scores, types)
    special_ids = _special_ids(trainer, len(tokens))
    add_space_prefix = bool(normalizer.get(3, 1))
    return SentencePieceModel(
        encoder=VocabularyEncoder(
            vocabulary,
            _segmenter(vocabulary, trainer.get(3, UNIGRAM), special_ids.get("unk_token"), normalizer),
            sentencepiece_bytes,
            strips_leading_space=add_space_prefix,
        ),
        special_tokens={name: tokens[token_id] for name, token_id in special_ids.items()},
        vocabulary=vocabulary,
        is_bpe=trainer.get(3, UNIGRAM) == BPE,
        add_space_prefix=add_space_prefix,
    )


def _segmenter(
    vocabulary: Vocabulary, model_type: Value, unknown_id: int | None, normalizer: dict[int, Value]
) -> Segmenter:
    charsmap = _as_bytes(normalizer.get(2, b""))
    add_space_prefix = bool(normalizer.get(3, 1))
    remove_extra = bool(normalizer.get(4, 1))
    if model_type == BPE:
        normalize = Charsmap(charsmap).normalize
        return SentencePieceBPE(
            vocabulary,
            unknown_id,
            add_space_prefix=add_space_prefix,
            normalize=lambda text: normalized_spaces(normalize(text), remove_extra),
        )
    if model_type != UNIGRAM or unknown_id is None:
        raise TokenizerError("tokenizer.model is neither of SentencePiece's BPE nor of its unigram type")
    return Unigram(
        vocabulary,
        unknown_id,
        charsmap=charsmap,
        add_space_prefix=add_space_prefix,
        remove_extra_whitespaces=remove_extra,
    )


def _special_ids(trainer: dict[int, Value], num_tokens: int) -> dict[str, int]:
    """Name -> id; an id of -1 means that the model has no such token."""
    found = {}
    defaults = {40: 0, 41: 1, 42: 2, 43: -1}
    for number, name in SPECIAL_ID_FIELDS.items():
        token_id = _as_int32(trainer.get(number, defaults[number]))
        if token_id >= num_tokens:
            raise TokenizerError(f"the {name} of tokenizer.model is {token_id}, outside its {num_tokens} pieces")
        if token_id >= 0:
            found[name] = token_id
    return found


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = dict(message_fields(data))
    score = fields.get(2, 0)
    try:
        text = _as_bytes(fields.get(1, b"")).decode()
    except UnicodeDecodeError as error:
        raise TokenizerError("a piece of tokenizer.model is not UTF-8") from error
    kind = fields.get(3, 1)
    if kind == TokenType.USER_DEFINED:
        text = text.replace(SPACE, " ")  # it is looked for in text as it was written
    return text, score if isinstance(score, float) else 0.0, kind if isinstance(kind, int) else -1


def message_fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """(number, value) of each field of a message: ints of varints, bytes of strings and messages, floats of fixed32."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == LENGTH_DELIMITED:
            size, position = _varint(data, position)
        elif wire_type in (FIXED32, FIXED64):
            size = 4 if wire_type == FIXED32 else 8
        else:
            raise TokenizerError(f"tokenizer.model is no SentencePiece model: wire type {wire_type}")
        if size > len(data) - position:
            raise TokenizerError("tokenizer.model ends in the middle of a field")
        chunk = data[position : position + size]
        position += size
        yield number, struct.unpack("<f", chunk)[0] if wire_type == FIXED32 else chunk


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A variable-length integer and the position after it; at most ten bytes."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise TokenizerError("tokenizer.model ends in the middle of a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise TokenizerError("tokenizer.model is no SentencePiece model: a number has more than ten bytes")


def _as_bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise TokenizerError("tokenizer.model is no SentencePiece model: a field has a wrong type")
    return value


def _as_int32(value: Value) -> int:
    """A varint as the signed number that it encodes."""
    if not isinstance(value, int):
        raise TokenizerError("tokenizer.model is no SentencePiece model: a field has a wrong type")
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
