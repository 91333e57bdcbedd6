"""Models that bring two chat templates, one for prompts with tools: both as one.

Hugging Face calls them "default" and "tool_use" and renders the second where there are tools; Hermes and Command R have
such pairs. GGUF keeps the second under tokenizer.chat_template.tool_use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTHING = "{{ '' }}"
"""Keeps Jinja from taking white space at the edges of a template for that of the tags around it."""
GGUF_KEY = "tokenizer.chat_template"


def joined_templates(default: Any, tool_use: Any) -> str | None:
    """One Jinja template that is `tool_use` where there are tools and `default` where there are none.

    What is no text, or empty, counts as missing; None where both are.
    """
    first, second = (text if isinstance(text, str) and text else None for text in (default, tool_use))
    if first is None or second is None or first == second:
        return first or second
    # Jinja drops one line end at the end of a template.
    parts = [NOTHING + text.removesuffix("\n") + NOTHING for text in (second, first)]
    return f"{{% if tools %}}{parts[0]}{{% else %}}{parts[1]}{{% endif %}}"


def gguf_chat_template(metadata: Mapping[str, Any]) -> str | None:
    """The chat template of a GGUF file, None where it has none."""
    return joined_templates(metadata.get(GGUF_KEY), metadata.get(f"{GGUF_KEY}.tool_use"))
