"""A KV cache of 8 bits under the engine, on the CPU: texts, memory of long prompts, and all that blocks go through."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch

from engine.execution.device import choose_kv_dtype
from engine.execution.errors import Unsupported
from engine.execution.model_runner import ModelRunner
from engine.llm import LLM, Output
from tests.engine.execution.driver import Driver, load_runner
from tests.gpu.engines import assert_equal, greedy, load_on_cpu
from tests.gpu.test_tale import PROMPTS
from tools.tale import cases

TYPES = ("int8", "fp8")
NOISE = {"int8": 0.02, "fp8": 0.2}
"""In natural-log probability: by how much a margin between the two likeliest tokens may be moved. Measured over the
texts below, int8 moves one by 0.003 and fp8 by 0.02 where both are likely."""

pytestmark = pytest.mark.parametrize("kv", TYPES)


def prompt(number: int, length: int) -> list[int]:
    return random.Random(number).choices(range(3, 97), k=length)


@pytest.fixture(scope="module")
def expected(tale_dir: Path) -> list[Output]:
    return load_on_cpu(tale_dir).generate(PROMPTS, greedy(40))


def test_texts_part_within_the_noise_only(kv: str, tale_dir: Path, expected: list[Output]) -> None:
    llm = load_on_cpu(tale_dir, kv_cache_type=kv)
    outputs = llm.generate(PROMPTS, greedy(40))
    assert_equal(outputs, expected, NOISE[kv])
    assert [one.logprobs for one in outputs] != [one.logprobs for one in expected], "nothing was quantised"


def test_it_remembers_what_it_was_told(kv: str, tale_dir: Path) -> None:
    llm = load_on_cpu(tale_dir, kv_cache_type=kv)
    drawn = cases.recall_cases(10, 256, lambda text: len(llm.tokenizer.encode(text)))
    outputs = llm.generate([text for text, _ in drawn], greedy(24, logprobs=None), stop=["<|im_end|>"])
    assert sum(is_right(output.text) for (_, is_right), output in zip(drawn, outputs, strict=True)) >= 9


def test_cached_prefixes_and_preemption_change_no_text(kv: str, tale_dir: Path) -> None:
    def load(**options: int) -> LLM:
        return load_on_cpu(tale_dir, kv_cache_type=kv, **options)

    requests = [beginning + rest for beginning in PROMPTS[:2] for rest in ("", " and then", " who said")]
    roomy = load()
    alone = [roomy.generate([text], greedy(20))[0] for text in requests]
    crowded = load(num_blocks=10, max_num_batched_tokens=48)
    assert_equal(crowded.generate(requests, greedy(20)), alone, NOISE[kv])
    assert_equal(crowded.generate(requests[::-1], greedy(20)), alone[::-1], NOISE[kv])
    stats = crowded.stats()
    assert min(stats.num_preemptions, stats.num_cached_tokens) > 0, "the case is too easy"


def test_memory_is_counted_given_back_and_taken_again(kv: str, tiny_dir: Path) -> None:
    runner = load_runner(tiny_dir, num_blocks=12, block_size=8, kv_cache_type=kv)
    expected, _ = Driver(runner).generate([prompt(1, 7)], 5)
    vectors = 13 * 8 * 2 * 2 * 2  # slots, K and V, layers, KV heads
    assert runner.ready.kv_cache_bytes == vectors * (8 + 4)
    runner.free_kv()
    runner.allocate_kv(num_blocks=5)
    assert runner.num_blocks == 5
    assert Driver(runner).generate([prompt(1, 7)], 5)[0] == expected


def test_logits_stay_near_float32(kv: str, tiny_dir: Path) -> None:
    exact = Driver(load_runner(tiny_dir)).prompt_logits(prompt(1, 40), itertools.cycle([40]))
    for dtype, share in (("float32", 0.05), ("bfloat16", 0.1)):
        runner = load_runner(tiny_dir, dtype=dtype, kv_cache_type=kv)
        rough = Driver(runner).prompt_logits(prompt(1, 40), itertools.cycle([7, 33]))
        assert (rough - exact).abs().max() < (share if kv == "int8" else 0.25) * exact.std()


@pytest.fixture
def windowed(kv: str, windowed_dir: Path) -> ModelRunner:
    """With two KV groups."""
    return load_runner(windowed_dir, num_blocks=80, block_size=4, kv_cache_type=kv)


def test_what_earlier_owners_left_does_not_matter(windowed: ModelRunner) -> None:
    prompts = [prompt(number, 5 + 7 * number) for number in range(3)]
    expected, _ = Driver(windowed).generate(prompts, 12)
    assert windowed.kv_cache is not None
    for tensor in itertools.chain(*windowed.kv_cache.layers, *windowed.kv_cache.scales):
        assert tensor is not None
        tensor.view(torch.uint8).fill_(0xFF)  # NaN, in float8 and in float32
    assert Driver(windowed, seed=6).generate(prompts, 12)[0] == expected


def test_a_row_that_breaks_is_told_and_the_others_go_on(windowed: ModelRunner) -> None:
    driver = Driver(windowed)
    for row in range(2):
        driver.admit(row, prompt(row, 9))
    driver.step({0: 9, 1: 9})
    assert windowed.kv_cache is not None
    scales, _ = windowed.kv_cache.scales[1]
    assert scales is not None
    scales[driver.owned[1]] = torch.inf  # as a damaged weight would do
    result = driver.step({0: 1, 1: 1})
    assert result.errors[0] is None
    assert result.errors[1] is not None
    assert "not finite" in result.errors[1]


def test_names_of_types(kv: str) -> None:
    assert choose_kv_dtype(kv, torch.float32) == {"int8": torch.int8, "fp8": torch.float8_e4m3fn}[kv]
    assert choose_kv_dtype("q8_0", torch.float32) == torch.int8
    with pytest.raises(Unsupported, match='"q4_0" is not supported: 8 bits are the fewest; use "int8" or "fp8"'):
        choose_kv_dtype("q4_0", torch.float32)
