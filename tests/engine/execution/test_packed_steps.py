"""Steps of models whose weights stay quantised, kernels and all, beside what Transformers makes of the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.models.layers import Linear
from engine.quantization import selection
from engine.quantization.base import Dense
from engine.quantization.packed import Packed
from engine.quantization.selection import method_of
from tests.engine.execution.driver import Driver, load_runner
from tests.engine.execution.test_golden import check_cases, read_golden
from tests.engine.execution.test_gpu_steps import with_kernels

NOISE = 0.15
"""Natural-log probability: weights and activations are rounded to bfloat16."""
NUM_CASES, NUM_TOKENS = 1, 2


def as_on_a_gpu(matrix: selection.StoredMatrix, destination: object) -> type[Dense] | type[Packed]:
    method = method_of(matrix, selection.Destination(torch.device("cuda"), torch.bfloat16))
    assert method in (Dense, Packed)
    return method  # type: ignore[return-value] # one of these two


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
