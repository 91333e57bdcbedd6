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
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs

from modelfiles.host import HostAddress
from modelfiles.settings_table import SETTINGS, WITHOUT_EFFECT, Setting, path_text


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
    weight_type: str
    """What unquantised weights become while they are loaded; "auto" is nothing else."""
    kv_cache_type: str
    gpu_overhead_bytes: int
    """Memory of each GPU that is left to others."""
    model_memory_bytes: int
    """What a loaded model may take on its device in all; 0 leaves some to others."""
    history: bool
    """Whether the prompt's lines are remembered between runs."""
    markdown: bool
    """Whether `hob run` renders Markdown on a terminal."""
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
    def inbox_dir(self) -> Path:
        """Where the CLI puts links to files that the daemon is to adopt."""
        return self.models_dir / ".hob" / "inbox"

    @property
    def log_file(self) -> Path:
        return self.state_dir / "hob.log"

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


def default_config_file(environ: Mapping[str, str]) -> Path:
    """`hob/config.toml` in the platform's configuration folder, or what HOB_HOME or HOB_CONFIG say."""
    if named := _variable(environ, "HOB_CONFIG"):
        return _expand(named, environ)
    home = _home(environ)
    return (home or Path(platformdirs.user_config_path("hob"))) / "config.toml"


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Files that can be made again: `cache` in HOB_HOME, or `hob` in the platform's cache folder."""
    home = _home(environ)
    return home / "cache" if home else Path(platformdirs.user_cache_path("hob"))


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
    return _expand(value, environ) if setting.convert is path_text else value


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
