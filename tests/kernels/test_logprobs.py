"""Log-probabilities against a sorted log_softmax."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.kernels import sampling
from engine.kernels.logprobs import LogprobWorkspace, logprobs
from engine.kernels.sampling_state import SamplingState
from engine.sampling_params import SamplingParams

Tensor = torch.Tensor

MAX_TOP = 20
SMALL = {"group": 4, "groups": 4, "listed": 32, "tile": 32}


def run(
    logits: Tensor, num_top: list[int], chosen_ids: list[int], device: torch.device, **sizes: int
) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, vocab_size = logits.shape
    wide = torch.full((num_rows, vocab_size + 3), torch.nan, dtype=logits.dtype, device=device)
    wide[:, :-3] = logits.to(device)
    chosen = torch.full((num_rows,), 7.0, device=device)
    top = torch.full((num_rows, MAX_TOP), 7.0, device=device)
    top_ids = torch.full((num_rows, MAX_TOP), -7, device=device)
    rows = torch.randperm(num_rows + 2, generator=torch.Generator().manual_seed(2))[:num_rows]
    state = SamplingState(num_rows + 2, device)
    for row, count in zip(rows.tolist(), num_top, strict=True):
        state.set(row, SamplingParams(logprobs=None if count < 0 else count), origin=0)
    logprobs(
        wide[:, :-3], rows.int().to(device), state, torch.tensor(chosen_ids, dtype=torch.int32, device=device),
        LogprobWorkspace(num_rows, vocab_size, device, **(sizes or SMALL)), chosen, top, top_ids,
    )  # fmt: skip
    return chosen.cpu(), top.cpu(), top_ids.cpu()


def check(logits: Tensor, num_top: list[int], device: torch.device, **sizes: int) -> None:
    chosen_ids = [n * 13 % logits.shape[1] for n in range(len(num_top))]
    chosen, top, top_ids = run(logits, num_top, chosen_ids, device, **sizes)
    expected = logits.double().log_softmax(-1)
    for row, wanted in enumerate(num_top):
        count = max(0, min(wanted, logits.shape[1]))
        if wanted < 0:
            assert chosen[row] == 7.0
        else:
            torch.testing.assert_close(chosen[row].double(), expected[row, chosen_ids[row]], atol=2e-6, rtol=1e-6)
        order = logits[row].float().sort(descending=True, stable=True).indices[:count]
        assert top_ids[row, :count].tolist() == order.tolist()
        torch.testing.assert_close(top[row, :count].double(), expected[row, order], atol=2e-6, rtol=1e-6)
        assert (top[row, count:] == 7.0).all()
        assert (top_ids[row, count:] == -7).all()


@pytest.mark.parametrize("vocab_size", [1, 5, 16, 97, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_random_rows(vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    check((torch.randn(5, vocab_size) * 4 + 20).to(dtype), [3, -1, 0, 20, 1], device)


def test_the_default_sizes(device: torch.device) -> None:
    torch.manual_seed(0)
    sizes = {"group": 256, "groups": 8, "listed": 512, "tile": 1024}
    check(torch.randn(3, 5000) * 3, [20, 1, -1], device, **sizes)
    if device.type == "cuda":
        check(torch.randn(9, 152_064) * 3, [20, 1, -1, 0, 5, 20, 20, 20, 7], device, **sizes)


@pytest.mark.parametrize("max_parts", [1, 6])
def test_a_program_may_take_several_chunks(
    max_parts: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MAX_PARTS", max_parts)
    torch.manual_seed(0)
    check(torch.randn(3, 97) * 4, [20, -1, 2], device)


def test_equal_logits_come_by_id(device: torch.device) -> None:
    check(torch.zeros(2, 97), [20, 5], device)  # too many alike for the list
    check((torch.arange(97) % 9).float().expand(2, -1), [20, 3], device)
    check(-(torch.arange(97) // 4 * 4).float().expand(1, -1), [20], device)


def test_tokens_that_are_ruled_out(device: torch.device) -> None:
    logits = torch.full((2, 97), -torch.inf)
    logits[0, 50] = 3.0
    logits[1, 5:12] = torch.arange(7.0)
    chosen, top, top_ids = run(logits, [3, 20], [50, 11], device)
    assert chosen[0] == 0
    assert top_ids[0, :3].tolist() == [50, 0, 1]
    assert top[0, :3].tolist() == [0, -torch.inf, -torch.inf]
    assert top_ids[1, :9].tolist() == [11, 10, 9, 8, 7, 6, 5, 0, 1]
    torch.testing.assert_close(top[1, :7], logits[1, 5:12].flip(0).log_softmax(0))


def test_large_logits_do_not_overflow(device: torch.device) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 97) * 30
    chosen, top, _ = run(logits + torch.tensor([[3000.0], [-3000.0]]), [5, 5], [3, 4], device)
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(chosen, expected[torch.arange(2), torch.tensor([3, 4])], atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(top[:, :5], expected.sort(descending=True).values[:, :5], atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=str)
def test_a_broken_row_stays_unwritten_and_harms_nobody(poison: float, device: torch.device) -> None:
    logits = torch.randn(3, 97, generator=torch.Generator().manual_seed(1))
    whole = run(logits, [4, 4, 4], [0, 1, 2], device)
    logits[1, 40] = poison
    broken = run(logits, [4, 4, 4], [0, 1, 2], device)
    for before, after in zip(whole, broken, strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])


def test_padding_and_broken_rows_are_skipped(device: torch.device) -> None:
    state = SamplingState(4, device)
    for row in range(4):
        state.set(row, SamplingParams(logprobs=2), origin=0)
    chosen, top = torch.full((3,), 7.0, device=device), torch.full((3, 2), 7.0, device=device)
    top_ids = torch.full((3, 2), -7, device=device)
    rows = torch.tensor([3, -1, 0], dtype=torch.int32, device=device)
    chosen_ids = torch.tensor([-1, 5, 6], dtype=torch.int32, device=device)
    logprobs(
        torch.zeros(3, 97, device=device),
        rows,
        state,
        chosen_ids,
        LogprobWorkspace(3, 97, device),
        chosen,
        top,
        top_ids,
    )
    assert (chosen != 7).tolist() == [False, False, True]
    assert (top != 7).any(dim=1).tolist() == [False, False, True]
    assert top_ids.tolist() == [[-7, -7], [-7, -7], [0, 1]]


def test_refuses_what_does_not_fit_together(device: torch.device) -> None:
    workspace = LogprobWorkspace(2, 97, device)
    good: list[Any] = [
        torch.zeros(2, 97, device=device), torch.zeros(2, dtype=torch.int32, device=device), SamplingState(2, device),
        torch.zeros(2, dtype=torch.int32, device=device), workspace, torch.zeros(2, device=device),
        torch.zeros(2, 5, device=device), torch.zeros(2, 5, dtype=torch.int64, device=device),
    ]  # fmt: skip
    logprobs(*good)
    for index, wrong, message in (
        (0, torch.zeros(3, 97), "at most 2 rows of 97"),
        (0, torch.zeros(97, 2).T, "contiguous"),
        (1, good[1].long(), "rows is torch.int64"),
        (3, good[3][:1], "chosen_ids is"),
        (6, torch.zeros(2, 21), "at most 20"),
        (7, torch.zeros(2, 4, dtype=torch.int64), "top_ids is"),
    ):
        with pytest.raises(ValueError, match=message):
            logprobs(*good[:index], wrong, *good[index + 1 :])
