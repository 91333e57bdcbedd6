"""LoRA in steps of kernels gives what plain torch gives. On the CPU they run in Triton's interpreter."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs

from engine.execution.gpu_steps import GpuSteps
from engine.execution.model_runner import ModelRunner
from engine.execution.step_shapes import SEVERAL
from engine.quantization import selection
from engine.quantization.packed import Packed
from tests.engine.execution.conftest import save_tiny
from tests.engine.execution.driver import Driver, load_runner
from tests.engine.execution.test_gpu_steps import DEVICE, with_kernels
from tests.engine.lora_files import ATTENTION, adapter_files, random_updates, write_peft

# As in test_gpu_steps: padding holds what memory held.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


def prompt(number: int, length: int) -> list[int]:
    return random.Random(number).choices(range(3, 60), k=length)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    width = 32 if DEVICE == "cuda" else 16  # the interpreter is slow
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    save_tiny(folder, vocab_size=64, hidden_size=width, intermediate_size=width, **heads)
    return folder


@pytest.fixture(scope="module")
def runners(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelRunner, ModelRunner]:
    """In plain torch on the CPU, and in kernels, with three adapters."""
    files = tmp_path_factory.mktemp("adapters")
    adapters = [
        write_peft(files / "one", random_updates(folder, seed=1, size=0.8), alpha=4),
        write_peft(files / "two", random_updates(folder, ATTENTION, rank=2, seed=2, size=0.8), alpha=2),
        write_peft(files / "three", random_updates(folder, seed=3), alpha=4),
    ]
    options = {"num_blocks": 20, "block_size": 4, "max_num_seqs": 3}
    runners = load_runner(folder, **options), with_kernels(load_runner(folder, device=DEVICE, **options))
    for runner in runners:
        for number, adapter in enumerate(adapters, 1):
            runner.add_adapter(number, adapter_files(adapter))
    return runners


def test_rows_of_one_adapter_of_several_and_of_none(runners: tuple[ModelRunner, ModelRunner]) -> None:
    """Prompts and decodes, whole and in chunks; steps that say that they repeat the one before, while another adapter
    goes; and the last layer, which computes what samples only."""

    def run(runner: ModelRunner) -> list[list[int]]:
        driver = Driver(runner, seed=3)
        for row, (length, adapter) in enumerate([(3, 1), (7, 2), (5, 0)]):
            driver.admit(row, prompt(row, length), adapter=adapter)
        steps: list[dict[int, int]] = [{0: 3}, {0: 1}, {0: 1, 1: 5}, {0: 1, 1: 2, 2: 5}, {0: 1, 1: 1, 2: 1}]
        tokens = [driver.step(step).token_ids for step in steps]
        runner.remove_adapter(3)
        batch = structs.replace(driver.batch({0: 1, 1: 1, 2: 1}), is_repeat=True)
        tokens.append(runner.launch(batch).result().token_ids)
        if DEVICE == "cuda":  # graphs, of each size twice
            tokens += [driver.step(step).token_ids for step in [{0: 1}, {1: 1}] * 3]
        return tokens

    expected, tokens = map(run, runners)
    assert tokens == expected


def test_the_shape_of_a_step_says_whether_a_graph_can_hold_it(runners: tuple[ModelRunner, ModelRunner]) -> None:
    _, kernels = runners
    steps = kernels.steps
    assert isinstance(steps, GpuSteps)
    sizes = steps._sizes
    one = sizes.decode(3, is_greedy=True, has_long_row=False, adapter=1)
    assert one.is_rounded
    assert one != sizes.decode(3, is_greedy=True, has_long_row=False)
    several = sizes.decode(3, is_greedy=True, has_long_row=False, adapter=SEVERAL)
    assert not several.is_rounded
    assert several.num_decodes == 3
    several = sizes.mixed(1, 9, 2, is_greedy=True, has_long_row=False, adapter=SEVERAL)
    assert (several.num_decodes, several.num_tokens, several.num_rows, several.is_rounded) == (1, 9, 2, False)
    assert sizes.mixed(1, 9, 2, is_greedy=True, has_long_row=False, adapter=1).num_tokens == 16


def test_beside_weights_that_stay_quantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    save_tiny(tmp_path / "m", "Llama", **sizes)
    adapter = adapter_files(write_peft(tmp_path / "lora", random_updates(tmp_path / "m", size=0.8), alpha=4))

    def run(runner: ModelRunner) -> list[list[int]]:
        runner.add_adapter(1, adapter)
        return Driver(runner).generate([prompt(1, 2), prompt(2, 1)], 2, adapters=[1, 0])[0]

    options = {"num_blocks": 8, "max_num_seqs": 2, "weight_type": "int8", "use_graphs": False}
    expected = run(load_runner(tmp_path / "m", **options))
    method_of, cuda = selection.method_of, torch.device("cuda")
    monkeypatch.setattr(selection, "method_of", lambda matrix, place: method_of(matrix, replace(place, device=cuda)))
    runner = load_runner(tmp_path / "m", **options)
    assert all(isinstance(s, Packed) for layer in runner.decoder.weights.layers for s in layer.gate_up.segments)
    assert run(with_kernels(runner)) == expected
