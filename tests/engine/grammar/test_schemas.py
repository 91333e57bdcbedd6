"""Texts of random tokens under the masks of real schemas are instances of them; jsonschema is the judge.

A sample; `make constraints` takes all schemas and writes what it found into benchmarks/results/constraints.jsonl.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from engine.constraint import Constraint
from engine.grammar.vocabulary import GrammarVocabulary
from tests.engine.grammar.schemas import examine, real_schemas, suite_schemas
from tests.engine.grammar.walks import service_for, walk


@pytest.mark.parametrize(("cases", "step"), [(real_schemas, 11), (suite_schemas, 9)], ids=["real", "suite"])
def test_a_sample(
    cases: object, step: int, data_dir: Path, tale_vocabulary: GrammarVocabulary, tiny_vocabulary: GrammarVocabulary
) -> None:
    walks, of_bytes, found = service_for(tale_vocabulary), service_for(tiny_vocabulary), Counter[str]()
    problems = []
    for case in islice(cases(data_dir / "schemas"), 0, None, step):  # type: ignore[operator]
        problems += examine(case, walks, of_bytes, 1, found)
    assert not problems
    assert found["instances"] > 15, found
    assert found["refused"] < found["enforced"], found


def test_grammars_of_llama_cpp(data_dir: Path, tale_vocabulary: GrammarVocabulary) -> None:
    service = service_for(tale_vocabulary)
    paths = sorted((data_dir / "schemas" / "llama.cpp-grammars").glob("*.gbnf"))
    assert len(paths) == 8
    for path in paths:
        asked = Constraint(kind="gbnf", value=path.read_text())
        assert any(walk(service, asked, seed, 40).text for seed in range(4)), path.name
    chess = walk(service, Constraint(kind="gbnf", value=(paths[0].parent / "chess.gbnf").read_text()), 2, 200).text
    assert chess.startswith("1. ")
