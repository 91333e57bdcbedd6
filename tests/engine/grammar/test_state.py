"""The state of a constraint: masks and thoughts, token by token, over real vocabularies."""

from __future__ import annotations

import json
import random
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.parsers.thinking import ThinkingParser
from engine.constraint import Constraint
from engine.grammar.limits import MAX_CHOICES
from engine.grammar.service import GrammarService, TokenMasks
from engine.grammar.state import MAX_WHITE_BYTES, ConstraintState
from engine.grammar.thought import closes_badly, continues_opening, longest_match
from engine.grammar.vocabulary import GrammarVocabulary
from engine.text.tokenizer import Tokenizer
from tests.engine.grammar.walks import mask_of, service_for, token_ids_of

OPEN, CLOSE = "<think>", "</think>"
INTEGER = {"type": "integer", "minimum": 0, "maximum": 99}


@pytest.fixture(scope="module")
def tiny(tiny_vocabulary: GrammarVocabulary) -> GrammarService:
    return service_for(tiny_vocabulary)


def constraint(kind: str, value: str = "", *, open_tag: str = "", close_tag: str = "") -> Constraint:
    return Constraint(kind=kind, value=value, open_tag=open_tag, close_tag=close_tag)  # type: ignore[arg-type]


def allowed(state: ConstraintState, num_words: int = 9) -> set[int]:
    return set(token_ids_of(mask_of(state, num_words)))


def write(state: ConstraintState, text: str) -> None:
    """Byte by byte, each of which the mask must allow."""
    for byte in text.encode():
        assert byte in allowed(state), f"{chr(byte)!r} of {text!r} is not allowed"
        state.accept(byte)
        assert state.error is None


END = {256 + 0, 256 + 2}  # <|endoftext|> ends by its name, <|im_end|> by the config


def test_ends_are_allowed_where_the_text_may_end_and_nowhere_else(tiny: GrammarService) -> None:
    state = tiny.state(constraint("regex", "ab?c*"))
    assert allowed(state) == {ord("a")}
    write(state, "a")
    assert allowed(state) == {ord("b"), ord("c")} | END
    write(state, "b")
    assert not state.is_over
    assert allowed(state) == {ord("c")} | END


def test_a_complete_text_is_over_without_an_end(tiny: GrammarService) -> None:
    for kind, value, text in (
        ("regex", "ab", "ab"),
        ("choice", '["yes", "no"]', "no"),
        ("json_schema", '{"type": "boolean"}', "true"),
        ("json", "", '{"a": [1, {"b": null}], "c": "\\n\xe9"}'),
        ("lark", 'start: "x" y\ny: "z"', "xz"),
        ("gbnf", 'root ::= "a" [0-9]\n', "a7"),
    ):
        state = tiny.state(constraint(kind, value))
        write(state, text[:-1])
        assert not state.is_over
        write(state, text[-1:])
        assert state.is_over, kind


def test_a_choice_that_begins_another_waits_for_the_end(tiny: GrammarService) -> None:
    state = tiny.state(constraint("choice", '["yes", "yes!", "\\"q\\"\\n"]'))
    assert allowed(state) == {ord("y"), ord('"')}
    write(state, "yes")
    assert not state.is_over
    assert allowed(state) == {ord("!")} | END


def test_as_many_choices_and_properties_as_are_taken(tiny: GrammarService) -> None:
    state = tiny.state(constraint("choice", json.dumps([f"{n}." for n in range(MAX_CHOICES)])))
    write(state, "1234.")
    assert state.is_over
    properties = {f"p{n}": {"type": "null"} for n in range(900)}
    state = tiny.state(constraint("json_schema", json.dumps({"type": "object", "properties": properties})))
    write(state, '{"p7": null, "p899": null}')
    assert state.is_over


def test_a_panic_in_native_code_fails_the_step_and_not_the_worker() -> None:
    class Panic(BaseException):
        """As PyO3's, which is no Exception."""

    words: Future[Any] = Future()
    words.set_exception(Panic("index out of bounds"))
    with pytest.raises(RuntimeError, match="could not be computed: index out of bounds"):
        TokenMasks([0], words).words()


def test_a_token_outside_the_mask_is_an_error(tiny: GrammarService) -> None:
    state = tiny.state(constraint("regex", "a"))
    state.accept(ord("b"))
    assert state.error is not None
    assert "could not be kept up" in state.error


def test_json_has_room_for_indents_and_none_for_blank_lines(tiny: GrammarService) -> None:
    state = tiny.state(constraint("json"))
    write(state, json.dumps({"a": {"b": [1]}}, indent=4))
    assert state.is_over
    state = tiny.state(constraint("json"))
    write(state, "{\n  ")
    assert ord("\n") not in allowed(state)


