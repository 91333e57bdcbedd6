"""The sampling kernels against the sampler in plain torch: the same token, and the same survivors of every filter."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from engine.execution.sampler import MaskedRows, SamplingRow, sample
from engine.kernels import reference_sampling as twin
from engine.kernels import sampling
from engine.kernels.launch import INTERPRETED
from engine.kernels.sampling import SamplingTile, SamplingWorkspace, sample_tokens
from engine.kernels.sampling_select import CHOSEN, CUT_KEYS, CUT_TOKENS, DRAW, FLOOR, LIKELIEST, MEAN
from engine.kernels.sampling_state import SamplingState
from engine.sampling_params import SamplingParams

# numpy warns where a tiny temperature makes a logit -inf, which is meant
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

Tensor = torch.Tensor

SMALL = SamplingTile(group=4, groups=4, listed=32, cap=8, tile=32, pair_tile=4, history=16)
"""Everything overflows and needs several passes with a hundred tokens."""
MEDIUM = SamplingTile(group=16, groups=16, listed=128, cap=32, tile=256, pair_tile=32, history=64)
LENGTH = 90
"""Tokens that each row has."""


class Batch:
    """Rows of one step, in shuffled rows of the state, with poison in the rows that are nobody's."""

    def __init__(
        self,
        logits: Tensor,
        params: Sequence[SamplingParams],
        device: torch.device,
        tile: SamplingTile | None = SMALL,
        allowed: Sequence[Sequence[int] | None] = (),
    ) -> None:
        """
        Args:
            allowed: what the mask of each row allows; None for a row without one.
        """
        num_rows, vocab_size = logits.shape
        self.logits, self.params, self.device = logits, params, device
        self.rows = torch.randperm(num_rows + 3)[:num_rows].to(torch.int32)
        self.tokens = torch.randint(0, vocab_size, (num_rows + 3, LENGTH + 20), dtype=torch.int32)
        self.lengths = torch.randint(1, LENGTH, (num_rows,), dtype=torch.int32)
        self.origins = torch.randint(-5, LENGTH, (num_rows,)).tolist()
        self.state = SamplingState(num_rows + 3, device, vocab_size=vocab_size)
        self.state.floats.fill_(torch.nan)
        self.masks = masked_rows(allowed, vocab_size)
        for row, param, origin in zip(self.rows.tolist(), params, self.origins, strict=True):
            self.state.set(row, param, origin)
        if self.masks is not None:
            self.state.masks[self.rows[list(self.masks.numbers)].long()] = self.masks.words.to(device)
            for number in self.masks.numbers:
                self.state.set(int(self.rows[number]), params[number], self.origins[number], has_mask=True)
        self.workspace = SamplingWorkspace(num_rows, vocab_size, device, tile)

    def run(self, rows: Tensor | None = None, *, advance: bool = True) -> list[int]:
        """The token ids, after a look at what else was written."""
        n = len(self.params)
        rows = self.rows if rows is None else rows
        token_ids = torch.full((n,), -7, dtype=torch.int32, device=self.device)
        wide = torch.full((n, self.logits.shape[1] + 5), torch.nan)
        wide[:, :-5] = self.logits
        given = wide.to(self.device)[:, :-5]  # rows lie further apart than they are long
        before = given.clone()
        positions, tokens = (self.lengths - 1).to(self.device), self.tokens.to(self.device, copy=True)
        sample_tokens(
            given, rows.to(self.device), positions, tokens, self.state, self.workspace, token_ids, advance=advance
        )
        torch.testing.assert_close(given, before, rtol=0, atol=0, equal_nan=True)
        written, advanced = self.tokens.clone(), self.lengths - 1
        for number, (row, token) in enumerate(zip(rows.tolist(), token_ids.tolist(), strict=True)):
            if row >= 0:
                written[row, self.lengths[number] % written.shape[1]] = max(token, 0)
                advanced[number] += int(advance)
        if len(set(rows.tolist())) == n:
            assert torch.equal(tokens.cpu(), written)
        assert torch.equal(positions.cpu(), advanced)
        return token_ids.tolist()

    def twin_rows(self) -> list[SamplingRow]:
        result = []
        for number, params in enumerate(self.params):
            position, history = int(self.lengths[number]), None
            if params.needs_history:
                start = 0 if params.repeat_last_n < 0 else max(0, position - params.repeat_last_n)
                history = self.tokens[self.rows[number], start:position].long()
            result.append(SamplingRow(params, position - self.origins[number], history))
        return result

    def adjusted(self) -> Tensor:
        """Logits after bias and penalties, by the twin: greedy rows do nothing else to them."""
        logits = self.logits.clone()
        for number, row in enumerate(self.twin_rows()):
            for token, bias in row.params.logit_bias.items():
                if token < logits.shape[1]:
                    logits[number, token] += bias
            if row.history is not None and len(row.history):
                p = row.params
                twin.penalize(logits[number], row.history, p.repeat_penalty, p.presence_penalty, p.frequency_penalty)
        if self.masks is not None:
            twin.mask(logits, self.masks.numbers, self.masks.words)
        return logits

    def check(self) -> tuple[list[int], int]:
        """Compares tokens and survivors; returns the tokens, and how many rows differ (none in the interpreter)."""
        expected = sample(self.logits.clone(), self.twin_rows(), self.masks)
        token_ids = self.run()
        is_broken = [token == -1 for token in token_ids]
        assert is_broken == expected.is_broken.tolist()
        num_different = 0
        adjusted = self.adjusted()
        decisions = self.workspace.decisions.cpu()
        for number, params in enumerate(self.params):
            same = max(token_ids[number], 0) == int(expected.token_ids[number])
            if not is_broken[number] and not params.is_greedy:
                same &= survivors(decisions[number], adjusted[number], params) == twin_survivors(
                    adjusted[number], params
                )
            if not same and INTERPRETED:
                pytest.fail(f"row {number}: {token_ids[number]}, not {int(expected.token_ids[number])}: {params}")
            num_different += not same
        return token_ids, num_different


