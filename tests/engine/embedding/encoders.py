"""Tiny encoders of random weights, made by Transformers, and what Transformers says of token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from engine.embedding_queue import TextJob
from engine.execution.encoder_runner import EncoderRunner
from engine.execution.model_runner import ModelRunner
from engine.messages import Load
from modelfiles.source import ModelSource

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 60,
}  # fmt: skip
DISTIL = {"vocab_size": 97, "dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 60}

# name: (configuration class, model class, settings)
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertModel", SIZES),
    "bert-relu-odd-head": ("BertConfig", "BertModel", SIZES | {"hidden_act": "relu", "num_attention_heads": 2}),
    "bert-masked-lm": ("BertConfig", "BertForMaskedLM", SIZES | {"hidden_act": "gelu_new"}),
    "roberta": ("RobertaConfig", "RobertaModel", SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", SIZES | {"type_vocab_size": 1, "pad_token_id": 1}),
    "distilbert": ("DistilBertConfig", "DistilBertModel", DISTIL),
    "mpnet": ("MPNetConfig", "MPNetModel", SIZES | {"max_position_embeddings": 300, "pad_token_id": 1}),
    "nomic": ("NomicBertConfig", "NomicBertModel", SIZES),
}
RANKERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", SIZES),
    "xlm-roberta": (
        "XLMRobertaConfig", "XLMRobertaForSequenceClassification", SIZES | {"type_vocab_size": 1, "pad_token_id": 1},
    ),
    "distilbert": ("DistilBertConfig", "DistilBertForSequenceClassification", DISTIL),
    "mpnet": ("MPNetConfig", "MPNetForSequenceClassification", SIZES | {"pad_token_id": 1}),
}  # fmt: skip


def make_encoder(case: tuple[str, str, dict[str, Any]], folder: Path, pooling: str = "", **settings: Any) -> Any:
    """A model of random weights, saved to `folder`; norms and biases are random, too, so that none can be forgotten.

    Args:
        pooling: of sentence-transformers' files, such as "cls_token"; "": without them.
    """
    config_class, model_class, sizes = case
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**(sizes | settings), attn_implementation="eager")
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    if pooling:
        write_pooling(folder, pooling)
    return model


def write_pooling(folder: Path, pooling: str, *, normalize: bool = False) -> None:
    """The files of sentence-transformers beside a model."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}" if index else "", "type": f"st.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    flags = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "lasttoken")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | flags))


def load_message(path: Path, **options: Any) -> Load:
    """For a folder or a GGUF file, in float32 on the CPU."""
    files = {name: str(file) for name, file in ModelSource.from_path(path).files.items()}
    settings = {"device": "cpu", "dtype": "float32", "num_blocks": 64} | options
    return Load(files=files, **settings)


def load_encoder(path: Path, **options: Any) -> EncoderRunner:
    return EncoderRunner.load(load_message(path, **options))


def jobs_of(
    texts: Sequence[Sequence[int]], starts: Sequence[int] = (), *, normalize: bool = False, dimensions: int = 0
) -> list[TextJob]:
    return [
        TextJob(1, index, text, starts[index] if starts else 0, normalize, dimensions)
        for index, text in enumerate(texts)
    ]


def vectors_of(
    runner: EncoderRunner | ModelRunner, texts: Sequence[Sequence[int]], max_tokens: int = 2048, **options: Any
) -> torch.Tensor:
    """Float32 [num_texts, width] of one pass."""
    *pieces, vectors = runner.embed(jobs_of(texts, **options), max_tokens)
    assert pieces == [None] * len(pieces)
    assert vectors is not None
    assert None not in vectors
    return torch.stack([torch.frombuffer(bytearray(vector or b""), dtype=torch.float32) for vector in vectors])


def random_texts(*lengths: int, vocab_size: int = 97) -> list[list[int]]:
    """Token ids that hit no special token."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def hidden_states(model: Any, text: Sequence[int]) -> torch.Tensor:
    """Transformers' last states of one text: [num_tokens, hidden_size]."""
    with torch.inference_mode():
        states: torch.Tensor = model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0]
    return states


WORDS = ["the", "cat", "sat", "on", "mat", "a", "fox", "red", "story", "of", "and", "dog", "is", "runs"]


def write_word_piece(folder: Path) -> None:
    """vocab.txt of a small WordPiece, which fits models of 97 tokens: words, letters, and letters that go on."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters[1:],
        *(f"##{letter}" for letter in letters),
    ]
    assert len(tokens) <= SIZES["vocab_size"]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')


def write_unigram(folder: Path) -> None:
    """tokenizer.json of a small unigram vocabulary with the affixes of XLM-RoBERTa."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS if word != "a")]
    pieces += [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(rank)) for rank, piece in enumerate(pieces)], 3, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(pieces[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
