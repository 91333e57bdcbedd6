"""Two chat templates as one: each is rendered as it is alone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from modelfiles.named_templates import gguf_chat_template, joined_templates
from modelfiles.prompt import Message, jinja_prompt_template

NOW = datetime(2024, 7, 26)
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"properties": {}}}}]


def render(text: str | None, tools: Any = ()) -> str:
    assert text is not None
    return jinja_prompt_template(text, {}).render([Message("user", "hi")], tools=tools, now=NOW)


EDGES = [
    "x", "\nx\n", "  x  ", "\n\n  {% if true %}\nx\n  {% endif %}\n", "x\n  ", "{%- set a = 1 -%}\n x {{ a }} \n\n",
    "{# c #}\n x", "{% macro m(a) %}[{{ a }}]{% endmacro %}\n{{ m(messages[0].content) }}",
]  # fmt: skip


@pytest.mark.parametrize("with_tools", EDGES)
@pytest.mark.parametrize("without", EDGES)
def test_each_is_rendered_as_alone(with_tools: str, without: str) -> None:
    text = joined_templates(without, with_tools)
    assert render(text, TOOLS) == render(with_tools, TOOLS)
    assert render(text) == render(without)


def test_real_ones(data_dir: Path) -> None:
    folder = data_dir / "templates/jinja"
    hermes = (folder / "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja").read_text()
    default = (folder / "Qwen-Qwen2.5-7B-Instruct.jinja").read_text()
    text = gguf_chat_template({"tokenizer.chat_template": default, "tokenizer.chat_template.tool_use": hermes})
    assert render(text, TOOLS) == render(hermes, TOOLS)
    assert render(text) == render(default)


def test_one_alone() -> None:
    assert joined_templates("a", None) == joined_templates(None, "a") == joined_templates("a", "a") == "a"
    assert joined_templates(None, "") is None
    assert gguf_chat_template({"tokenizer.chat_template": 1}) is None
