"""Safetensors files that we write: read by the package of that name, and by our own reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modelfiles.safetensors import SafetensorsError, SafetensorsFile
from modelfiles.safetensors_writer import NewSafeTensor, write_safetensors


def test_both_readers_find_what_was_written(tmp_path: Path) -> None:
    values = {
        "a": torch.arange(12, dtype=torch.float32).view(3, 4),
        "b": torch.tensor([1, -2, 3], dtype=torch.int8),
        "c": torch.tensor([[0.5]], dtype=torch.bfloat16),
    }
    dtypes = {"a": "F32", "b": "I8", "c": "BF16"}

    def pieces_of(tensor: torch.Tensor) -> Iterator[bytes]:
        for row in tensor.view(len(tensor), -1):
            yield row.contiguous().view(torch.uint8).numpy().tobytes()

    tensors = [
        NewSafeTensor(name, dtypes[name], tuple(tensor.shape), lambda tensor=tensor: pieces_of(tensor))
        for name, tensor in values.items()
    ]
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors, {"made": "here"})
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, values[name])
    opened = SafetensorsFile.open(path)
    assert opened.metadata == {"made": "here"}
    assert list(opened.tensors) == ["a", "b", "c"]
    assert opened.tensors["a"].offset % 8 == 0
    opened.close()


@pytest.mark.parametrize("num_bytes", [7, 9])
def test_a_tensor_of_another_size_is_an_error(tmp_path: Path, num_bytes: int) -> None:
    tensor = NewSafeTensor("t", "F32", (2,), lambda: [bytes(num_bytes)])
    with pytest.raises(SafetensorsError, match=f'the tensor "t" has {num_bytes} bytes, but its shape takes 8'):
        write_safetensors(tmp_path / "x.safetensors", [tensor])
