"""Ids of tool calls for templates that demand nine letters and digits."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelfiles.call_ids import with_fitting_ids
from modelfiles.prompt import Message, ToolCall, jinja_prompt_template

DEMANDING = "{% if message['tool_call_id']|length != 9 %}{{ raise_exception('no') }}{% endif %}"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}


def turns(*ids: str, results: tuple[str, ...]) -> list[Message]:
    calls = tuple(ToolCall(call_id, "f", {}) for call_id in ids)
    said = [Message("user", "x"), Message("assistant", "", tool_calls=calls)]
    return said + [Message("tool", "7", tool_name="f", tool_call_id=call_id) for call_id in results]


def ids_of(messages: list[Message], template: str = DEMANDING) -> list[str]:
    fitted = with_fitting_ids(messages, template)
    return [call.id for message in fitted for call in message.tool_calls] + [
        message.tool_call_id for message in fitted if message.role == "tool"
    ]


def test_ids_that_fit_stay() -> None:
    assert ids_of(turns("abcDEF123", results=("abcDEF123",))) == ["abcDEF123", "abcDEF123"]


def test_results_keep_their_calls() -> None:
    first, second, *results = ids_of(turns("call_1", "toolu_2", results=("toolu_2", "call_1")))
    assert results == [second, first]
    assert first != second
    assert all(len(call_id) == 9 and call_id.isalnum() for call_id in (first, second))
    assert ids_of(turns("call_1", results=())) == [first]


def test_without_ids_results_answer_the_calls_in_their_order() -> None:
    first, second, *results = ids_of(turns("", "", results=("", "")))
    assert results == [first, second]
    assert first != second
    assert ids_of(turns(results=("",))) == ["000000000"]


def test_other_templates_get_ids_as_they_are() -> None:
    messages = turns("call_1", results=("call_1",))
    assert with_fitting_ids(messages, "{{ message.tool_call_id }}") is messages
    plain = [Message("user", "x")]
    assert with_fitting_ids(plain, DEMANDING) is plain


@pytest.mark.parametrize("call_id", ["call_12345678", "toolu_12345678", "abcDEF123", ""])
def test_a_real_template_takes_every_id(data_dir: Path, call_id: str) -> None:
    path = data_dir / "templates" / "jinja" / "Mistral-Small-3.2-24B-Instruct-2506.jinja"
    template = jinja_prompt_template(path.read_text(), {"bos_token": "<s>", "eos_token": "</s>"})
    text = template.render(turns(call_id, results=(call_id,)), tools=[TOOL], now=NOW)
    assert "[TOOL_CONTENT]7" in text
