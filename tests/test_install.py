"""install.sh against a PATH of doubles: what it decides, what it says when it cannot, and that nothing half-made stays.

No package is installed here. A double of Python records how it is called and fails where a test wants it to; the
folder of tools holds the real ones of this machine, so that nothing else can be found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOLS = [
    "awk", "basename", "bash", "cat", "chmod", "cksum", "cut", "df", "dirname", "du", "env", "find", "grep",
    "head", "id", "ln", "ls", "mkdir", "mktemp", "mv", "pwd", "readlink", "rm", "rmdir", "sed", "sort",
    "tail", "touch", "uname", "xargs",
]  # fmt: skip

PYTHON = r"""#!/usr/bin/env bash
# A double of Python: {version}, venv: {venv}, a CPU build of torch at hand: {cpu_build}
echo "$(basename "$0" 2>/dev/null || echo python) $*" >>"{calls}"
case "$*" in
*"sys.version_info"*) {new_enough} && echo "{version}"; exit 0 ;;
*"import venv"*) {venv} ;;
*"-m pip --version"*) exit 0 ;;
*"--dry-run"*) {cpu_build} ;;
*"-m venv "*)
    folder="${{!#}}"
    mkdir -p "$folder/bin"
    cat "$0" >"$folder/bin/python"
    chmod +x "$folder/bin/python"
    ;;
*"import torch"*) [ -z "{torch_there}" ] || echo "{torch_there}" ;;
*"import triton"*) exit 1 ;;
*"-m pip install"*) [ -z "{pip_error}" ] || {{ echo "{pip_error}"; exit 1; }} ;;
*"modelfiles.settings"*) printf '%s\n' "$HOB_HOME/models" "$HOB_HOME/state" "$HOB_HOME/config.toml" \
    "$HOB_HOME/cache" ;;
