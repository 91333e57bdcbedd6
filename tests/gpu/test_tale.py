"""The built-in model on the GPU: the CPU's stories in float32, and as good a memory in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.llm import LLM, Output
from tests.gpu.engines import assert_equal, assert_logprobs_equal, greedy, load, load_on_cpu
from tools.tale import cases
from tools.tale.cases import Case, prompt
from tools.tale.chat import Turn

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("tale")]
NUM_TOKENS = 160
CHATS = (
    "Tell me a story about a fox.",
    "Tell me a story about a dragon and a lamp.",
    "Write a very short story about a robot named Zubo.",
    "Hello",
    "What is the capital of France?",
    "Count to ten.",
    "The red key of Mira is in the well. The blue key is under the bed. Where is the red key?",
)
RAW = ("Once upon a time", "The", "There was a lighthouse keeper who", "1 2 3 4 5", "<|im_start|>")
PROMPTS = [*(prompt([Turn("user", chat)]) for chat in CHATS), *RAW]
RECALL_LENGTHS = (256, 1024, 4096, 7680)
"""Tokens; the model's context holds 8,192."""


@pytest.fixture(scope="module")
def expected(tale_dir: Path) -> list[Output]:
    return load_on_cpu(tale_dir).generate(PROMPTS, greedy(NUM_TOKENS))


@pytest.mark.parametrize("options", [{}, {"use_graphs": False}, {"use_pdl": False}, {"run_ahead": 0}], ids=str)
def test_its_texts_are_the_cpus(tale_dir: Path, expected: list[Output], options: dict[str, object]) -> None:
    outputs = load(tale_dir, **options).generate(PROMPTS, greedy(NUM_TOKENS))
    assert_equal(outputs, expected)
    for output, reference in zip(outputs, expected, strict=True):
        assert_logprobs_equal(output, reference)


@pytest.fixture(scope="module")
def bfloat16(tale_dir: Path) -> LLM:
    return load(tale_dir, dtype="bfloat16", num_blocks=6000, max_num_batched_tokens=2048)


def recall_cases(llm: LLM, length: int) -> list[Case]:
    return cases.recall_cases(10, length, lambda text: len(llm.tokenizer.encode(text)))


def test_it_remembers_in_bfloat16(bfloat16: LLM) -> None:
    drawn = [case for length in RECALL_LENGTHS for case in recall_cases(bfloat16, length)]
    outputs = bfloat16.generate([text for text, _ in drawn], greedy(24, logprobs=None), stop=["<|im_end|>"])
    right = [is_right(output.text) for (_, is_right), output in zip(drawn, outputs, strict=True)]
    assert sum(right) >= 0.95 * len(right), right


def test_its_bfloat16_story_is_a_story(bfloat16: LLM) -> None:
    (output,) = bfloat16.generate([PROMPTS[0]], greedy(NUM_TOKENS, logprobs=None))
    assert "fox" in output.text
    assert len(set(output.token_ids)) > 40, "it goes round in circles"
