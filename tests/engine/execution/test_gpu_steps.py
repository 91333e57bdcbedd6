"""GpuSteps: the kernels' steps give what plain torch gives. On the CPU they run in Triton's interpreter."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from engine.execution.gpu_steps import GpuSteps
from engine.execution.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.models.layers import Linear
from engine.quantization.base import Dense
from engine.sampling_params import SamplingParams
from tests.engine.execution.conftest import save_tiny
from tests.engine.execution.driver import GREEDY, Driver, load_runner

# Attention leaves padding tokens' memory as it was, and whatever that holds goes through the layers for nobody; the
# interpreter's numpy has something to say about it.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def with_kernels(runner: ModelRunner) -> ModelRunner:
    """The same runner, with its steps in kernels whatever the device."""
    if runner.device.type == "cuda":
        return runner
    weights = runner.decoder.weights
    layers = tuple(
        replace(
            layer,
            qkv=row_by_row(layer.qkv),
            attention_output=row_by_row(layer.attention_output),
            gate_up=row_by_row(layer.gate_up),
            down=row_by_row(layer.down),
        )
        for layer in weights.layers
    )
    embedding = row_by_row(weights.embedding)
    head = embedding if weights.head is weights.embedding else row_by_row(weights.head)
    weights = replace(weights, layers=layers, embedding=embedding, head=head)
    decoder = Decoder(runner.config, weights, runner.device)
    assert runner.kv_cache is not None
    runner._steps = GpuSteps(
        decoder, runner.kv_cache, runner.max_context, runner.load_options, runner.device, runner.adapters
    )
    return runner


def row_by_row(matrix: Linear) -> Linear:
    """The matrix as it lies on a GPU; on a CPU, float32 lies column by column."""
    segments = (Dense(s.weight.contiguous()) if isinstance(s, Dense) else s for s in matrix.segments)
    return Linear(tuple(segments), matrix.bias)


def prompt(number: int, length: int) -> list[int]:
    return random.Random(number).choices(range(3, 97), k=length)


MIXTURE = [
    GREEDY,
    SamplingParams(seed=1),
    SamplingParams(seed=2, top_k=10, temperature=0.7, logprobs=3),
    SamplingParams(seed=3, repeat_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.1, repeat_last_n=-1),
    SamplingParams(seed=4, top_p=0.9, repeat_penalty=1.2, repeat_last_n=5, logit_bias={5: 1.5, 7: -2.0}),
]


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads wide enough for the kernel that does all of attention, with norms of their own and biases."""
    folder = tmp_path_factory.mktemp("wide")
    save_tiny(folder, "Qwen3", head_dim=32, num_hidden_layers=1, pad_token_id=0)
    return folder


@pytest.fixture(scope="module", params=["tiny_dir", "windowed_dir", "wide_dir"])
def runners(request: pytest.FixtureRequest) -> tuple[ModelRunner, ModelRunner]:
    """In plain torch on the CPU, and in kernels."""
    folder = request.getfixturevalue(request.param)
    options = {"num_blocks": 80, "block_size": 4, "max_num_seqs": 8}
    return load_runner(folder, **options), with_kernels(load_runner(folder, device=DEVICE, **options))


def test_greedy_rows_in_one_batch(runners: tuple[ModelRunner, ModelRunner]) -> None:
    prompts = [prompt(number, 2 + 2 * number) for number in range(3)]
    expected, tokens = (Driver(runner, seed=1).generate(prompts, 3)[0] for runner in runners)
    assert tokens == expected