*) exit 0 ;;
esac
"""


@dataclass
class Machine:
    """A machine that has only what a test gives it."""

    root: Path
    folder: Path

    def __post_init__(self) -> None:
        self.bin.mkdir()
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path is not None, tool
            (self.bin / tool).symlink_to(path)

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def home(self) -> Path:
        return self.folder / "hob"

    @property
    def calls(self) -> str:
        path = self.folder / "calls"
        return path.read_text() if path.exists() else ""

    def command(self, name: str, script: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(script)
        path.chmod(0o755)

    def python(
        self,
        name: str,
        version: str,
        *,
        venv: bool = True,
        cpu_build: bool = False,
        pip_error: str = "",
        torch_there: str = "",
    ) -> None:
        new_enough = tuple(map(int, version.split("."))) >= (3, 11)
        script = PYTHON.format(
            version=version,
            new_enough=str(new_enough).lower(),
            venv=str(venv).lower(),
            cpu_build=str(cpu_build).lower(),
            calls=self.folder / "calls",
            pip_error=pip_error,
            torch_there=torch_there,
        )
        self.command(name, script)

    def install(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / "bash"), str(self.root / "install.sh"), *arguments],
            env={
                "PATH": str(self.bin),
                "HOME": str(self.folder),
                "HOB_HOME": str(self.home),
                "TMPDIR": str(self.folder),
            },
            input=stdin,
            capture_output=True,
            text=True,
        )

    def leftovers(self) -> list[str]:
        """What lies about beside the doubles themselves."""
        return sorted(path.name for path in self.folder.iterdir() if path.name not in ("bin", "calls"))


@pytest.fixture
def machine(root: Path, tmp_path: Path) -> Machine:
    return Machine(root, tmp_path)


no_driver = pytest.mark.skipif(
    Path("/proc/driver/nvidia/version").exists(), reason="this machine has an NVIDIA driver, which cannot be hidden"
)
linux = pytest.mark.skipif(os.uname().sysname != "Linux", reason="the CPU builds are a question of Linux")


# ---- which Python


@pytest.mark.parametrize("old", [[], ["python3"]])
def test_no_python_is_one_sentence(machine: Machine, old: list[str]) -> None:
    for name in old:
        machine.python(name, "3.9.2")
    done = machine.install()
    assert done.returncode == 1
    assert done.stderr.startswith("Error: no Python of 3.11 or later was found; install one")
    assert done.stderr.count("\n") == 1
    assert machine.leftovers() == []


def test_python_without_venv_names_the_package(machine: Machine) -> None:
    machine.python("python3.11", "3.11.2", venv=False)
    done = machine.install()
    assert done.returncode == 1
    assert done.stderr.endswith("has no venv; install it (Debian and Ubuntu: apt install python3-venv).\n")


@no_driver
@linux
def test_the_python_whose_cpu_build_is_at_hand_is_preferred(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    machine.python("python3.11", "3.11.7", cpu_build=True)
    plan = machine.install("--print-plan").stdout
    assert "/python3.11 (3.11.7)\n" in plan
    assert "the CPU build from pip's own sources (no NVIDIA driver)" in plan
    assert machine.leftovers() == []


# ---- which torch


@no_driver
@linux
def test_without_a_driver_the_cpu_index_is_the_fallback(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    plan = machine.install("--print-plan").stdout
    assert "the CPU build from https://download.pytorch.org/whl/cpu (no NVIDIA driver)" in plan
    assert f"environment: {machine.home}/env\n" in plan


@no_driver
@linux
def test_a_broken_driver_is_none(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    machine.command("nvidia-smi", "#!/bin/sh\nexit 9\n")
    assert "CPU build" in machine.install("--print-plan").stdout


def test_a_driver_means_cuda_and_pip_alone(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1", cpu_build=True)
    machine.command("nvidia-smi", "#!/bin/sh\nexit 0\n")
    assert "the CUDA build (there is an NVIDIA driver)" in machine.install("--print-plan").stdout
    assert "--dry-run" not in machine.calls  # nothing has to be asked
    assert machine.install().returncode == 0
    (torch,) = [line for line in machine.calls.splitlines() if " torch==" in line]
    assert torch.endswith(",!=2.13.0+cpu")
    assert "--index-url" not in torch


def test_another_system_takes_its_own_build(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    machine.command("uname", "#!/bin/sh\necho Darwin\n")
    if not Path("/proc/driver/nvidia/version").exists():
        assert "the build for Darwin" in machine.install("--print-plan").stdout


@no_driver
def test_a_torch_that_is_there_is_kept(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1", torch_there="2.14.0+rocm7 gpu")
    assert machine.install().returncode == 0
    (machine.home / "env" / ".hob-stamp").write_text("another state of the tree")
    before = machine.calls
    done = machine.install()
    assert "torch: 2.14.0+rocm7 is there already and is kept" in done.stdout
    assert " torch==" not in machine.calls[len(before) :]
    assert "-m venv" not in machine.calls[len(before) :]


# ---- what can go wrong


def test_a_full_disk_is_seen_before_anything_is_made(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    machine.command("df", "#!/bin/sh\necho header\necho disk 100 90 10 90% /\n")
    done = machine.install()
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: 10 MB are free where {machine.home}/env is to be, and about ")
    assert machine.leftovers() == []


@pytest.mark.parametrize(
    ("pip_says", "said"),
    [
        ("WARNING: ... NewConnectionError ...", "pip could not reach its package sources; check the network"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: something else", "pip failed: ERROR: something else"),
    ],
)
def test_a_failure_leaves_nothing_half_made(machine: Machine, pip_says: str, said: str) -> None:
    machine.python("python3.12", "3.12.1", pip_error=pip_says)
    done = machine.install()
    assert done.returncode == 1
    assert f"Error: {said}" in done.stderr
    assert not (machine.home / "env").exists()
    assert not (machine.home / "env.lock").exists()
    assert [name for name in machine.leftovers() if name != "hob"] == []  # no scratch folder


def test_a_failed_rebuild_brings_the_old_environment_back(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    assert machine.install().returncode == 0
    (machine.home / "env" / ".hob-stamp").write_text("another state of the tree")
    (machine.home / "env" / "bin" / "mark").touch()
    machine.python("python3.12", "3.12.1", pip_error="NewConnectionError")
    assert machine.install().returncode == 1
    assert (machine.home / "env" / "bin" / "mark").exists()
    assert not (machine.home / "env.old").exists()


def test_a_foreign_file_is_not_overwritten(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    (machine.home / "bin").mkdir(parents=True)
    (machine.home / "bin" / "hob").write_text("somebody else's")
    done = machine.install()
    assert done.returncode == 1
    assert "is there and is not ours" in done.stderr
    assert (machine.home / "bin" / "hob").read_text() == "somebody else's"


def test_two_at_once_are_told_apart(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    lock = machine.home / "env.lock"
    lock.mkdir(parents=True)
    (lock / "pid").write_text(str(os.getpid()))
    done = machine.install()
    assert done.returncode == 1
    assert "another install.sh is at work" in done.stderr
    assert lock.exists()
    (lock / "pid").write_text("999999999")  # beyond any pid: its owner is gone
    assert machine.install().returncode == 0
    assert not lock.exists()


# ---- the whole way


def test_a_second_run_installs_nothing(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    first = machine.install()
    assert first.returncode == 0, first.stderr
    assert f"add {machine.home}/bin to your PATH" in first.stdout
    assert (machine.home / "bin" / "hob").readlink() == machine.home / "env" / "bin" / "hob"
    before = machine.calls
    second = machine.install()
    assert second.returncode == 0
    assert machine.calls == before


def test_an_update_ends_the_old_daemon(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    assert machine.install().returncode == 0
    hob = machine.home / "env" / "bin" / "hob"
    hob.write_text(f'#!/bin/sh\necho "hob $*" >>"{machine.folder}/calls"\n')
    hob.chmod(0o755)
    machine.install()
    assert "hob shutdown" not in machine.calls  # nothing has changed
    (machine.home / "env" / ".hob-stamp").write_text("another state of the tree")
    assert "The daemon that was running is ended" in machine.install().stdout
    assert "hob shutdown" in machine.calls


def test_run_hands_the_prompt_to_hob(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    assert machine.install().returncode == 0
    hob = machine.home / "env" / "bin" / "hob"
    hob.write_text('#!/bin/sh\nprintf "<%s>" "$@"\ncat\n')
    hob.chmod(0o755)
    done = machine.install("--run", "tale", "Tell me a story.", stdin="an open pipe")
    assert done.stdout.endswith("<run><tale><Tell me a story.>")


def test_uninstall_leaves_the_models(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    assert machine.install().returncode == 0
    hob = machine.home / "env" / "bin" / "hob"
    hob.write_text(f'#!/bin/sh\necho "hob $*" >>"{machine.folder}/calls"\n')
    hob.chmod(0o755)
    for name in ("models/blob", "state/hob.log", "state/history", "cache/triton/kernel"):
        (machine.home / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.home / name).touch()
    done = machine.install("--uninstall")
    assert done.returncode == 0, done.stderr
    assert "hob shutdown" in machine.calls
    assert sorted(path.name for path in machine.home.rglob("*")) == ["blob", "models"]
    assert f"The models are still in {machine.home}/models" in done.stdout


def test_uninstall_of_nothing(machine: Machine) -> None:
    done = machine.install("--uninstall")
    assert (done.returncode, done.stdout) == (0, f"Hob is not installed in {machine.home}/env.\n")


def test_help_and_unknown_options(machine: Machine) -> None:
    assert machine.install("--help").stdout.startswith("Usage: ./install.sh")
    done = machine.install("--instal")
    assert done.returncode == 2
    assert "install.sh does not know --instal." in done.stderr
