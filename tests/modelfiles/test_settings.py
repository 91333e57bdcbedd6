"""Settings: which source wins, what each variable may say, and the sentence when it says something else."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from modelfiles.host import HostAddress, HostError
from modelfiles.settings import Settings, SettingsError, default_config_file
from modelfiles.settings_table import SETTINGS


def load(tmp_path: Path, **environ: str) -> Settings:
    return Settings.load({"HOB_HOME": str(tmp_path), **environ})


def test_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert (settings.host, settings.port, settings.base_url) == ("127.0.0.1", 11434, "http://127.0.0.1:11434")
    assert settings.loopback
    assert (settings.keep_alive_s, settings.max_queue, settings.context_length) == (300.0, 512, 0)
    assert settings.models_dir == tmp_path / "models"
    assert settings.log_file == tmp_path / "state" / "hob.log"
    assert settings.log_file.parent == settings.history_file.parent == settings.state_dir
    assert settings.notes == ()


def test_later_sources_win(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("max_queue = 1\nkeep_alive = 60\n")
    assert load(tmp_path).max_queue == 1
    assert load(tmp_path).keep_alive_s == 60.0
    assert load(tmp_path, OLLAMA_MAX_QUEUE="2").max_queue == 2
    assert load(tmp_path, OLLAMA_MAX_QUEUE="2", HOB_MAX_QUEUE="3").max_queue == 3
    environ = {"HOB_HOME": str(tmp_path), "HOB_MAX_QUEUE": "3"}
    assert Settings.load(environ, flags={"max_queue": "4"}).max_queue == 4


def test_empty_counts_as_unset_and_quotes_are_trimmed(tmp_path: Path) -> None:
    settings = load(tmp_path, HOB_MAX_QUEUE=" ", OLLAMA_MAX_QUEUE=' "7" ')
    assert settings.max_queue == 7


@pytest.mark.parametrize(
    ("environ", "field", "value"),
    [
        ({"OLLAMA_HOST": "0.0.0.0:80"}, "port", 80),
        ({"OLLAMA_KEEP_ALIVE": "-1"}, "keep_alive_s", math.inf),
        ({"OLLAMA_KEEP_ALIVE": "90s"}, "keep_alive_s", 90.0),
        ({"OLLAMA_LOAD_TIMEOUT": "0"}, "load_timeout_s", math.inf),
        ({"OLLAMA_CONTEXT_LENGTH": "8192"}, "context_length", 8192),
        ({"OLLAMA_ORIGINS": "https://a.example, app://*,*"}, "origins", ("https://a.example", "app://*", "*")),
        ({"OLLAMA_DEBUG": "true"}, "debug", 1),
        ({"OLLAMA_DEBUG": "2"}, "debug", 2),
        ({"OLLAMA_NOHISTORY": "1"}, "history", False),
        ({}, "markdown", True),
        ({"HOB_MARKDOWN": "0"}, "markdown", False),
        ({"OLLAMA_NOHISTORY": "1", "HOB_HISTORY": "1"}, "history", True),
        ({"OLLAMA_NOPRUNE": "yes"}, "prune", False),
        ({"OLLAMA_KV_CACHE_TYPE": "Q8_0"}, "kv_cache_type", "q8_0"),
        ({"HOB_KV_CACHE_TYPE": "int8"}, "kv_cache_type", "int8"),
        ({"HOB_WEIGHT_TYPE": "FP8"}, "weight_type", "fp8"),
        ({"OLLAMA_GPU_OVERHEAD": "1073741824"}, "gpu_overhead_bytes", 1 << 30),
        ({"HOB_MODEL_MEMORY": "8589934592"}, "model_memory_bytes", 8 << 30),
        ({"HOB_DTYPE": "bfloat16"}, "dtype", "bfloat16"),
        ({"VISUAL": "emacs", "EDITOR": "ed"}, "editor", "emacs"),
        ({"HOB_API_KEY": "secret"}, "api_key", "secret"),
        ({"HOB_MODELS": "~/m", "HOME": "/home/a"}, "models_dir", Path("/home/a/m")),
    ],
)
def test_variables(tmp_path: Path, environ: dict[str, str], field: str, value: object) -> None:
    assert getattr(load(tmp_path, **environ), field) == value


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("HOB_MAX_QUEUE", "many", "which is not a whole number from 1 to 1048576"),
        ("HOB_MAX_QUEUE", "0", "which is not a whole number from 1 to 1048576"),
        ("OLLAMA_CONTEXT_LENGTH", "1_000", "which is not a whole number from 0 to 16777216"),
        ("OLLAMA_NOHISTORY", "maybe", "which is neither true nor false; write 1 or 0"),
        ("OLLAMA_HOST", "ftp://x", 'but the scheme "ftp" is not known; write http:// or https://, or leave it out'),
        ("OLLAMA_HOST", "h:99999", 'but the port "99999" is not a number from 0 to 65535'),
        ("HOB_ORIGINS", "example.org", 'but the origin "example.org" has no scheme; write e.g. https://example.org'),
        ("HOB_DTYPE", "int8", "which is not one of auto, float32, float16, bfloat16"),
        ("HOB_MODELS", "a\0b", "which holds a NUL character"),
    ],
)
def test_wrong_values_name_their_variable(tmp_path: Path, name: str, text: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, **{name: text})
    assert str(caught.value) == f'{name} is "{text}", {problem}'


@pytest.mark.parametrize(
    ("toml", "part"),
    [
        ("max_qeue = 1", 'unknown key "max_qeue" in the configuration file'),
        ("max_queue = 1.5", "is of a type that no setting has"),
        ("[max_queue]", "is of a type that no setting has"),
        ("max_queue = [1]", "is of a type that no setting has"),
        ("max_queue =", "is not TOML"),
        ('host = "x y"', 'host in {file} is "x y", but "x y" is neither a host name nor an IP address'),
    ],
)
def test_wrong_files_name_the_file(tmp_path: Path, toml: str, part: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(toml)
    with pytest.raises(SettingsError) as caught:
        load(tmp_path)
    assert part.format(file=file) in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        Settings.load({}, tmp_path / "none.toml")


def test_a_file_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.load({}, tmp_path)


def test_toml_types(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('host = "[::1]:80"\nhistory = false\norigins = ["app://x", "app://y"]\nkeep_alive = "1h"\n')
    settings = Settings.load({}, file)
    assert (settings.host, settings.port) == ("::1", 80)
    assert not settings.history
    assert settings.origins == ("app://x", "app://y")
    assert settings.keep_alive_s == 3600.0


def test_an_unknown_flag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match='unknown key "prot" in the command line'):
        Settings.load({"HOB_HOME": str(tmp_path)}, flags={"prot": "1"})


def test_where_the_file_is_looked_for(tmp_path: Path) -> None:
    assert default_config_file({"HOB_CONFIG": "/a/b.toml", "HOB_HOME": "/c"}) == Path("/a/b.toml")
    assert default_config_file({"HOB_HOME": "/c"}) == Path("/c/config.toml")
    assert default_config_file({}).parts[-2:] == ("hob", "config.toml")


def test_variables_without_effect_are_told(tmp_path: Path) -> None:
    notes = load(tmp_path, OLLAMA_NUM_PARALLEL="4", HOB_QUEUE="1").notes
    assert [note.split()[0] for note in notes] == ["OLLAMA_NUM_PARALLEL", "HOB_QUEUE"]


def test_the_key_is_not_printed(tmp_path: Path) -> None:
    assert "secret" not in repr(load(tmp_path, HOB_API_KEY="secret"))


def test_keys_are_unique() -> None:
    assert len({setting.key for setting in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize(
    ("text", "host", "port", "url", "loopback"),
    [
        ("", "127.0.0.1", 11434, "http://127.0.0.1:11434", True),
        ("1.2.3.4", "1.2.3.4", 11434, "http://1.2.3.4:11434", False),
        ("localhost:1", "localhost", 1, "http://localhost:1", True),
        ("https://example.com", "example.com", 443, "https://example.com:443", False),
        ("http://example.com", "example.com", 80, "http://example.com:80", False),
        ("http://example.com:1/a/b/", "example.com", 1, "http://example.com:1/a/b", False),
        ("::1", "::1", 11434, "http://[::1]:11434", True),
        ("[::1]", "::1", 11434, "http://[::1]:11434", True),
        ("[0:0::1]:99", "::1", 99, "http://[::1]:99", True),
        ("::", "::", 11434, "http://[::1]:11434", False),
        ("0.0.0.0", "0.0.0.0", 11434, "http://127.0.0.1:11434", False),
        (":1234", "0.0.0.0", 1234, "http://127.0.0.1:1234", False),
        (":", "127.0.0.1", 11434, "http://127.0.0.1:11434", True),
        ("127.0.0.1:0", "127.0.0.1", 0, "http://127.0.0.1:0", True),
    ],
)
def test_host_addresses(text: str, host: str, port: int, url: str, loopback: bool) -> None:
    address = HostAddress.parse(text)
    assert (address.host, address.port, address.base_url, address.loopback) == (host, port, url, loopback)


@pytest.mark.parametrize("text", ["a:b:c", "[::1]x", "x y", "-x", "h:-1", "h:٣", "h:1e3", "unix:///x", "a" * 300])
def test_wrong_host_addresses(text: str) -> None:
    with pytest.raises(HostError):
        HostAddress.parse(text)


def test_the_page_on_configuration_names_every_setting(root: Path) -> None:
    page = (root / "docs" / "configuration.md").read_text("utf-8")
    for setting in SETTINGS:
        assert f"| `{setting.key}` |" in page
        for variable in setting.variables:
            assert f"`{variable.lstrip('!')}`" in page