def masked_rows(allowed: Sequence[Sequence[int] | None], vocab_size: int) -> MaskedRows | None:
    """Packed as the contract says, bit by bit."""
    numbers = [number for number, tokens in enumerate(allowed) if tokens is not None]
    words = torch.zeros(len(numbers), -(-vocab_size // 32), dtype=torch.int64)
    for place, number in enumerate(numbers):
        for token in allowed[number] or ():
            words[place, token // 32] |= 1 << token % 32
    return MaskedRows(numbers, words.to(torch.int32)) if numbers else None


def scaled(logits: Tensor, params: SamplingParams) -> Tensor:
    return (logits - logits.amax()) / torch.tensor(params.temperature)


def survivors(decision: Tensor, logits: Tensor, params: SamplingParams) -> set[int]:
    """What the cuts that the kernel found leave."""
    s = scaled(logits, params)
    s = torch.where(s == 0, 0.0, s)
    floats = decision.view(torch.float32)
    distance = (s - floats[MEAN.value]).abs().masked_fill(s < twin.LEAST_LOGIT, torch.inf)
    alive = s > -torch.inf
    for stage, order in enumerate((s, -distance, s)):
        bits = torch.where(order == 0, 0.0, order).view(torch.int32)
        key, token = bits ^ ((bits >> 31) & 0x7FFFFFFF), torch.arange(len(s))
        cut_key, cut_token = decision[CUT_KEYS.value + stage], decision[CUT_TOKENS.value + stage]
        alive &= (key > cut_key) | ((key == cut_key) & (token <= cut_token))
    return set((alive & (s >= floats[FLOOR.value])).nonzero().flatten().tolist())


def twin_survivors(logits: Tensor, params: SamplingParams) -> set[int]:
    ordered, columns = twin.likeliest(scaled(logits, params)[None], logits.shape[0])
    options = params.typical_p, params.top_p, params.min_p
    kept = twin.filter_candidates(ordered, torch.tensor([params.top_k]), *(torch.tensor([x]) for x in options))
    return set(columns[kept > -torch.inf].tolist())


def random_params(generator: random.Random, vocab_size: int) -> SamplingParams:
    """Each option is off in half of the requests."""

    def maybe(value: float, off: float) -> float:
        return value if generator.random() < 0.5 else off

    return SamplingParams(
        temperature=generator.choice([0.0, 0.2, 0.7, 1.0, 1.0, 1.5, 4.0]),
        top_k=int(maybe(generator.choice([1, 2, 5, 20, 40, vocab_size // 2, vocab_size, vocab_size + 9]), 0)),
        top_p=maybe(generator.random(), 1.0),
        min_p=maybe(generator.random() * 0.2, 0.0),
        typical_p=maybe(generator.random(), 1.0) if generator.random() < 0.5 else 1.0,
        repeat_penalty=maybe(generator.choice([0.5, 1.1, 1.7]), 1.0) if generator.random() < 0.4 else 1.0,
        presence_penalty=maybe(generator.uniform(-2, 2), 0.0) if generator.random() < 0.4 else 0.0,
        frequency_penalty=maybe(generator.uniform(-1, 1), 0.0) if generator.random() < 0.4 else 0.0,
        repeat_last_n=generator.choice([64, 1, 10, -1, 0]),
        logit_bias={generator.randrange(vocab_size + 5): generator.uniform(-5, 5) for _ in range(3)}
        if generator.random() < 0.3
        else {},
        seed=generator.randrange(2**63),
    )


@pytest.mark.parametrize(
    ("vocab_size", "tile", "num_rows"),
    [(97, SMALL, 16), (97, MEDIUM, 60), (512, MEDIUM, 20), (1000, MEDIUM, 12), (4096, None, 8)],
    ids=lambda value: "tile" if isinstance(value, SamplingTile) else str(value),
)
def test_random_requests(vocab_size: int, tile: SamplingTile | None, num_rows: int, device: torch.device) -> None:
    """Seeds are fixed; in the interpreter no row may differ. A GPU's exp and log differ in their last bits."""
    torch.manual_seed(vocab_size)
    generator = random.Random(vocab_size)
    if not INTERPRETED:
        num_rows *= 200
    spread = torch.rand(num_rows, 1) * 4
    logits = torch.randn(num_rows, vocab_size) * spread
    logits[::3] = (logits[::3] * 2).round() / 2  # many alike
    logits[::7, ::2] = -torch.inf
    params = [random_params(generator, vocab_size) for _ in range(num_rows)]
    assert Batch(logits, params, device, tile).check()[1] <= num_rows // 500


def check_one(logits: Tensor, device: torch.device, tile: SamplingTile | None = SMALL, **options: Any) -> int:
    """Compares one row with the twin and returns its token."""
    torch.manual_seed(0)
    token_ids, num_different = Batch(logits[None], [SamplingParams(**options)], device, tile).check()
    assert num_different == 0
    return token_ids[0]


FILTERS: list[dict[str, Any]] = [
    {}, {"top_k": 1}, {"top_k": 7}, {"top_k": 50}, {"top_p": 0.0}, {"top_p": 0.3}, {"top_p": 0.9999999},
    {"min_p": 1.0}, {"min_p": 0.5}, {"typical_p": 0.0}, {"typical_p": 0.4}, {"top_k": 40, "top_p": 0.9},
    {"top_k": 9, "typical_p": 0.5, "top_p": 0.5, "min_p": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_ties_go_by_id(options: dict[str, Any], device: torch.device) -> None:
    check_one(torch.tensor([2.0, 1.0, 0.0])[torch.arange(97) % 3], device, seed=4, **options)


@pytest.mark.parametrize("options", [{"top_k": 50}, {"top_p": 0.3}, {"typical_p": 0.4}], ids=str)
def test_all_alike(options: dict[str, Any], device: torch.device) -> None:
    check_one(torch.zeros(97), device, seed=3, **options)


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_one_token_left(options: dict[str, Any], device: torch.device) -> None:
    logits = torch.full((97,), -torch.inf)
    logits[61] = -3.0
    assert check_one(logits, device, seed=1, **options) == 61


def test_the_likeliest_alone(device: torch.device) -> None:
    logits = torch.randn(97, generator=torch.Generator().manual_seed(5))
    best = int(logits.argmax())
    only: tuple[dict[str, Any], ...] = ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 0.0})
    for seed, options in enumerate(only):
        assert check_one(logits, device, seed=seed, **options) == best
    logits[[3, 90]] = 50.0
    assert check_one(logits, device, temperature=0.0) == 3, "of equal ones the lowest"
    assert check_one(logits, device, top_k=1, seed=2) == 3


@pytest.mark.parametrize("top_k", [0, 3])
def test_min_p_is_relative_to_the_likeliest_that_is_left(top_k: int, device: torch.device) -> None:
    """The second is nearest to the entropy and stays alone: half as likely as the first, which is gone."""
    logits = torch.tensor([0.1, 0.3, 1e-9, 0.6, 1e-9]).log()
    assert check_one(logits, device, top_k=top_k, typical_p=0.2, min_p=0.6, seed=1) == 1


@pytest.mark.parametrize("temperature", [1e-50, 1e-40, 1e-20, 1e-6, 1e6, 1e30])
@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.5}, {"typical_p": 0.5}], ids=str)
def test_extreme_temperatures(temperature: float, options: dict[str, Any], device: torch.device) -> None:
    logits = torch.randn(97, generator=torch.Generator().manual_seed(6))
    if temperature < 1e-40:  # float32 has no such number, and the twin divides by zero
        batch = Batch(logits[None], [SamplingParams(temperature=temperature, **options)], device)
        assert batch.run() == [int(logits.argmax())]
    else:
        token = check_one(logits, device, temperature=temperature, seed=2, **options)
        assert temperature > 1 or token == int(logits.argmax())


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"top_k": 4}, {"top_p": 0.5}, {"logit_bias": {3: 1}}])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)
def test_broken_rows_are_told_and_harm_nobody(options: dict[str, Any], poison: float, device: torch.device) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 97)
    batch = Batch(logits, [SamplingParams(seed=4, **options)] * 3, device)
    whole = batch.run()
    logits[1, 13 : 97 if poison < 0 else 14] = poison
    logits[1, :13] = poison if poison < 0 else 1.0
    assert batch.run() == [whole[0], -1, whole[2]]


