"""PeftConfig: what an adapter_config.json says of a LoRA adapter; Scales: by what each of its updates is multiplied.

PEFT has many ways to change a model that share this file's name. Those that are no sum of products beside the base's
matrices, or that change what the base's weights are, end here in a sentence: running without what they ask for would
give wrong answers. Read by `adapter_plan`.
Source: huggingface/peft src/peft/tuners/lora/{config,layer}.py and src/peft/utils/other.py (get_pattern_key).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from engine.quantization.module_patterns import ModulePattern

CHANGED_BASES = ("pissa", "olora", "corda", "loftq")
"""What `init_lora_weights` begins with where training started from other weights than the base's."""


PLAIN_NAME = re.compile(r"[\w.-]+")
MAX_EXPRESSIONS = 64


class AdapterError(ValueError):
    """Files that are no LoRA adapter that Hob can apply to this model; the message says why."""


class PeftConfig(msgspec.Struct):
    """The keys of adapter_config.json that matter; null means what leaving it out does."""

    peft_type: str | None = None
    r: int | None = None
    lora_alpha: float | None = None
    use_rslora: bool | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_dora: bool | None = None
    modules_to_save: list[str] | None = None
    trainable_token_indices: Any = None
    bias: str | None = None
    lora_bias: bool | None = None
    fan_in_fan_out: bool | None = None
    layer_replication: Any = None
    target_parameters: list[str] | None = None
    init_lora_weights: bool | str | None = None
    alora_invocation_tokens: list[int] | None = None
    lora_parameters: Any = None
    """Of MLX, whose versions disagree on what a factor is."""

    @classmethod
    def parse(cls, text: str) -> PeftConfig:
        """
        Raises:
            AdapterError: it is no configuration of a LoRA adapter, or of one that Hob cannot apply.
        """
        try:
            config = msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise AdapterError(f"adapter_config.json cannot be read: {error}") from error
        if config.lora_parameters is not None:
            raise AdapterError(
                "adapter_config.json is MLX's (lora_parameters), which does not say by what an update is multiplied in "
                "all its versions; fuse the adapter into a model with mlx_lm.fuse"
            )
        if config.peft_type is None or config.r is None or config.lora_alpha is None:
            raise AdapterError("adapter_config.json is none of PEFT's: it lacks peft_type, r or lora_alpha")
        if config.peft_type != "LORA":
            raise AdapterError(f"the adapter is of the type {config.peft_type[:40]!r}; Hob applies LORA only")
        if (reason := next(iter(config._refusals()), None)) is not None:
            raise AdapterError(f"the adapter {reason}")
        return config

    def _refusals(self) -> Iterable[str]:
        """Why it cannot be applied, as ends of a sentence."""
        if self.use_dora:
            yield "uses DoRA (use_dora), which scales the base's own weights; merge it into them instead"
        if self.modules_to_save or self.trainable_token_indices:
            what = ", ".join(self.modules_to_save or ["tokens of the embedding"])
            yield (
                f"brings whole weights of its own ({what[:120]}), not only updates (modules_to_save, "
                "trainable_token_indices); merge it into the base's weights instead"
            )
        if self.lora_bias or self.bias not in (None, "none"):
            yield "trains biases (bias, lora_bias), which Hob does not apply; merge it into the base's weights instead"
        if self.fan_in_fan_out:
            yield "is for matrices that lie the other way round (fan_in_fan_out), which no model of Hob's has"
        if self.layer_replication:
            yield "repeats layers of the base (layer_replication), which Hob does not; merge it into a model instead"
        if self.target_parameters:
            yield "changes parameters that are no matrices of a decoder (target_parameters)"
        if self.alora_invocation_tokens:
            yield "applies to what follows certain tokens only (alora_invocation_tokens), which Hob cannot"
        if isinstance(self.init_lora_weights, str) and self.init_lora_weights.startswith(CHANGED_BASES):
            yield (
                f"was trained on other weights than the base's (init_lora_weights {self.init_lora_weights[:40]!r}); "
                "save it with path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
            )


class Scales:
    """By what each update of an adapter is multiplied."""

    def __init__(self, config: PeftConfig) -> None:
        """
        Raises:
            AdapterError: a pattern cannot be used.
        """
        assert config.r is not None
        assert config.lora_alpha is not None
        self._ranks = _Patterns(config.rank_pattern or {}, config.r)
        self._alphas = _Patterns(config.alpha_pattern or {}, config.lora_alpha)
        self._is_stabilised = bool(config.use_rslora)

    def scale(self, module: str, rank: int) -> float:
        """
        Args:
            module: its name in the base, such as "model.layers.0.self_attn.q_proj".
            rank: that of its matrices, which must be what the configuration says.

        Raises:
            AdapterError: it is not, or the factor is no finite number.
        """
        said = self._ranks.value(module)
        if said != rank:
            raise AdapterError(
                f"the matrices of {module} have the rank {rank}, but adapter_config.json says {said}; the files are of "
                "different adapters"
            )
        alpha = self._alphas.value(module)
        scale = alpha / (math.sqrt(rank) if self._is_stabilised else rank)
        if not math.isfinite(scale):
            raise AdapterError(f"the lora_alpha of {module} is {alpha}; it must be a finite number")
        return scale


class _Patterns:
    """Values by what modules' names end in; the first pattern that fits counts.

    Nearly all are plain names, of which a file may have one a matrix. The few expressions come from a stranger.
    """

    def __init__(self, patterns: Mapping[str, float], otherwise: float) -> None:
        self._names: dict[str, tuple[int, float]] = {}
        self._expressions: list[tuple[int, re.Pattern[str], float]] = []
        self._otherwise = otherwise
        for place, (pattern, value) in enumerate(patterns.items()):
            name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
            if PLAIN_NAME.fullmatch(name):
                self._names.setdefault(name, (place, value))
            else:
                self._expressions.append((place, _expression(pattern), value))
        if len(self._expressions) > MAX_EXPRESSIONS:
            raise AdapterError(
                f"adapter_config.json has {len(self._expressions)} patterns that are regular expressions; "
                f"{MAX_EXPRESSIONS} are allowed, name the modules instead"
            )

    def value(self, module: str) -> float:
        parts = module.split(".")
        endings = (".".join(parts[start:]) for start in range(len(parts)))
        found = [self._names[ending] for ending in endings if ending in self._names]
        found += [(place, value) for place, expression, value in self._expressions if expression.match(module)]
        return min(found)[1] if found else self._otherwise


def _expression(pattern: str) -> re.Pattern[str]:
    try:
        ModulePattern.expression(pattern)
        if sum(pattern.count(sign) for sign in "*+?") > 1:
            raise ValueError("it repeats too much to be matched in bounded time; name the modules instead")
    except ValueError as error:
        raise AdapterError(f"the pattern {pattern[:80]!r} in adapter_config.json cannot be used: {error}") from error
    return re.compile(rf"(?:.*\.)?(?:{pattern})$")
