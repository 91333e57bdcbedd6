"""Real quantised files as a CPU runs them, packed and in bfloat16, against the golden files of their exact weights.

The margin rule with this path's noise, which is measured on each file: how far log-probabilities of the reference's
likeliest tokens part from the reference's. Of two tokens one may part up and the other down, so the margin is twice
that. The noise itself is bounded; it is that of bfloat16 without any packing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.execution.model_runner import ModelRunner
from engine.quantization import int4_cpu, int4_op
from engine.text.tokenizer import Tokenizer
from modelfiles.source import ModelSource
from tests.engine.execution.driver import Driver, load_runner
from tests.engine.execution.test_golden import check_cases, read_golden

MAX_NOISE = 0.4
"""Files in data/ had 0.17 to 0.34, and 0.16 to 0.34 with weights expanded to bfloat16."""
MODELS = (
    *(f"stories3M-{type}" for type in ("Q8_0", "Q4_0", "Q4_1", "Q5_1", "IQ4_NL")),
    *(f"stories3M-pad256-{t}" for t in ("Q2_K", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")),
)
NUM_STORIES = 6

pytestmark = pytest.mark.skipif(int4_op.layout() is None, reason="torch has no fast 4-bit product on this CPU")


def measured_noise(runner: ModelRunner, cases: list[dict[str, Any]]) -> float:
    """The largest difference over the first positions of all cases, the reference's tokens fed."""
    largest = 0.0
    for case in cases:
        first, ids = len(case["prompt_ids"]) - 1, [*case["prompt_ids"], *case["greedy_ids"][:8]]
        with torch.inference_mode():
            ours = runner.decoder.logits(runner.hidden_states([ids])[first:]).log_softmax(-1)
        for logprobs, top5 in zip(ours, case["top5_first8"], strict=False):
            largest = max(largest, *(abs(float(logprobs[token]) - value) for token, value in top5))
    return largest


@pytest.mark.parametrize("name", MODELS)
def test_packed_weights_answer_as_exact_ones(name: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data_dir / "models" / name.rpartition("-")[0] / "gguf" / f"{name}.gguf"
    golden = read_golden(data_dir, f"{name}-gguf-dequant-fp32")
    runner = load_runner(path, dtype="bfloat16", num_blocks=1024)
    assert runner.ready.weights_bytes == runner.decoder.weights.num_bytes < 1.3 * runner.config.num_parameters
    noise = measured_noise(runner, golden["cases"])
    assert noise < MAX_NOISE
    check_cases(Driver(runner), golden["cases"], 2 * noise, 0.0)

    stories = json.loads((data_dir / "prompts" / "tinystories_1000.json").read_text("utf-8"))[:NUM_STORIES]
    tokenizer = Tokenizer.from_source(ModelSource.from_path(path))
    ours = expected = 0.0
    for number, story in enumerate(stories):
        # Stories are long: every other one takes the product that is made for few tokens, too.
        monkeypatch.setattr(int4_cpu, "MAX_TOKENS", 4096 * (number % 2))
        ours -= sum(runner.prompt_logprobs(tokenizer.encode(story)))
        expected += golden["tinystories_nll"]["nll_per_sequence"][number]
    assert ours == pytest.approx(expected, rel=0.005)