def test_padding_rows_are_left_alone(device: torch.device) -> None:
    torch.manual_seed(0)
    params = [SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_k=3), SamplingParams(top_p=0.5)]
    batch = Batch(torch.randn(4, 97), params, device)
    whole = batch.run()
    for absent in range(4):
        rows = batch.rows.clone()
        rows[absent] = -1
        tokens = batch.run(rows, advance=absent % 2 == 0)
        assert tokens == [-7 if n == absent else whole[n] for n in range(4)]


def test_penalties_count_what_occurs_in_the_window(device: torch.device) -> None:
    logits = torch.zeros(97)
    logits[[4, 5]] = torch.tensor([3.0, 2.9])
    torch.manual_seed(0)
    options = [
        {"repeat_penalty": 1.1}, {"presence_penalty": 0.2}, {"frequency_penalty": 0.04},
        {"frequency_penalty": 0.04, "repeat_last_n": 2}, {"presence_penalty": 0.2, "repeat_last_n": -1},
        {"presence_penalty": 0.2, "repeat_last_n": 0}, {"presence_penalty": 0.2, "repeat_last_n": 5},
    ]  # fmt: skip
    batch = Batch(logits.expand(7, -1), [SamplingParams(temperature=0.0, **o) for o in options], device)
    batch.lengths.fill_(40)
    batch.tokens.fill_(50)
    batch.tokens[:, 37:40] = 4
    batch.tokens[:, 40:] = 5  # the future, which is garbage
    batch.tokens[batch.rows[4:].long(), 30:40] = 50
    batch.tokens[batch.rows[4:].long(), 34] = 4  # six tokens ago
    assert batch.check() == ([5, 5, 5, 4, 5, 4, 4], 0)


