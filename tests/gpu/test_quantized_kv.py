"""KV caches of 8 bits on the GPU: the CPU's tokens with the same cache, and as good a memory in bfloat16.

Sums in another order may store an element one step away, which moves a probability by more than the order itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.llm import LLM
from tests.gpu.engines import INTERPRETS, assert_equal, greedy, load, load_on_cpu
from tests.gpu.test_architectures import prompts
from tests.gpu.test_tale import PROMPTS, recall_cases

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("quantized-kv")]
NOISE = {"int8": 0.01, "fp8": 0.05}
"""In natural-log probability: a few elements that are stored one step away."""
TINY = ("llama", "gemma2-softcaps", "phi4-partial-rotary", "qwen3-qk-norm")
"""Heads that one kernel rotates and attends to, windows and soft caps, heads that are rotated in part, norms."""


@pytest.fixture(scope="module", params=["int8", "fp8"])
def kv(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("name", TINY)
def test_tokens_are_the_cpus(tiny: Callable[[str], Path], name: str, kv: str) -> None:
    num_prompts, num_tokens = (3, 4) if INTERPRETS else (8, 24)
    options = {"kv_cache_type": kv, "max_num_batched_tokens": 96}
    expected = load_on_cpu(tiny(name), **options).generate(prompts(num_prompts), greedy(num_tokens))
    outputs = load(tiny(name), **options).generate(prompts(num_prompts), greedy(num_tokens))
    assert_equal(outputs, expected, NOISE[kv])


def test_texts_are_the_cpus(tale_dir: Path, kv: str) -> None:
    expected = load_on_cpu(tale_dir, kv_cache_type=kv).generate(PROMPTS, greedy(120))
    llm = load(tale_dir, kv_cache_type=kv)
    assert_equal(llm.generate(PROMPTS, greedy(120)), expected, NOISE[kv])
    alone = [llm.generate([text], greedy(120))[0] for text in PROMPTS[:3]]
    assert_equal(alone, expected[:3], NOISE[kv])


def test_a_crowd_is_preempted_and_changes_no_text(tale_dir: Path, kv: str) -> None:
    expected = load(tale_dir, kv_cache_type=kv).generate(PROMPTS, greedy(60))
    crowded = load(tale_dir, kv_cache_type=kv, num_blocks=24, max_num_batched_tokens=64)
    assert_equal(crowded.generate(PROMPTS, greedy(60)), expected, NOISE[kv])
    assert crowded.stats().num_preemptions > 0, "the case is too easy"


@pytest.fixture(scope="module")
def bfloat16(tale_dir: Path, kv: str) -> LLM:
    return load(tale_dir, dtype="bfloat16", kv_cache_type=kv, num_blocks=6000, max_num_batched_tokens=2048)


def test_it_remembers_in_bfloat16(bfloat16: LLM) -> None:
    drawn = [case for length in (256, 1024, 4096) for case in recall_cases(bfloat16, length)]
    outputs = bfloat16.generate([text for text, _ in drawn], greedy(24, logprobs=None), stop=["<|im_end|>"])
    right = [is_right(output.text) for (_, is_right), output in zip(drawn, outputs, strict=True)]
    assert sum(right) >= 0.95 * len(right), right
