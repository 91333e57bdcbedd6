"""`hob` with a real daemon and a real model: started by the first command, used from a terminal, ended by the last."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from engine.conversion.quantize import quantize_model
from engine.messages import Quantize
from modelfiles.source import ModelSource
from tests.daemon.tiny_model import write_tiny_model
from tests.e2e.machine import WAIT_S, Machine, new_machine

pytestmark = pytest.mark.e2e

ENTER, CTRL_C = "\r", "\x03"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with new_machine(tmp_path_factory.mktemp("machine")) as machine:
        yield machine


@pytest.fixture(scope="module")
def model(machine: Machine, tale_dir: Path) -> str:
    """A model that answers greedily and shortly, made from the one that comes with Hob."""
    if not any(tale_dir.glob("*.safetensors")) and not any(tale_dir.glob("*.gguf")):
        pytest.skip("the built-in model's weights are not in the tree")
    (machine.folder / "Modelfile").write_text("FROM tale\nPARAMETER temperature 0\nPARAMETER num_predict 24\n")
    machine.hob("create", "short")
    return "short"


def test_the_first_command_starts_the_daemon_and_one_that_follows_finds_it(machine: Machine) -> None:
    assert machine.hob("list").startswith("NAME")
    assert machine.hob("--version").startswith("hob version is ")
    assert machine.hob("ps") == "NAME    ID    SIZE    PROCESSOR    CONTEXT    UNTIL\n"


def test_a_prompt_on_the_command_line_and_in_a_pipe(machine: Machine, model: str) -> None:
    text = machine.hob("run", model, "Tell me a story about a fox.")
    assert text.endswith("\n\n")
    assert text.strip()
    assert "\x1b" not in text
    assert machine.hob("run", model, "Tell me a story", "about a fox.") == text
    assert machine.hob("run", model, "about a fox.", stdin="Tell me a story") == text
    assert model in machine.hob("ps")
    machine.hob("stop", model)


def test_a_model_is_made_shown_copied_and_removed(machine: Machine, model: str) -> None:
    (machine.folder / "Kind").write_text(f'FROM {model}\nSYSTEM "You are kind."\nPARAMETER stop "fox"\n')
    machine.hob("create", "kind", "-f", "Kind")
    shown = machine.hob("show", "kind")
    assert "  System\n    You are kind.\n" in shown
    assert re.search(r"^    stop +\"fox\"$", shown, re.MULTILINE)
    assert machine.hob("show", "kind", "--system") == "You are kind."
    assert machine.hob("cp", "kind", "kinder") == "copied 'kind' to 'kinder'\n"
    (machine.folder / "Back").write_text(machine.hob("show", "kind", "--modelfile"))
    machine.hob("create", "back", "-f", "Back")
    assert machine.hob("rm", "kind", "kinder", "back") == "deleted 'kind'\ndeleted 'kinder'\ndeleted 'back'\n"
    assert machine.hob("rm", "kind", status=1).startswith("Error: ")
    assert "kind" not in machine.hob("list")


def test_a_folder_of_safetensors_is_quantized_and_runs(machine: Machine) -> None:
    write_tiny_model(machine.folder / "tiny")
    (machine.folder / "Tiny").write_text("FROM ./tiny\nPARAMETER num_predict 8\n")
    machine.hob("create", "tiny-small", "--quantize", "q4_K_M", "-f", "Tiny")
    shown = machine.hob("show", "tiny-small")
    assert re.search(r"^    quantization +Q4_K_M$", shown, re.MULTILINE)
    machine.hob("run", "tiny-small", "hello")
    machine.hob("rm", "tiny-small")


def test_weights_on_the_daemons_disk_are_linked(machine: Machine) -> None:
    folder = machine.folder / "linked"
    write_tiny_model(folder, seed=1)  # a model that the daemon has not met: bytes that it holds are not linked again
    (machine.folder / "Linked").write_text("FROM ./linked\nPARAMETER num_predict 8\n")
    machine.hob("create", "linked", "-f", "Linked")
    assert (folder / "model.safetensors").stat().st_nlink == 2
    assert (folder / "config.json").stat().st_nlink == 1
    machine.hob("run", "linked", "hello")
    machine.hob("rm", "linked")
    assert (folder / "model.safetensors").stat().st_nlink == 1


def test_a_gguf_file_is_quantized_and_runs(machine: Machine, tale_dir: Path) -> None:
    files = {name: str(path) for name, path in ModelSource.from_path(tale_dir).files.items()}
    order = Quantize(files=files, folder=str(machine.folder), file_type="f16")
    half = Path(quantize_model(order, lambda done, total: None).files["model.gguf"])
    (machine.folder / "Half").write_text(f"FROM ./{half.name}\nPARAMETER temperature 0\nPARAMETER num_predict 24\n")
    machine.hob("create", "quarter", "-q", "q4_K_M", "-f", "Half")
    assert re.search(r"^    quantization +Q4_K_M$", machine.hob("show", "quarter"), re.MULTILINE)
    assert "Once upon a time" in machine.hob("run", "quarter", "Tell me a story about a fox.", "--think=false")
    (machine.folder / "Again").write_text("FROM quarter\n")
    error = machine.hob("create", "again", "-q", "q8_0", "-f", "Again", status=1)
    assert "quantization is only supported for F16, BF16 and F32 models, and the weights are Q4_K_M" in error
    machine.hob("rm", "quarter")


def test_a_talk_on_a_terminal(machine: Machine, model: str) -> None:
    child = machine.talk(model, "--verbose")
    child.send("Tell me a story about a fox." + ENTER)
    child.expect(r"eval count: +\d+ token\(s\)")
    child.expect_exact(">>> ")
    child.send("/set parameter num_predict 1000000" + ENTER)
    child.expect_exact("Set parameter 'num_predict' to '1000000'")
    child.expect_exact(">>> ")
    child.send("/set system You never stop." + ENTER)
    child.expect_exact("Set system message.")
    child.expect_exact(">>> ")
    child.send("/save endless" + ENTER)
    child.expect_exact("Created new model 'endless'")
    child.expect_exact(">>> ")
    child.send("/load nothing-of-the-kind" + ENTER)
    child.expect_exact("Couldn't find model")
    child.expect_exact(">>> ")
    child.send("/bye" + ENTER)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert machine.hob("show", "endless", "--system") == "You never stop."
    machine.hob("rm", "endless")


def test_ctrl_c_stops_a_generation_and_the_daemon_goes_on(machine: Machine, model: str) -> None:
    child = machine.talk(model)
    # Cut nowhere: without a stop the model writes until somebody stops it.
    child.send("/set parameter num_predict 1000000" + ENTER)
    child.expect_exact(">>> ")
    child.send("Tell me a story about a fox." + ENTER)
    child.expect("[a-z]{3}")
    child.send(CTRL_C)
    child.expect_exact(">>> ")
    child.send("/bye" + ENTER)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert machine.hob("run", model, "Hello.").strip()


def test_a_talk_goes_on_with_a_daemon_of_its_own_when_the_first_has_ended(machine: Machine, model: str) -> None:
    child = machine.talk(model, "--verbose")
    child.send("/set parameter num_predict 4" + ENTER)
    child.expect_exact(">>> ")
    counts = []
    for _ in range(2):
        child.send("Tell me a story." + ENTER)
        child.expect(r"prompt eval count: +(\d+) token\(s\)")
        counts.append(int(child.match[1]))
        child.expect_exact(">>> ")
        machine.hob("shutdown")
    assert counts[0] < counts[1]  # what was said before is sent along
    child.close(force=True)


def test_wrong_names_are_sentences(machine: Machine, model: str) -> None:
    for arguments in (["show", "nothing-of-the-kind"], ["cp", "nothing-of-the-kind", "x"], ["stop", "nothing"]):
        said = machine.hob(*arguments, status=1)
        assert said.startswith("Error: ")
        assert said.count("\n") == 1
        assert "Traceback" not in said


def test_serve_in_the_foreground_ends_with_ctrl_c(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = dict(os.environ) | {"HOB_HOME": str(tmp_path), "HOB_SPARE_WORKER": "0"}
    child = pexpect.spawn(
        sys.executable,
        ["-c", "from cli.main import main; main()", "serve", "--port", str(port)],
        env=environ,
        encoding="utf-8",
        timeout=WAIT_S,
    )
    child.expect_exact(f"{port}")
    other = Machine(tmp_path, environ | {"HOB_HOST": f"127.0.0.1:{port}"})
    assert other.hob("list").startswith("NAME")
    assert "was not started in the background" in other.hob("shutdown", status=1)
    child.kill(signal.SIGINT)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_shutdown_ends_it(machine: Machine) -> None:
    machine.hob("list")
    machine.hob("shutdown")
    assert "no daemon runs at http://127.0.0.1:" in machine.hob("shutdown", status=1)
