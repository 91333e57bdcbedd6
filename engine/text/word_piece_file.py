"""vocab.txt of BERT's first checkpoints -> a tokenizer.json, so that one reader serves both.

A line is a token; words are cut into the longest that match, "##" continues one. Called by `engine.text.hf_tokenizer`.
Source: transformers models/bert/tokenization_bert.py for the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from engine.text.vocabulary import MAX_TOKENS, TokenizerError

UNKNOWN, SEPARATOR, CLASSIFIER = "[UNK]", "[SEP]", "[CLS]"
SPECIAL_TOKENS = (UNKNOWN, SEPARATOR, "[PAD]", CLASSIFIER, "[MASK]")


def word_piece_json(data: bytes, config: Mapping[str, Any]) -> bytes:
    """
    Args:
        data: of vocab.txt.
        config: tokenizer_config.json, which says whether capitals, accents and Chinese characters are kept.

    Raises:
        TokenizerError: it is no such vocabulary.
    """
    try:
        tokens = data.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"vocab.txt is not UTF-8 (byte {error.start})") from error
    vocabulary = {token.rstrip("\r"): number for number, token in enumerate(tokens)}
    missing = [token for token in (UNKNOWN, SEPARATOR, CLASSIFIER) if token not in vocabulary]
    if missing or len(vocabulary) > MAX_TOKENS:
        lacks = f"lacks {', '.join(missing)}" if missing else f"has {len(vocabulary)} tokens, more than {MAX_TOKENS}"
        raise TokenizerError(f"vocab.txt {lacks}; it is no vocabulary of BERT's")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case") is not False,
        strip_accents=config["strip_accents"] if isinstance(config.get("strip_accents"), bool) else None,
        handle_chinese_chars=config.get("tokenize_chinese_chars") is not False,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = [token for token in SPECIAL_TOKENS if token in vocabulary]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.post_processor = processors.BertProcessing(
        (SEPARATOR, vocabulary[SEPARATOR]), (CLASSIFIER, vocabulary[CLASSIFIER])
    )
    return tokenizer.to_str().encode()
