"""Settings: what a person configures. The only reader of the environment and of the TOML file.

Read once at the edge of each command (`hob`, `hobd`), frozen, and handed down. Later sources win: defaults, the TOML
file (`hob/config.toml` in the platform's configuration folder), OLLAMA_* variables, HOB_* ones, command-line flags.
A wrong value or an unknown key is a sentence that names the variable or the file; nothing falls back silently, except
that a variable which is set and empty counts as unset, as in Ollama.

`HOB_HOME` puts configuration, models and state into one folder (portable installations, tests).
Source of the OLLAMA_* names and meanings: ollama/ollama envconfig.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs

from modelfiles.durations import DurationError, parse_keep_alive_text
from modelfiles.host import HostAddress, HostError


class SettingsError(ValueError):
    """A variable, file or flag that cannot be used; the message names it and says what would do."""


@dataclass(frozen=True)
class Settings:
    """Everything configurable, validated."""

    address: HostAddress
    models_dir: Path
    state_dir: Path
    """Holds the log, the lock and the history."""
    keep_alive_s: float
    """Seconds that an idle model stays loaded; infinity is forever."""
    load_timeout_s: float
    """Seconds without progress after which a load is given up; infinity is never."""
    context_length: int
    """Tokens of context where neither request nor Modelfile says; 0 chooses by the memory there is."""
    max_queue: int
    """Requests that may wait before others are refused with 503."""
    max_loaded_models: int
    """0 is as many as fit."""
    max_transfer_streams: int
    origins: tuple[str, ...]
    """Origins allowed beside the local ones; "*" stands for any text."""
    num_threads: int
    """CPU threads of a worker; 0 is one a core."""
    device: str
    dtype: str
    kv_cache_type: str
    gpu_overhead_bytes: int
    """Memory of each GPU that is left to others."""
    history: bool
    """Whether the prompt's lines are remembered between runs."""
    prune: bool
    """Whether the daemon collects unreferenced blobs when it starts."""
    debug: int
    """0 quiet, 1 debug, 2 trace."""
    editor: str
    api_key: str = field(repr=False)
    """What clients must send as a bearer token; empty asks for none."""
    allow_remote: bool
    """Whether the daemon may listen where other machines reach it."""
    spare_worker: bool
    """Whether an empty worker waits, so that the first load need not start one."""
    drain_s: float
    """Seconds that running answers get to finish when the daemon is told to end."""
    notes: tuple[str, ...] = ()
    """Sentences for the log about variables that are set and have no effect."""

    @property
    def host(self) -> str:
        """What the daemon binds to."""
        return self.address.host

    @property
    def port(self) -> int:
        return self.address.port

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the daemon."""
        return self.address.loopback

    @property
    def base_url(self) -> str:
        """What clients dial, without a slash at its end."""
        return self.address.base_url

    @property
    def log_file(self) -> Path:
        return self.state_dir / "hob.log"

    @property
    def lock_file(self) -> Path:
        return self.state_dir / "hob.lock"

    @property
    def history_file(self) -> Path:
        return self.state_dir / "history"

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str],
        config_file: Path | None = None,
        flags: Mapping[str, str] | None = None,
    ) -> Settings:
        """Merge the sources.

        Args:
            environ: the environment, e.g. os.environ.
            config_file: a TOML file that must exist; None takes the default one if it is there.
            flags: command-line values by TOML key, stronger than everything else.

        Raises:
            SettingsError: a source holds a wrong value or an unknown key.
        """
        file = config_file or default_config_file(environ)
        from_file = _read_toml(file, must_exist=config_file is not None)
        from_flags = dict(flags or {})
        _refuse_unknown(from_file, f"the configuration file {file}")
        _refuse_unknown(from_flags, "the command line")
        home = _home(environ)
        values: dict[str, Any] = {
            "models_dir": (home or Path(platformdirs.user_data_path("hob"))) / "models",
            "state_dir": home / "state" if home else Path(platformdirs.user_state_path("hob")),
        }
        for setting in SETTINGS:
            given = _first_given(setting, environ, from_file, from_flags, file)
            if given is not None:
                text, where = given
                values[setting.field] = _convert(setting, text, where, environ)
            elif setting.field not in values:
                values[setting.field] = setting.default
        return cls(**values, notes=_notes(environ))


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


def default_config_file(environ: Mapping[str, str]) -> Path:
    """`hob/config.toml` in the platform's configuration folder, or what HOB_HOME or HOB_CONFIG say."""
    if named := _variable(environ, "HOB_CONFIG"):
        return _expand(named, environ)
    home = _home(environ)
    return (home or Path(platformdirs.user_config_path("hob"))) / "config.toml"


