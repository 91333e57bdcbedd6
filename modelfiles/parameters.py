"""The options of a model: names, types, defaults and ranges, from the Modelfile to the engine, in one table.

A Modelfile gives them as text (`PARAMETER temperature 0.7`), a request as JSON (`"options": {"temperature": 0.7}`).
Names, types, defaults and the sentences about wrong types are Ollama's. Unlike Ollama, values that no model can use are
refused here (NaN, infinities, a top_p of 7) instead of reaching the sampler.
Source: ollama/ollama api/types.go (Options, Runner, FormatParams).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["integer", "float32", "boolean", "array"]
Value = int | float | bool | list[str]

INT32 = 2**31 - 1
INT64 = 2**63 - 1
MAX_FLOAT32 = 3.4028234663852886e38
MAX_STOP_STRINGS = 256
MAX_STOP_LENGTH = 4096


class ParameterError(ValueError):
    """An option that does not exist, or a value of the wrong type or out of range."""


@dataclass(frozen=True)
class Parameter:
    """One row of the table. `low` and `high` belong to the range, except a low of a `positive` parameter."""

    kind: Kind
    default: Any
    low: float = -math.inf
    high: float = math.inf
    positive: bool = False
    load_time: bool = False
    """Whether it says how a model is loaded, rather than how one request is answered."""


PARAMETERS: dict[str, Parameter] = {
    "num_keep": Parameter("integer", 4, -1, INT32),
    "seed": Parameter("integer", -1, -INT64, INT64),
    "num_predict": Parameter("integer", -1, -INT32, INT32),
    "top_k": Parameter("integer", 40, -INT32, INT32),
    "top_p": Parameter("float32", 0.9, 0, 1),
    "min_p": Parameter("float32", 0.0, 0, 1),
    "typical_p": Parameter("float32", 1.0, 0, 1),
    "repeat_last_n": Parameter("integer", 64, -1, INT32),
    "temperature": Parameter("float32", 0.8, 0),
    "repeat_penalty": Parameter("float32", 1.0, 0, positive=True),
    "presence_penalty": Parameter("float32", 0.0),
    "frequency_penalty": Parameter("float32", 0.0),
    "stop": Parameter("array", []),
    "num_ctx": Parameter("integer", 0, 0, INT32, load_time=True),
    "num_batch": Parameter("integer", 512, 0, INT32, load_time=True),
    "num_gpu": Parameter("integer", -1, -1, INT32, load_time=True),
    "main_gpu": Parameter("integer", None, 0, INT32, load_time=True),
    "use_mmap": Parameter("boolean", None, load_time=True),
    "num_thread": Parameter("integer", 0, 0, INT32, load_time=True),
    "draft_num_predict": Parameter("integer", 4, 0, INT32, load_time=True),
}

DEPRECATED = frozenset(
    {
        "penalize_newline",
        "low_vram",
        "f16_kv",
        "logits_all",
        "vocab_only",
        "use_mlock",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
    }
)
"""Dropped with a warning in a Modelfile, ignored in a request."""

BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
INTEGER_TEXT = re.compile(r"[-+]?[0-9]{1,19}")
FLOAT_TEXT = re.compile(r"[-+]?([0-9]{1,400}(\.[0-9]{0,400})?|\.[0-9]{1,400})([eE][-+]?[0-9]{1,4})?")


def parse_parameter(name: str, text: str) -> Value:
    """The value of `PARAMETER name text`; a list of one string for "stop".

    Raises:
        ParameterError: the name is unknown (or deprecated), or the text is no value of its type or out of range.
    """
    if name in DEPRECATED:
        raise ParameterError(deprecation_warning(name))
    if name not in PARAMETERS:
        raise ParameterError(f"unknown parameter '{_shown(name)}'")
    parameter = PARAMETERS[name]
    what = f'parameter "{name}" is "{_shown(text)}"'
    if parameter.kind == "array":
        return _check_stop(name, [text])
    if parameter.kind == "boolean":
        if text not in BOOLEANS:
            raise ParameterError(f"{what}, which is neither true nor false")
        return BOOLEANS[text]
    if parameter.kind == "integer":
        if not INTEGER_TEXT.fullmatch(text):
            raise ParameterError(f"{what}, which is not a whole number")
        return int(_check_range(parameter, int(text), what))
    if not FLOAT_TEXT.fullmatch(text):
        raise ParameterError(f"{what}, which is not a number")
    return float(_check_range(parameter, float(text), what))


def collect_parameters(pairs: Iterable[tuple[str, str]]) -> tuple[dict[str, Value], list[str]]:
    """The PARAMETER lines of one Modelfile: "stop" collects, for all others the last line counts.

    Returns:
        The typed values, and warnings about deprecated names, which are dropped.

    Raises:
        ParameterError: see parse_parameter.
    """
    values: dict[str, Value] = {}
    warnings: list[str] = []
    for name, text in pairs:
        if name in DEPRECATED:
            warnings.append(deprecation_warning(name))
            continue
        value = parse_parameter(name, text)
        before = values.get(name)
        if isinstance(value, list) and isinstance(before, list):
            value = _check_stop(name, before + value)
        values[name] = value
    return values, warnings


def check_options(options: Mapping[str, Any]) -> dict[str, Value]:
    """The options of a request, typed; null means unset, and unknown or deprecated names are left out.

    Raises:
        ParameterError: a value has the wrong type or is out of range.
    """
    return {
        name: _check_json(name, PARAMETERS[name], value)
        for name, value in options.items()
        if value is not None and name in PARAMETERS
    }


def deprecation_warning(name: str) -> str:
    """What is said about a deprecated parameter."""
    return f"parameter {name} is deprecated"


def _check_json(name: str, parameter: Parameter, value: object) -> Value:
    what = f'option "{name}" is {_shown(str(value)) if not isinstance(value, int) else _shown_integer(value)}'
    if parameter.kind == "array":
        if not isinstance(value, list):
            raise ParameterError(f'option "{name}" must be of type array')
        if not all(isinstance(item, str) for item in value):
            raise ParameterError(f'option "{name}" must be of an array of strings')
        return _check_stop(name, list(value))
    if parameter.kind == "boolean":
        if not isinstance(value, bool):
            raise ParameterError(f'option "{name}" must be of type boolean')
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParameterError(f'option "{name}" must be of type {parameter.kind}')
    if parameter.kind == "integer":
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ParameterError(f"{what}, which is not a finite number")
            value = int(value)  # JSON numbers are floats to many clients: 40.0, and Ollama cuts 40.9, too
        return int(_check_range(parameter, value, what))
    return float(_check_range(parameter, value, what))


def _check_range(parameter: Parameter, value: int | float, what: str) -> int | float:
    """The value, if it is finite and within its range."""
    low, high = parameter.low, parameter.high
    if parameter.kind == "float32" and not abs(value) <= MAX_FLOAT32:  # true for NaN, and no conversion overflows
        raise ParameterError(f"{what}, which is not a finite number of 32 bits")
    if low <= value <= high and not (parameter.positive and value <= low):
        return value
    if parameter.positive:
        bounds = f"greater than {low:g}"
    elif math.isinf(high):
        bounds = f"at least {low:g}"
    else:
        bounds = f"from {low} to {high}"
    raise ParameterError(f"{what}, but it must be {bounds}")


def _check_stop(name: str, texts: list[str]) -> list[str]:
    if len(texts) > MAX_STOP_STRINGS or any(len(text) > MAX_STOP_LENGTH for text in texts):
        raise ParameterError(
            f'"{name}" has {len(texts)} strings, the longest of {max(map(len, texts))} characters; '
            f"{MAX_STOP_STRINGS} of {MAX_STOP_LENGTH} are allowed"
        )
    return texts


def _shown(text: str) -> str:
    return text if len(text) <= 64 else text[:64] + "..."


def _shown_integer(value: int) -> str:
    """An integer for a message; Python refuses to print those of thousands of digits."""
    return str(value) if value.bit_length() <= 256 else f"a number of {value.bit_length()} bits"