def test_every_sampling_option_in_one_batch(runners: tuple[ModelRunner, ModelRunner]) -> None:
    prompts = [prompt(number, 2 + number) for number in range(5)]
    expected, tokens = (Driver(runner, seed=1).generate(prompts, 2, MIXTURE) for runner in runners)
    assert tokens[0] == expected[0]
    for ours, theirs in zip(tokens[1][2], expected[1][2], strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
        assert [value for _, value in ours.top] == pytest.approx([value for _, value in theirs.top], abs=1e-4)


def test_prompts_in_chunks_beside_rows_that_decode(runners: tuple[ModelRunner, ModelRunner]) -> None:
    def run(runner: ModelRunner) -> list[list[int]]:
        driver = Driver(runner, seed=2)
        driver.admit(3, prompt(1, 3))
        driver.admit(5, prompt(2, 14))
        driver.admit(6, prompt(3, 1))
        steps = [{3: 3}, {3: 1, 5: 5, 6: 1}, {3: 1, 5: 1}, {3: 1, 5: 8, 6: 1}, {3: 1, 5: 1, 6: 1}]
        return [driver.step(step).token_ids for step in steps]

    expected, tokens = map(run, runners)
    assert tokens == expected


def test_a_step_can_be_launched_before_the_last_ones_tokens_are_read(runners: tuple[ModelRunner, ModelRunner]) -> None:
    plain, kernels = runners
    expected = Driver(plain).generate([prompt(1, 3)], 4)[0][0]
    driver = Driver(kernels, seed=3)
    driver.admit(0, prompt(1, 3))
    tokens, handles = [], []
    for count in (3, *[1] * 3):
        handles.append(kernels.launch(driver.batch({0: count})))
        if len(handles) == 2:
            tokens += handles.pop(0).result().token_ids
    assert tokens + handles[0].result().token_ids == expected


def test_a_row_with_damaged_numbers_ends_alone(runners: tuple[ModelRunner, ModelRunner]) -> None:
    plain, kernels = runners
    expected = Driver(plain).generate([prompt(1, 3)], 3)[0][0]
    driver = Driver(kernels, seed=4)
    driver.admit(0, prompt(1, 3))
    driver.admit(1, prompt(2, 3))
    tokens = [driver.step({0: 3, 1: 3}).token_ids[0]]
    assert kernels.kv_cache is not None
    for k, _ in kernels.kv_cache.layers:
        k[driver.owned[1]] = torch.nan
    results = [driver.step({0: 1, 1: 1}) for _ in range(2)]
    assert [*tokens, *(result.token_ids[0] for result in results)] == expected
    for result in results:
        assert result.errors[0] is None
    assert results[0].errors[1] is not None
    assert "not finite numbers at position 3" in results[0].errors[1]


def test_a_cache_of_8_bits(wide_dir: Path) -> None:
    """Through every kernel that touches it: prompts in chunks beside rows that decode, then decodes alone."""
    options = {"num_blocks": 30, "block_size": 4, "max_num_seqs": 4, "kv_cache_type": "int8"}
    runners = load_runner(wide_dir, **options), with_kernels(load_runner(wide_dir, device=DEVICE, **options))
    results = []
    for runner in runners:
        assert runner.kv_cache is not None
        assert runner.kv_cache.layers[0][0].dtype == torch.int8
        driver = Driver(runner, seed=2)
        driver.admit(3, prompt(1, 3))
        driver.admit(2, prompt(2, 9))
        results.append([driver.step(step).token_ids for step in ({3: 3, 2: 5}, {3: 1, 2: 4}, {3: 1, 2: 1})])
    assert results[1] == results[0]


class Masks:
    """Each row may sample one of a few tokens, which change from step to step."""

    def __init__(self, rows: list[int], step: int) -> None:
        self.rows = rows
        self.allowed = {row: random.Random(100 * row + step).sample(range(97), k=3) for row in rows}

    def words(self) -> npt.NDArray[np.int32]:
        bits = np.zeros((len(self.rows), 128), dtype=np.uint8)
        for number, row in enumerate(self.rows):
            bits[number, self.allowed[row]] = 1
        return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


@pytest.mark.parametrize("runners", ["wide_dir"], indirect=True)
def test_constrained_rows_beside_free_ones(runners: tuple[ModelRunner, ModelRunner]) -> None:
    """In a step of prompts, and in one of rows that decode, all of them greedy."""

    def run(runner: ModelRunner) -> list[list[int]]:
        driver, results = Driver(runner, seed=3), []
        driver.admit(2, prompt(1, 3), is_constrained=True)
        driver.admit(0, prompt(2, 2))
        counts = {2: 3, 0: 2}
        for step in range(2):
            rows = [row for row in sorted(counts, key=lambda row: counts[row] > 1) if row != 0]
            masks = Masks(rows, step)
            batch = driver.batch(counts)
            assert [one.row for one in batch.steps if one.row != 0] == rows
            token_ids = runner.launch(batch, masks).result().token_ids
            for one, token_id in zip(batch.steps, token_ids, strict=True):
                assert one.row == 0 or token_id in masks.allowed[one.row]
            results.append(token_ids)
            counts = dict.fromkeys(counts, 1)
        return results

    expected, tokens = (run(runner) for runner in runners)
    assert tokens == expected