def test_a_thought_that_the_prompt_opened(tiny: GrammarService) -> None:
    state = tiny.state(constraint("json_schema", json.dumps(INTEGER), close_tag=CLOSE))
    assert allowed(state) == set(range(259)) - END
    write(state, "2 < 3, </thin, {}</think")
    assert allowed(state) == set(range(259)) - END, "not every tag is the last"
    write(state, ">")
    assert allowed(state) == {ord(digit) for digit in "0123456789 \t\n\r\v\f"}
    write(state, "\n\n4")
    assert allowed(state) == {ord(digit) for digit in "0123456789"} | END
    write(state, "2")
    assert state.is_over


def test_white_space_before_an_answer_has_an_end(tiny: GrammarService) -> None:
    for tags in ({"close_tag": CLOSE}, {"open_tag": OPEN, "close_tag": CLOSE}):
        state = tiny.state(constraint("json_schema", json.dumps(INTEGER), **tags))
        if "open_tag" not in tags:
            write(state, CLOSE)
        write(state, " " * MAX_WHITE_BYTES)
        assert not allowed(state) & set(b" \t\n\r")
        write(state, "77")
        assert state.is_over


def test_a_thought_that_the_model_may_open(tiny: GrammarService) -> None:
    asked = constraint("choice", '["<th", "yes"]', open_tag=OPEN, close_tag=CLOSE)
    state = tiny.state(asked)
    write(state, "\n<think>Hm.</think>\nyes")
    assert state.is_over
    state = tiny.state(asked)
    write(state, "yes")
    assert state.is_over
    state = tiny.state(asked)
    write(state, "<th")  # an answer, or the beginning of a tag
    assert not state.is_over
    assert allowed(state) == {ord("i")} | END
    write(state, "ink>")
    assert allowed(state) == set(range(259)) - END
    write(state, "</think><th")
    assert state.is_over
    state = tiny.state(constraint("choice", '["<th"]'))
    write(state, "<th")
    assert state.is_over, "who cannot think opens no thought"


def test_ids_that_are_no_token_s_open_no_thought(tale_vocabulary: GrammarVocabulary) -> None:
    asked = constraint("choice", '["yes"]', open_tag=OPEN, close_tag=CLOSE)
    num_tokens = tale_vocabulary.token_bytes.index(b"")
    assert num_tokens == 4096
    choices = allowed(service_for(tale_vocabulary).state(asked), tale_vocabulary.num_words)
    assert choices
    assert max(choices) < num_tokens


def test_tokens_that_close_a_thought_carry_nothing_but_white_space(tale_tokenizer: Tokenizer) -> None:
    tokens = {"</": 1, "think": 2, ">": 3, ">\n": 4, ">{": 5, "x": 6, "</think>": 7, "</think>4": 8}
    for text in tokens:
        for matched in ("", "</", "</think"):
            closes = CLOSE in matched + text
            rest = (matched + text).partition(CLOSE)[2]
            assert closes_badly(CLOSE.encode(), matched.encode(), text.encode()) == (closes and bool(rest.strip()))


@settings(max_examples=60)
@given(st.text("</think>ik ", max_size=30))
def test_longest_match(text: str) -> None:
    data, tag = text.encode(), CLOSE.encode()
    expected = max((tag[:n] for n in range(len(tag)) if data.endswith(tag[:n])), key=len)
    assert longest_match(tag, data) == expected
    assert continues_opening(tag, b"", data) == (data.lstrip()[: len(tag)] == tag[: len(data.lstrip())])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), opens=st.booleans())
def test_the_parser_finds_the_answer_where_the_constraint_put_it(
    tale_tokenizer: Tokenizer, tale_vocabulary: GrammarVocabulary, seed: int, opens: bool
) -> None:
    """Random tokens, each of several bytes: thought and answer come out as the parser and the grammar say."""
    service = service_for(tale_vocabulary)
    asked = constraint("json_schema", json.dumps(INTEGER), open_tag=OPEN if opens else "", close_tag=CLOSE)
    state, chance, data = service.state(asked), random.Random(seed), b""
    begin, end = (tale_tokenizer.encode(tag, add_special=False) for tag in (OPEN, CLOSE))
    plan = begin if opens and chance.random() < 0.7 else []
    while not state.is_over:
        choices = token_ids_of(mask_of(state, tale_vocabulary.num_words))
        ends = [token for token in choices if token in tale_vocabulary.end_ids]
        thinks = CLOSE.encode() not in data and (not opens or data.lstrip().startswith(OPEN.encode()))
        if thinks and not plan:
            plan = [token for token in chance.sample(range(300, 4000), k=3) if token in choices] + end
        token = plan.pop(0) if plan else ends[0] if ends else chance.choice(choices)
        assert token in choices
        state.accept(token)
        assert state.error is None
        data += b"" if token in ends else tale_vocabulary.token_bytes[token]
    parser = ThinkingParser(inside=not opens)
    split = parser.push(data.decode("utf-8", "replace"))
    rest = parser.flush()
    answer = split.answer + rest.answer
    assert 0 <= int(answer) <= 99
