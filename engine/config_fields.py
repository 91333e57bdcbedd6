"""Fields: checked access to a model's untrusted key-value description, config.json or GGUF metadata.

Every number that will size an allocation, divide something or index something passes through here, with limits far
above any model that exists and far below what harms. An error names the key, the value and the limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

MAX_VOCAB_SIZE = 1 << 22
MAX_WIDTH = 1 << 20
"""Limit of hidden and intermediate sizes."""
MAX_LAYERS = 1024
MAX_HEADS = 4096
MAX_HEAD_DIM = 4096
MAX_POSITIONS = 1 << 30


class ConfigError(ValueError):
    """A model description that is incomplete, out of bounds, or of an architecture that Hob does not run."""


class Fields:
    """Typed reads from a mapping; a key that is absent or null takes the default, and raises where there is none.

    `label` says in errors where the keys stand ("config.json", "the GGUF metadata"); `prefix` is put before each key.
    """

    def __init__(self, values: Mapping[str, object], label: str, prefix: str = "") -> None:
        self.values = values
        self.label = label
        self.prefix = prefix

    def name(self, key: str) -> str:
        """The key as an error names it."""
        return f"{self.prefix}{key} in {self.label}"

    def raw(self, key: str) -> object:
        return self.values.get(self.prefix + key)

    def has(self, key: str) -> bool:
        return self.raw(key) is not None

    def integer(self, key: str, maximum: int, *, minimum: int = 1, default: int | None = None) -> int:
        """An integer in [minimum, maximum]. A list counts when its entries, one a layer, are all the same."""
        value = self.raw(key)
        if isinstance(value, list) and value:
            if any(type(entry) is not type(value[0]) or entry != value[0] for entry in value):
                raise ConfigError(f"{self.name(key)} differs between layers; Hob runs models with one value for all")
            value = value[0]
        if value is None:
            value = self._default(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self.name(key)} must be an integer, not {_shown(value)}")
        if not minimum <= value <= maximum:
            raise ConfigError(f"{self.name(key)} is {value}; it must lie between {minimum} and {maximum}")
        return value

    def optional_integer(self, key: str, maximum: int, *, minimum: int = 1) -> int | None:
        return self.integer(key, maximum, minimum=minimum) if self.has(key) else None

    def number(self, key: str, *, above: float = 0.0, maximum: float = math.inf, default: float | None = None) -> float:
        """A finite number in (above, maximum]."""
        value = self.raw(key)
        if value is None:
            value = self._default(key, default)
        return _number(value, self.name(key), above, maximum)

    def optional_number(self, key: str, *, above: float = 0.0, maximum: float = math.inf) -> float | None:
        return self.number(key, above=above, maximum=maximum) if self.has(key) else None

    def numbers(self, key: str, length: int, *, maximum: float = math.inf) -> tuple[float, ...]:
        """A list of `length` positive finite numbers."""
        value = self.raw(key)
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise ConfigError(f"{self.name(key)} must be a list of {length} numbers, not {_shown(value)}")
        return checked_numbers(value, length, self.name(key), maximum)

    def boolean(self, key: str, *, default: bool) -> bool:
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{self.name(key)} must be true or false, not {_shown(value)}")
        return value

    def text(self, key: str, *, default: str | None = None) -> str:
        value = self.raw(key)
        if value is None:
            value = self._default(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.name(key)} must be a string, not {_shown(value)}")
        return value

    def mapping(self, key: str) -> Fields:
        """The object under a key, empty where there is none."""
        value = self.raw(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self.name(key)} must be an object, not {_shown(value)}")
        return Fields(value, self.name(key))

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """An id or a list of ids below `vocab_size`; empty where the key is absent."""
        value = self.raw(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int):
                raise ConfigError(f"{self.name(key)} must hold token ids, not {_shown(token_id)}")
            if not 0 <= token_id < vocab_size:
                raise ConfigError(f"{self.name(key)} is {token_id}, outside the vocabulary of {vocab_size} tokens")
        return tuple(dict.fromkeys(ids))

    def _default(self, key: str, default: object) -> object:
        if default is None:
            raise ConfigError(f"{self.name(key)} is missing; a model cannot be loaded without it")
        return default


def checked_numbers(values: Sequence[object], length: int, name: str, maximum: float) -> tuple[float, ...]:
    """`values` as positive finite floats, `length` of them."""
    if len(values) != length:
        raise ConfigError(f"{name} holds {len(values)} numbers; the rotary dimension asks for {length}")
    return tuple(_number(value, name, 0.0, maximum) for value in values)


def _number(value: object, name: str, above: float, maximum: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number, not {_shown(value)}")
    # An int beyond a double's range compares correctly; float() of it would raise.
    if not (above < value <= maximum) or value in (math.inf, -math.inf):
        raise ConfigError(f"{name} is {_shown(value)}; it must be finite, above {above:g} and at most {maximum:g}")
    try:
        return float(value)
    except OverflowError as error:
        raise ConfigError(f"{name} is beyond the range of a floating-point number") from error


def _shown(value: object) -> str:
    """A value as an error shows it: short, whatever a hostile file holds."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 1 << 128 else "a huge integer"
    return text if len(text) <= 60 else text[:57] + "..."
