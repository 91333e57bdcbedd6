"""Staging with plain memory: every byte arrives, pieces arrive in order, and what goes wrong in a thread is told."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from engine.execution.errors import WeightsError
from engine.execution.staging import Staging, host_empty, read_ahead
from engine.quantization.base import Dense
from engine.quantization.checkpoint import CheckpointTensor, Destination
from modelfiles.gguf import GGMLType
from modelfiles.safetensors import SafetensorsModel

CPU = torch.device("cpu")


def small(num_threads: int = 3) -> Staging:
    return Staging(CPU, buffer_bytes=4096, num_buffers=2, num_threads=num_threads)


def noise(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 50_000])
def test_a_copy_is_the_same_in_pieces(size: int, num_threads: int) -> None:
    source = noise(size)
    target = torch.zeros(size, dtype=torch.uint8)
    with small(num_threads) as staging:
        staging.copy(source, target)
    assert np.array_equal(target.numpy(), source)


def test_pieces_are_taken_in_order_and_buffers_are_used_again() -> None:
    sources = [noise(1 + 37 * number % 4096, number) for number in range(60)]
    taken: list[bytes] = []
    with small() as staging:
        for source in sources:
            staging.expand(source, lambda piece: taken.append(piece.numpy().tobytes()))
            assert len(taken) <= len(sources)
        staging.finish()
        assert len(taken) == len(sources)
    assert taken == [source.tobytes() for source in sources]


def test_a_piece_that_no_buffer_holds_is_refused() -> None:
    with small() as staging, pytest.raises(WeightsError, match=r"row of weights takes 0\.0 MiB; 0\.0 MiB are the most"):
        staging.expand(noise(4097), lambda piece: None)


def test_an_error_in_take_ends_the_load() -> None:
    def refuse(piece: torch.Tensor) -> None:
        raise WeightsError(f"{len(piece)} bytes are too many")

    with pytest.raises(WeightsError, match="9 bytes are too many"), small() as staging:
        staging.expand(noise(9), refuse)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked before a page is touched")
def test_a_file_that_is_cut_short_meanwhile_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(64 * 4096))
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        file.truncate(4096)
    source = np.frombuffer(mapped, dtype=np.uint8)
    read_ahead(source[:4096])
    with pytest.raises(WeightsError, match=r"1000 bytes of the model's file could not be read \(.*\); it was cut"):
        read_ahead(source[100_000:101_000])
    with pytest.raises(WeightsError, match="cut short while it was loaded"), small() as staging:
        staging.copy(source, torch.empty(len(source), dtype=torch.uint8))


def tensor_of(values: torch.Tensor, type: GGMLType, row_order: tuple[int, ...] | None = None) -> CheckpointTensor:
    if type in (GGMLType.F32, GGMLType.F16, GGMLType.BF16):
        dtype = {GGMLType.F32: torch.float32, GGMLType.F16: torch.float16, GGMLType.BF16: torch.bfloat16}[type]
        data = values.to(dtype).view(torch.uint8).numpy()
    else:
        data = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType(type.value))
    return CheckpointTensor("w", tuple(values.shape), type, memoryview(data.tobytes()), row_order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("type", [GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0])
@pytest.mark.parametrize("is_ordered", [False, True], ids=["plain", "reordered"])
def test_staged_tensors_equal_expanded_ones(type: GGMLType, dtype: torch.dtype, is_ordered: bool) -> None:
    torch.manual_seed(0)
    values = torch.randn(48, 64)
    order = tuple(torch.randperm(48).tolist()) if is_ordered else None
    tensors = [tensor_of(values, type, order), tensor_of(values[:3] * 2, type)]
    expected = Dense.from_checkpoint(tensors, Destination(CPU, dtype)).weight
    with Staging(CPU, buffer_bytes=48 * 64 * 4, num_buffers=2, num_threads=2) as staging:
        staged = Dense.from_checkpoint(tensors, Destination(CPU, dtype, staging)).weight
    assert staged.dtype == dtype
    assert staged.is_contiguous()
    assert torch.equal(staged, expected)


def test_a_matrix_of_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.quantization.checkpoint.STAGED_ELEMENTS", 256)
    torch.manual_seed(1)
    tensor = tensor_of(torch.randn(100, 64), GGMLType.F16, tuple(torch.randperm(100).tolist()))
    expected = torch.empty(100, 64)
    tensor.expand_into(expected)
    out = torch.empty(100, 64)
    with small() as staging:
        tensor.stage_into(out, staging)
    assert torch.equal(out, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("is_offloaded", [False, True], ids=["device", "host"])
@pytest.mark.parametrize("type", [GGMLType.F32, GGMLType.BF16, GGMLType.Q8_0])
@pytest.mark.parametrize("is_ordered", [False, True], ids=["plain", "reordered"])
def test_a_gpu_expands_to_the_same(type: GGMLType, is_ordered: bool, is_offloaded: bool) -> None:
    torch.manual_seed(0)
    values = torch.randn(2048, 4096)
    order = tuple(torch.randperm(2048).tolist()) if is_ordered else None
    tensors = [tensor_of(values, type, order), tensor_of(values[:3] * 2, type)]
    expected = Dense.from_checkpoint(tensors, Destination(CPU, torch.bfloat16)).weight
    device = torch.device("cuda")
    with Staging(device) as staging:
        destination = Destination(device, torch.bfloat16, staging, is_offloaded)
        staged = Dense.from_checkpoint(tensors, destination).weight
    assert staged.is_cuda is not is_offloaded
    assert not is_offloaded or staged.is_pinned()
    assert torch.equal(staged.cpu(), expected)


def test_memory_of_the_host_is_plain_without_a_gpu() -> None:
    assert host_empty((3, 4), torch.bfloat16, CPU).shape == (3, 4)


def test_a_real_file_is_staged_as_it_is(tiny_dir: Path) -> None:
    with SafetensorsModel.open({"model.safetensors": tiny_dir / "model.safetensors"}) as model, small() as staging:
        for name, tensor in model.tensors.items():
            target = torch.empty(tensor.num_bytes, dtype=torch.uint8)
            staging.copy(np.frombuffer(model.data(name), dtype=np.uint8), target)
            staging.finish()
            assert target.numpy().tobytes() == bytes(model.data(name))
