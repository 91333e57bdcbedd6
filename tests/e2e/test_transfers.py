"""Models that come from elsewhere and run: registries, a hub, the catalog. The servers are on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.conversion.quantize import quantize_model
from engine.messages import Quantize
from registry.catalog import Catalog
from registry.name import ModelName
from tests.e2e.history import serve_model
from tests.e2e.machine import Machine, new_machine
from tests.registry.docker_registry import PROGRAM, DockerRegistry
from tests.registry.hub_models import hf_files, split_gguf
from tests.registry.hub_server import HubServer

pytestmark = pytest.mark.e2e

PROMPT = "Tell me a story about a fox."
OPTIONS = "PARAMETER temperature 0\nPARAMETER num_predict 16\n"
SHORT = "smollm2:135m"
"""A name of the catalog; the hub of these tests has the built-in model in its place."""


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    with new_machine(folder, HF_ENDPOINT=hub.endpoint, HF_HOME=str(folder / "hf"), HOB_SPARE_WORKER="0") as machine:
        yield machine


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, tale_dir: Path) -> Path:
    """The built-in model as one GGUF file."""
    weights = sorted(tale_dir.glob("*.safetensors"))
    if not weights:
        pytest.skip("the built-in model's weights are not in the tree")
    names = {path.name: str(path) for path in (*weights, *tale_dir.glob("*.json"), *tale_dir.glob("*.jinja"))}
    order = Quantize(files=names, folder=str(tmp_path_factory.mktemp("gguf")), file_type="q8_0")
    return Path(quantize_model(order, lambda done, total: None).files["model.gguf"])


@pytest.fixture(scope="module")
def story(machine: Machine) -> str:
    """What the built-in model says."""
    return answer(machine, "tale")


def answer(machine: Machine, model: str) -> str:
    """The greedy answer of a model."""
    (machine.folder / "Greedy").write_text(f"FROM {model}\n{OPTIONS}")
    machine.hob("create", "greedy", "-f", "Greedy")
    return machine.hob("run", "greedy", "--think=false", PROMPT)


def test_push_to_a_registry_and_pull_back(
    machine: Machine, story: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not PROGRAM.exists():
        pytest.skip("docker-registry is not installed; on Debian: apt-get install docker-registry")
    with DockerRegistry(tmp_path_factory.mktemp("docker")) as registry:
        name = f"{registry.host}/me/tale:mine"
        machine.hob("cp", "tale", name)
        shown = machine.hob("list")
        machine.hob("push", "--insecure", name)
        machine.hob("rm", name)
        assert name not in machine.hob("list")
        assert "insecure protocol http" in machine.hob("pull", f"http://{name}", status=1)
        machine.hob("pull", "--insecure", name)
        line = next(line for line in shown.splitlines() if line.startswith(name))
        assert line.split()[1] in machine.hob("list")  # the same model, to the bit
        assert answer(machine, name) == story
        assert machine.hob("pull", "--insecure", "--list-tags", name).splitlines()[1].split()[0] == name


def test_a_model_that_is_not_here_is_pulled_and_runs(machine: Machine, gguf: Path, tale_dir: Path) -> None:
    """It is laid out as Ollama's registry has it: a GGUF file, a template, parameters."""
    words = {"template": "{{ .Prompt }}", "parameters": {"num_predict": 8, "temperature": 0}, "licenses": ["Free."]}
    with serve_model({"model.gguf": gguf.read_bytes()}, **words) as registry:
        name = registry.pull_name(0, 0)
        first = machine.hob("run", "--insecure", name, "Once upon a time")
    assert first.strip()
    stored = name.removeprefix("http://")
    assert machine.hob("run", stored, "Once upon a time") == first
    assert machine.hob("show", stored, "--license") == "Free.\n"
    assert machine.hob("show", stored, "--template") == "{{ .Prompt }}"


def test_a_repository_of_safetensors(machine: Machine, hub: HubServer, tale_dir: Path, story: str) -> None:
    hub.add("maker/tale", {**hf_files(tale_dir), "README.md": b"# tale", "modeling.py": b"raise SystemExit"})
    machine.hob("pull", "hf.co/maker/tale")
    assert answer(machine, "hf.co/maker/tale") == story
    assert not any("modeling.py" in request.path for request in hub.requests if "/resolve/" in request.path)


def test_a_repository_of_gguf_in_shards(machine: Machine, hub: HubServer, gguf: Path, tmp_path: Path) -> None:
    hub.add("maker/tale-GGUF", split_gguf(gguf, tmp_path, "tale-Q8_0", 3))
    assert (
        machine.hob("pull", "--list-tags", "hf.co/maker/tale-GGUF")
        .splitlines()[1]
        .startswith("hf.co/maker/tale-GGUF:Q8_0 ")
    )
    (machine.folder / "Whole").write_text(f"FROM {gguf}\n")
    machine.hob("create", "whole", "-f", "Whole")
    machine.hob("pull", "hf.co/maker/tale-GGUF:q8_0")
    assert answer(machine, "hf.co/maker/tale-GGUF:q8_0") == answer(machine, "whole")


def test_a_name_of_the_catalog(machine: Machine, hub: HubServer, gguf: Path) -> None:
    entry = Catalog.load().resolve(ModelName.parse(SHORT))
    assert entry is not None
    repository = f"{entry.hub_name.namespace}/{entry.hub_name.model}"
    hub.add(repository, {f"model-{entry.quantization}.gguf": gguf})
    assert SHORT.partition(":")[0] in machine.hob("search", "smollm")
    assert machine.hob("run", SHORT, "Once upon a time").strip()
    assert SHORT in machine.hob("list")
    assert "repository" in machine.hob("pull", "hf.co/nobody/nothing", status=1).lower()
