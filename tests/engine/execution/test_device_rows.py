"""DeviceRows: differences arrive where kernels look for them, and nothing can reach a neighbour's row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.execution.device_rows import PATCH_LENGTH, DeviceRows
from engine.execution.errors import ExecutionError, Unsupported
from engine.kernels.sampling_state import HAS_MASK, NUM_TOP, SEED, TOP_P
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import Admission, BlockAppend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PARAMS = SamplingParams(top_p=0.5, seed=2**62 + 3, logit_bias={7: 1.5, 9: -1e300}, logprobs=2)


def test_differences_arrive_in_their_row() -> None:
    rows = DeviceRows(3, 20, 2, 4, DEVICE)
    rows.apply([Admission(1, 100, [5, 6, 7], 3, PARAMS)], [BlockAppend(1, 0, 0, [11, 12]), BlockAppend(1, 1, 2, [13])])
    assert rows.tokens[1, :4].tolist() == [5, 6, 7, 0]
    assert rows.block_tables[0][1].tolist() == [11, 12, 0, 0, 0]
    assert rows.block_tables[1][1].tolist() == [0, 0, 13, 0, 0]
    assert rows.sampling.ints[1, SEED.value].item() == 2**62 + 3
    assert rows.sampling.ints[1, NUM_TOP.value].item() == 2
    assert rows.sampling.floats[1, TOP_P.value].item() == 0.5
    assert rows.sampling.bias_ids[1, :3].tolist() == [7, 9, 0]
    assert rows.sampling.bias_values[1, :2].tolist() == pytest.approx([1.5, -1e30])
    for other in (0, 2):
        assert not rows.tokens[other].any()
        assert not any(table[other].any() for table in rows.block_tables)


def test_masks_arrive_in_their_rows() -> None:
    rows = DeviceRows(4, 20, 1, 4, DEVICE, vocab_size=70)
    rows.apply([Admission(2, 1, [5], 0, PARAMS, is_constrained=True), Admission(3, 2, [5], 0, PARAMS)], [])
    assert rows.sampling.ints[:, HAS_MASK.value].tolist() == [0, 0, 1, 0]
    words = np.array([[1, -2, 3], [-(2**31), 5, 6]], dtype=np.int32)
    rows.write_masks([2, 0], words)
    assert rows.sampling.masks.tolist() == [[-(2**31), 5, 6], [0, 0, 0], [1, -2, 3], [0, 0, 0]]
    rows.write_masks([1], -words[:1])
    assert rows.sampling.masks[:3].tolist() == [[-(2**31), 5, 6], [-1, 2, -3], [1, -2, 3]]


def test_a_prompt_of_many_patches() -> None:
    length = 2 * PATCH_LENGTH + 5
    rows = DeviceRows(1, length, 1, 64, DEVICE)
    rows.apply([Admission(0, 1, list(range(length)), 0, SamplingParams())], [])
    assert rows.tokens[0, :length].tolist() == list(range(length))


def test_what_does_not_fit_a_row_is_refused() -> None:
    rows = DeviceRows(2, 8, 1, 4, DEVICE)
    with pytest.raises(ExecutionError, match="row 0 was given 10 entries, but has room for 9"):
        rows.apply([Admission(0, 1, [1] * 10, 0, SamplingParams())], [])
    assert not rows.tokens.any()
    with pytest.raises(Unsupported, match="load the model with a smaller max_num_seqs"):
        DeviceRows(2048, 1 << 21, 1, 16, DEVICE)
