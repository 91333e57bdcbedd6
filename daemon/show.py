"""The reply of /api/show: all that is known of a stored model, as text and as tables. Blocking; call in a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from daemon.api import Message, ShowResponse, Tensor
from daemon.library import Description
from engine.any_config import AnyConfig, read_config
from engine.config import ModelConfig
from engine.encoder_config import EncoderConfig
from engine.pooling import GGUF_MODES, RANK
from modelfiles.gguf import GGMLType, GGUFError, open_shards
from modelfiles.safetensors import SafetensorsModel
from modelfiles.source import ModelSource
from registry.show import modelfile_text, parameters_text, params_with
from registry.stored_model import StoredModel

MAX_SHORT_ARRAY = 5
"""Longer arrays of the metadata (a tokenizer's vocabulary) are shown as null unless asked for."""
HIDDEN_KEYS = frozenset({"general.name", "tokenizer.chat_template"})


def show(
    stored: StoredModel, description: Description, options: Mapping[str, Any], system: str | None, *, verbose: bool
) -> ShowResponse:
    """What a client sees of a model.

    Args:
        options, system: laid over the model's own, as a session would use them; nothing is stored.
        verbose: long arrays of the metadata too.

    Raises:
        SourceError, GGUFError, SafetensorsError, ConfigError: its files are broken or of a kind that Hob does not run.
    """
    overlay = {name: value for name, value in options.items() if value is not None}
    system_text = system or stored.system
    source = stored.source
    template = description.template
    return ShowResponse(
        license="\n".join(stored.licenses),
        modelfile=modelfile_text(stored, system=system_text, params=overlay),
        parameters=parameters_text(params_with(stored.params, overlay)),
        template=template,
        system=system_text,
        renderer=stored.config.get("renderer", ""),
        parser=stored.config.get("parser", ""),
        remote_model=stored.config.get("remote_model", ""),
        remote_host=stored.config.get("remote_host", ""),
        requires=stored.config.get("requires", ""),
        details=description.details,
        messages=[Message(role=message["role"], content=message["content"]) for message in stored.messages],
        model_info=_gguf_info(source, verbose) if source.format == "gguf" else _config_info(source, stored.name.model),
        projector_info=_projector_info(stored.projectors, verbose),
        tensors=_tensors(source),
        capabilities=list(description.capabilities),
        modified_at=stored.modified_at.isoformat().replace("+00:00", "Z"),
    )


def _gguf_info(source: ModelSource, verbose: bool) -> dict[str, Any]:
    with open_shards(source.gguf_files) as model:
        info = {key: value for key, value in model.metadata.items() if key not in HIDDEN_KEYS}
    info["general.parameter_count"] = read_config(source).num_parameters
    return _shortened(info, verbose)


def _projector_info(projectors: Sequence[Path], verbose: bool) -> dict[str, Any]:
    """Empty where there is none, and where it cannot be read: nothing is run with it."""
    try:
        with open_shards(projectors) as projector:
            return _shortened({key: projector.metadata[key] for key in projector.metadata}, verbose)
    except GGUFError:
        return {}


def _shortened(info: Mapping[str, Any], verbose: bool) -> dict[str, Any]:
    is_long = {key for key, value in info.items() if isinstance(value, list) and len(value) > MAX_SHORT_ARRAY}
    return {key: None if key in is_long and not verbose else info[key] for key in sorted(info)}


def _config_info(source: ModelSource, name: str) -> dict[str, Any]:
    """The keys that a GGUF file of this model would have."""
    config = read_config(source)
    family = config.family
    if isinstance(config, ModelConfig):
        own: dict[str, Any] = {
            f"{family}.attention.head_count_kv": config.num_kv_heads,
            f"{family}.attention.key_length": config.head_dim,
            f"{family}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        }
    else:
        own = {
            f"{family}.attention.causal": False,
            f"{family}.attention.layer_norm_epsilon": config.layer_norm_eps,
        }
    info = {
        **own,
        **_pooling_info(config),
        "general.architecture": family,
        "general.basename": name,
        "general.parameter_count": config.num_parameters,
        f"{family}.attention.head_count": config.num_heads,
        f"{family}.block_count": config.num_layers,
        f"{family}.context_length": config.max_position_embeddings,
        f"{family}.embedding_length": config.hidden_size,
        f"{family}.feed_forward_length": config.intermediate_size,
        f"{family}.vocab_size": config.vocab_size,
    }
    return dict(sorted(info.items()))


def _pooling_info(config: AnyConfig) -> dict[str, Any]:
    if isinstance(config, EncoderConfig) and config.is_ranker:
        return {f"{config.family}.pooling_type": RANK}
    modes = [number for number, mode in GGUF_MODES.items() if config.pooling and mode == config.pooling.mode]
    return {f"{config.family}.pooling_type": number for number in modes}


def _tensors(source: ModelSource) -> list[Tensor]:
    if source.format == "gguf":
        with open_shards(source.gguf_files) as model:
            # GGUF counts dimensions from the innermost, and so do the tools that show it.
            return [
                Tensor(name=tensor.name, type=GGMLType(tensor.type).name, shape=list(reversed(tensor.shape)))
                for tensor in model.tensors.values()
            ]
    with SafetensorsModel.open(source.files) as weights:
        return [Tensor(name=item.name, type=item.dtype, shape=list(item.shape)) for item in weights.tensors.values()]
