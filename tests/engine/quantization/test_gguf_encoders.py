"""Encoders of block formats: against the gguf package where it has them, llama.cpp's files, and properties."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from benchmarks.padded_stories import write_padded_stories
from engine.config import ModelConfig
from engine.conversion.source_tensors import hub_tensors
from engine.quantization.gguf_blocks import dequantize
from engine.quantization.gguf_encoders import ENCODERS, UnquantizableError, quantize
from modelfiles.gguf import BLOCK_LAYOUT, GGMLType, GGUFFile
from modelfiles.safetensors import SafetensorsModel
from modelfiles.source import ModelSource

Tensor = torch.Tensor

EXACT = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
PLAIN = ("F32", "F16", "BF16")
BLOCKS = [type for type in ENCODERS if type.name not in PLAIN]
# Relative error (root mean square) that normal weights may have: what this code has, and two hundredths more.
MAX_ERROR = {
    "Q8_0": 0.00545, "Q6_K": 0.0181, "Q5_K": 0.0368, "Q5_1": 0.0386, "Q5_0": 0.0435, "Q4_K": 0.0729, "IQ4_NL": 0.0776,
    "Q4_1": 0.0800, "Q4_0": 0.0877, "Q3_K": 0.1534, "Q2_K": 0.3034,
}  # fmt: skip


def normal_weights(num_rows: int, num_columns: int = 512) -> Tensor:
    return torch.randn(num_rows, num_columns, generator=torch.Generator().manual_seed(0)) * 0.05


def round_trip(type: GGMLType, values: Tensor) -> Tensor:
    blocks = quantize(type, values)
    return dequantize(type, blocks.view(-1, BLOCK_LAYOUT[type][1])).view(values.shape)


def relative_error(type: GGMLType, values: Tensor) -> float:
    return float((round_trip(type, values) - values).norm() / values.norm())


@pytest.mark.parametrize("name", EXACT)
def test_simple_formats_equal_the_oracle_bit_for_bit(name: str) -> None:
    values = normal_weights(300)
    values[0], values[1], values[2] = 0, 1e-9, -3
    values[3, :32], values[4] = torch.linspace(-1, 1, 32), torch.arange(512) - 255.5  # halves, where rounding shows
    expected = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(quantize(GGMLType[name], values).numpy(), expected.view(np.uint8))


@pytest.mark.parametrize("name", MAX_ERROR)
def test_errors_of_normal_weights(name: str) -> None:
    assert relative_error(GGMLType[name], normal_weights(200)) < MAX_ERROR[name]


@pytest.mark.parametrize("type", BLOCKS, ids=lambda type: type.name)
def test_zeros_stay_zeros_and_constants_stay_themselves(type: GGMLType) -> None:
    assert not round_trip(type, torch.zeros(2, 256)).any()
    for constant in (0.5, -0.5):
        found = round_trip(type, torch.full((1, 256), constant))
        torch.testing.assert_close(found, torch.full((1, 256), constant), rtol=0.03, atol=0)


@pytest.mark.parametrize("type", BLOCKS, ids=lambda type: type.name)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    exponent=st.integers(-30, 3),
    kind=st.sampled_from(["normal", "positive", "negative", "one outlier", "half zeros", "two values"]),
)
def test_any_block_comes_back_within_a_step(type: GGMLType, seed: int, exponent: int, kind: str) -> None:
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(seed))
    x = {
        "normal": x,
        "positive": x.abs() + 1,
        "negative": -x.abs() - 1,
        "one outlier": torch.where(torch.arange(256) == seed % 256, 40.0, x),
        "half zeros": torch.where(x > 0, x, 0.0),
        "two values": torch.where(x > 0, 1.0, -0.25),
    }[kind] * 10.0**exponent
    found = round_trip(type, x)
    assert found.isfinite().all()
    # No element is further off than the coarsest step of the block, and what float16's smallest numbers round off.
    step = {"Q2_K": 1 / 3, "Q3_K": 1 / 7, "IQ4_NL": 24 / 240}.get(type.name, 1 / 15)
    rounding = 2.0**-25 * {"Q6_K": 128 * 32, "Q3_K": 32 * 4, "Q5_K": 64 * 32, "Q4_K": 64 * 16, "Q2_K": 16 * 8}.get(
        type.name, 128
    )
    span = x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)
    assert ((found - x).abs().amax(1) <= 1.1 * span * step + rounding).all()


def test_small_weights_do_not_lose_their_scales() -> None:
    """float16 rounds a factor of 1e-7 by up to a quarter; groups' scales make up for it."""
    values = normal_weights(50) * 0.01
    assert relative_error(GGMLType.Q6_K, values) < 0.020  # 0.0235 where scales are chosen by the exact factor


