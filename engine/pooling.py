"""Pooling: how a model's hidden states become one vector a text, from the files of sentence-transformers or from GGUF.

    modules.json           the chain: Transformer, Pooling, and Normalize where vectors have length 1
    N_Pooling/config.json  which of the ways
    <arch>.pooling_type    the same in GGUF

A model that names one is made for embedding. Read by `engine.config` and `engine.encoder_config`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.config_fields import ConfigError, Fields
from modelfiles.source import ModelSource

PoolingMode = Literal["mean", "cls", "last"]

MODULES_FILE = "modules.json"
HUB_FLAGS: dict[str, PoolingMode | None] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": None,
    "pooling_mode_mean_sqrt_len_tokens": None,
    "pooling_mode_weightedmean_tokens": None,
}
"""Keys of N_Pooling/config.json; None: Hob has no such pooling."""
HUB_NAMES: dict[str, PoolingMode] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
"""Values of `pooling_mode`, which newer files have in the place of the flags."""
GGUF_MODES: dict[int, PoolingMode] = {1: "mean", 2: "cls", 3: "last"}
RANK = 4
"""GGUF's pooling type of cross-encoders."""


@dataclass(frozen=True)
class Pooling:
    """The last two steps from hidden states to a vector."""

    mode: PoolingMode
    """"mean" of all tokens, the first ("cls") or the last."""
    normalize: bool = False
    """Whether the model itself gives vectors of length 1."""


def pooling_of_files(source: ModelSource) -> Pooling | None:
    """What modules.json says; None where there is none.

    Raises:
        ConfigError: the chain has a link that Hob does not compute, or says how to pool nowhere.
    """
    modules = _read_json(source, MODULES_FILE)
    if modules is None:
        return None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ConfigError(f"{MODULES_FILE} must hold a list of objects")
    mode: PoolingMode | None = None
    normalize = False
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            mode = _hub_mode(source, f"{module.get('path', '')}/config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ConfigError(
                f"{MODULES_FILE} names {kind[:60]!r}; Hob computes Transformer, Pooling and Normalize, and without the "
                "rest the vectors would be others"
            )
    if mode is None:
        raise ConfigError(f"{MODULES_FILE} names no Pooling; Hob makes one vector a text")
    return Pooling(mode, normalize)


def pooling_of_gguf(f: Fields) -> Pooling | None:
    """What a GGUF file's keys say; None where they are silent, and of a cross-encoder.

    Args:
        f: the keys of the architecture.

    Raises:
        ConfigError: the type is none of those that Hob computes.
    """
    number = f.optional_integer("pooling_type", 255, minimum=0)
    if number in (None, 0, RANK):
        return None
    if number not in GGUF_MODES:
        raise ConfigError(f"{f.name('pooling_type')} is {number}; Hob knows 1 (mean), 2 (cls), 3 (last) and 4 (rank)")
    return Pooling(GGUF_MODES[number], f.boolean("normalize_embeddings", default=False))


def _hub_mode(source: ModelSource, name: str) -> PoolingMode:
    config = _read_json(source, name)
    if config is None:
        raise ConfigError(f"{MODULES_FILE} names {name}, which is not among the files; it says how to pool")
    if not isinstance(config, Mapping):
        raise ConfigError(f"{name} must hold an object")
    if isinstance(config.get("pooling_mode"), str):
        chosen, known = [config["pooling_mode"]], HUB_NAMES.get(config["pooling_mode"])
    else:
        chosen = [flag for flag in HUB_FLAGS if config.get(flag) is True]
        known = HUB_FLAGS[chosen[0]] if len(chosen) == 1 else None
    if known is None:
        shown = ", ".join(str(flag)[:60] for flag in chosen) or "nothing"
        raise ConfigError(f"{name} asks for {shown}; Hob pools by mean, by the first or by the last token, one of them")
    return known


def _read_json(source: ModelSource, name: str) -> Any:
    text = source.read_text(name)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON: {error}") from error
