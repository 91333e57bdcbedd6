"""Differences to the state against their twin."""

from __future__ import annotations

import pytest
import torch

from engine.kernels import reference_step
from engine.kernels.patch import BLOCK, apply_patch


@pytest.mark.parametrize("num_changes", [0, 1, 7, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
def test_it_is_its_twin(num_changes: int, device: torch.device) -> None:
    torch.manual_seed(0)
    arena = torch.full((3 * BLOCK,), -7, dtype=torch.int32, device=device)
    offsets = torch.randperm(len(arena))[:num_changes].int()
    offsets[::3] = -1 - offsets[::3]
    values = torch.randint(-(2**31), 2**31, (num_changes,)).int()
    expected = arena.clone()
    reference_step.apply_patch(expected, offsets, values)
    apply_patch(arena, offsets.to(device), values.to(device))
    assert torch.equal(arena, expected)
    assert (arena != -7).sum() == num_changes - len(offsets[::3])


def test_floats_travel_as_their_bits(device: torch.device) -> None:
    arena = torch.zeros(4, dtype=torch.int32, device=device)
    bits = torch.tensor([0.1, -torch.inf], device=device).view(torch.int32)
    apply_patch(arena, torch.tensor([3, 1], dtype=torch.int32, device=device), bits)
    assert arena.view(torch.float32).tolist() == [0.0, -torch.inf, 0.0, torch.tensor(0.1).item()]


def test_parts_of_larger_tensors(device: torch.device) -> None:
    arena = torch.zeros(9, dtype=torch.int32, device=device)
    staged = torch.tensor([9, 4, 6, 1, 2, 9], dtype=torch.int32, device=device)
    apply_patch(arena, staged[1:3], staged[3:5])
    assert arena.tolist() == [0, 0, 0, 0, 1, 0, 2, 0, 0]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("arena", torch.zeros(4)), ("offsets", torch.zeros(4).int()[::2]), ("values", torch.zeros(3).int())],
)
def test_refusals(name: str, wrong: torch.Tensor) -> None:
    good = {"arena": torch.zeros(4).int(), "offsets": torch.zeros(2).int(), "values": torch.zeros(2).int()}
    with pytest.raises(ValueError, match=f"apply_patch: {name} is"):
        apply_patch(**good | {name: wrong})
