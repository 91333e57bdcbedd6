"""The twins against their definitions, written as loops: one query, one head, one softmax at a time."""

from __future__ import annotations

import math

import pytest
import torch

from engine.kernels import reference

BLOCK_SIZE = 4
NUM_BLOCKS = 64
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


class Setup:
    """Rows with histories in a shuffled, poisoned cache."""

    def __init__(
        self, rows: list[tuple[int, int]], heads: tuple[int, int], head_dim: int, window: int | None, dtype: torch.dtype
    ) -> None:
        """`rows`: (start, count) of each row's step."""
        torch.manual_seed(0)
        self.rows, self.window = rows, window
        num_heads, num_kv_heads = heads
        shape = NUM_BLOCKS, num_kv_heads, BLOCK_SIZE, head_dim
        self.k_cache = torch.full(shape, torch.nan, dtype=dtype)
        self.v_cache = torch.full(shape, torch.nan, dtype=dtype)
        self.keys = [torch.randn(start + count, num_kv_heads, head_dim).to(dtype) for start, count in rows]
        self.values = [torch.randn_like(keys) for keys in self.keys]
        free = (torch.randperm(NUM_BLOCKS - 1) + 1).tolist()
        most = max(start + count for start, count in rows)
        self.table = torch.zeros(len(rows), -(-most // BLOCK_SIZE), dtype=torch.int64)
        for row, (start, count) in enumerate(rows):
            first_needed = 0 if window is None else max(0, start + 1 - window) // BLOCK_SIZE
            for index in range(first_needed, -(-(start + count) // BLOCK_SIZE)):  # dead entries keep the dummy block
                self.table[row, index] = free.pop()
            for position in range(first_needed * BLOCK_SIZE, start):
                block, offset = self.table[row, position // BLOCK_SIZE], position % BLOCK_SIZE
                self.k_cache[block, :, offset] = self.keys[row][position]
                self.v_cache[block, :, offset] = self.values[row][position]
        self.q = torch.randn(sum(count for _, count in rows), num_heads, head_dim).to(dtype)
        self.positions = torch.cat([torch.arange(start, start + count) for start, count in rows])
        row_of_token = torch.cat([torch.full((count,), row) for row, (_, count) in enumerate(rows)])
        self.plan = reference.plan_attention(
            self.table, [start for start, _ in rows], [count for _, count in rows], self.positions,
            None if all(count == 1 for _, count in rows) else row_of_token,
            block_size=BLOCK_SIZE, num_kv_heads=num_kv_heads, window=window,
        )  # fmt: skip

    def store(self) -> None:
        new_keys = torch.cat([keys[start:] for keys, (start, _) in zip(self.keys, self.rows, strict=True)])
        new_values = torch.cat([values[start:] for values, (start, _) in zip(self.values, self.rows, strict=True)])
        reference.store_kv(new_keys, new_values, self.k_cache, self.v_cache, self.plan)

    def expected(self, scale: float, softcap: float | None) -> torch.Tensor:
        group = self.q.shape[1] // self.k_cache.shape[1]
        out, token = torch.empty_like(self.q), 0
        for row, (start, count) in enumerate(self.rows):
            for position in range(start, start + count):
                seen = range(0 if self.window is None else max(0, position - self.window + 1), position + 1)
                for head in range(self.q.shape[1]):
                    keys = self.keys[row][seen.start : seen.stop, head // group].double()
                    values = self.values[row][seen.start : seen.stop, head // group].double()
                    scores = keys @ self.q[token, head].double() * scale
                    if softcap is not None:
                        scores = softcap * torch.tanh(scores / softcap)
                    out[token, head] = (scores.softmax(0) @ values).to(out.dtype)
                token += 1
        return out.flatten(1)


ROWS = {
    "first-token": [(0, 1)],
    "one-short-of-a-block": [(BLOCK_SIZE - 2, 1)],
    "last-of-a-block": [(BLOCK_SIZE - 1, 1)],
    "first-of-a-block": [(BLOCK_SIZE, 1)],
    "fresh-prompt": [(0, 11)],
    "later-chunk": [(9, 7)],
    "equal-lengths": [(17, 1), (17, 1), (17, 1)],
    "all-lengths": [(position, 1) for position in (0, 2, 3, 4, 5, 15, 16, 21)],
    "lengths-of-several-buckets": [(70, 1), (3, 1), (33, 1), (5, 1)],
    "decode-and-prefill": [(6, 1), (19, 1), (0, 5), (10, 13)],
    "prefill-before-decode": [(0, 5), (6, 1), (10, 2), (8, 1)],
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("softcap", [None, 1.5], ids=["plain", "softcap"])
@pytest.mark.parametrize("window", [None, 1, 4, 6, 11, 1000], ids=lambda window: f"window-{window}")
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=["mha", "gqa"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_attention_equals_the_naive_loop(
    rows: list[tuple[int, int]], heads: tuple[int, int], window: int | None, softcap: float | None, dtype: torch.dtype
) -> None:
    setup = Setup(rows, heads, 16, window, dtype)
    setup.store()
    scale = 16**-0.5 * 1.3
    result = reference.paged_attention(setup.q, setup.k_cache, setup.v_cache, setup.plan, scale, softcap)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(result, setup.expected(scale, softcap), atol=tolerance, rtol=tolerance)


def test_long_chunks_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.kernels.reference_attention.MAX_SCORES", 16 * 60)
    setup = Setup([(7, 50), (3, 1), (0, 30)], (4, 2), 8, 9, torch.float32)
    assert len(setup.plan.spans) > 4
    setup.store()
    result = reference.paged_attention(setup.q, setup.k_cache, setup.v_cache, setup.plan, 0.5)
    torch.testing.assert_close(result, setup.expected(0.5, None), atol=1e-5, rtol=1e-5)


def test_store_writes_the_rows_slots_and_nothing_else() -> None:
    setup = Setup([(2, 1), (5, 9)], (2, 2), 8, None, torch.float32)
    before = setup.k_cache.clone()
    setup.store()
    changed = (setup.k_cache.isnan() != before.isnan()).any(-1)  # [block, head, offset]
    expected = torch.zeros_like(changed)
    for row, (start, count) in enumerate(setup.rows):
        for position in range(start, start + count):
            expected[setup.table[row, position // BLOCK_SIZE], :, position % BLOCK_SIZE] = True
    assert torch.equal(changed, expected)
    block, offset = setup.table[1, 13 // BLOCK_SIZE], 13 % BLOCK_SIZE
    assert torch.equal(setup.k_cache[block, :, offset], setup.keys[1][13])
    assert torch.equal(setup.v_cache[block, :, offset], setup.values[1][13])


def test_a_cache_of_another_type_is_converted() -> None:
    setup = Setup([(5, 1), (0, 6)], (4, 2), 16, None, torch.bfloat16)
    setup.store()
    q = setup.q.float()
    result = reference.paged_attention(q, setup.k_cache, setup.v_cache, setup.plan, 0.25)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, setup.expected(0.25, None).float(), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("rotary_dim", [16, 10], ids=["whole-head", "partial"])
@pytest.mark.parametrize("has_norm", [False, True], ids=["plain", "qk-norm"])
def test_rope_store_rotates_pairs_as_complex_numbers(rotary_dim: int, has_norm: bool) -> None:
    setup = Setup([(3, 1), (9, 4)], (4, 2), 16, None, torch.float32)
    qkv = torch.randn(5, (4 + 2 + 2) * 16)
    inv_freq = 100.0 ** -(torch.arange(rotary_dim // 2) / 7)
    angles = setup.positions[:, None] * inv_freq  # [tokens, pairs]
    cos = torch.cat([angles.cos(), angles.cos()], -1)[:, None]
    sin = torch.cat([-angles.sin(), angles.sin()], -1)[:, None]
    norms = (torch.rand(16) + 0.5, torch.rand(16) + 0.5) if has_norm else (None, None)
    heads = qkv.view(5, 8, 16).clone()
    if has_norm:
        for head in range(6):
            weight = norms[0] if head < 4 else norms[1]
            heads[:, head] = heads[:, head] / (heads[:, head].pow(2).mean(-1, keepdim=True) + 0.3).sqrt() * weight
    half = rotary_dim // 2
    turned = (
        torch.complex(heads[..., :half], heads[..., half:rotary_dim]) * torch.polar(torch.tensor(1.0), angles)[:, None]
    )
    expected = torch.cat([turned.real, turned.imag, heads[..., rotary_dim:]], -1)
    q = reference.rope_store(qkv, cos, sin, setup.k_cache, setup.v_cache, setup.plan, 4, *norms, 0.3)
    torch.testing.assert_close(q, expected[:, :4])
    for token, (row, position) in enumerate([(0, 3), (1, 9), (1, 10), (1, 11), (1, 12)]):
        block, offset = setup.table[row, position // BLOCK_SIZE], position % BLOCK_SIZE
        torch.testing.assert_close(setup.k_cache[block, :, offset], expected[token, 4:6])
        torch.testing.assert_close(setup.v_cache[block, :, offset], qkv.view(5, 8, 16)[token, 6:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight_is_wide", [False, True], ids=["llama", "gemma"])
def test_rms_norm_rounds_where_its_model_does(dtype: torch.dtype, weight_is_wide: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 24).to(dtype) * 1e-2  # small: eps matters
    weight = torch.randn(24).to(torch.float32 if weight_is_wide else dtype)
    normed = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-4).sqrt()
    expected = (normed.to(weight.dtype) * weight).to(dtype)
    result = reference.rms_norm(x, weight, 1e-4)
    assert result.dtype == dtype
    # Where bfloat16 rounds once or twice must agree exactly: it decides close calls of greedy decoding.
    exactly = {"atol": 0, "rtol": 0} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(result, expected, **exactly)
    residual = torch.randn_like(x)
    both, total = reference.add_rms_norm(x, residual, weight, 1e-4)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(both, reference.rms_norm(x + residual, weight, 1e-4))


def test_rms_norm_leaves_its_input_alone() -> None:
    x, weight = torch.randn(2, 8), torch.randn(8)
    before = x.clone(), weight.clone()
    reference.rms_norm(x, weight, 1e-5)
    assert torch.equal(x, before[0])
    assert torch.equal(weight, before[1])


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated_activates_the_first_half(activation: str) -> None:
    gate, up = torch.linspace(-4, 4, 9), torch.linspace(2, 3, 9)
    if activation == "silu":
        expected = [g / (1 + math.exp(-g)) for g in gate.tolist()]
    elif activation == "gelu":
        expected = [g * 0.5 * (1 + math.erf(g / math.sqrt(2))) for g in gate.tolist()]
    else:
        inner = [math.sqrt(2 / math.pi) * (g + 0.044715 * g**3) for g in gate.tolist()]
        expected = [g * 0.5 * (1 + math.tanh(i)) for g, i in zip(gate.tolist(), inner, strict=True)]
    result = reference.gated(torch.cat([gate, up])[None], activation)
    torch.testing.assert_close(result[0], torch.tensor(expected) * up)
