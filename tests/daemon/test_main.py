"""How the daemon is started: flags, the listening socket, and the sentences where it cannot be."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from daemon.main import StartError, _parse, check_models_folder, listen, main
from modelfiles.settings import Settings, SettingsError


def settings(tmp_path: Path, *arguments: str, **environ: str) -> Settings:
    return Settings.load({"HOB_HOME": str(tmp_path), **environ}, flags=_parse(arguments).given)


@pytest.mark.parametrize(
    ("arguments", "host", "port"),
    [
        ((), "127.0.0.1", 11434),
        (("--port", "0"), "127.0.0.1", 0),
        (("--host", "localhost:80"), "localhost", 80),
        (("--host", "localhost:80", "--port", "81"), "localhost", 81),
        (("--host", "::1", "--port", "81"), "::1", 81),
        (("--host", "[::1]:82"), "::1", 82),
    ],
)
def test_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], host: str, port: int
) -> None:
    monkeypatch.delenv("HOB_HOST", raising=False)
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    loaded = settings(tmp_path, *arguments)
    assert (loaded.host, loaded.port) == (host, port)


def test_flags_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match=r"is not a number"):
        settings(tmp_path, "--port", "x")
    with pytest.raises(SystemExit):
        _parse(["--unknown"])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_free_port(tmp_path: Path) -> None:
    with listen(settings(tmp_path, HOB_HOST="127.0.0.1:0")) as listener:
        assert listener.getsockname()[1] > 0


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}: the port is in use"):
            listen(settings(tmp_path, HOB_HOST=f"127.0.0.1:{port}"))


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1:0"):
        listen(settings(tmp_path, "--allow-remote", HOB_HOST="192.0.2.1:0"))


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "some.name"])
def test_beyond_loopback_only_on_purpose(tmp_path: Path, host: str) -> None:
    with pytest.raises(StartError, match="can be reached from other machines"):
        listen(settings(tmp_path, HOB_HOST=f"{host}:0"))


def test_a_models_folder_is_made(tmp_path: Path) -> None:
    check_models_folder(tmp_path / "a" / "models")
    assert (tmp_path / "a" / "models").is_dir()
    check_models_folder(tmp_path / "a" / "models")


def test_a_models_folder_that_cannot_be_had_is_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOB_HOME", str(tmp_path))
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit) as ended:
            main(["--port", "0", "--models", str(folder)])
        assert ended.value.code == 1
        remedy = "name another with --models or HOB_MODELS"
        assert (
            capsys.readouterr().err == f"Error: the models folder {folder} cannot be used: it is no folder; {remedy}\n"
        )
