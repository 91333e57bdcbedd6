"""The table's sizes against what is loaded: formats, fused matrices, biases, padded and tied vocabularies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.config import ModelConfig
from engine.execution.errors import Unsupported
from engine.execution.weight_table import WeightTable
from engine.execution.weights import Checkpoint, load_weights
from engine.models.decoder import DecoderWeights
from engine.quantization import int4_op
from modelfiles.source import ModelSource
from tests.engine.execution.conftest import save_tiny
from tests.engine.execution.driver import load_runner
from tests.engine.quantization.quantized_models import FORMS, make

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def loaded(path: Path, dtype: torch.dtype) -> tuple[WeightTable, DecoderWeights]:
    source = ModelSource.from_path(path)
    config = ModelConfig.from_source(source)
    with torch.inference_mode(), Checkpoint.open(source, config) as checkpoint:
        checkpoint.check()
        return WeightTable.of(checkpoint, config), load_weights(checkpoint, config, dtype, CPU)


def check_sizes(path: Path, dtype: torch.dtype) -> WeightTable:
    table, weights = loaded(path, dtype)
    sizes = table.sizes(CPU, dtype)
    assert sizes.total_bytes == weights.num_bytes
    assert len(sizes.layer_bytes) == len(weights.layers)
    for size, layer in zip(sizes.layer_bytes, weights.layers, strict=True):
        linears = (layer.qkv, layer.attention_output, layer.gate_up, layer.down)
        assert size == sum(segment.num_bytes for linear in linears for segment in linear.segments)
    return table


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Llama", {}),
        ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("Qwen3", {"head_dim": 16}),
        ("Phi3", {"pad_token_id": 0}),
        ("Gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8, "pad_token_id": 0}),
    ],
)
def test_a_plain_model(kind: str, settings: dict[str, object], dtype: torch.dtype, tmp_path: Path) -> None:
    save_tiny(tmp_path / "m", kind, **settings)
    table = check_sizes(tmp_path / "m", dtype)
    assert table.packed_share(CPU, torch.bfloat16) == 0.0
    assert table.notes(CPU, dtype) == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["stories260K-Q4_0", "stories3M-Q4_K_M", "stories3M-pad256-Q4_K_M"])
def test_a_quantised_model(name: str, dtype: torch.dtype, data_dir: Path) -> None:
    path = data_dir / "models" / name.rpartition("-")[0] / "gguf" / f"{name}.gguf"
    table = check_sizes(path, dtype)
    assert table.packed_share(CPU, torch.float32) == 0.0
    if int4_op.layout() is not None:
        assert 0.5 < table.packed_share(CPU, torch.bfloat16) <= 1.0
        assert table.notes(CPU, dtype) == ()


def test_a_machine_without_the_product_says_so(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4_op, "layout", lambda: None)
    table = check_sizes(data_dir / "models/stories3M/gguf/stories3M-Q4_0.gguf", torch.bfloat16)
    (note,) = table.notes(CPU, torch.bfloat16)
    assert "quantised weights are expanded to bfloat16" in note


# ---- on a GPU, which need not be there: the table says it before anything is loaded


def table_of(path: Path, weight_dtype: torch.dtype | None = None) -> WeightTable:
    source = ModelSource.from_path(path)
    config = ModelConfig.from_source(source)
    with Checkpoint.open(source, config) as checkpoint:
        checkpoint.check()
        return WeightTable.of(checkpoint, config, weight_dtype)


def test_what_is_expanded_on_a_gpu_is_told(tmp_path: Path) -> None:
    make(FORMS["awq"], tmp_path / "m")
    table = table_of(tmp_path / "m")
    assert table.notes(GPU, torch.bfloat16) == (
        "2 of 14 quantised matrices take more memory and time, because they are expanded to bfloat16: their columns "
        "are no multiple of 64 (64 x 96)",
    )
    assert 0.3 < table.packed_share(GPU, torch.bfloat16) < 1.0


def test_sizes_of_weights_that_get_8_bits(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m", "Llama", hidden_size=64, intermediate_size=128)
    plain, table = table_of(tmp_path / "m"), table_of(tmp_path / "m", torch.float8_e4m3fn)
    rows, elements = 64 + 2 * 32 + 64 + 2 * 128 + 64, 64 * (64 + 2 * 32 + 64 + 3 * 128)
    sizes = table.sizes(GPU, torch.bfloat16)
    assert sizes.layer_bytes == (elements + 4 * rows,) * 2
    assert (sizes.expanded_bytes, sizes.expanded_head_bytes) == (2 * 128 * 64 * 2, 0), "gate and up; a plain head"
    assert table.sizes(CPU, torch.bfloat16).expanded_bytes == 0
    assert plain.sizes(GPU, torch.bfloat16).layer_bytes == (2 * elements,) * 2
    assert table.notes(GPU, torch.bfloat16) == ()
    assert plain.packed_share(GPU, torch.bfloat16) == 0.0


@pytest.mark.parametrize("weight_type", ["fp8", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_get_8_bits_on_a_cpu(weight_type: str, dtype: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "m", "Llama", hidden_size=64, intermediate_size=128)
    runner = load_runner(tmp_path / "m", weight_type=weight_type, dtype=dtype, num_blocks=8)
    assert runner.ready.weights_bytes == runner.decoder.weights.num_bytes
    notes = [note for note in runner.ready.notes if "weights are rounded to" in note]
    is_packed = (weight_type, dtype) == ("int8", "bfloat16") and int4_op.layout() is not None
    label = f"rounded to {weight_type.upper()} and kept in {dtype}"
    assert [label in note for note in notes] == ([] if is_packed else [True])


def test_an_unknown_weight_type(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m", "Llama")
    with pytest.raises(Unsupported, match='weight type "q4" is unknown; use auto, fp8, int8'):
        load_runner(tmp_path / "m", weight_type="q4")