def test_bias_forces_bans_and_ignores_unknown_ids(device: torch.device) -> None:
    logits = torch.randn(97, generator=torch.Generator().manual_seed(3))
    best = int(logits.argmax())
    assert check_one(logits, device, temperature=0.0, logit_bias={11: 100.0}) == 11
    assert check_one(logits, device, temperature=0.0, logit_bias={best: -100.0}) != best
    assert check_one(logits, device, seed=2, logit_bias={11: 1e29, 96: 3.0, 97: 5.0, 2**31 - 1: 9.0}) == 11


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"repeat_penalty": 1.3}, {"top_p": 0.9}, FILTERS[-1]], ids=str
)
def test_a_mask_rules_out_all_others(options: dict[str, Any], device: torch.device) -> None:
    torch.manual_seed(0)
    allowed: list[Any] = [[96], None, list(range(1, 97, 3)), [0, 31, 32, 63, 64, 95]]
    batch = Batch(torch.randn(4, 97), [SamplingParams(seed=n, **options) for n in range(4)], device, allowed=allowed)
    token_ids, num_different = batch.check()
    assert num_different == 0
    for token_id, tokens in zip(token_ids, allowed, strict=True):
        assert tokens is None or token_id in tokens


def test_a_masked_row_does_not_hide_that_its_logits_are_broken(device: torch.device) -> None:
    logits = torch.zeros(2, 97)
    logits[0, 7] = torch.nan
    batch = Batch(logits, [SamplingParams(seed=1)] * 2, device, allowed=[[3], [3]])
    assert batch.check()[0] == [-1, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_of_half_precision(dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(5, 97) * 2).to(dtype)
    params = [SamplingParams(seed=n, **FILTERS[n]) for n in (0, 2, 5, 10)] + [SamplingParams(logit_bias={3: 1.0})]
    batch = Batch(logits.float(), params, device)
    expected = batch.run()
    token_ids = torch.empty(5, dtype=torch.int32, device=device)
    sample_tokens(
        logits.to(device), batch.rows.to(device), (batch.lengths - 1).to(device), batch.tokens.to(device),
        batch.state, batch.workspace, token_ids, advance=False,
    )  # fmt: skip
    assert token_ids.tolist() == expected


def test_statuses_take_the_paths_that_they_should(device: torch.device) -> None:
    torch.manual_seed(0)
    params = [
        SamplingParams(temperature=0.0, top_k=5),
        SamplingParams(),
        SamplingParams(top_k=5),
        SamplingParams(top_k=60),
    ]
    batch = Batch(torch.randn(4, 97), params, device)
    batch.run()
    statuses = batch.workspace.decisions[:, 0].tolist()
    assert statuses == [LIKELIEST.value, DRAW.value, CHOSEN.value, DRAW.value]


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 4}] if INTERPRETED else [{}, {"top_k": 4}, {"top_p": 0.8}, {"typical_p": 0.6}], ids=str
)
def test_draws_follow_the_exact_probabilities(options: dict[str, Any], device: torch.device) -> None:
    """Chi-square, with the likeliest survivors as cells; one seed, a generation number a draw."""
    n = 60 if INTERPRETED else 20_000
    logits = torch.tensor([2.0, -torch.inf, 0.0, 1.0, -1.0, 1.3, 0.5, 1.1])
    params = SamplingParams(seed=11, **options)
    batch = Batch(logits.expand(n, -1), [params] * n, device, MEDIUM)
    batch.rows = torch.zeros(n, dtype=torch.int32)
    batch.state.set(0, params, origin=0)
    batch.lengths = torch.arange(n, dtype=torch.int32)
    tokens = batch.run()
    kept = twin_survivors(logits, params)
    probs = torch.tensor([logits[i].item() if i in kept else -math.inf for i in range(8)]).softmax(-1)
    counts = torch.bincount(torch.tensor(tokens), minlength=8)
    assert counts[probs == 0].sum() == 0
    expected = (probs * n)[probs > 0]
    freedom = len(expected) - 1
    chi_square = ((counts[probs > 0] - expected) ** 2 / expected).sum().item()
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_the_last_column_and_beyond(device: torch.device) -> None:
    batch = Batch(torch.randn(2, 97), [SamplingParams(temperature=0.0)] * 2, device)
    token_ids = torch.empty(2, dtype=torch.int32, device=device)
    positions = torch.tensor([LENGTH + 18, LENGTH + 19], dtype=torch.int32, device=device)
    tokens = torch.full((5, LENGTH + 20), -7, dtype=torch.int32, device=device)
    sample_tokens(
        batch.logits.to(device), batch.rows.to(device), positions, tokens, batch.state, batch.workspace, token_ids,
        advance=True,
    )  # fmt: skip
    assert positions.tolist() == [LENGTH + 19, LENGTH + 20]
    assert (tokens != -7).nonzero().tolist() == [[int(batch.rows[0]), LENGTH + 19]]
    assert tokens[batch.rows[0], -1] == token_ids[0]


