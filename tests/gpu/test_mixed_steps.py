"""Steps that mix everything, kernel by kernel: prompts beside rows that decode, every way to sample, log-probabilities.

Small enough for a sanitizer, under which `make sanitize` runs it. What the tokens are is told by the other tests here,
in float32; these run in the types that models come in, on the architectures.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from engine.sampling_params import SamplingParams
from tests.gpu.engines import load
from tests.gpu.requests import OPTIONS
from tests.gpu.tiny_models import ARCHITECTURES

pytestmark = pytest.mark.gpu
LENGTHS = (1, 33, 18, 70, 5)
NUM_TOKENS = 4
CASES = [(name, ("bfloat16", "float16", "float32")[n % 3]) for n, name in enumerate(ARCHITECTURES)]


def params(number: int) -> SamplingParams:
    options = OPTIONS[(5 * number) % len(OPTIONS)]
    bias = {token % 250: value for token, value in options.get("logit_bias", {}).items()}
    settings = {"logprobs": number % 3 or None, **options, "logit_bias": bias}
    return SamplingParams(**settings, seed=number, max_tokens=NUM_TOKENS + number % 3, ignore_eos=True)


def check(folder: Path, dtype: str) -> None:
    llm = load(folder, dtype=dtype, use_graphs=False, num_blocks=40, max_num_seqs=8, max_num_batched_tokens=40)
    choose = random.Random(2)
    prompts = [choose.choices(range(3, 250), k=length) for length in LENGTHS]
    outputs = llm.generate(prompts, [params(number) for number in range(len(prompts))])
    for number, output in enumerate(outputs):
        assert len(output.token_ids) == NUM_TOKENS + number % 3
        assert all(entry.logprob <= 0.0 for entry in output.logprobs)
    again = llm.generate(prompts[3], msgspec.structs.replace(params(3), max_tokens=2))[0]
    assert again.num_cached_tokens > 0


def test_the_first_architectures(tiny: Callable[[str], Path]) -> None:
    for name, dtype in CASES[::2]:
        check(tiny(name), dtype)


def test_the_other_architectures(tiny: Callable[[str], Path]) -> None:
    for name, dtype in CASES[1::2]:
        check(tiny(name), dtype)
