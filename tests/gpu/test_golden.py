"""Real weights on the GPU against what Transformers answered, by the margin rule: safetensors and GGUF, in float32.

From the first close call on, the reference's tokens are fed: what is left becomes a prompt of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.llm import LLM, Output
from tests.engine.execution.test_golden import GGUF_MODELS, HF_MODELS, SYNTHETIC_GGUF, read_golden
from tests.gpu.engines import MARGIN, first_difference, greedy, load

pytestmark = pytest.mark.gpu
FILES = {
    **{f"{name}/hf": f"{name}-hf-fp32" for name in HF_MODELS},
    **{f"{name.rpartition('-')[0]}/gguf/{name}.gguf": f"{name}-gguf-dequant-fp32" for name in GGUF_MODELS},
    # The same weights as the safetensors', so the same answers.
    **{f"{name}/gguf/{name}-F32.gguf": f"{name}-hf-fp32" for name in SYNTHETIC_GGUF},
}
"""Model -> its golden file."""


def check_cases(llm: LLM, cases: list[dict[str, Any]]) -> None:
    """All cases side by side, each begun anew behind every token at which it may part and does."""
    starts = dict.fromkeys(range(len(cases)), 0)
    while starts:
        prompts, params = [], []
        for number, start in starts.items():
            case = cases[number]
            prompts.append([*case["prompt_ids"], *case["greedy_ids"][:start]])
            params.append(greedy(len(case["greedy_ids"]) - start, logprobs=5))
        outputs = dict(zip(starts, llm.generate(prompts, params), strict=True))
        for number, output in outputs.items():
            where = check_case(output, cases[number], starts.pop(number))
            if where is not None and where + 1 < len(cases[number]["greedy_ids"]):
                starts[number] = where + 1


def check_case(output: Output, case: dict[str, Any], start: int) -> int | None:
    """Compares from token `start` on; where the texts part, if they may."""
    n = first_difference(output.token_ids, case["greedy_ids"][start:])
    num_equal = len(output.token_ids) if n is None else n
    for number, logprobs in enumerate(output.logprobs[: num_equal + 1], start):
        where = f"{case['prompt']!r}, token {number}"
        if number < start + num_equal:
            assert logprobs.logprob == pytest.approx(case["greedy_logprobs"][number], abs=MARGIN), where
        if number < len(case["top5_first8"]):
            top5 = dict(map(tuple, case["top5_first8"][number]))
            for token, ours in logprobs.top:
                # A token that the reference does not name must be as good as its fifth.
                assert ours == pytest.approx(top5.get(token, min(top5.values())), abs=MARGIN), where
    if n is None:
        return None
    assert case["margins"][start + n] <= MARGIN, f"{case['prompt']!r}, token {start + n}"
    return start + n


@pytest.mark.parametrize("name", FILES)
def test_greedy_text_and_logprobs_equal_the_golden_file(name: str, data_dir: Path) -> None:
    path = data_dir / "models" / name
    if not path.exists():
        pytest.skip(f"the test data here lacks {name}")
    llm = load(path, num_blocks=1024)
    cases = read_golden(data_dir, FILES[name])["cases"]
    check_cases(llm, cases)
    for case in cases:
        reference = case["prompt_logprobs"][1:]
        if reference:
            assert llm.engine._runner.prompt_logprobs(case["prompt_ids"]) == pytest.approx(reference, abs=MARGIN)
