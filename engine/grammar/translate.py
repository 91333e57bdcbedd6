"""Constraint -> a grammar of llguidance, and llguidance's complaints -> sentences. Used by the worker and by the check.

A schema's keyword that cannot be enforced is an error and never ignored: who asks for `uniqueItems` must not get
duplicates. Regular expressions have no look-around and no back references, and match the whole text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from engine.constraint import MAX_CONSTRAINT_CHARS, Constraint, ConstraintError
from engine.grammar.closed_objects import close_objects
from engine.grammar.limits import MAX_CHOICES, parser_limits

JSON_OPTIONS = {"whitespace_pattern": r"[ ]{1,2}|\n[ ]{0,40}|\n\t{1,10}"}
"""White space between JSON's tokens: enough for every usual way to print it, and no room for models that would write
blank lines until their context is full."""
UNIMPLEMENTED = re.compile(r"Unimplemented keys: (\[.*\])")
MAX_SHOWN_CHARS = 300


def to_grammar(constraint: Constraint) -> str:
    """What llguidance compiles.

    Raises:
        ConstraintError: it is too long, or not even of its kind's form. What else may be wrong `check_grammar` tells.
    """
    if len(constraint.value) > MAX_CONSTRAINT_CHARS:
        raise ConstraintError(
            f"the {NAMES[constraint.kind]} has {len(constraint.value)} characters but may have at most "
            f"{MAX_CONSTRAINT_CHARS}"
        )
    return TRANSLATORS[constraint.kind](constraint.value)


def check_grammar(constraint: Constraint, grammar: str) -> None:
    """Compiles a grammar for no vocabulary in particular.

    Raises:
        ConstraintError: why it cannot be enforced.
    """
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, None, limits=parser_limits())
    if is_error:
        raise ConstraintError(explain(constraint, messages[0]))


def explain(constraint: Constraint, message: str) -> str:
    """A sentence about a constraint that llguidance does not take."""
    name = NAMES[constraint.kind]
    if found := UNIMPLEMENTED.search(message):
        keys = " and ".join(json.dumps(key) for key in json.loads(found[1]))
        return f"the {name} uses {keys}, which cannot be enforced; leave it out"
    text = " ".join(message.split("<state>")[0].split())
    if text.startswith("oneOf constraints"):
        return f'the {name} uses "oneOf" with alternatives that may overlap, which cannot be enforced; use "anyOf"'
    if "Current row has" in text or "Too many items" in text:
        return f"the {name} has too many alternatives at one place, such as properties that may be left out; use fewer"
    text = text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."
    return f"the {name} cannot be enforced: {text}"


def _json(value: str) -> str:
    return _json_schema('{"type": "object"}')


def _json_schema(value: str) -> str:
    value = "{}" if value.strip() == "true" else value
    try:
        return LLMatcher.grammar_from_json_schema(close_objects(value), defaults=JSON_OPTIONS)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConstraintError(f"the JSON schema cannot be read: {' '.join(str(error).split())[:200]}") from error


def _choice(value: str) -> str:
    texts = _decoded(value)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise ConstraintError("choice must be a list of at least one text, none of them empty")
    if len(texts) > MAX_CHOICES:
        raise ConstraintError(f"choice has {len(texts)} texts but may have at most {MAX_CHOICES}")
    # As one terminal: as alternatives of a rule, thousands would be too many states of the parser.
    alternatives = " | ".join(json.dumps(text) for text in dict.fromkeys(texts))
    return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {alternatives}")


def _decoded(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"choice is no JSON array of strings: {error}") from error


def _gbnf(value: str) -> str:
    try:
        return LLMatcher.grammar_from_lark(gbnf_to_lark(value))
    except Exception as error:  # what the converter raises has no narrower type
        raise ConstraintError(f"the GBNF grammar cannot be read: {' '.join(str(error).split())[:200]}") from error


TRANSLATORS: dict[str, Callable[[str], str]] = {
    "json": _json,
    "json_schema": _json_schema,
    "regex": LLMatcher.grammar_from_regex,
    "choice": _choice,
    "lark": LLMatcher.grammar_from_lark,
    "gbnf": _gbnf,
}
NAMES = {
    "json": "JSON mode",
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "choice": "choice",
    "lark": "grammar",
    "gbnf": "grammar",
}
