"""LayerStream: every layer comes with its own weights, whatever is resident; on a GPU in a graph, too."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from engine.config import ModelConfig
from engine.execution.weights import Checkpoint, load_weights
from engine.models.decoder import DecoderLayer, DecoderWeights
from engine.models.offload import LayerStream, offloaded_layers
from modelfiles.source import ModelSource
from tests.engine.execution.conftest import save_tiny
from tests.engine.execution.sizes import plain_sizes

NUM_LAYERS = 7
DEVICES = [
    pytest.param("cpu"),
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seven")
    save_tiny(folder, num_hidden_layers=NUM_LAYERS, attention_bias=True)
    return folder


def load(folder: Path, device: str, num_resident: int, dtype: torch.dtype = torch.bfloat16) -> DecoderWeights:
    source = ModelSource.from_path(folder)
    config = ModelConfig.from_source(source)
    offloaded = offloaded_layers(NUM_LAYERS, num_resident)
    with torch.inference_mode(), Checkpoint.open(source, config) as checkpoint:
        return load_weights(checkpoint, config, dtype, torch.device(device), offloaded=offloaded)


def apply(layer: DecoderLayer, x: torch.Tensor) -> torch.Tensor:
    """Something that depends on every tensor of a layer."""
    heads = layer.qkv(x * layer.attention_norm)[:, : x.shape[1]]
    x = x + layer.attention_output(heads.tanh())
    gate_up = layer.gate_up(x * layer.mlp_norm)
    return (x + layer.down(gate_up.chunk(2, dim=1)[0].tanh())).tanh()


def run(layers: LayerStream, x: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        x = apply(layer, x)
    return x


@pytest.mark.parametrize("num_layers", [1, 2, 7, 28])
def test_layers_of_the_host_are_spread_evenly(num_layers: int) -> None:
    for num_resident in range(num_layers + 1):
        numbers = sorted(offloaded_layers(num_layers, num_resident))
        assert len(numbers) == num_layers - num_resident
        assert all(0 <= number < num_layers for number in numbers)
        gaps = {after - before for before, after in itertools.pairwise(numbers)}
        assert not gaps or max(gaps) - min(gaps) <= 1
    assert offloaded_layers(28, 99) == frozenset()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_resident", range(NUM_LAYERS + 1))
def test_a_pass_is_the_same_whatever_is_resident(
    num_resident: int, dtype: torch.dtype, device: str, folder: Path
) -> None:
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    whole = load(folder, device, NUM_LAYERS, dtype)
    part = load(folder, device, num_resident, dtype)
    assert part.num_bytes == whole.num_bytes
    stream = LayerStream(part.layers, num_resident, torch.device(device))
    with torch.inference_mode():
        expected = run(LayerStream(whole.layers, NUM_LAYERS, torch.device(device)), x)
        assert torch.equal(run(stream, x), expected)
        next(iter(stream))  # a reader that leaves
        assert torch.equal(run(stream, x), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_bytes_are_told(device: str, folder: Path) -> None:
    config = ModelConfig.from_source(ModelSource.from_path(folder))
    one = plain_sizes(config).layer_bytes[0]
    for num_resident in (0, 4, 6, 7):
        stream = LayerStream(load(folder, device, num_resident).layers, num_resident, torch.device(device))
        num_offloaded = NUM_LAYERS - num_resident
        assert stream.offloaded_bytes == num_offloaded * one
        assert stream.slot_bytes == min(2, num_offloaded) * one
        assert len(stream) == NUM_LAYERS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_pass_is_captured(folder: Path) -> None:
    device = torch.device("cuda")
    stream = LayerStream(load(folder, "cuda", 3).layers, 3, device)
    with torch.inference_mode():
        x = torch.randn(5, 32, device=device, dtype=torch.bfloat16)
        run(stream, x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run(stream, x)
        for _ in range(3):
            x.normal_()
            graph.replay()
            assert torch.equal(out, run(stream, x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_layers_of_the_host_lie_in_locked_memory(folder: Path) -> None:
    weights = load(folder, "cuda", 0)
    for layer in weights.layers:
        assert layer.attention_norm.is_cuda
        assert layer.qkv.bias is not None
        assert layer.qkv.bias.is_cuda
        tensors: list[torch.Tensor] = []
        layer.qkv.segments[0].map_tensors(lambda tensor, tensors=tensors: tensors.append(tensor) or tensor)
        assert all(not tensor.is_cuda and tensor.is_pinned() for tensor in tensors)