# ---- converting: each raises ValueError with the end of a sentence that begins `HOB_X is "...", `


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


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("which holds a NUL character")
    return text


SETTINGS: tuple[Setting, ...] = (
    Setting("address", "host", ("HOB_HOST", "OLLAMA_HOST"), _address, HostAddress()),
    Setting("models_dir", "models", ("HOB_MODELS", "OLLAMA_MODELS"), _path),
    Setting("state_dir", "state", ("HOB_STATE",), _path),
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
    Setting(
        "kv_cache_type",
        "kv_cache_type",
        ("HOB_KV_CACHE_TYPE", "OLLAMA_KV_CACHE_TYPE"),
        _choice("auto", "f32", "f16", "bf16", "fp8", "q8_0", "q4_0"),
        "auto",
    ),
    Setting("gpu_overhead_bytes", "gpu_overhead", ("HOB_GPU_OVERHEAD", "OLLAMA_GPU_OVERHEAD"), _integer(0, 2**50), 0),
    Setting("history", "history", ("HOB_HISTORY", "!HOB_NOHISTORY", "!OLLAMA_NOHISTORY"), _boolean, True),
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


# ---- gathering


def _first_given(
    setting: Setting,
    environ: Mapping[str, str],
    from_file: Mapping[str, object],
    from_flags: Mapping[str, str],
    file: Path,
) -> tuple[str, str] | None:
    """The strongest source that has a value: its text and its name for messages."""
    if setting.key in from_flags:
        return from_flags[setting.key], f"--{setting.key.replace('_', '-')}"
    for name in setting.variables:
        if text := _variable(environ, name.removeprefix("!")):
            return text, name
    if setting.key in from_file:
        return _toml_text(from_file[setting.key], setting.key, file), f"{setting.key} in {file}"
    return None


def _convert(setting: Setting, text: str, where: str, environ: Mapping[str, str]) -> Any:
    try:
        value = setting.convert(text)
    except ValueError as error:
        shown = text if len(text) <= 80 else text[:80] + "..."
        raise SettingsError(f'{where.removeprefix("!")} is "{shown}", {error}') from error
    if where.startswith("!"):
        return not value
    return _expand(value, environ) if setting.convert is _path else value


def _read_toml(file: Path, *, must_exist: bool) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        if must_exist:
            raise SettingsError(f"the configuration file {file} does not exist") from error
        return {}
    except OSError as error:
        raise SettingsError(f"the configuration file {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the configuration file {file} is not TOML: {error}") from error


def _refuse_unknown(given: Mapping[str, object], where: str) -> None:
    known = {setting.key for setting in SETTINGS}
    for key in given:
        if key not in known:
            raise SettingsError(f'unknown key "{key}" in {where}; the keys are {", ".join(sorted(known))}')


def _toml_text(value: object, key: str, file: Path) -> str:
    """A TOML value in the spelling of the environment, so that each setting has one converter."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | str):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    raise SettingsError(
        f"{key} in {file} is of a type that no setting has; write a string, a whole number or a boolean"
    )


def _variable(environ: Mapping[str, str], name: str) -> str:
    """A variable without the spaces and quotes that shells and service files leave around it."""
    return environ.get(name, "").strip().strip("\"'")


def _home(environ: Mapping[str, str]) -> Path | None:
    text = _variable(environ, "HOB_HOME")
    return _expand(text, environ) if text else None


def _expand(text: str, environ: Mapping[str, str]) -> Path:
    """A path with "~" for the home folder, made absolute so that it means the same in every process."""
    path = Path(text)
    if path.parts[:1] == ("~",) and environ.get("HOME"):
        path = Path(environ["HOME"], *path.parts[1:])
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise SettingsError(f'the home folder in "{text}" is not known') from error


def _notes(environ: Mapping[str, str]) -> tuple[str, ...]:
    known = {name for setting in SETTINGS for name in setting.variables}
    known = {name.removeprefix("!") for name in known} | {"HOB_HOME", "HOB_CONFIG"}
    unknown = sorted(name for name in environ if name.startswith("HOB_") and name not in known)
    return (
        *(f"{name} has no effect: {why}" for name, why in WITHOUT_EFFECT.items() if _variable(environ, name)),
        *(f"{name} is not a variable that hob knows" for name in unknown if not name.startswith("HOB_TEST_")),
    )


assert {setting.field for setting in SETTINGS} | {"notes"} == {item.name for item in fields(Settings)}
