"""Which kind of model some files are, a decoder that writes or an encoder that reads, and its configuration.

For whoever is handed a model and does not know: the worker that loads it, the daemon that describes it.
"""

from __future__ import annotations

from engine.config import ModelConfig
from engine.encoder_architectures import ENCODER_BY_GGUF_NAME
from engine.encoder_config import EncoderConfig, encoder_class, read_json_object
from modelfiles.gguf import open_shards
from modelfiles.source import ModelSource

AnyConfig = ModelConfig | EncoderConfig


def read_config(source: ModelSource) -> AnyConfig:
    """A model's configuration.

    Raises:
        ConfigError: it is incomplete or out of bounds, or Hob does not run the architecture.
        GGUFError, SafetensorsError: the weights' file is broken.
    """
    return EncoderConfig.from_source(source) if is_encoder(source) else ModelConfig.from_source(source)


def is_encoder(source: ModelSource) -> bool:
    """Whether a model's files describe an encoder. Raises as `read_config`."""
    if source.format == "gguf":
        with open_shards(source.gguf_files) as model:
            architecture = model.metadata.get("general.architecture")
            return isinstance(architecture, str) and architecture in ENCODER_BY_GGUF_NAME
    return encoder_class(read_json_object(source, "config.json") or {}) is not None


def capabilities_of(config: AnyConfig) -> frozenset[str] | None:
    """What a model can do, where that follows from its kind; None of one that writes, whose template says more."""
    if isinstance(config, EncoderConfig):
        return frozenset({"rerank" if config.is_ranker else "embedding"})
    return frozenset({"embedding"}) if config.pooling is not None else None
