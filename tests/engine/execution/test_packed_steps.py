"""Steps of models whose weights stay quantised, kernels and all, beside what Transformers makes of the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.execution.model_runner import ModelRunner
from engine.models.layers import Linear
from engine.quantization import selection
from engine.quantization.base import Dense
from engine.quantization.checkpoint import Destination
from engine.quantization.packed import Packed
from engine.quantization.selection import method_of
from tests.engine.execution.conftest import save_tiny
from tests.engine.execution.driver import Driver, load_runner
from tests.engine.execution.test_golden import check_cases, read_golden
from tests.engine.execution.test_gpu_steps import with_kernels
from tests.engine.quantization.quantized_models import FORMS, make

NOISE = 0.15
"""Natural-log probability: weights and activations are rounded to bfloat16."""
NUM_CASES, NUM_TOKENS = 1, 2
PROMPTS = [[72, 91, 8], [5]]


def as_on_a_gpu(matrix: selection.StoredMatrix, destination: Destination) -> type[Dense] | type[Packed]:
    method = method_of(matrix, replace(destination, device=torch.device("cuda")))
    assert method in (Dense, Packed)
    return method


def share_packed(linears: list[Linear]) -> float:
    segments = [segment for linear in linears for segment in linear.segments]
    return sum(isinstance(segment, Packed) for segment in segments) / len(segments)


# What a step is padded with may be anything, infinities too; the interpreter's products say so, and nobody reads them.
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("name", ["stories3M-pad256-Q4_K_M"])
def test_greedy_text_by_the_margin_rule(name: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method that a GPU would take, and its kernels, wherever this runs."""
    monkeypatch.setattr(selection, "method_of", as_on_a_gpu)
    runner = load_runner(
        data_dir / "models" / name.rpartition("-")[0] / "gguf" / f"{name}.gguf", dtype="bfloat16", num_blocks=64
    )
    weights = runner.decoder.weights
    linears = [linear for layer in weights.layers for linear in (layer.qkv, layer.gate_up, layer.down)]
    assert share_packed([*linears, weights.embedding]) > 0.5
    golden = read_golden(data_dir, f"{name}-gguf-dequant-fp32")
    cases = [
        {**case, "greedy_ids": case["greedy_ids"][:NUM_TOKENS], "prompt_ids": case["prompt_ids"][:8]}
        for case in golden["cases"]
        if len(case["prompt_ids"]) <= 8
    ]
    check_cases(Driver(with_kernels(runner)), cases[:NUM_CASES], NOISE, 0)


def share_of_layers(runner: ModelRunner) -> float:
    layers = runner.decoder.weights.layers
    return share_packed([linear for layer in layers for linear in (layer.qkv, layer.gate_up, layer.down)])


def assert_same_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> ModelRunner:
    """In float32, plain on the CPU and as a GPU would run it; returns the latter."""
    settings = options | {"num_blocks": 16, "max_num_seqs": 4}
    expected, _ = Driver(load_runner(folder, **settings)).generate(PROMPTS, 2)
    monkeypatch.setattr(selection, "method_of", as_on_a_gpu)
    runner = load_runner(folder, **settings)
    # The plan has one order of columns for each Linear; random ones differ from matrix to matrix.
    assert runner.ready.weights_bytes == pytest.approx(runner.decoder.weights.num_bytes, rel=0.02)
    tokens, _ = Driver(with_kernels(runner)).generate(PROMPTS, 2)
    assert tokens == expected
    return runner


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("name", ["gptq-symmetric-act-order-tied", "compressed-mixed"])
def test_quantised_checkpoints(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices with 96 columns, which are expanded, beside others."""
    form = FORMS[name]
    make(replace(form, settings=form.settings | {"num_hidden_layers": 1}), tmp_path / "m")
    assert share_of_layers(assert_same_tokens(tmp_path / "m", monkeypatch)) >= 2 / 3


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("weight_type", ["fp8", "int8"])
def test_weights_that_get_8_bits(weight_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU rounds them to what a GPU keeps."""
    save_tiny(tmp_path / "m", "Llama", hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    runner = assert_same_tokens(tmp_path / "m", monkeypatch, weight_type=weight_type)
    assert share_of_layers(runner) == 1.0
    weights = runner.decoder.weights
    assert share_packed([weights.embedding, weights.head]) == 0.0
