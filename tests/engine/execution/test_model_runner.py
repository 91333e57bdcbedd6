"""ModelRunner: the same tokens whatever is batched with a row, however it is cut, and wherever its blocks lie."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch

from engine.execution.errors import ModelTooLarge, Unsupported
from engine.execution.model_runner import ModelRunner
from engine.execution.row_state import RowState
from engine.execution.sampler import SamplingRow, sample
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import Admission, BlockAppend, RowStep, ScheduledBatch
from tests.engine.execution.driver import GREEDY, Driver, load_runner


def prompt(number: int, length: int) -> list[int]:
    return random.Random(number).choices(range(3, 97), k=length)


@pytest.fixture(scope="module", params=["one-group", "two-groups"])
def runner(request: pytest.FixtureRequest, tiny_dir: Path, windowed_dir: Path) -> ModelRunner:
    runner = load_runner(tiny_dir if request.param == "one-group" else windowed_dir, num_blocks=80, block_size=4)
    assert len(runner.config.kv_groups) == (1 if request.param == "one-group" else 2)
    return runner


SAMPLED = [
    GREEDY,
    SamplingParams(seed=1),
    SamplingParams(seed=2, top_k=10, temperature=0.7),
    SamplingParams(seed=3, repeat_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.1, repeat_last_n=-1),
    SamplingParams(seed=4, top_p=0.9, repeat_penalty=1.2, repeat_last_n=5),
]


def alone(runner: ModelRunner, number: int, num_tokens: int) -> list[int]:
    return Driver(runner).generate([prompt(number, 5 + 3 * number)], num_tokens, [SAMPLED[number]])[0][0]


def test_rows_side_by_side_get_what_each_gets_alone(runner: ModelRunner) -> None:
    expected = [alone(runner, number, 20) for number in range(5)]
    together, _ = Driver(runner, seed=1).generate([prompt(n, 5 + 3 * n) for n in range(5)], 20, SAMPLED)
    assert together == expected
    assert len({tuple(tokens) for tokens in expected}) == 5


def test_random_mixtures_of_prefill_and_decode_change_nothing(runner: ModelRunner) -> None:
    expected = [alone(runner, number, 15) for number in range(5)]
    choose, driver = random.Random(5), Driver(runner, seed=2)
    for number in range(5):
        driver.admit(10 - 2 * number, prompt(number, 5 + 3 * number), SAMPLED[number])
    tokens: dict[int, list[int]] = {10 - 2 * number: [] for number in range(5)}
    while any(len(got) < 15 for got in tokens.values()):
        waiting = [row for row, got in tokens.items() if len(got) < 15]
        chosen = choose.sample(waiting, choose.randint(1, len(waiting)))
        counts = {row: choose.randint(1, driver.known[row] - driver.computed[row]) for row in chosen}
        batch = driver.batch(counts)
        result = runner.launch(batch).result()
        assert not any(result.errors)
        sampling = [step.row for step in batch.steps if step.samples]
        for row, token in zip(sampling, result.token_ids, strict=True):
            tokens[row].append(token)
    assert [tokens[10 - 2 * number] for number in range(5)] == expected


def test_a_step_can_be_launched_before_the_last_ones_tokens_are_read(runner: ModelRunner) -> None:
    driver = Driver(runner, seed=3)
    driver.admit(0, prompt(1, 8), SAMPLED[1])
    handles = [runner.launch(driver.batch({0: count})) for count in (8, *[1] * 9)]
    assert [handle.result().token_ids[0] for handle in handles] == alone(runner, 1, 10)


def test_a_preempted_sequence_goes_on_as_if_nothing_had_been(runner: ModelRunner) -> None:
    expected = alone(runner, 3, 16)
    driver = Driver(runner, seed=4)
    first, _ = driver.generate([prompt(3, 14)], 7, [SAMPLED[3]])
    driver.admit(6, prompt(3, 14) + first[0], SAMPLED[3], origin=14)
    rest = [driver.step({6: count}).token_ids for count in (5, 9)]
    rest += [driver.step({6: driver.known[6] - driver.computed[6]}).token_ids for _ in range(9)]
    assert first[0] + [token for step in rest for token in step] == expected


def test_noise_counts_from_the_origin(tiny_dir: Path) -> None:
    runner = load_runner(tiny_dir)
    params = SamplingParams(seed=6, temperature=3.0)
    for origin in (9, 3, 0):
        driver = Driver(runner)
        driver.admit(0, prompt(1, 9), params, origin)
        token = driver.step({0: 9}).token_ids
        logits = driver.prompt_logits(prompt(1, 9), itertools.cycle([9]))
        assert token == sample(logits[None], [SamplingRow(params, 9 - origin, None)]).token_ids.tolist()


def test_penalties_look_back_as_far_as_they_are_told() -> None:
    state = RowState(2, 10, 1, 4, torch.device("cpu"))
    state.apply([Admission(1, 5, [10, 11, 12, 13, 14], 5, GREEDY)], [])
    assert state.history(1, 5, -1).tolist() == [10, 11, 12, 13, 14]
    assert state.history(1, 5, 2).tolist() == [13, 14]
    assert state.history(1, 4, 64).tolist() == [10, 11, 12, 13]


def test_block_tables_take_what_is_appended_and_drop_what_is_dead() -> None:
    state = RowState(2, 20, 2, 4, torch.device("cpu"))
    state.block_tables[1].fill_(77)
    state.apply([Admission(0, 5, [1], 1, GREEDY)], [BlockAppend(0, 1, 0, [5, 6, 7]), BlockAppend(0, 1, 3, [8], dead=2)])
    assert state.block_tables[1].tolist() == [[0, 0, 7, 8, 0], [77] * 5]
    assert state.block_tables[0][0].tolist() == [0] * 5


def test_blocks_of_another_row_serve_as_a_cached_prefix(tiny_dir: Path) -> None:
    runner = load_runner(tiny_dir, num_blocks=30, block_size=4)
    tokens = prompt(2, 18)
    driver = Driver(runner)
    expected = driver.prompt_logits(tokens, itertools.cycle([18]))
    shared = driver.owned[0][:4]  # 16 tokens
    batch = ScheduledBatch(
        9, [Admission(5, 1, tokens, 18, GREEDY)], [BlockAppend(5, 0, 0, [*shared, 30])], [RowStep(5, 1, 16, 2, True)]
    )
    torch.testing.assert_close(runner.steps.compute_logits(batch)[0], expected[0] if expected.ndim > 1 else expected)


def test_what_earlier_owners_left_does_not_matter(runner: ModelRunner) -> None:
    expected = [alone(runner, number, 12) for number in range(5)]
    assert runner.kv_cache is not None
    for k, v in runner.kv_cache.layers:
        k.fill_(torch.nan)
        v.fill_(torch.nan)
    runner.steps.rows.tokens.fill_(2**31 - 1)
    for table in runner.steps.rows.block_tables:
        table.fill_(2**62)
    together, _ = Driver(runner, seed=6).generate([prompt(n, 5 + 3 * n) for n in range(5)], 12, SAMPLED)
    assert together == expected


def test_a_row_that_breaks_is_told_and_the_others_go_on(tiny_dir: Path) -> None:
    runner = load_runner(tiny_dir, num_blocks=60, block_size=4)
    prompts = [prompt(n, 9) for n in range(3)]
    expected, _ = Driver(runner).generate(prompts, 6)
    driver = Driver(runner, seed=1)
    for row, token_ids in enumerate(prompts):
        driver.admit(row, token_ids)
    driver.step({0: 9, 1: 9, 2: 9})
    assert runner.kv_cache is not None
    runner.kv_cache.layers[1][1][driver.owned[1][0]] = torch.nan  # as a damaged weight would do
    got: list[list[int]] = [[], [], []]
    for _ in range(5):
        result = driver.step({0: 1, 1: 1, 2: 1})
        assert result.errors[0] is None
        assert result.errors[2] is None
        assert result.errors[1] is not None
        assert "not finite" in result.errors[1]
        assert result.token_ids[1] == 0
        for row, token in enumerate(result.token_ids):
            got[row].append(token)
    assert got[0] == expected[0][1:]
    assert got[2] == expected[2][1:]
    # Its blocks, given back with NaN in them, hurt nobody.
    damaged = driver.owned[1]
    driver.release(1)
    driver.admit(3, prompts[1])
    tokens = [driver.step({3: 9}).token_ids[0], *(driver.step({3: 1}).token_ids[0] for _ in range(5))]
    assert tokens == expected[1]
    assert set(driver.owned[3]) & set(damaged)


def test_logprobs_come_with_the_rows_that_ask(tiny_dir: Path) -> None:
    runner = load_runner(tiny_dir)
    params = [GREEDY, SamplingParams(temperature=0.0, logprobs=4), SamplingParams(seed=2, logprobs=1)]
    tokens, logprobs = Driver(runner).generate([prompt(1, 6)] * 3, 4, params)
    assert logprobs[0] == [None] * 4
    assert [entry.top[0][0] for entry in logprobs[1] if entry] == tokens[1]
    assert all(entry and len(entry.top) == 4 and entry.logprob == entry.top[0][1] for entry in logprobs[1])
    scored = runner.prompt_logprobs(prompt(1, 6) + tokens[2])[5:]
    assert [entry.logprob for entry in logprobs[2] if entry] == pytest.approx(scored, abs=1e-5)


def test_empty_and_silent_steps(tiny_dir: Path) -> None:
    runner = load_runner(tiny_dir)
    result = runner.launch(ScheduledBatch(0, [], [], [])).result()
    assert (result.token_ids, result.logprobs, result.errors) == ([], [], [])
    driver = Driver(runner)
    driver.admit(0, prompt(0, 9))
    assert driver.step({0: 5}).token_ids == [], "a prompt's first part yields no token"
    assert len(driver.step({0: 4}).token_ids) == 1


def test_the_last_position_of_the_context_can_be_sampled(tiny_dir: Path) -> None:
    runner = load_runner(tiny_dir, num_blocks=20)
    assert runner.max_context == 128
    driver = Driver(runner)
    driver.admit(31, prompt(0, 126))
    assert [driver.step({31: count}).errors for count in (126, 1, 1)] == [[None]] * 3
    assert driver.known[31] == 129


def test_memory_is_given_back_and_taken_again(tiny_dir: Path) -> None:
    runner = load_runner(tiny_dir, num_blocks=12, block_size=8)
    expected, _ = Driver(runner).generate([prompt(1, 7)], 5)
    ready = runner.ready
    assert (ready.num_blocks, ready.block_size, ready.max_context) == (12, 8, 96)
    assert (ready.device, ready.dtype) == ("cpu", "float32")
    assert ready.kv_cache_bytes == 13 * 8 * 2 * 2 * 2 * 8 * 4
    assert ready.weights_bytes == runner.config.num_parameters * 4
    runner.free_kv()
    assert (runner.num_blocks, runner.ready.kv_cache_bytes) == (0, 0)
    with pytest.raises(RuntimeError, match="allocate_kv must come before"):
        runner.launch(ScheduledBatch(0, [], [], []))
    runner.allocate_kv(num_blocks=5)
    assert (runner.num_blocks, runner.max_context) == (5, 40)
    assert Driver(runner).generate([prompt(1, 7)], 5)[0] == expected


def test_states_of_prompts_do_not_depend_on_what_is_computed_beside_them(runner: ModelRunner) -> None:
    prompts = [prompt(n, length) for n, length in enumerate([1, 30, 4, 17, 3, 16])]
    logits = [runner.decoder.logits(runner.hidden_states([one])) for one in prompts]
    together = runner.decoder.logits(runner.hidden_states(prompts))
    torch.testing.assert_close(together, torch.cat(logits), atol=1e-4, rtol=1e-4)


def test_bad_options_are_sentences(tiny_dir: Path) -> None:
    with pytest.raises(Unsupported, match='dtype "int3" is not supported; use "auto", float32'):
        load_runner(tiny_dir, dtype="int3")
    with pytest.raises(Unsupported, match='KV cache type "q2"'):
        load_runner(tiny_dir, kv_cache_type="q2")
    with pytest.raises(Unsupported, match='device "abacus" is unknown'):
        load_runner(tiny_dir, device="abacus")
    with pytest.raises(ModelTooLarge, match=r"the model .* needs .* but 1\.0 MiB are free; stop other models") as error:
        load_runner(tiny_dir, budget_bytes=1 << 20)
    assert error.value.has_bytes == 1 << 20
    assert error.value.needs_bytes > 1 << 20


def test_the_budget_decides_the_number_of_blocks(tiny_dir: Path) -> None:
    options = {"num_blocks": 0, "max_num_batched_tokens": 64, "max_num_seqs": 2}
    small = load_runner(tiny_dir, budget_bytes=600_000, **options)
    large = load_runner(tiny_dir, budget_bytes=1_000_000, **options)
    one = 16 * 2 * 2 * 2 * 8 * 4
    assert 0 < small.num_blocks < large.num_blocks
    assert abs((large.num_blocks - small.num_blocks) * one - 400_000) <= one
    assert large.ready.weights_bytes + large.ready.kv_cache_bytes < 1_000_000
    default = load_runner(tiny_dir, **options)
    assert default.max_context == 128
    assert default.num_blocks == 16 * 4096 // 16


@pytest.mark.parametrize(("dtype", "kv"), [("bfloat16", "auto"), ("float32", "f16"), ("float16", "f32")])
def test_other_types_stay_near_float32(dtype: str, kv: str, tiny_dir: Path) -> None:
    exact = Driver(load_runner(tiny_dir)).prompt_logits(prompt(1, 40), itertools.cycle([40]))
    runner = load_runner(tiny_dir, dtype=dtype, kv_cache_type=kv)
    rough = Driver(runner).prompt_logits(prompt(1, 40), itertools.cycle([7, 33]))
    assert (rough - exact).abs().max() < 0.05 * exact.std()
    assert not torch.equal(rough, exact)
