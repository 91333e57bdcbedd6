"""tool_choice as a grammar: which answers it lets through, judged by the real grammar and by our parsers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from daemon.errors import BadRequest
from daemon.generation import Job
from daemon.parsers.families import FAMILIES, PLAIN, Family
from daemon.parsers.selection import call_parser
from daemon.prompts import TextPrompt
from daemon.tool_grammar import CallSyntax, ToolChoice, call_syntax, tool_constraint
from engine.constraint import MAX_CONSTRAINT_CHARS, Constraint, ConstraintError
from engine.grammar.vocabulary import GrammarVocabulary
from engine.text.tokenizer import Tokenizer
from modelfiles.source import ModelSource
from tests.daemon.conftest import World
from tests.daemon.tiny_model import write_tiny_model
from tests.engine.grammar.walks import service_for, walk

pytestmark = pytest.mark.anyio


def tool(name: str, parameters: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Bonn"]}}, "required": ["city"]}
NO_MORE = {"additionalProperties": False}
WEATHER, CLOCK = tool("get_weather", {**CITY, **NO_MORE}), tool("get-time", {})
STRICT = tool("get_weather", {**CITY, **NO_MORE}, strict=True)
HERMES = CallSyntax(open="<tool_call>", close="</tool_call>")
ENFORCED: dict[str, tuple[Family, CallSyntax]] = {
    family.name: (family, syntax) for family in (*FAMILIES, PLAIN) if (syntax := call_syntax(family)) is not None
}
FORMS = {name: syntax for name, (_, syntax) in ENFORCED.items()}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> GrammarVocabulary:
    folder = tmp_path_factory.mktemp("files") / "tiny"
    write_tiny_model(folder)
    return GrammarVocabulary(Tokenizer.from_source(ModelSource.from_path(folder)), 259, [258])


def call(form: CallSyntax, arguments: str = '{"city": "Rome"}', name: str = "get_weather") -> str:
    return f"{form.open}{form.head(name)}{arguments}{'' if form.name_end else '}'}{form.close}"


def calls(form: CallSyntax, *items: str) -> str:
    return form.begin + form.separator.join(items) + form.end


def accepts(vocabulary: GrammarVocabulary, choice: ToolChoice, form: CallSyntax, text: str) -> bool:
    constraint = tool_constraint(choice, form)
    assert constraint is not None
    matcher = service_for(vocabulary).state(constraint).matcher
    assert matcher is not None
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_call_is_required(vocabulary: GrammarVocabulary, form: CallSyntax) -> None:
    choice = ToolChoice([WEATHER, CLOCK], "required")
    for text, expected in (
        (calls(form, call(form)), True),
        (calls(form, call(form, '{"city":"Bonn"}')), True),
        (calls(form, call(form), call(form, "{}", "get-time")), True),
        (calls(form, call(form, '{"city": "Paris"}')), False),
        (calls(form, call(form, "{}")), False),
        (calls(form, call(form, "{}", "other")), False),
        (f"Sure. {calls(form, call(form))}", False),
        ("It is sunny.", False),
        ("", False),
    ):
        assert accepts(vocabulary, choice, form, text) == expected, text


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_one_tool_once(vocabulary: GrammarVocabulary, form: CallSyntax) -> None:
    choice = ToolChoice([WEATHER, CLOCK], name="get_weather", parallel=False)
    assert accepts(vocabulary, choice, form, calls(form, call(form)))
    assert not accepts(vocabulary, choice, form, calls(form, call(form), call(form)))
    assert not accepts(vocabulary, choice, form, calls(form, call(form, "{}", "get-time")))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_strict_tools_are_called_by_their_schema_or_not_at_all(vocabulary: GrammarVocabulary, form: CallSyntax) -> None:
    choice = ToolChoice([STRICT, CLOCK], "auto")
    assert accepts(vocabulary, choice, form, "It is sunny.\nIs it not?")
    assert accepts(vocabulary, choice, form, calls(form, call(form)))
    assert not accepts(vocabulary, choice, form, calls(form, call(form, '{"city": "Paris"}')))
    if form.begin or form.open:
        assert accepts(vocabulary, choice, form, "I will look. " + calls(form, call(form)))
        assert not accepts(vocabulary, choice, form, "I will look. " + calls(form, call(form, '{"town": 1}')))


def test_where_there_is_no_constraint() -> None:
    assert tool_constraint(ToolChoice([WEATHER]), HERMES) is None
    assert tool_constraint(ToolChoice([STRICT], "none"), HERMES) is None
    with pytest.raises(BadRequest, match='tool_choice names "nobody", which is none of the tools'):
        tool_constraint(ToolChoice([WEATHER], name="nobody"), HERMES)
    with pytest.raises(BadRequest, match="there are no tools"):
        tool_constraint(ToolChoice([], "required"), HERMES)


def test_what_a_schema_cannot_enforce_counts_for_strict_tools_only(vocabulary: GrammarVocabulary) -> None:
    parameters = {**CITY, "not": {"required": ["town"]}, "$defs": {"a": {}}}
    service = service_for(vocabulary)
    for strict in (False, True):
        constraint = tool_constraint(ToolChoice([tool("f", parameters, strict=strict)], "required"), HERMES)
        assert constraint is not None
        if strict:
            with pytest.raises(ConstraintError, match='uses "not"'):
                service.state(constraint)
        else:
            service.state(constraint)


@pytest.mark.parametrize(("family", "form"), ENFORCED.values(), ids=ENFORCED)
def test_our_parsers_read_every_text_that_the_grammar_allows(
    vocabulary: GrammarVocabulary, family: Family, form: CallSyntax
) -> None:
    constraint = tool_constraint(ToolChoice([WEATHER, CLOCK], "required"), form)
    assert constraint is not None
    service = service_for(vocabulary)
    num_calls = 0
    for seed in range(12):
        text = walk(service, constraint, seed, 400)
        if not text.is_complete:
            continue
        parser = call_parser(family, {"get_weather": {}, "get-time": {}})
        read, rest = parser.push(text.text), parser.flush()
        found = [*read.calls, *rest.calls]
        assert found, text.text
        assert not (read.text + rest.text).strip(" ;[]"), text.text
        assert {name for name, _ in found} <= {"get_weather", "get-time"}
        num_calls += len(found)
    assert num_calls >= 6


def test_an_answer_in_a_format_beside_calls(vocabulary: GrammarVocabulary) -> None:
    answer = Constraint(kind="json_schema", value='{"type": "object", "properties": {"a": {"type": "integer"}}}')
    for name, form in FORMS.items():
        constraint = tool_constraint(ToolChoice([WEATHER]), form, answer)
        if name in ("llama", "json"):
            assert constraint is None
            continue
        assert constraint is not None
        for text, expected in (
            (calls(form, call(form)), True), ('{"a": 1}', True), ("Sure.", False), ('{"b": 1}', False),
        ):  # fmt: skip
            matcher = service_for(vocabulary).state(constraint).matcher
            assert matcher is not None
            data = list(text.encode())
            assert (matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()) == expected, text
    assert tool_constraint(ToolChoice([WEATHER]), HERMES, Constraint(kind="regex", value="a")) is None


def test_families() -> None:
    assert set(ENFORCED) == {
        "hermes", "apriel", "nemotron", "mistral", "mistral-list", "granite", "phi-4", "llama", "json",
    }  # fmt: skip
    assert FORMS["hermes"] == HERMES


async def test_the_engine_is_told_of_the_choice(world: World) -> None:
    stored = await world.services.library.find("tiny")

    async def run(choice: ToolChoice) -> None:
        job = Job(
            stored=stored,
            source=lambda model: TextPrompt(lambda: "Hi"),
            parses_tools=True,
            tools=choice.tools,
            tool_choice="required" if choice.mode == "required" else "auto",
            tool_name=choice.name,
        )
        async for _ in world.services.generator.generate(job):
            pass

    await run(ToolChoice([WEATHER], "required"))
    await run(ToolChoice([WEATHER], "auto"))
    assert world.engine.constraints == [tool_constraint(ToolChoice([WEATHER], "required"), HERMES), None]
    with pytest.raises(BadRequest, match="none of the tools"):
        await run(ToolChoice([WEATHER], name="nobody"))
    wrong = tool("f", {"type": "bogus"})
    for choice, sentence in (
        (
            ToolChoice([WEATHER, wrong], "required"),
            'the parameters of the tool "f" cannot be enforced: Invalid type: bogus',
        ),
        (
            ToolChoice([WEATHER, wrong], name="f"),
            'the parameters of the tool "f" cannot be enforced: Invalid type: bogus',
        ),
        (
            ToolChoice([tool("f", {"not": {}}, strict=True)]),
            'the grammar of the tools uses "not", which cannot be enforced; leave it out',
        ),
        (
            ToolChoice([tool("f", {"title": "x" * MAX_CONSTRAINT_CHARS})], "required"),
            "the grammar of the tools has ",
        ),
    ):
        with pytest.raises(ConstraintError) as caught:
            await run(choice)
        assert str(caught.value).startswith(sentence)
