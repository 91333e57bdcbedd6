"""ADAPTER in a Modelfile, from `hob create` to the text: what the model with the same update merged in says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.e2e.machine import Machine, new_machine
from tests.engine.lora_files import merge, random_updates, write_gguf_adapter, write_peft

pytestmark = pytest.mark.e2e

PROMPT = "Tell me a story about a fox."
HEADS = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}
SHORTLY = "PARAMETER temperature 0\nPARAMETER num_predict 16\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, tale_dir: Path) -> Iterator[Machine]:
    """With the built-in model as `base`, two adapters for it, and a model that has the first merged in."""
    if not [*tale_dir.glob("*.safetensors")]:
        pytest.skip("the weights of the built-in model are not in the tree")
    with new_machine(tmp_path_factory.mktemp("machine"), HOB_NUM_THREADS="1") as machine:
        # What tale says is hard to change. With this size no token of the 16 is closer than 0.17 to its rival.
        updates = random_updates(tale_dir, seed=1, size=4.0)
        write_peft(machine.folder / "lora", updates, alpha=2)
        write_gguf_adapter(machine.folder / "lora.gguf", updates, alpha=2, heads=HEADS)
        write_peft(machine.folder / "other", random_updates(tale_dir, seed=3, size=2.0), alpha=4)
        merge(tale_dir, machine.folder / "merged", (updates, 2 / 4))
        create(machine, "base", "FROM tale")
        yield machine


def create(machine: Machine, name: str, text: str, *, status: int = 0) -> str:
    (machine.folder / "Modelfile").write_text(f"{text}\n{SHORTLY}")
    return machine.hob("create", name, status=status)


def test_an_adapter_says_what_the_merged_model_says(machine: Machine) -> None:
    create(machine, "merged", "FROM ./merged")
    create(machine, "adapted", "FROM tale\nADAPTER ./lora")
    create(machine, "from-gguf", "FROM base\nADAPTER lora.gguf")
    create(machine, "child", "FROM adapted\nSYSTEM Be kind.")
    plain, merged = machine.hob("run", "base", PROMPT), machine.hob("run", "merged", PROMPT)
    assert plain.strip() != merged.strip() != ""
    assert machine.hob("run", "adapted", PROMPT) == merged
    assert machine.hob("run", "from-gguf", PROMPT) == merged
    assert machine.hob("run", "child", PROMPT) != plain
    assert machine.hob("run", "base", PROMPT) == plain
    log = machine.log()
    assert (log.count(" on cpu in "), log.count("loaded the adapter of ")) == (2, 2), "one worker, two adapters"


def test_a_modelfile_that_is_shown_makes_the_model_again(machine: Machine) -> None:
    create(machine, "twice", "FROM tale\nADAPTER ./lora\nADAPTER ./other")
    text = machine.hob("run", "twice", PROMPT)
    shown = machine.hob("show", "twice", "--modelfile")
    assert shown.count("\nADAPTER ") == 4, "two files of each"
    (machine.folder / "Shown").write_text(shown)
    machine.hob("create", "again", "-f", "Shown")
    assert machine.hob("run", "again", PROMPT) == text
    create(machine, "only-other", "FROM twice\nADAPTER ./other")
    assert machine.hob("show", "only-other", "--modelfile").count("\nADAPTER ") == 2, "it takes the parent's place"
    assert machine.hob("run", "only-other", PROMPT) != text


def test_an_adapter_of_another_model_is_refused_and_one_that_goes_leaves_its_base(machine: Machine) -> None:
    small = {"model.layers.0.self_attn.q_proj": (torch.ones(2, 8), torch.ones(8, 2))}
    write_peft(machine.folder / "small", small, alpha=1)
    said = create(machine, "wrong", "FROM tale\nADAPTER ./small", status=1)
    assert "so the adapter is of another model" in said
    create(machine, "short-lived", "FROM tale\nADAPTER ./lora")
    plain = machine.hob("run", "base", PROMPT)
    machine.hob("rm", "short-lived")
    assert machine.hob("run", "base", PROMPT) == plain
