"""Files of the Hugging Face hub -> the parts of a Tokenizer: tokenizer.json, tokenizer.model or vocab.txt, and others.

tokenizer_config.json names the special tokens and says whether BOS is added; config.json and generation_config.json
know more end tokens; the chat template stands in one of three places. None of these files can make code run.
"""

from __future__ import annotations

import json
from typing import Any

from engine.text.encoders import Encoder, TokenizersEncoder
from engine.text.end_tokens import end_token_ids
from engine.text.parts import TokenizerParts
from engine.text.sentencepiece_model import read_sentencepiece_model
from engine.text.vocabulary import TokenizerError
from engine.text.word_piece_file import word_piece_json
from modelfiles.named_templates import joined_templates
from modelfiles.source import ModelSource

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def tokenizer_parts_from_files(source: ModelSource) -> TokenizerParts:
    """Raises TokenizerError: no tokenizer is there, or it is broken or of an unknown kind."""
    config = _read_json(source, "tokenizer_config.json")
    special_tokens = _special_tokens(config, _read_json(source, "special_tokens_map.json"))
    encoder, prefix, suffix = _encoder(source, special_tokens)
    between = encoder.between() if isinstance(encoder, TokenizersEncoder) else []
    named = {name: encoder.token_id(text) for name, text in special_tokens.items()}
    bos_id = named.get("bos_token")
    # The flags win over the post-processor of tokenizer.json: classes of transformers rebuild it from them.
    if isinstance(config.get("add_bos_token"), bool):
        prefix = [bos_id] if config["add_bos_token"] and bos_id is not None else []
    eos_id = named.get("eos_token")
    if isinstance(config.get("add_eos_token"), bool):
        suffix = [eos_id] if config["add_eos_token"] and eos_id is not None else []
    ends = end_token_ids(lambda text: _special_id(encoder, text)) | _config_ends(source, encoder.num_tokens)
    if eos_id is not None:
        ends.add(eos_id)
    return TokenizerParts(
        encoder=encoder,
        bos_id=bos_id,
        eos_ids=ends,
        prefix_ids=prefix,
        suffix_ids=suffix,
        between_ids=between,
        special_tokens=special_tokens,
        chat_template=chat_template(source),
    )


def _encoder(source: ModelSource, special_tokens: dict[str, str]) -> tuple[Encoder, list[int], list[int]]:
    """The encoder, and the ids that it wants before and after a prompt."""
    path = source.files.get("tokenizer.json")
    if path is not None:
        encoder = TokenizersEncoder(path.read_bytes())
        return (encoder, *encoder.affixes())
    path = source.files.get("vocab.txt")
    if path is not None and "tokenizer.model" not in source.files:
        encoder = TokenizersEncoder(word_piece_json(path.read_bytes(), _read_json(source, "tokenizer_config.json")))
        return (encoder, *encoder.affixes())
    path = source.files.get("tokenizer.model")
    if path is None:
        raise TokenizerError("neither tokenizer.json nor tokenizer.model nor vocab.txt is among the model's files")
    model = read_sentencepiece_model(path.read_bytes())
    for name, text in model.special_tokens.items():
        special_tokens.setdefault(name, text)
    # SentencePiece models are Llama's and Gemma's kin, which start prompts with BOS unless told otherwise.
    bos_id = model.encoder.token_id(special_tokens.get("bos_token", ""))
    return model.encoder, [] if bos_id is None else [bos_id], []


def _special_id(encoder: Encoder, text: str) -> int | None:
    token_id = encoder.token_id(text)
    return token_id if token_id in encoder.special_ids else None


def _special_tokens(*files: dict[str, Any]) -> dict[str, str]:
    """Name -> text; the first file that names a token counts. An entry is a string or an object with `content`."""
    found: dict[str, str] = {}
    for values in files:
        for name in SPECIAL_NAMES:
            value = values.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str) and text:
                found.setdefault(name, text)
    return found


def _config_ends(source: ModelSource, num_tokens: int) -> set[int]:
    """End tokens by id, of generation_config.json and config.json; ids beyond the vocabulary are an error."""
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        config = _read_json(source, name)
        nested = config.get("text_config")
        for values in (config, nested if isinstance(nested, dict) else {}):
            ids = values.get("eos_token_id")
            for token_id in ids if isinstance(ids, list) else [] if ids is None else [ids]:
                if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
                    raise TokenizerError(f"eos_token_id in {name} is {str(token_id)[:40]}, which is no token id")
                if token_id < num_tokens:  # the embedding may have more rows than the tokenizer has tokens
                    ends.add(token_id)
    return ends


def chat_template(source: ModelSource) -> str | None:
    """The file of its own first, as transformers does; of a list of named templates "default" and "tool_use".

    Raises:
        SourceError: a file is not UTF-8.
        TokenizerError: a file is not JSON.
    """
    text = source.read_text("chat_template.jinja")
    if text:
        return joined_templates(text, source.read_text("additional_chat_templates/tool_use.jinja"))
    config = _read_json(source, "tokenizer_config.json")
    value = config.get("chat_template") or _read_json(source, "chat_template.json").get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        return joined_templates(named.get("default") or next(iter(named.values()), None), named.get("tool_use"))
    return joined_templates(value, None)


def _read_json(source: ModelSource, name: str) -> dict[str, Any]:
    """A side file's object, empty where the model has none."""
    text = source.read_text(name)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{name} must hold a JSON object, not a {type(value).__name__}")
    return value
