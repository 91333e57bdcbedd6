"""tool_choice as a grammar: which answers it lets through, judged by the real grammar and by our parsers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from daemon.errors import BadRequest
from daemon.generation import Job, _call_form
from daemon.parsers.json_calls import JSONCallParser
from daemon.parsers.tool_calls import ToolCallParser
from daemon.prompts import TextPrompt
from daemon.tool_grammar import BARE_JSON, HERMES, MISTRAL, CallForm, ToolChoice, tool_constraint
from engine.constraint import ConstraintError
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
WEATHER, CLOCK = tool("get_weather", {**CITY, **NO_MORE}), tool('odd "name"', {})
STRICT = tool("get_weather", {**CITY, **NO_MORE}, strict=True)
FORMS = {"hermes": HERMES, "bare": BARE_JSON, "mistral": MISTRAL}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> GrammarVocabulary:
    folder = tmp_path_factory.mktemp("files") / "tiny"
    write_tiny_model(folder)
    return GrammarVocabulary(Tokenizer.from_source(ModelSource.from_path(folder)), 259, [258])


def call(form: CallForm, arguments: str = '{"city": "Rome"}', name: str = "get_weather") -> str:
    return f'{form.open}{{"name": "{name}", "{form.arguments}": {arguments}}}{form.close}'


def calls(form: CallForm, *items: str) -> str:
    return form.begin + form.separator.join(items) + form.end


def accepts(vocabulary: GrammarVocabulary, choice: ToolChoice, form: CallForm, text: str) -> bool:
    constraint = tool_constraint(choice, form)
    assert constraint is not None
    matcher = service_for(vocabulary).state(constraint).matcher
    assert matcher is not None
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_call_is_required(vocabulary: GrammarVocabulary, form: CallForm) -> None:
    choice = ToolChoice([WEATHER, CLOCK], "required")
    for text, expected in (
        (calls(form, call(form)), True),
        (calls(form, call(form, '{"city":"Bonn"}')), True),
        (calls(form, call(form), call(form, "{}", 'odd \\"name\\"')), True),
        (calls(form, call(form, '{"city": "Paris"}')), False),
        (calls(form, call(form, "{}")), False),
        (calls(form, call(form, "{}", "other")), False),
        (f"Sure. {calls(form, call(form))}", False),
        ("It is sunny.", False),
        ("", False),
    ):
        assert accepts(vocabulary, choice, form, text) == expected, text


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_one_tool_once(vocabulary: GrammarVocabulary, form: CallForm) -> None:
    choice = ToolChoice([WEATHER, CLOCK], name="get_weather", parallel=False)
    assert accepts(vocabulary, choice, form, calls(form, call(form)))
    assert not accepts(vocabulary, choice, form, calls(form, call(form), call(form)))
    assert not accepts(vocabulary, choice, form, calls(form, call(form, "{}", 'odd \\"name\\"')))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_strict_tools_are_called_by_their_schema_or_not_at_all(vocabulary: GrammarVocabulary, form: CallForm) -> None:
    choice = ToolChoice([STRICT, CLOCK], "auto")
    assert accepts(vocabulary, choice, form, "It is sunny.\nIs it not?")
    assert accepts(vocabulary, choice, form, calls(form, call(form)))
    assert not accepts(vocabulary, choice, form, calls(form, call(form, '{"city": "Paris"}')))
    if form is not BARE_JSON:
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


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_our_parsers_read_every_text_that_the_grammar_allows(vocabulary: GrammarVocabulary, form: CallForm) -> None:
    constraint = tool_constraint(ToolChoice([WEATHER, CLOCK], "required"), form)
    assert constraint is not None
    service = service_for(vocabulary)
    num_calls = 0
    for seed in range(12):
        text = walk(service, constraint, seed, 400)
        if not text.is_complete:
            continue
        parser = ToolCallParser() if form is HERMES else JSONCallParser()
        read, rest = parser.push(text.text), parser.flush()
        found = [*read.calls, *rest.calls]
        assert found, text.text
        assert not (read.text + rest.text).strip(" ;[]"), text.text
        assert {name for name, _ in found} <= {"get_weather", 'odd "name"'}
        num_calls += len(found)
    assert num_calls >= 6


def test_the_form_is_the_templates() -> None:
    assert _call_form("... <tool_call> ...") is HERMES
    assert _call_form("[TOOL_CALLS] [") is MISTRAL
    assert _call_form('{"name": ...') is BARE_JSON


async def test_the_engine_is_told_of_the_choice(world: World) -> None:
    stored = await world.services.library.find("tiny")

    async def run(choice: ToolChoice) -> None:
        job = Job(stored=stored, source=lambda model: TextPrompt(lambda: "Hi"), parses_tools=True, tool_choice=choice)
        async for _ in world.services.generator.generate(job):
            pass

    await run(ToolChoice([WEATHER], "required"))
    await run(ToolChoice([WEATHER], "auto"))
    assert world.engine.constraints == [tool_constraint(ToolChoice([WEATHER], "required"), HERMES), None]
    with pytest.raises(BadRequest, match="none of the tools"):
        await run(ToolChoice([WEATHER], name="nobody"))
