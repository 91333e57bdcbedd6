"""Real weights against what Transformers answered: greedy text, log-probabilities, likelihood of stories.

The margin rule: tokens are equal up to the first position where the reference's two best are closer than MARGIN; from
there on the reference's tokens are fed, and the argmax must agree wherever the margin is wider.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.sampling_params import SamplingParams
from tests.engine.execution.driver import Driver, load_runner

MARGIN = 1e-3
HF_MODELS = (
    "stories260K",
    "stories3M",
    "synthetic-qwen2",
    "synthetic-gemma",
    "synthetic-gemma2-swa16",
    "synthetic-mistral-swa16",
    "synthetic-phi3",
)
GGUF_MODELS = (
    *(f"stories260K-{type}" for type in ("F32", "F16", "BF16", "Q8_0", "Q4_0")),
    *(f"stories3M-{type}" for type in ("F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q4_K_M")),
    *(f"stories3M-pad256-{t}" for t in ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS")),
)
SYNTHETIC_GGUF = ("synthetic-qwen2", "synthetic-gemma", "synthetic-gemma2-swa16")
"""F32 files of the same weights as the safetensors: their golden file is that of the latter."""


def read_golden(data_dir: Path, name: str) -> dict[str, Any]:
    golden: dict[str, Any] = json.loads((data_dir / "golden" / f"{name}.json").read_text("utf-8"))
    return golden


def check_cases(driver: Driver, cases: list[dict[str, Any]], margin: float, tolerance: float) -> None:
    """All cases side by side, the reference's tokens fed after each one's first close call."""
    params = SamplingParams(temperature=0.0, logprobs=5)
    for row, case in enumerate(cases):
        driver.admit(row, case["prompt_ids"], params)
    for number in range(max(len(case["greedy_ids"]) for case in cases)):
        running = [row for row, case in enumerate(cases) if number < len(case["greedy_ids"])]
        batch = driver.batch({row: driver.known[row] - driver.computed[row] for row in running})
        result = driver.runner.launch(batch).result()
        for step, token, logprobs in zip(batch.steps, result.token_ids, result.logprobs, strict=True):
            case = cases[step.row]
            expected, where = case["greedy_ids"][number], f"{case['prompt']!r}, token {number}"
            assert logprobs is not None
            if case["margins"][number] > margin:
                assert token == expected, where
            elif token != expected:
                driver.runner.steps.rows.tokens[step.row, step.start + step.num_tokens] = expected
            if number < len(case["top5_first8"]) and tolerance:
                top5 = dict(map(tuple, case["top5_first8"][number]))
                assert len(logprobs.top) == len(top5), where
                for named, ours in logprobs.top:
                    # A token that the reference does not name must be as good as its fifth.
                    assert ours == pytest.approx(top5.get(named, min(top5.values())), abs=tolerance), where
                if token == expected:
                    assert logprobs.logprob == pytest.approx(case["greedy_logprobs"][number], abs=tolerance), where


def check_golden(path: Path, golden: dict[str, Any]) -> None:
    runner = load_runner(path, num_blocks=1024)
    cases = golden["cases"]
    limit = runner.config.max_position_embeddings
    assert all(len(case["prompt_ids"]) + len(case["greedy_ids"]) <= limit + 1 for case in cases)
    check_cases(Driver(runner), cases, MARGIN, 1e-3)
    for case in cases:
        reference = case["prompt_logprobs"][1:]
        if reference:
            assert runner.prompt_logprobs(case["prompt_ids"]) == pytest.approx(reference, abs=1e-3)


@pytest.mark.parametrize("name", HF_MODELS)
def test_safetensors_equal_their_golden_file(name: str, data_dir: Path) -> None:
    check_golden(data_dir / "models" / name / "hf", read_golden(data_dir, f"{name}-hf-fp32"))


@pytest.mark.parametrize("name", GGUF_MODELS)
def test_gguf_equals_its_golden_file(name: str, data_dir: Path) -> None:
    model = name.rpartition("-")[0]
    golden = read_golden(data_dir, f"{name}-gguf-dequant-fp32")
    check_golden(data_dir / "models" / model / "gguf" / f"{name}.gguf", golden)


@pytest.mark.parametrize("name", SYNTHETIC_GGUF)
def test_synthetic_gguf_equals_the_safetensors_golden_file(name: str, data_dir: Path) -> None:
    check_golden(data_dir / "models" / name / "gguf" / f"{name}-F32.gguf", read_golden(data_dir, f"{name}-hf-fp32"))


@pytest.mark.parametrize("name", ["stories260K", "stories3M"])
def test_bfloat16_differs_from_float32_by_its_noise_only(name: str, data_dir: Path) -> None:
    """Both engines round to bfloat16, at different places. The noise is measured on the golden files themselves: by how
    much Transformers' own bfloat16 log-probabilities part from its float32 ones.
    """
    golden, exact = read_golden(data_dir, f"{name}-hf-bf16"), read_golden(data_dir, f"{name}-hf-fp32")
    noise = max(
        abs(dict(map(tuple, rough))[token] - value)
        for case, exact_case in zip(golden["cases"], exact["cases"], strict=True)
        for rough, reference in zip(case["top5_first8"][:1], exact_case["top5_first8"][:1], strict=True)
        for token, value in reference
        if token in dict(map(tuple, rough))
    )
    assert 0.005 < noise < 0.3
    runner = load_runner(data_dir / "models" / name / "hf", dtype="bfloat16", num_blocks=1024)
    check_cases(Driver(runner), golden["cases"], noise, 0.0)
    total = count = 0.0
    for case, exact_case in zip(golden["cases"], exact["cases"], strict=True):
        ids = [*case["prompt_ids"], *exact_case["greedy_ids"]]
        ours = runner.prompt_logprobs(ids)[len(case["prompt_ids"]) - 1 :]
        total += sum(ours) - sum(exact_case["greedy_logprobs"])
        count += -sum(exact_case["greedy_logprobs"])
    assert abs(total) < 0.005 * count, "the likelihood stays within 0.5 %"
