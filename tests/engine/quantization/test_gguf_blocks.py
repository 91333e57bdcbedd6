"""Every block format against the gguf package, bit for bit: random bytes (all scales, NaN too) and real files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from engine.quantization.gguf_blocks import DECODERS, dequantize
from engine.quantization.iq_grids import GRIDS, grid_points
from modelfiles.gguf import BLOCK_LAYOUT, GGMLType, GGUFFile

ORACLE_LACKS = (GGMLType.Q8_K,)


def as_bits(values: np.ndarray) -> np.ndarray:
    """Comparable bits: every NaN the same, because which NaN a product of NaNs yields is the machine's choice."""
    values = values.astype(np.float32).copy()
    values[np.isnan(values)] = np.nan
    return values.view(np.uint32)


@pytest.mark.parametrize("type", [type for type in DECODERS if type not in ORACLE_LACKS], ids=lambda type: type.name)
def test_random_blocks_equal_the_oracle_bit_for_bit(type: GGMLType) -> None:
    elements, num_bytes = BLOCK_LAYOUT[type]
    blocks = np.random.default_rng(int(type)).integers(0, 256, (513, num_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(int(type)))
    result = dequantize(type, torch.from_numpy(blocks.copy()))
    assert result.dtype == torch.float32
    assert result.shape == (513, elements)
    np.testing.assert_array_equal(as_bits(result.numpy()), as_bits(np.asarray(expected)).reshape(513, elements))


def test_q8_k_is_scale_times_signed_bytes() -> None:
    quants = np.arange(-128, 128, dtype=np.int8)
    block = np.float32(0.375).tobytes() + quants.tobytes() + bytes(32)
    raw = torch.frombuffer(bytearray(block), dtype=torch.uint8)[None]
    torch.testing.assert_close(dequantize(GGMLType.Q8_K, raw)[0], torch.arange(-128, 128) * 0.375, rtol=0, atol=0)


@pytest.mark.parametrize("name", GRIDS)
def test_grids_have_their_number_of_points(name: str) -> None:
    points = grid_points(name)
    assert points.shape == (GRIDS[name].num_points, GRIDS[name].dimensions)
    assert set(points.unique().tolist()) == set(GRIDS[name].levels)


def test_every_type_of_the_real_files_equals_the_oracle(data_dir: Path) -> None:
    seen: set[GGMLType] = set()
    for path in sorted(data_dir.glob("models/*/gguf/*.gguf")):
        with GGUFFile.open(path) as file:
            for name, tensor in file.tensors.items():
                raw = np.frombuffer(bytes(file.data(name)), dtype=np.uint8)
                blocks = raw.reshape(-1, BLOCK_LAYOUT[tensor.type][1])[:512]
                expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(int(tensor.type)))
                result = dequantize(tensor.type, torch.from_numpy(blocks.copy()))
                np.testing.assert_array_equal(result.numpy().ravel(), np.asarray(expected).ravel(), err_msg=name)
                seen.add(tensor.type)
    assert {type.name for type in seen} >= {"F32", "F16", "BF16", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "Q2_K"}


def test_wrong_sizes_and_unknown_types_are_sentences() -> None:
    with pytest.raises(ValueError, match=r"Q4_0 blocks are uint8 \[n, 18\]"):
        dequantize(GGMLType.Q4_0, torch.zeros(2, 17, dtype=torch.uint8))
    with pytest.raises(ValueError, match="block format Q8_1 is not supported"):
        dequantize(GGMLType.Q8_1, torch.zeros(1, 36, dtype=torch.uint8))
