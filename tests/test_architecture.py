"""What the folders promise: who imports whom, who never sees torch, what the wheel holds; and pages that are true."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cli.environment import VARIABLES
from modelfiles.settings import SETTINGS

PACKAGES = {"cli", "daemon", "engine", "modelfiles", "registry"}
HEAVY = ("torch", "triton", "transformers")

WITHOUT_TORCH = ("cli", "daemon", "modelfiles", "registry", "engine/scheduling", "engine/text")
WITHOUT_TORCH_FILES = (
    "engine/client.py",
    "engine/messages.py",
    "engine/config.py",
    "engine/any_config.py",
    "engine/embedding_engine.py",
    "engine/sampling_params.py",
    "engine/models/adapter_plan.py",
    "engine/models/tensor_plan.py",
)


def run(*words: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def modules_without_torch(root: Path) -> list[str]:
    paths = [path for folder in WITHOUT_TORCH for path in (root / folder).rglob("*.py")]
    paths += [root / name for name in WITHOUT_TORCH_FILES]
    names = (".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return sorted(names)


def test_imports_follow_the_layers(root: Path) -> None:
    done = run("-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())", root=root)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_daemons_side_works_where_torch_cannot_be_imported(root: Path) -> None:
    program = (
        "import importlib, sys\n"
        f"for heavy in {HEAVY!r}: sys.modules[heavy] = None\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        f"assert all(sys.modules[heavy] is None for heavy in {HEAVY!r})\n"
    )
    done = run("-c", program, *modules_without_torch(root), root=root)
    assert done.returncode == 0, done.stderr


def test_that_this_would_notice_torch(root: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; import engine.execution.model_runner"
    done = run("-c", program, root=root)
    assert "import of torch halted" in done.stderr


def test_a_daemon_starts_without_what_transfers_need(root: Path) -> None:
    program = (
        "import sys, daemon.main\n"
        "assert not {'httpx', 'httpx2', 'huggingface_hub'} & sys.modules.keys()\n"
        "import daemon.remote\n"
        "assert 'httpx' in sys.modules"
    )
    done = run("-c", program, root=root)
    assert done.returncode == 0, done.stderr


def test_help_needs_no_http_client_and_no_prompt(root: Path) -> None:
    """These are what makes a command line slow to open; how slow is measured in benchmarks/."""
    program = (
        "import sys, cli.main\n"
        "assert cli.main.run_app(['--help']) == 0\n"
        "late = {'httpx', 'prompt_toolkit', 'rich.progress', 'uvicorn', 'starlette', 'jinja2', 'numpy'}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)\n"
    )
    done = run("-c", program, root=root)
    assert done.returncode == 0, done.stderr


def test_every_file_that_the_architecture_page_names_exists(root: Path) -> None:
    page = root / "docs" / "architecture.md"
    named = set(
        re.findall(r"`([A-Za-z0-9_./-]+/[A-Za-z0-9_.-]+\.[a-z]+|[a-z_]+(?:/[a-z_]+)*/)`", page.read_text("utf-8"))
    )
    assert len(named) > 20, "the pattern no longer finds the names on the page"
    missing = sorted(name for name in named if not (root / name).exists())
    assert not missing, f"docs/architecture.md names what is not there: {missing}"


def test_the_page_of_commands_is_up_to_date(root: Path) -> None:
    reference = runpy.run_path(str(root / "tools" / "cli_reference.py"))["reference"]
    assert (root / "docs" / "cli.md").read_text("utf-8") == reference(), "run: python tools/cli_reference.py"


def test_every_variable_in_the_help_is_a_setting() -> None:
    known = {name.removeprefix("!") for setting in SETTINGS for name in setting.variables} | {"HOB_HOME", "HOB_CONFIG"}
    assert set(VARIABLES) <= known


@pytest.fixture(scope="session")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    done = run("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), root=root)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_the_wheel_holds_the_five_packages_and_nothing_else(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel)
    assert not [name for name in wheel if "test" in Path(name).name or name.endswith(".pyc")]


def test_the_wheel_holds_the_built_in_model(wheel: list[str], tale_dir: Path) -> None:
    files = {f"registry/builtin/tale/{path.name}" for path in tale_dir.iterdir() if path.is_file()}
    assert any(name.endswith((".safetensors", ".gguf")) for name in files), "the built-in model has no weights"
    assert files <= set(wheel)


def test_the_tests_are_no_packages(root: Path) -> None:
    """An __init__.py in tests/engine would make pytest import it as `engine`."""
    assert not list((root / "tests").rglob("__init__.py"))


def test_no_file_is_named_for_nothing(root: Path) -> None:
    vague = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not [path for package in PACKAGES for path in (root / package).rglob("*.py") if path.name in vague]
