"""Constraints that are broken, cannot be enforced or shall do harm are refused with a sentence, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from engine.constraint import Constraint, ConstraintError
from engine.errors import EngineError
from engine.grammar.checker import ConstraintChecker


@pytest.fixture(scope="module")
def checker() -> Iterator[ConstraintChecker]:
    one = ConstraintChecker(timeout_s=60)  # on a busy machine processor time says more, and the process dies of that
    yield one
    one.close()


def schema(value: Any) -> Constraint:
    return Constraint(kind="json_schema", value=json.dumps(value))


REFUSED = [
    (schema({"type": "array", "uniqueItems": True}), 'uses "uniqueItems", which'),
    (schema({"if": {}, "then": {}}), 'uses "if" and "then", which'),
    (schema({"properties": {"a": {"properties": {"b": {"not": {}}}}}}), 'uses "not", which'),
    (schema({"oneOf": [{"type": "string"}, {"minLength": 1}]}), 'uses "oneOf" with alternatives that may overlap'),
    (schema({"format": "colour", "type": "string"}), "Unknown format: colour"),
    (schema({"$ref": "https://example.com/schema"}), "https://example.com/schema"),
    (schema({"minLength": 3, "maxLength": 2, "type": "string"}), "minLength"),
    (schema({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}]}}, "$ref": "#/$defs/a"}), "circular"),
    (schema([1]), "object schema"),
    (Constraint(kind="json_schema", value="{"), "the JSON schema cannot be"),
    (Constraint(kind="regex", value="(a"), "unclosed group"),
    (Constraint(kind="regex", value=r"(a)\1"), "backreferences are not supported"),
    (Constraint(kind="choice", value="[1]"), "choice must be a list of at least one text"),
    (Constraint(kind="choice", value="nothing"), "choice is no JSON array"),
    (Constraint(kind="choice", value=json.dumps(["a"] * 10_001)), "choice has 10001 texts"),
    (Constraint(kind="gbnf", value="root ::= x"), "Rule 'x' not found"),
    (Constraint(kind="lark", value="start: x"), 'unknown name: "x"'),
    (Constraint(kind="lark", value=" " * 300_000), "has 300000 characters but may have at most 262144"),
]


@pytest.mark.parametrize(("constraint", "words"), REFUSED)
def test_what_cannot_be_enforced_is_named(checker: ConstraintChecker, constraint: Constraint, words: str) -> None:
    for _ in range(2):  # the second time from memory
        with pytest.raises(ConstraintError) as caught:
            checker.check(constraint)
        assert words in str(caught.value)
        assert len(str(caught.value)) < 600


def references(kind: str) -> Constraint:
    """Sixty definitions, each of the next one twice."""
    defs: dict[str, Any] = {f"a{n}": {kind: [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(60)}
    return schema({"$defs": {**defs, "a60": {"type": "string"}}, "$ref": "#/$defs/a0"})


HOSTILE = [
    schema({"properties": {f"p{n}": {"type": "string"} for n in range(8_000)}}),
    schema({"enum": [f"value {n}" for n in range(15_000)]}),
    Constraint(kind="json_schema", value='{"a":' * 20_000),
    schema({"allOf": [{"anyOf": [{"properties": {f"a{m}_{n}": {"const": n}}} for n in range(9)]} for m in range(8)]}),
    schema({"allOf": [{"type": "string", "pattern": f"^.*a.{{{n}}}b.*$"} for n in range(10, 40)]}),
    references("anyOf"),
    references("allOf"),
    Constraint(kind="regex", value="(" * 100_000 + "a" + ")" * 100_000),
    Constraint(kind="regex", value="((((a{1,100}){1,100}){1,100}){1,100}){1,100}"),
    Constraint(kind="regex", value="(.*a.{100}){1000}"),
    Constraint(kind="lark", value="start: " + "(" * 90_000 + '"a"' + ")" * 90_000),
    Constraint(kind="lark", value="\n".join(f"r{n}: r{n + 1} | r{n + 1} r{n + 1}" for n in range(9_000))),
    Constraint(kind="lark", value='start: r0\nr5000: "a"\n' + "\n".join(f"r{n}: r{n + 1}" for n in range(5_000))),
    Constraint(kind="gbnf", value="root ::= " + "(" * 100_000),
]


@pytest.mark.parametrize("constraint", HOSTILE)
def test_hostile_constraints_harm_nobody(checker: ConstraintChecker, constraint: Constraint) -> None:
    """Whether they are refused is not the point: there is an answer, and the next request is served."""
    with contextlib.suppress(ConstraintError):
        checker.check(constraint)
    checker.check(schema({"type": "integer", "maximum": len(constraint.value)}))


def test_a_constraint_that_kills_the_process_is_refused_and_the_next_one_checked(tmp_path: Any) -> None:
    """A process of ours that dies, or hangs, at what is asked of it."""
    script = tmp_path / "process.py"
    script.write_text(
        "import sys\nprint('\"\"', flush=True)\n"
        "for line in sys.stdin:\n"
        "    if 'die' in line: sys.exit(1)\n"
        "    while 'hang' in line: pass\n"
        "    print('\"\"', flush=True)\n"
    )
    for value, timeout_s in (("die", 60.0), ("hang", 0.2)):
        checker = ConstraintChecker([sys.executable, str(script)], timeout_s=timeout_s)
        with pytest.raises(ConstraintError, match="the regex takes too much time or memory to compile"):
            checker.check(Constraint(kind="regex", value=value))
        checker.close()
        checker = ConstraintChecker([sys.executable, str(script)], timeout_s=60)
        with pytest.raises(ConstraintError):
            checker.check(Constraint(kind="regex", value="die"))
        checker.check(Constraint(kind="regex", value="the next"))
        checker.close()


def test_an_object_may_have_a_thousand_properties_and_no_ten_thousand(checker: ConstraintChecker) -> None:
    def properties(number: int) -> Constraint:
        return schema({"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(number)}})

    checker.check(properties(900))
    with pytest.raises(ConstraintError, match="too many alternatives at one place"):
        checker.check(properties(3000))


def test_what_a_busy_machine_had_no_time_for_is_asked_again(tmp_path: Any) -> None:
    script, was_asked = tmp_path / "process.py", tmp_path / "asked"
    script.write_text(
        "import pathlib, sys\nprint('\"\"', flush=True)\n"
        f"asked = pathlib.Path({str(was_asked)!r})\n"
        "for line in sys.stdin:\n"
        "    while not asked.exists(): pass\n"
        "    print('\"\"', flush=True)\n"
    )
    checker = ConstraintChecker([sys.executable, str(script)], timeout_s=0.2)
    with pytest.raises(ConstraintError, match="too much time"):
        checker.check(Constraint(kind="regex", value="a"))
    was_asked.touch()
    checker._timeout_s = 60.0
    checker.check(Constraint(kind="regex", value="a"))
    checker.close()


def test_who_waits_for_a_check_keeps_no_other_work_waiting(tmp_path: Any) -> None:
    script = tmp_path / "process.py"
    script.write_text("import sys\nprint('\"\"', flush=True)\nfor line in sys.stdin: pass\n")  # it never answers

    async def main() -> list[BaseException | None]:
        checker = ConstraintChecker([sys.executable, str(script)], timeout_s=3600.0)
        checks = [asyncio.create_task(checker.checked(Constraint(kind="regex", value="a" * n))) for n in range(1, 50)]
        await asyncio.sleep(0)  # they begin
        await asyncio.to_thread(checker.close)
        return await asyncio.gather(*checks, return_exceptions=True)

    assert all(isinstance(end, BaseException) for end in asyncio.run(main()))


def test_a_process_that_does_not_start_is_told() -> None:
    checker = ConstraintChecker([sys.executable, "-c", ""])
    with pytest.raises(EngineError, match="did not start"):
        checker.check(Constraint(kind="regex", value="a"))
    checker.check(Constraint(kind="json"))  # there is nothing to check
    checker.close()
