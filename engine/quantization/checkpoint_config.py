"""quantization_config of a safetensors checkpoint -> StoredQuantization: which matrices are quantised, and how.

A row of `METHODS` reads what one family of tools writes. Settings of activations (static or dynamic ranges of W8A8
models) are passed over, because Hob computes with unquantised ones. What Hob cannot read is refused here, before a
tensor is looked at; where the description leaves a choice, the file's table of tensors decides (`models.tensor_plan`).
`engine.config` calls this; no torch.

Source: transformers utils/quantization_config.py; AutoGPTQ and GPTQModel (quantize_config.json); compressed-tensors
quantization/quant_args.py and quant_config.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from engine.config_fields import MAX_WIDTH, ConfigError, Fields
from engine.quantization.module_patterns import ModulePattern
from engine.quantization.scheme import Packing, WeightScheme

CLASS_NAME = "Linear"
"""What a pattern may say in place of all names; every matrix but the embedding is one."""
MAX_PATTERNS = 100_000
MAX_GROUPS = 64


@dataclass(frozen=True)
class StoredQuantization:
    """What a checkpoint says of its own weights."""

    method: str
    """As its tool calls it: "awq", "gptq", "fp8", "compressed-tensors"."""
    groups: tuple[tuple[tuple[ModulePattern, ...], WeightScheme], ...]
    """(modules, their scheme); the first that names a module counts."""
    ignored: tuple[ModulePattern, ...] = ()

    def scheme_of(self, module: str) -> WeightScheme | None:
        """The scheme of a matrix by its module's name; None for one that was left as it was."""
        if any(pattern.matches(module) for pattern in self.ignored):
            return None
        for patterns, scheme in self.groups:
            if any(pattern.matches(module) for pattern in patterns):
                return scheme
        return None


def read_quantization(values: Mapping[str, Any], label: str) -> StoredQuantization:
    """
    Args:
        label: where the values stand, for errors.

    Raises:
        ConfigError: a method or a form of it that Hob does not read, or values that contradict each other.
    """
    f = Fields(values, label)
    method = f.text("quant_method").lower()
    reader = METHODS.get(method)
    if reader is None:
        raise ConfigError(
            f"{f.name('quant_method')} is {method[:60]!r}; Hob reads {', '.join(METHODS)}: take the model in one of "
            "these, unquantised, or as a GGUF file"
        )
    return reader(f, method)


# ---- AWQ and GPTQ


def _awq(f: Fields, method: str) -> StoredQuantization:
    bits = _one_of(f, ("bits", "w_bit"), default=4)
    if bits != 4:
        raise ConfigError(f"{f.name('bits')} is {bits}; Hob reads AWQ of 4 bits")
    _require(f, ("version", "format"), ("gemm",), default="gemm")
    group = _group_size(f, ("group_size", "q_group_size"), default=128)
    scheme = WeightScheme("awq", 4, 1, group, has_zeros=True)
    return _single(method, scheme, _names(f, "modules_to_not_convert"))


def _gptq(f: Fields, method: str) -> StoredQuantization:
    bits = _one_of(f, ("bits", "w_bit"), default=0)
    if bits not in (4, 8):
        raise ConfigError(f"{f.name('bits')} is {bits}; Hob reads GPTQ of 4 and of 8 bits")
    if f.boolean("is_marlin_format", default=False):
        raise ConfigError(f"{f.name('is_marlin_format')} is true; Hob reads the formats gptq and gptq_v2")
    form = _require(f, ("checkpoint_format", "format"), ("gptq", "gptq_v2"), default="gptq")
    f.boolean("sym", default=True)  # either way the zero points are stored
    scheme = WeightScheme(
        "gptq",
        bits,
        1,
        _group_size(f, ("group_size",), default=128),
        has_zeros=True,
        zero_offset=1 if form == "gptq" else 0,
        has_group_index=f.boolean("desc_act", default=False),
    )
    return _single(method, scheme, _gptq_exceptions(f))


