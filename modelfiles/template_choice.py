"""Which of a model's templates renders its prompts: its Go TEMPLATE, or the Jinja template that its weights bring.

A TEMPLATE that somebody wrote into a Modelfile counts, whatever the weights bring. One that came with a pulled model
counts as long as the weights' own template can do no more; and where the model names one of Ollama's RENDERERs, which
do in code what the weights' template says, it is only a stand-in. Without either, the prompt is the message as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelfiles.prompt import go_prompt_template, jinja_prompt_template
from modelfiles.prompt_types import PromptTemplate, TemplateError

DEFAULT_TEMPLATE = "{{ .Prompt }}"

RENDERERS = (
    "cogito", "cohere", "deepseek3.1", "functiongemma", "gemma4", "glimmer", "glm-4.6", "glm-4.7", "glm-ocr", "laguna",
    "lfm2", "lfm2-thinking", "nemotron-3-nano", "nemotron-3.5", "olmo3", "ornith", "poolside-v1", "qwen3-coder",
    "qwen3-vl-instruct", "qwen3-vl-thinking", "qwen3.5", "qwen3.8",
)  # fmt: skip
"""Names that RENDERER may have."""
RENDERER_FAMILIES = ("gemma4", "laguna", "olmo3")
"""Names that may have something behind them, for sizes and variants."""


def is_renderer(name: str) -> bool:
    """Whether Ollama has a renderer of this name."""
    return name in RENDERERS or name.startswith(RENDERER_FAMILIES)


def choose_template(
    go_text: str,
    jinja_text: str,
    special_tokens: Mapping[str, str],
    *,
    is_explicit: bool = False,
    renderer: str = "",
) -> PromptTemplate:
    """Compile the template that applies.

    Args:
        go_text: the model's TEMPLATE, "" where it has none.
        jinja_text: the chat template of its weights, "" where they have none.
        special_tokens: token texts by the names that Jinja templates use.
        is_explicit: whether the TEMPLATE was written for this model or one that it is made from.
        renderer: the model's RENDERER, "" where it has none.

    Raises:
        TemplateError: the one that applies does not parse, or the renderer has nothing to stand for.
    """
    if go_text and (is_explicit or not jinja_text):
        return go_prompt_template(go_text)
    if not jinja_text:
        if renderer:
            raise TemplateError(
                f'the model names the renderer "{renderer}", which Hob does not have, and brings no chat template that '
                "could stand for it; give it a TEMPLATE"
            )
        return go_prompt_template(DEFAULT_TEMPLATE)
    if not go_text or renderer:
        return jinja_prompt_template(jinja_text, special_tokens)
    template = go_prompt_template(go_text)
    try:
        own = jinja_prompt_template(jinja_text, special_tokens)
    except TemplateError:
        return template
    return own if template.capabilities < own.capabilities else template
