"""Constrained sequences among others: no schedule, no preemption and no shift of the context changes what they get."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import numpy.typing as npt
import pytest

from engine.constraint import Constraint, ConstraintError
from engine.llm import LLM
from engine.llm_engine import LLMEngine
from engine.messages import Load
from engine.sampling_params import SamplingParams
from engine.scheduling.sequence import Sequence, TokenConstraint
from tests.engine.fake_runner import FakeRunner

END = 49


class Ascending:
    """Allows tokens that are greater than the one before; beyond 40 the text may end, and beyond 45 it must.

    Args:
        least: the first token.
        breaks: at its second token.
    """

    end_token_id = END

    def __init__(self, least: int, *, breaks: bool = False) -> None:
        self.last = least - 1
        self.num_tokens_left = 2 if breaks else 100
        self.is_over = False
        self.error: str | None = None

    def allowed(self) -> list[int]:
        texts = list(range(self.last + 1, min(self.last + 6, END)))
        return [*texts, END] if self.last > 40 else texts

    def accept(self, token_id: int) -> None:
        assert token_id in self.allowed(), f"{token_id} after {self.last}"
        assert not self.is_over
        self.num_tokens_left -= 1
        if self.num_tokens_left == 0:
            self.error = "the constraint on the answer could not be kept up"
        self.last = token_id
        self.is_over = 45 < token_id < END


class Masks:
    """Filled at once."""

    def __init__(self, rows: list[tuple[int, TokenConstraint]]) -> None:
        self.rows = [row for row, _ in rows]
        self._words = np.zeros((len(rows), 2), dtype=np.int64)
        for words, (_, constraint) in zip(self._words, rows, strict=True):
            assert isinstance(constraint, Ascending)
            for token in constraint.allowed():
                words[token // 32] |= 1 << token % 32

    def words(self) -> npt.NDArray[np.int32]:
        return self._words.astype(np.int32)


def run(requests: list[tuple[int, list[int], SamplingParams, Ascending | None]], **options: Any) -> dict[int, Any]:
    """Tokens and finish_reason of each, all of them at once."""
    run_ahead = options.pop("run_ahead", 1)
    runner = FakeRunner(max_num_batched_tokens=32, **options)
    load = Load(files={}, max_num_seqs=8, max_num_batched_tokens=32, run_ahead=run_ahead)
    engine = LLMEngine.for_runner(runner, load, Masks)
    for seq_id, prompt, params, constraint in requests:
        engine.add(Sequence(seq_id, prompt, params, constraint=constraint))
    got: dict[int, Any] = {seq_id: ([], None) for seq_id, *_ in requests}
    while engine.has_work:
        for row in engine.step():
            got[row.seq_id] = ([*got[row.seq_id][0], *row.token_ids], row.finish_reason or got[row.seq_id][1])
        engine.scheduler.check()
    return got


def request(seq_id: int) -> tuple[int, list[int], SamplingParams, Ascending | None]:
    """Every third has no constraint; some shift, some have a limit."""
    params = SamplingParams(
        seed=seq_id, max_tokens=[30, 5][seq_id % 5 == 4], stop_token_ids=(END,), max_context=22, shift=seq_id % 2 == 0
    )
    prompt = [(seq_id * 7 + n) % 48 for n in range(3 + seq_id % 11)]
    return seq_id, prompt, params, None if seq_id % 3 == 0 else Ascending(seq_id % 9)


@pytest.mark.parametrize("run_ahead", [0, 1, 2])
@pytest.mark.parametrize("num_blocks", [64, 9])
def test_together_as_alone(run_ahead: int, num_blocks: int) -> None:
    alone = {seq_id: run([request(seq_id)], run_ahead=0)[seq_id] for seq_id in range(16)}
    together = run([request(seq_id) for seq_id in range(16)], run_ahead=run_ahead, num_blocks=num_blocks)
    assert together == alone
    for seq_id in range(16):
        token_ids, reason = together[seq_id]
        if seq_id % 3 and reason == "stop":
            assert token_ids[-1] == END
            assert token_ids[:-1] == sorted(token_ids[:-1])
    assert {reason for _, reason in together.values()} == {"stop", "length"}


def test_a_few_constrained_rows_do_not_hold_up_the_others() -> None:
    """While they are the minority, a free row gets a token in every step, and a constrained one in every other."""

    def steps(num_free: int, num_constrained: int) -> tuple[int, int]:
        runner = FakeRunner(num_blocks=200)
        engine = LLMEngine.for_runner(runner, Load(files={}, max_num_seqs=8, max_num_batched_tokens=64), Masks)
        params = SamplingParams(max_tokens=8)
        for seq_id in range(num_free + num_constrained):
            constraint = Ascending(0) if seq_id >= num_free else None
            engine.add(Sequence(seq_id, [seq_id, 1], params, constraint=constraint))
        ends = {}
        while engine.has_work:
            for row in engine.step():
                if row.finish_reason is not None:
                    ends[row.seq_id] = engine.stats().num_steps
        return ends[0], ends[num_free + num_constrained - 1]

    assert steps(8, 0) == (8, 8)
    free, constrained = steps(6, 1)
    assert (free, constrained) <= (9, 16)
    assert steps(2, 6) == (8, 8), "a majority is not waited for, but with"


def test_a_constraint_that_breaks_ends_its_sequence_alone() -> None:
    params = SamplingParams(max_tokens=20, stop_token_ids=(END,))
    broken = Ascending(0, breaks=True)
    got = run([(1, [5], params, broken), (2, [5], params, None), (3, [5], params, Ascending(3))])
    assert (len(got[1][0]), got[1][1]) == (1, "error")
    assert got[2][1] == "length"
    assert got[3][1] == "stop"


# ---- with a real model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog"]}, "maxItems": 2},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
}
ASKED = Constraint(kind="json_schema", value=json.dumps(PERSON))


@pytest.fixture(scope="module")
def llm(tale_dir: Path) -> LLM:
    return LLM(tale_dir, max_num_seqs=16, num_blocks=400, device="cpu")


def params(seed: int, **options: Any) -> SamplingParams:
    return SamplingParams(seed=seed, max_tokens=150, **{"temperature": 0.9, **options})


def test_a_schema_is_kept(llm: LLM) -> None:
    outputs = llm.generate(["Once upon a time"] * 6, [params(seed) for seed in range(6)], constraint=ASKED)
    for output in outputs:
        assert output.finish_reason == "stop"
        assert output.token_ids[-1] in llm.stop_token_ids
        jsonschema.validate(json.loads(output.text), PERSON)
    assert len({output.text for output in outputs}) > 4
    alone = [llm.generate("Once upon a time", params(seed), constraint=ASKED)[0] for seed in range(2)]
    assert [output.text for output in alone] == [output.text for output in outputs[:2]]


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5, "repeat_penalty": 1.5}, {"logit_bias": {31: 5.0}}]
)
def test_filters_work_on_what_the_mask_leaves(llm: LLM, options: dict[str, Any]) -> None:
    asked = Constraint(kind="regex", value="[0-9]{2}-[a-f]{3}")
    outputs = llm.generate(["There was", "And"], params(3, **options), constraint=asked)
    for output in outputs:
        assert re.fullmatch(r"[0-9]{2}-[a-f]{3}", output.text)


def test_log_probabilities_are_those_before_the_mask(llm: LLM) -> None:
    asked = Constraint(kind="choice", value='["9 dragons"]')
    free = llm.generate("Once upon a time", params(1, logprobs=1, temperature=0.0))[0]
    output = llm.generate("Once upon a time", params(1, logprobs=1, temperature=0.0), constraint=asked)[0]
    assert output.text == "9 dragons"
    assert output.logprobs[0].top == free.logprobs[0].top
    assert output.logprobs[0].logprob < free.logprobs[0].logprob


def test_a_thought_is_free_and_the_answer_is_not(llm: LLM) -> None:
    asked = Constraint(kind="json_schema", value='{"type": "integer", "maximum": 9, "minimum": 0}', close_tag=".")
    output = llm.generate("Once upon a time", params(5), constraint=asked)[0]
    assert re.fullmatch(r"[^.]+\.\s*[0-9]", output.text)
    assert output.finish_reason == "stop"


def test_a_constraint_that_cannot_be_enforced(llm: LLM) -> None:
    with pytest.raises(ConstraintError, match='the JSON schema uses "not"'):
        llm.generate("x", constraint=Constraint(kind="json_schema", value='{"not": {}}'))
