"""The table of encoders: transformers that read a text in both directions and write none. BERT and its kin.

All have their norms behind the sums; what a row tells is how positions come in, what the MLP is, and how configuration
and tensors are called. Sizes are in `engine.encoder_config`, the computation in `models.encoder`.
Sources: transformers' models/{bert,roberta,distilbert,nomic_bert}; llama.cpp gguf-py/gguf/constants.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


def _frozen(**values: object) -> Mapping[str, object]:
    return MappingProxyType(values)


@dataclass(frozen=True)
class EncoderArchitecture:
    """One row."""

    name: str
    hf_embedders: tuple[str, ...]
    """What `architectures` in config.json names, of models that give vectors."""
    hf_rankers: tuple[str, ...]
    """The same of models with a head for classes: cross-encoders where there is one class."""
    gguf_name: str
    hf_names: Mapping[str, str]
    """Role -> name in a safetensors file, `{i}` being the layer; see `models.encoder_names`."""
    prefixes: tuple[str, ...]
    """What may stand before these names."""
    is_rotary: bool = False
    is_gated: bool = False
    has_biases: bool = True
    """Of the matrices of layers; norms always have them."""
    starts_behind_padding: bool = False
    """Positions of safetensors files are counted from pad_token_id + 1 on. GGUF files have those rows cut off."""
    has_relative_bias: bool = False
    """Attention adds a learnt number for each distance (T5's, one table for all layers)."""
    head_activation: str = "tanh"
    """Between a head's two matrices."""
    hf_defaults: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """What a config.json of the family may leave out."""


_BERT_NAMES = {
    "word_embedding": "embeddings.word_embeddings",
    "type_embedding": "embeddings.token_type_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "q": "encoder.layer.{i}.attention.self.query",
    "k": "encoder.layer.{i}.attention.self.key",
    "v": "encoder.layer.{i}.attention.self.value",
    "attention_output": "encoder.layer.{i}.attention.output.dense",
    "attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "up": "encoder.layer.{i}.intermediate.dense",
    "down": "encoder.layer.{i}.output.dense",
    "output_norm": "encoder.layer.{i}.output.LayerNorm",
    "head_dense": "pooler.dense",
    "head_output": "classifier",
}

ENCODERS: tuple[EncoderArchitecture, ...] = (
    EncoderArchitecture(
        "bert",
        ("BertModel", "BertForMaskedLM", "BertForPreTraining"),
        ("BertForSequenceClassification",),
        "bert",
        MappingProxyType(_BERT_NAMES),
        ("", "bert."),
        hf_defaults=_frozen(type_vocab_size=2, layer_norm_eps=1e-12, hidden_act="gelu", max_position_embeddings=512),
    ),
    EncoderArchitecture(
        "roberta",
        (
            "RobertaModel", "RobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForMaskedLM", "CamembertModel",
            "CamembertForMaskedLM",
        ),
        (
            "RobertaForSequenceClassification", "XLMRobertaForSequenceClassification",
            "CamembertForSequenceClassification",
        ),
        "bert",
        MappingProxyType(
            _BERT_NAMES | {"head_dense": "classifier.dense", "head_output": "classifier.out_proj"}
        ),
        ("", "roberta."),
        starts_behind_padding=True,
        hf_defaults=_frozen(
            type_vocab_size=2, layer_norm_eps=1e-12, hidden_act="gelu", max_position_embeddings=512, pad_token_id=1
        ),
    ),
    EncoderArchitecture(
        "distilbert",
        ("DistilBertModel", "DistilBertForMaskedLM"),
        ("DistilBertForSequenceClassification",),
        "bert",
        MappingProxyType(
            {
                "word_embedding": "embeddings.word_embeddings",
                "position_embedding": "embeddings.position_embeddings",
                "embedding_norm": "embeddings.LayerNorm",
                "q": "transformer.layer.{i}.attention.q_lin",
                "k": "transformer.layer.{i}.attention.k_lin",
                "v": "transformer.layer.{i}.attention.v_lin",
                "attention_output": "transformer.layer.{i}.attention.out_lin",
                "attention_norm": "transformer.layer.{i}.sa_layer_norm",
                "up": "transformer.layer.{i}.ffn.lin1",
                "down": "transformer.layer.{i}.ffn.lin2",
                "output_norm": "transformer.layer.{i}.output_layer_norm",
                "head_dense": "pre_classifier",
                "head_output": "classifier",
            }
        ),
        ("", "distilbert."),
        head_activation="relu",
        hf_defaults=_frozen(
            type_vocab_size=0, layer_norm_eps=1e-12, hidden_act="gelu", max_position_embeddings=512,
            vocab_size=30522, hidden_size=768, num_hidden_layers=6, num_attention_heads=12, intermediate_size=3072,
        ),
    ),
    EncoderArchitecture(
        "mpnet",
        ("MPNetModel", "MPNetForMaskedLM"),
        ("MPNetForSequenceClassification",),
        "mpnet",
        MappingProxyType(
            {
                **_BERT_NAMES,
                "relative_bias": "encoder.relative_attention_bias",
                "q": "encoder.layer.{i}.attention.attn.q",
                "k": "encoder.layer.{i}.attention.attn.k",
                "v": "encoder.layer.{i}.attention.attn.v",
                "attention_output": "encoder.layer.{i}.attention.attn.o",
                "attention_norm": "encoder.layer.{i}.attention.LayerNorm",
                "head_dense": "classifier.dense",
                "head_output": "classifier.out_proj",
            }
        ),
        ("", "mpnet."),
        starts_behind_padding=True,
        has_relative_bias=True,
        hf_defaults=_frozen(
            type_vocab_size=0, layer_norm_eps=1e-12, hidden_act="gelu", max_position_embeddings=512, pad_token_id=1,
            relative_attention_num_buckets=32, vocab_size=30527, hidden_size=768, num_hidden_layers=12,
            num_attention_heads=12, intermediate_size=3072,
        ),
    ),
    EncoderArchitecture(
        "nomic-bert",
        ("NomicBertModel", "NomicBertForMaskedLM"),
        (),
        "nomic-bert",
        MappingProxyType(
            {
                "word_embedding": "embeddings.word_embeddings",
                "type_embedding": "embeddings.token_type_embeddings",
                "embedding_norm": "emb_ln",
                "qkv": "encoder.layers.{i}.attn.Wqkv",
                "attention_output": "encoder.layers.{i}.attn.out_proj",
                "attention_norm": "encoder.layers.{i}.norm1",
                "up": "encoder.layers.{i}.mlp.fc11",
                "gate": "encoder.layers.{i}.mlp.fc12",
                "down": "encoder.layers.{i}.mlp.fc2",
                "output_norm": "encoder.layers.{i}.norm2",
            }
        ),
        ("", "nomic_bert.", "bert."),
        is_rotary=True,
        is_gated=True,
        has_biases=False,
        # The model was trained on 2048 tokens; more, up to the 8192 of its first configuration, stretches its rotation.
        hf_defaults=_frozen(
            type_vocab_size=2, layer_norm_eps=1e-12, hidden_act="silu", max_position_embeddings=2048,
        ),
    ),
)  # fmt: skip

GGUF_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "word_embedding": "token_embd",
        "type_embedding": "token_types",
        "position_embedding": "position_embd",
        "embedding_norm": "token_embd_norm",
        "q": "blk.{i}.attn_q",
        "k": "blk.{i}.attn_k",
        "v": "blk.{i}.attn_v",
        "qkv": "blk.{i}.attn_qkv",
        "attention_output": "blk.{i}.attn_output",
        "attention_norm": "blk.{i}.attn_output_norm",
        "up": "blk.{i}.ffn_up",
        "gate": "blk.{i}.ffn_gate",
        "down": "blk.{i}.ffn_down",
        "output_norm": "blk.{i}.layer_output_norm",
        "head_dense": "cls",
        "head_output": "cls.output",
    }
)
"""Role -> name in a GGUF file, of all rows."""

ENCODER_BY_NAME: Mapping[str, EncoderArchitecture] = MappingProxyType({row.name: row for row in ENCODERS})
ENCODER_BY_HF_CLASS: Mapping[str, EncoderArchitecture] = MappingProxyType(
    {hf_class: row for row in ENCODERS for hf_class in (*row.hf_embedders, *row.hf_rankers)}
)
ENCODER_BY_GGUF_NAME: Mapping[str, EncoderArchitecture] = MappingProxyType(
    # RoBERTa's files say "bert", too, and with their first positions cut off they are nothing else. The first row wins.
    {row.gguf_name: row for row in reversed(ENCODERS)}
)