@pytest.mark.parametrize("max_parts", [1, 8, 20])
def test_a_program_may_take_several_chunks(
    max_parts: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MAX_PARTS", max_parts)
    assert sampling.num_parts(4, 7) == max(1, max_parts // 4)
    torch.manual_seed(0)
    options: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"seed": 3}, {"seed": 4, "top_p": 0.7, "presence_penalty": 0.5},
        {"temperature": 0.0, "repeat_penalty": 1.3, "logit_bias": {90: 2.0}},
    ]  # fmt: skip
    assert Batch(torch.randn(4, 97), [SamplingParams(**one) for one in options], device).check()[1] == 0


def test_greedy_rows_leave_no_scratch(device: torch.device) -> None:
    """One pass over the logits: nothing of a row's size is written, and the passes after it return at once."""
    torch.manual_seed(0)
    batch = Batch(torch.randn(2, 97), [SamplingParams(temperature=0.0, top_k=5, top_p=0.5)] * 2, device)
    for name in ("work", "group_max", "list_s", "near_s"):
        getattr(batch.workspace, name).fill_(torch.nan)
    assert batch.run() == batch.logits.argmax(1).tolist()
    for name in ("work", "group_max", "list_s", "near_s"):
        assert getattr(batch.workspace, name).isnan().all(), name