def _gptq_exceptions(f: Fields) -> tuple[ModulePattern, ...]:
    """Modules that GPTQModel's `dynamic` leaves out: "-:" and an expression; with "+:" they have settings of their own,
    which Hob does not read."""
    rules = f.mapping("dynamic").values
    for rule in rules:
        if not rule.startswith("-:"):
            raise ConfigError(
                f"{f.name('dynamic')} gives {rule[:60]!r} settings of its own; Hob reads GPTQ with one setting for all"
            )
    return tuple(_expression(rule.removeprefix("-:"), f.name("dynamic")) for rule in rules)


# ---- FP8


def _fp8(f: Fields, method: str) -> StoredQuantization:
    _require(f, ("fmt",), ("e4m3", "float8_e4m3fn"), default="e4m3")
    _require(f, ("scale_fmt",), ("float", "ue8m0"), default="float")
    _require(f, ("activation_scheme",), ("dynamic", "static"), default="dynamic")
    rows = columns = None
    if f.has("weight_block_size"):
        rows, columns = _block(f, "weight_block_size")
    ignored = _names(f, "modules_to_not_convert") + _names(f, "ignored_layers")
    return _single(method, WeightScheme("fp8", 8, rows, columns), ignored)


def _fbgemm_fp8(f: Fields, method: str) -> StoredQuantization:
    return _single(method, WeightScheme("fp8", 8, 1, None), _names(f, "modules_to_not_convert"))


# ---- compressed-tensors


COMPRESSED_FORMATS: Mapping[str, tuple[Packing, str, tuple[int, ...]]] = MappingProxyType(
    {
        "pack-quantized": ("packed", "int", (4, 8)),
        "int-quantized": ("int8", "int", (8,)),
        "naive-quantized": ("int8", "int", (8,)),
        "float-quantized": ("fp8", "float", (8,)),
    }
)
"""Format -> how it lays weights out, their type and their bits."""


def _compressed_tensors(f: Fields, method: str) -> StoredQuantization:
    sparsity = f.mapping("sparsity_config").text("format", default="dense")
    if sparsity != "dense":
        raise ConfigError(f"sparsity_config in {f.label} has the format {sparsity[:60]!r}; Hob reads dense weights")
    if f.mapping("transform_config").mapping("config_groups").values:
        raise ConfigError(f"{f.name('transform_config')} rotates activations, which Hob does not do")
    names = f.mapping("config_groups")
    if not 1 <= len(names.values) <= MAX_GROUPS:
        raise ConfigError(f"{f.name('config_groups')} has {len(names.values)} groups; 1 to {MAX_GROUPS} are read")
    groups = []
    for name in names.values:
        group = names.mapping(name)
        # A group's own format counts where weights are stored in several ("mixed-precision").
        form = _require(
            group if group.has("format") else f, ("format",), tuple(COMPRESSED_FORMATS), default="pack-quantized"
        )
        targets = _patterns(group, "targets") or (ModulePattern.everything(),)
        groups.append((targets, _compressed_scheme(group.mapping("weights"), form)))
    return StoredQuantization(method, tuple(groups), _patterns(f, "ignore"))


def _compressed_scheme(f: Fields, form: str) -> WeightScheme:
    packing, kind, allowed_bits = COMPRESSED_FORMATS[form]
    _require(f, ("type",), (kind,), default="int")
    bits = f.integer("num_bits", 64)
    if bits not in allowed_bits:
        allowed = " and ".join(str(number) for number in allowed_bits)
        raise ConfigError(f"{f.name('num_bits')} is {bits}; Hob reads {form} weights of {allowed} bits")
    if f.boolean("dynamic", default=False):
        raise ConfigError(f"{f.name('dynamic')} is true; weights have stored scales")
    is_group = f.has("group_size") and f.integer("group_size", MAX_WIDTH, minimum=-1) > 0
    strategy = _require(
        f, ("strategy",), ("tensor", "channel", "group", "block"), default="group" if is_group else "tensor"
    )
    rows, columns = {"tensor": (None, None), "channel": (1, None)}.get(strategy, (1, None))
    if strategy == "group":
        columns = f.integer("group_size", MAX_WIDTH)
    elif strategy == "block":
        if packing != "fp8":
            raise ConfigError(f"{f.name('strategy')} is 'block'; Hob reads {form} weights without blocks")
        rows, columns = _block(f, "block_structure")
    order = f.text("actorder", default="") if not isinstance(f.raw("actorder"), bool) else "group"
    has_group_index = packing == "packed" and strategy == "group" and order.lower() in ("group", "dynamic")
    has_zeros = not f.boolean("symmetric", default=True)
    if has_zeros and packing == "fp8":
        raise ConfigError(f"{f.name('symmetric')} is false; FP8 weights have no zero points")
    if has_zeros and packing == "packed" and strategy == "tensor":
        raise ConfigError(f"{f.name('symmetric')} is false; Hob reads packed zero points of rows and groups only")
    return WeightScheme(packing, bits, rows, columns, has_zeros=has_zeros, has_group_index=has_group_index)


