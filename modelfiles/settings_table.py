"""The table of settings: where each may come from, how its text becomes a value, and what it is by default.

Read by modelfiles.settings alone. Each setting has one converter, for the environment, the TOML file and the command
line alike: it takes text and raises ValueError with the end of a sentence that begins `HOB_X is "...", `.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modelfiles.durations import DurationError, parse_keep_alive_text
from modelfiles.host import HostAddress, HostError


@dataclass(frozen=True)
class Setting:
    """One row of the table: a field of Settings and where its value may come from."""

    field: str
    key: str
    """Its name in the TOML file and among the flags."""
    variables: tuple[str, ...]
    """Environment variables, the strongest first; "!" before a name means that it says the opposite."""
    convert: Callable[[str], Any]
    default: Any = None


def _integer(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        # ASCII digits only: int() would also take "1_000" and digits of other scripts.
        digits = text[1:] if text[:1] in ("-", "+") else text
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 20 or not low <= int(text) <= high:
            raise ValueError(f"which is not a whole number from {low} to {high}")
        return int(text)

    return convert


def _boolean(text: str) -> bool:
    words = {"1": True, "t": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "f": False, "false": False, "no": False, "off": False}
    try:
        return words[text.lower()]
    except KeyError:
        raise ValueError("which is neither true nor false; write 1 or 0") from None


def _choice(*choices: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"which is not one of {', '.join(choices)}")
        return text.lower()

    return convert


def _debug(text: str) -> int:
    try:
        return int(_boolean(text))
    except ValueError:
        return min(_integer(0, 100)(text), 2)


def _address(text: str) -> HostAddress:
    try:
        return HostAddress.parse(text)
    except HostError as error:
        raise ValueError(f"but {error}") from error


def _seconds(text: str) -> float:
    try:
        return parse_keep_alive_text(text)
    except DurationError as error:
        raise ValueError(f'which is no duration ({error}); write e.g. "5m", "1h30m" or a number of seconds') from error


def _stall_seconds(text: str) -> float:
    """As in Ollama, zero and negative mean that a load is never given up."""
    return _seconds(text) or float("inf")


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(origin.strip() for origin in text.split(",") if origin.strip())
    for origin in origins:
        if origin != "*" and "://" not in origin:
            raise ValueError(f'but the origin "{origin}" has no scheme; write e.g. https://example.org')
    return origins


def path_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("which holds a NUL character")
    return text


SETTINGS: tuple[Setting, ...] = (
    Setting("address", "host", ("HOB_HOST", "OLLAMA_HOST"), _address, HostAddress()),
    Setting("models_dir", "models", ("HOB_MODELS", "OLLAMA_MODELS"), path_text),
    Setting("state_dir", "state", ("HOB_STATE",), path_text),
    Setting("keep_alive_s", "keep_alive", ("HOB_KEEP_ALIVE", "OLLAMA_KEEP_ALIVE"), _seconds, 300.0),
    Setting("load_timeout_s", "load_timeout", ("HOB_LOAD_TIMEOUT", "OLLAMA_LOAD_TIMEOUT"), _stall_seconds, 300.0),
    Setting("context_length", "context_length", ("HOB_CONTEXT_LENGTH", "OLLAMA_CONTEXT_LENGTH"), _integer(0, 2**24), 0),
    Setting("max_queue", "max_queue", ("HOB_MAX_QUEUE", "OLLAMA_MAX_QUEUE"), _integer(1, 2**20), 512),
    Setting(
        "max_loaded_models",
        "max_loaded_models",
        ("HOB_MAX_LOADED_MODELS", "OLLAMA_MAX_LOADED_MODELS"),
        _integer(0, 1024),
        0,
    ),
    Setting(
        "max_transfer_streams",
        "max_transfer_streams",
        ("HOB_MAX_TRANSFER_STREAMS", "OLLAMA_MAX_TRANSFER_STREAMS"),
        _integer(1, 64),
        4,
    ),
    Setting("origins", "origins", ("HOB_ORIGINS", "OLLAMA_ORIGINS"), _origins, ()),
    Setting("num_threads", "num_threads", ("HOB_NUM_THREADS",), _integer(0, 1024), 0),
    Setting("device", "device", ("HOB_DEVICE",), _choice("auto", "cpu", "cuda"), "auto"),
    Setting("dtype", "dtype", ("HOB_DTYPE",), _choice("auto", "float32", "float16", "bfloat16"), "auto"),
    Setting("weight_type", "weight_type", ("HOB_WEIGHT_TYPE",), _choice("auto", "fp8", "int8"), "auto"),
    Setting(
        "kv_cache_type",
        "kv_cache_type",
        ("HOB_KV_CACHE_TYPE", "OLLAMA_KV_CACHE_TYPE"),
        _choice("auto", "f32", "f16", "bf16", "fp8", "int8", "q8_0", "q4_0"),
        "auto",
    ),
    Setting("gpu_overhead_bytes", "gpu_overhead", ("HOB_GPU_OVERHEAD", "OLLAMA_GPU_OVERHEAD"), _integer(0, 2**50), 0),
    Setting("model_memory_bytes", "model_memory", ("HOB_MODEL_MEMORY",), _integer(0, 2**50), 0),
    Setting("history", "history", ("HOB_HISTORY", "!HOB_NOHISTORY", "!OLLAMA_NOHISTORY"), _boolean, True),
    Setting("markdown", "markdown", ("HOB_MARKDOWN",), _boolean, True),
    Setting("prune", "prune", ("HOB_PRUNE", "!HOB_NOPRUNE", "!OLLAMA_NOPRUNE"), _boolean, True),
    Setting("debug", "debug", ("HOB_DEBUG", "OLLAMA_DEBUG"), _debug, 0),
    Setting("editor", "editor", ("HOB_EDITOR", "OLLAMA_EDITOR", "VISUAL", "EDITOR"), str, "vi"),
    Setting("api_key", "api_key", ("HOB_API_KEY",), str, ""),
    Setting("allow_remote", "allow_remote", ("HOB_ALLOW_REMOTE",), _boolean, False),
    Setting("spare_worker", "spare_worker", ("HOB_SPARE_WORKER",), _boolean, True),
    Setting("drain_s", "drain", ("HOB_DRAIN",), _seconds, 30.0),
)

WITHOUT_EFFECT = {
    "OLLAMA_NUM_PARALLEL": "requests are batched as they come, so there are no slots to count",
    "OLLAMA_FLASH_ATTENTION": "the engine chooses its attention kernel itself",
    "OLLAMA_SCHED_SPREAD": "a model is loaded on one GPU",
    "OLLAMA_LLM_LIBRARY": "the engine has one backend for each device; set HOB_DEVICE instead",
}
"""Variables of Ollama that people set and that mean nothing here, each with the reason."""
