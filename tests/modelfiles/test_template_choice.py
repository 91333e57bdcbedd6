"""Which of a model's templates applies."""

from __future__ import annotations

import pytest

from modelfiles.prompt import TemplateError
from modelfiles.template_choice import DEFAULT_TEMPLATE, choose_template

GO = "{{ range .Messages }}{{ .Content }}{{ end }}"
GO_WITH_SUFFIX = "{{ .Prompt }}{{ .Suffix }}"
JINJA = "{% for m in messages %}{{ m.content }}{% endfor %}"
JINJA_WITH_TOOLS = JINJA + "{{ tools }}"


@pytest.mark.parametrize(
    ("go", "jinja", "is_explicit", "renderer", "chosen"),
    [
        ("", "", False, "", DEFAULT_TEMPLATE),
        (GO, "", False, "", GO),
        ("", JINJA, False, "", JINJA),
        (GO, JINJA, False, "", GO),
        (GO, JINJA_WITH_TOOLS, False, "", JINJA_WITH_TOOLS),
        (GO, JINJA_WITH_TOOLS, True, "", GO),
        (GO_WITH_SUFFIX, JINJA_WITH_TOOLS, False, "", GO_WITH_SUFFIX),
        (GO, "{% if %}", False, "", GO),
        (GO, JINJA, False, "qwen3.5", JINJA),
        (GO, JINJA, True, "qwen3.5", GO),
        (GO, "", False, "qwen3.5", GO),
    ],
)
def test_choice(go: str, jinja: str, is_explicit: bool, renderer: str, chosen: str) -> None:
    assert choose_template(go, jinja, {}, is_explicit=is_explicit, renderer=renderer).text == chosen


def test_a_renderer_needs_a_template() -> None:
    with pytest.raises(TemplateError, match=r'names the renderer "qwen3\.5", which Hob does not have'):
        choose_template("", "", {}, renderer="qwen3.5")
