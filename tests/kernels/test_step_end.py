"""The end of a step against its twin, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.kernels import reference_step
from engine.kernels.gemv import gemv_argmax
from engine.kernels.step_end import CANDIDATES_BLOCK, step_end

VOCAB_SIZE = 50
MAX_TOKENS = 12


class End:
    """Arguments of a step's end; every row's newest position is given."""

    def __init__(
        self,
        positions: list[int],
        num_candidates: int,
        device: torch.device,
    ) -> None:
        torch.manual_seed(0)
        num_tokens = len(positions)
        self.values = torch.randn(num_tokens, num_candidates, device=device)
        self.candidates = torch.randint(0, VOCAB_SIZE, (num_tokens, num_candidates), dtype=torch.int32, device=device)
        self.rows = torch.randperm(num_tokens + 2)[:num_tokens].int().to(device)
        self.positions = torch.tensor(positions, dtype=torch.int32, device=device)
        self.tokens = torch.full((num_tokens + 2, MAX_TOKENS), -7, dtype=torch.int32, device=device)
        self.token_ids = torch.full((num_tokens,), -7, dtype=torch.int32, device=device)

    def assert_like_twin(self) -> None:
        expected = {name: tensor.clone() for name, tensor in vars(self).items()}
        reference_step.step_end(**expected)
        step_end(**vars(self))
        for name, tensor in vars(self).items():
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("num_candidates", [1, 5, 64])
def test_it_is_its_twin(num_candidates: int, device: torch.device) -> None:
    End([0, 5, 9], num_candidates, device).assert_like_twin()


@pytest.mark.parametrize("num_candidates", [CANDIDATES_BLOCK - 1, CANDIDATES_BLOCK + 1, 3 * CANDIDATES_BLOCK])
def test_many_candidates(num_candidates: int, device: torch.device) -> None:
    End([3, 4], num_candidates, device).assert_like_twin()


@pytest.mark.parametrize("where", [0, CANDIDATES_BLOCK - 1, CANDIDATES_BLOCK, 2 * CANDIDATES_BLOCK])
def test_the_best_may_be_anywhere(where: int, device: torch.device) -> None:
    end = End([3], 2 * CANDIDATES_BLOCK + 1, device)
    end.values[0, where], end.candidates[0, where] = 100.0, 41
    end.assert_like_twin()
    assert (end.token_ids.tolist(), end.tokens[end.rows[0], 4].item(), end.positions.tolist()) == ([41], 41, [4])


@pytest.mark.parametrize(
    "places", [(0, 1), (0, CANDIDATES_BLOCK), (5, CANDIDATES_BLOCK + 4), (5, CANDIDATES_BLOCK + 6)], ids=str
)
@pytest.mark.parametrize("ids", [(8, 30), (30, 8)], ids=str)
def test_the_lowest_of_equals(ids: tuple[int, int], places: tuple[int, int], device: torch.device) -> None:
    end = End([3], 2 * CANDIDATES_BLOCK, device)
    for place, token in zip(places, ids, strict=True):
        end.values[0, place], end.candidates[0, place] = 100.0, token
    step_end(**vars(end))
    assert end.token_ids.tolist() == [8]


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf])
def test_a_row_without_a_finite_logit(bad: float, device: torch.device) -> None:
    end = End([3, 6], 5, device)
    end.values[1] = bad
    end.assert_like_twin()
    assert end.token_ids[1] == -1
    assert end.tokens[end.rows[1], 7] == 0


def test_nothing_is_written_for_padding(device: torch.device) -> None:
    end = End([3, 6, 1], 5, device)
    end.rows[[0, 2]] = -1
    end.assert_like_twin()
    assert end.positions.tolist() == [3, 7, 1]
    assert (end.token_ids != -7).tolist() == [False, True, False]
    assert (end.tokens != -7).sum() == 1


def test_the_last_column_and_beyond(device: torch.device) -> None:
    end = End([MAX_TOKENS - 2, MAX_TOKENS - 1], 3, device)
    end.assert_like_twin()
    assert end.positions.tolist() == [MAX_TOKENS - 1, MAX_TOKENS]
    assert (end.tokens != -7).sum() == 1


def test_rows_that_lie_apart_and_wide_integers(device: torch.device) -> None:
    end = End([3, 4], 5, device)
    end.tokens = torch.cat([end.tokens, end.tokens], dim=1)[:, :MAX_TOKENS]
    end.rows, end.positions = end.rows.long(), end.positions.long()
    end.assert_like_twin()


def test_the_heads_candidates(device: torch.device) -> None:
    end = End([3, 4], 1, device)
    head, last = torch.randn(VOCAB_SIZE, 24, device=device), torch.randn(2, 24, device=device)
    end.values, end.candidates = gemv_argmax(last, head)
    step_end(**vars(end))
    assert end.token_ids.tolist() == (last @ head.T).argmax(1).tolist()


def test_refusals(device: torch.device) -> None:
    def refused(message: str, **changes: Any) -> None:
        end = End([3, 4], 5, device)
        with pytest.raises(ValueError, match=message):
            step_end(**vars(end) | changes)

    refused(r"candidates is torch.int64 \(2, 5\); it must be torch.int32", candidates=torch.ones(2, 5).long())
    refused(r"rows is torch.float32 \(3,\)", rows=torch.ones(3))
    refused(r"values is torch.float32 \(2, 0\)", values=torch.ones(2, 0), candidates=torch.ones(2, 0).int())
    refused("token_ids is torch.int64", token_ids=torch.ones(2).long())
    refused("it must be int32", tokens=torch.ones(4, 12))
    refused("its rows contiguous", tokens=torch.ones(12, 4).int().t())
