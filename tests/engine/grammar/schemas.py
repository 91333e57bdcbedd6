"""Schemas of the test data, and what must hold of each: it is refused in words, or every text under it is an instance.

Shared by the tests, which take a sample, and `tools/test_constraints.py`, which takes all.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from engine.constraint import Constraint, ConstraintError
from engine.grammar.service import GrammarService
from tests.engine.grammar.walks import walk

DRAFTS = {
    "draft7": ("http://json-schema.org/draft-07/schema#", jsonschema.Draft7Validator),
    "draft2020-12": ("https://json-schema.org/draft/2020-12/schema", jsonschema.Draft202012Validator),
}
MAX_TOKENS = 300


@dataclass(frozen=True)
class Case:
    """A schema, with documents that are no instances of it."""

    name: str
    schema: dict[str, Any]
    validator: type[jsonschema.protocols.Validator]
    wrong: tuple[Any, ...] = ()

    @property
    def constraint(self) -> Constraint:
        return Constraint(kind="json_schema", value=json.dumps(self.schema))


def real_schemas(folder: Path) -> Iterator[Case]:
    """maskbench: schemas of configurations, tools and services."""
    for path in sorted((folder / "maskbench").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            schema = row["schema"]
            validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
            wrong = tuple(test["data"] for test in row["tests"] if not test["valid"])
            yield Case(row["description"], schema, validator, wrong)


def suite_schemas(folder: Path) -> Iterator[Case]:
    """The JSON-Schema test suite: each keyword in its corners."""
    for draft, (uri, validator) in DRAFTS.items():
        for path in sorted((folder / "JSON-Schema-Test-Suite" / "tests" / draft).glob("*.json")):
            for group in json.loads(path.read_text()):
                if isinstance(group["schema"], dict):
                    wrong = tuple(test["data"] for test in group["tests"] if not test["valid"])
                    schema = {"$schema": uri, **group["schema"]}
                    yield Case(f"{draft}/{path.stem}: {group['description']}", schema, validator, wrong)


def examine(
    case: Case, walks: GrammarService, of_bytes: GrammarService, num_walks: int, found: Counter[str]
) -> list[str]:
    """What is wrong with a schema; counts into `found`.

    Args:
        walks: of a vocabulary with tokens of several bytes.
        of_bytes: of a vocabulary of bytes.
        num_walks: random texts.
    """
    try:
        state = of_bytes.state(case.constraint)
    except ConstraintError:
        found["refused"] += 1
        return []
    found["enforced"] += 1
    problems = []
    for document in case.wrong:
        matcher, data = state.matcher, json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        assert matcher is not None
        matcher.reset()
        found["wrong documents"] += 1
        if matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting():
            problems.append(f"{case.name}: accepts {data[:200]!r}")
    for seed in range(num_walks):
        found["texts"] += 1
        text = walk(walks, case.constraint, seed, MAX_TOKENS)
        if not text.is_complete:
            found["longer than the limit"] += 1
            continue
        found["instances"] += 1
        try:
            error = next(case.validator(case.schema).iter_errors(json.loads(text.text)), None)
        except re.error:  # Python's expressions are not those of JSON Schema
            found["not judged"] += 1
            continue
        if error is not None:
            problems.append(f"{case.name}: {text.text[:200]!r}: {error.message[:200]}")
    return problems
