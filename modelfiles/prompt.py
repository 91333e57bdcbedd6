"""From a conversation to the text that a model reads. The daemon comes here; everything else about templates is below.

A model brings its template as Jinja (Hugging Face, most GGUF files) or as a Go template (Ollama's TEMPLATE).
"""

from __future__ import annotations

from collections.abc import Mapping

from modelfiles.go_prompt import GoPromptTemplate
from modelfiles.jinja_prompt import JinjaPromptTemplate
from modelfiles.prompt_types import Message, PromptTemplate, TemplateError, Tool, ToolCall

__all__ = [
    "Message",
    "PromptTemplate",
    "TemplateError",
    "Tool",
    "ToolCall",
    "go_prompt_template",
    "jinja_prompt_template",
]


def go_prompt_template(text: str) -> PromptTemplate:
    """Compile the TEMPLATE of a Modelfile.

    Raises:
        TemplateError: it does not parse.
    """
    return GoPromptTemplate.compile(text)


def jinja_prompt_template(text: str, special_tokens: Mapping[str, str]) -> PromptTemplate:
    """Compile a chat template in Jinja.

    Args:
        special_tokens: token texts by the names that templates use, e.g. {"bos_token": "<s>"}.

    Raises:
        TemplateError: it does not parse.
    """
    return JinjaPromptTemplate.compile(text, dict(special_tokens))