def test_a_state_over_the_memory_of_another(device: torch.device) -> None:
    own, arena = SamplingState(3, device, max_bias=4), torch.zeros(3 * 32, dtype=torch.int32, device=device)
    parts = [part.view(3, -1) for part in arena.split([3 * 16, 3 * 8, 3 * 4, 3 * 4])]
    views = {
        "ints": parts[0].view(torch.int64), "floats": parts[1].view(torch.float32),
        "bias_ids": parts[2], "bias_values": parts[3].view(torch.float32),
        "masks": torch.zeros(3, 1, dtype=torch.int32, device=device),
    }  # fmt: skip
    state = SamplingState.over(**views)
    params = SamplingParams(seed=2**63 - 1, top_p=0.5, logprobs=3, repeat_penalty=1.1, logit_bias={4: -1.5, 7: 1e38})
    for one in (own, state):
        one.set(1, params, origin=-5)
    for name, view in views.items():
        assert torch.equal(view, getattr(own, name))
    floats, ints = SamplingState.encode(params, -5)
    assert torch.equal(state.floats[1], torch.tensor(floats, device=device))
    assert state.ints[1].tolist() == ints
    assert ints[5] == 3
    assert SamplingState.encode(SamplingParams(), 0)[1][5] == -1
    assert SamplingState.encode(SamplingParams(), 0)[1][6] == 0
    assert SamplingState.encode(SamplingParams(), 0, has_mask=True)[1][6] == 1
    with pytest.raises(ValueError, match=r"ints is torch.int32 \(3, 16\); it must be torch.int64 \(3, 8\)"):
        SamplingState.over(**views | {"ints": parts[0]})


def test_refuses_what_does_not_fit_together(device: torch.device) -> None:
    batch = Batch(torch.randn(2, 97), [SamplingParams()] * 2, device)
    good: list[Any] = [
        batch.logits.to(device), batch.rows.to(device), batch.lengths.to(device), batch.tokens.to(device),
        batch.state, batch.workspace, torch.empty(2, dtype=torch.int32, device=device),
    ]  # fmt: skip
    for index, wrong, message in (
        (0, torch.randn(3, 97), "at most 2 rows of 97"),
        (0, torch.randn(2, 98), "at most 2 rows of 97"),
        (0, torch.randn(97, 2).T, "contiguous"),
        (1, batch.rows.long(), "rows is torch.int64"),
        (2, batch.lengths[:1], "positions is"),
        (3, batch.tokens.long(), "must be int32"),
        (6, good[6].long(), "token_ids is torch.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_tokens(*good[:index], wrong, *good[index + 1 :], advance=False)
    with pytest.raises(ValueError, match="at most 2 are taken"):
        SamplingState(1, device, max_bias=2).set(0, SamplingParams(logit_bias={1: 1.0, 2: 1.0, 3: 1.0}), 0)
