"""Two engines to compare, one on the GPU and one on the CPU, and the rule by which their tokens are equal.

The margin rule: two engines that sum in another order may part where the reference's two likeliest tokens are closer
than the noise, and nowhere else. What comes after is another text and says nothing.

HOB_TEST_GPU=interpret runs the tests without a GPU, the kernels in Triton's interpreter: for who writes them, and slow.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.llm import LLM, Output
from engine.sampling_params import SamplingParams
from modelfiles.source import ModelSource

HAS_GPU = torch.cuda.is_available()
INTERPRETS = not HAS_GPU and os.environ.get("HOB_TEST_GPU") == "interpret"
DEVICE = "cuda" if HAS_GPU else "cpu"
MISSING_DEVICE = "" if HAS_GPU or INTERPRETS else "needs a CUDA device"
MARGIN = 1e-3
"""In float32, in natural-log probability; log-probabilities agree within it, too."""


def load(model: Path | ModelSource, **options: Any) -> LLM:
    """A model on the GPU, in float32 unless `options` (fields of Load) say otherwise."""
    settings = {
        "device": DEVICE, "dtype": "float32", "num_blocks": 512, "max_num_seqs": 64, "max_num_batched_tokens": 1024,
    }  # fmt: skip
    llm = LLM(model, **(settings | options))
    if INTERPRETS:
        # Not above: nothing else here needs it.
        from tests.engine.execution.test_gpu_steps import with_kernels

        with_kernels(llm.engine._runner)
    return llm


def load_on_cpu(model: Path | ModelSource, **options: Any) -> LLM:
    """The same on the CPU in plain torch, by one thread: many tests run at once."""
    settings = {"num_blocks": 512, "max_num_seqs": 64, "max_num_batched_tokens": 1024, "num_threads": 1}
    return LLM(model, device="cpu", dtype="float32", **(settings | options))


def greedy(num_tokens: int, logprobs: int | None = 2) -> SamplingParams:
    """The likeliest tokens, by default with what tells the margin."""
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, logprobs=logprobs)


def first_difference(ours: Sequence[int], reference: Sequence[int]) -> int | None:
    """Where two texts part; None if they are equal."""
    for n, (one, other) in enumerate(zip(ours, reference, strict=False)):
        if one != other:
            return n
    return None if len(ours) == len(reference) else min(len(ours), len(reference))


def margin(output: Output, n: int) -> float:
    """By how much the likeliest token of position n is ahead of the second."""
    (_, best), (_, second) = output.logprobs[n].top[:2]
    return best - second


def num_equal(ours: Output, reference: Output, noise: float = MARGIN) -> int:
    """How many tokens are equal; all of them, or up to where `reference`, a greedy text, is within the noise."""
    n = first_difference(ours.token_ids, reference.token_ids)
    if n is None:
        return len(reference.token_ids)
    assert margin(reference, n) < noise, (
        f"token {n} is {ours.token_ids[n]} instead of {reference.token_ids[n]}, whose margin is {margin(reference, n)}"
    )
    return n


def assert_equal(ours: Iterable[Output], references: Iterable[Output], noise: float = MARGIN) -> None:
    """The margin rule for greedy texts, nearly all of which must have been compared."""
    compared = total = 0
    for one, reference in zip(ours, references, strict=True):
        compared += num_equal(one, reference, noise)
        total += len(reference.token_ids)
    assert compared >= 0.9 * total, f"the texts part by noise after {compared} of {total} tokens: no comparison"


def assert_logprobs_equal(ours: Output, reference: Output, tolerance: float = MARGIN) -> None:
    """Log-probabilities of the tokens before the texts part, and of the likeliest ones there."""
    n = first_difference(ours.token_ids, reference.token_ids)
    for one, other in zip(ours.logprobs[:n], reference.logprobs[:n], strict=True):
        assert abs(one.logprob - other.logprob) < tolerance
        assert len(one.top) == len(other.top)
        named = dict(other.top)
        for token, logprob in one.top:
            # One that the reference does not name must be as good as its last.
            assert abs(named.get(token, min(named.values(), default=logprob)) - logprob) < tolerance


def assert_few_part(ours: Sequence[Output], references: Sequence[Output], share: float = 0.02) -> None:
    """Seeded draws are equal but in a share of the texts: how close another token came to being drawn is not known."""
    parted = [
        n
        for n, (one, other) in enumerate(zip(ours, references, strict=True))
        if first_difference(one.token_ids, other.token_ids) is not None
    ]
    assert len(parted) <= share * len(references), f"of {len(references)} texts, these part: {parted}"
