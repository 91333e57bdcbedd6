"""Decode steps of quantised models in five launches a layer: what the other form of a step gives, but for rounding.

The interpreter would take minutes for the products, so without a GPU their twins take their places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.execution.gpu_steps import GpuSteps
from engine.execution.model_runner import ModelRunner
from engine.kernels import reference_packed_gemv
from engine.models import device_decoder
from engine.models.decoder import Decoder
from engine.models.layers import Linear
from engine.quantization.base import Dense
from engine.quantization.gguf_encoders import quantize
from engine.quantization.packed import Packed
from engine.sampling_params import SamplingParams
from modelfiles.gguf import GGMLType
from tests.engine.execution.conftest import save_tiny
from tests.engine.execution.driver import GREEDY, Driver, load_runner
from tests.kernels.packed_weights import packed

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRODUCTS = ("packed_gemv", "packed_gemv_residual", "packed_gemv_gated", "packed_gemv_argmax")


def quantised(matrix: Linear, *rows: int) -> Linear:
    """In 8 bits; the last rows, where several numbers of rows are given, in 5."""
    (dense,) = matrix.segments
    assert isinstance(dense, Dense)
    parts = dense.weight.float().split(list(rows) or dense.num_rows)
    types = [GGMLType.Q8_0] * len(parts) if len(parts) == 1 else [GGMLType.Q8_0] * (len(parts) - 1) + [GGMLType.Q5_0]
    segments = []
    for type, part in zip(types, parts, strict=True):
        raw = quantize(type, part.cpu().contiguous()).view(len(part), -1).to(dense.weight.device)
        segments.append(Packed(packed(type, raw, part.shape[1]), torch.bfloat16))
    return Linear(tuple(segments), matrix.bias)


def quantised_runner(folder: Path) -> ModelRunner:
    """A model whose matrices are all quantised, QKV's in two types, in kernels."""
    runner = load_runner(folder, device=DEVICE, dtype="bfloat16", num_blocks=40, block_size=8, max_num_seqs=4)
    weights, config = runner.decoder.weights, runner.config
    kv_size = config.num_kv_heads * config.head_dim
    layers = tuple(
        replace(
            layer,
            qkv=quantised(layer.qkv, config.q_size + kv_size, kv_size),
            attention_output=quantised(layer.attention_output),
            gate_up=quantised(layer.gate_up),
            down=quantised(layer.down),
        )
        for layer in weights.layers
    )
    weights = replace(weights, layers=layers, head=quantised(weights.head))
    decoder = Decoder(config, weights, runner.device)
    assert runner.kv_cache is not None
    runner._steps = GpuSteps(
        decoder, runner.kv_cache, runner.max_context, runner.load_options, runner.device, runner.adapters
    )
    return runner


def test_five_launches_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(
        tmp_path, "Qwen2", hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1,
        num_hidden_layers=1, vocab_size=112, tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    prompts, samples = [[5, 9]], [GREEDY, SamplingParams(temperature=0.0, logprobs=2)]

    def run() -> list[Any]:
        return [Driver(quantised_runner(tmp_path)).generate(prompts, 2, [params]) for params in samples]

    monkeypatch.setattr(device_decoder, "MULTIPLIES_PACKED", False)
    expected = run()
    calls: list[str] = []

    def noted(name: str) -> Callable[..., object]:
        function = getattr(device_decoder if DEVICE == "cuda" else reference_packed_gemv, name)

        def call(*args: object, **options: object) -> object:
            calls.append(name)
            return function(*args, **options)

        return call

    for name in PRODUCTS:
        monkeypatch.setattr(device_decoder, name, noted(name))
    monkeypatch.setattr(device_decoder, "MULTIPLIES_PACKED", True)
    found = run()
    layer = ["packed_gemv", "packed_gemv", "packed_gemv_residual", "packed_gemv_gated", "packed_gemv_residual"]
    text = ",".join(calls)
    assert ",".join([*layer, "packed_gemv_argmax"]) in text
    assert ",".join([*layer, "packed_gemv"]) in text
    for (tokens, logprobs), (other_tokens, other_logprobs) in zip(found, expected, strict=True):
        assert tokens == other_tokens
        for ours, theirs in zip(logprobs[0], other_logprobs[0], strict=True):
            if theirs is not None:
                assert ours.logprob == pytest.approx(theirs.logprob, abs=0.1)