METHODS: Mapping[str, Callable[[Fields, str], StoredQuantization]] = MappingProxyType(
    {
        "awq": _awq,
        "gptq": _gptq,
        "fp8": _fp8,
        "fbgemm_fp8": _fbgemm_fp8,
        "compressed-tensors": _compressed_tensors,
    }
)


# ---- values


def _single(method: str, scheme: WeightScheme, ignored: tuple[ModulePattern, ...]) -> StoredQuantization:
    return StoredQuantization(method, (((ModulePattern.everything(),), scheme),), ignored)


def _given(f: Fields, keys: tuple[str, ...]) -> str:
    """The key that is there among those that tools have given one thing.

    Raises:
        ConfigError: two are, with different values.
    """
    present = [key for key in keys if f.has(key)]
    for key in present[1:]:
        if f.raw(key) != f.raw(present[0]):
            raise ConfigError(f"{f.name(present[0])} and {key} differ; they are two names of one setting")
    return present[0] if present else keys[0]


def _one_of(f: Fields, keys: tuple[str, ...], default: int) -> int:
    return f.integer(_given(f, keys), 64, minimum=0, default=default)


def _group_size(f: Fields, keys: tuple[str, ...], default: int) -> int | None:
    """Columns of a group; -1 stands for all, which is None here."""
    key = _given(f, keys)
    size = f.integer(key, MAX_WIDTH, minimum=-1, default=default)
    if size == 0:
        raise ConfigError(f"{f.name(key)} is 0; a group has at least one column, and -1 means all")
    return None if size == -1 else size


def _require(f: Fields, keys: tuple[str, ...], allowed: tuple[str, ...], default: str) -> str:
    """A text in small letters that must be one of `allowed`."""
    key = _given(f, keys)
    value = f.text(key, default=default).lower()
    if value not in allowed:
        raise ConfigError(f"{f.name(key)} is {value[:60]!r}; Hob reads {', '.join(allowed)}")
    return value


def _block(f: Fields, key: str) -> tuple[int, int]:
    """[rows, columns] of a block; early files of compressed-tensors write "128x128"."""
    value: Any = f.raw(key)
    if isinstance(value, str) and re.fullmatch(r"\d{1,7}x\d{1,7}", value):
        value = [int(size) for size in value.split("x")]
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    if not is_pair or not all(type(size) is int and 1 <= size <= MAX_WIDTH for size in value):
        raise ConfigError(f"{f.name(key)} must be [rows, columns] of a block, not {str(value)[:60]}")
    return value[0], value[1]


def _names(f: Fields, key: str) -> tuple[ModulePattern, ...]:
    """Modules by whole parts of their names."""
    return tuple(ModulePattern.part(text) for text in _texts(f, key))


def _patterns(f: Fields, key: str) -> tuple[ModulePattern, ...]:
    """Modules by name, by "re:" and an expression, or by their class."""
    patterns = []
    for text in _texts(f, key):
        if text.startswith("re:"):
            patterns.append(_expression(text.removeprefix("re:"), f.name(key)))
        elif text == CLASS_NAME:
            patterns.append(ModulePattern.everything())
        else:
            patterns.append(ModulePattern.part(text))
    return tuple(patterns)


def _expression(text: str, where: str) -> ModulePattern:
    try:
        return ModulePattern.expression(text)
    except ValueError as error:
        raise ConfigError(f"{where} has the expression {text[:60]!r}: {error}") from error


def _texts(f: Fields, key: str) -> list[str]:
    value = f.raw(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ConfigError(f"{f.name(key)} must be a list of names")
    if len(value) > MAX_PATTERNS:
        raise ConfigError(f"{f.name(key)} has {len(value)} entries; {MAX_PATTERNS} are allowed")
    return value