def test_what_cannot_be_quantised_is_refused_in_a_sentence() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        values = torch.zeros(3, 256)
        values[1, 7] = bad
        for type in ENCODERS:
            with pytest.raises(UnquantizableError, match="has a value that is no finite number, in row 1"):
                quantize(type, values)
    with pytest.raises(UnquantizableError, match=r"magnitude 1e\+06; Q4_0 reaches 5.24e\+05$"):
        quantize(GGMLType.Q4_0, torch.full((1, 32), 1e6))
    with pytest.raises(ValueError, match=r"Q4_K packs float32 rows of a multiple of 256, not torch.float32 \[1, 32\]"):
        quantize(GGMLType.Q4_K, torch.zeros(1, 32))
    with pytest.raises(ValueError, match="block format IQ1_S cannot be written; these can: BF16, F16"):
        quantize(GGMLType.IQ1_S, torch.zeros(1, 256))


def test_as_good_as_llama_cpp_on_every_tensor(data_dir: Path, tmp_path: Path) -> None:
    """The same weights in the same type: our error is not above its own, but for a thousandth of chance."""
    folder = write_padded_stories(data_dir / "models/stories3M/hf", tmp_path / "padded")
    source = ModelSource.from_path(folder)
    seen: dict[GGMLType, list[float]] = {}
    with SafetensorsModel.open(source.files) as hub:
        tensors = {tensor.name: tensor for tensor in hub_tensors(hub, ModelConfig.from_source(source))}
        for file_type in ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K"):
            path = data_dir / f"models/stories3M-pad256/gguf/stories3M-pad256-{file_type}.gguf"
            with GGUFFile.open(path) as theirs:
                for name, tensor in theirs.tensors.items():
                    if tensor.type is GGMLType.F32 or (name == "token_embd.weight" and file_type != "Q6_K"):
                        continue
                    weights = torch.cat(list(tensors[name].pieces()))
                    raw = torch.frombuffer(bytearray(theirs.data(name)), dtype=torch.uint8)
                    expanded = dequantize(tensor.type, raw.view(-1, BLOCK_LAYOUT[tensor.type][1])).view(weights.shape)
                    errors = seen.setdefault(tensor.type, [0.0, 0.0])
                    errors[0] += float((round_trip(tensor.type, weights) - weights).square().sum())
                    errors[1] += float((expanded - weights).square().sum())
    assert {type.name for type in seen} == {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    for type, (ours, theirs_error) in seen.items():
        assert ours <= 1.001 * theirs_error, type.name


def test_iq4_nl_is_as_good_as_llama_cpp_s(data_dir: Path) -> None:
    weights = load_file(data_dir / "models/stories3M/hf/model.safetensors")
    with GGUFFile.open(data_dir / "models/stories3M/gguf/stories3M-IQ4_NL.gguf") as theirs:
        name = "blk.0.ffn_gate.weight"
        assert theirs.tensors[name].type is GGMLType.IQ4_NL
        original = weights["model.layers.0.mlp.gate_proj.weight"]
        raw = torch.frombuffer(bytearray(theirs.data(name)), dtype=torch.uint8)
        expanded = dequantize(GGMLType.IQ4_NL, raw.view(-1, 18)).view(original.shape)
    ours = round_trip(GGMLType.IQ4_NL, original)
    assert (ours - original).square().sum() <= 1.001 * (expanded - original).square().sum()
