"""From a family to the parser of its answers. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from daemon.parsers.call_bodies import (
    FUNCTION_END,
    Tools,
    arg_keys_body,
    braced_body,
    fenced_body,
    is_open_json,
    is_open_xml,
    json_body,
    separated_body,
    tool_schemas,
    xml_body,
)
from daemon.parsers.families import CallForm, Family, Tags
from daemon.parsers.harmony import HarmonyParser
from daemon.parsers.listed_calls import ListedCallParser
from daemon.parsers.reading import ChainedCalls, OutputParser, SplitParser
from daemon.parsers.tagged_calls import IsOpen, ReadBody, TaggedCallParser
from daemon.parsers.thinking import ThinkingParser
from daemon.parsers.tool_calls import CallParser

TAG = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")
"""What may be one token of a tag."""
FENCES = tuple(Tags(f"```{word}", "```") for word in ("tool_code", "tool_call", "json"))


def output_parser(
    family: Family,
    prompt: str,
    tools: Iterable[Mapping[str, Any]] = (),
    *,
    parses_thinking: bool,
    parses_tools: bool,
) -> OutputParser | None:
    """The parser of an answer, or None where nothing is to be taken out of it.

    Args:
        prompt: the text that the answer continues; some templates open the thought themselves.
        tools: those of the request, in OpenAI's format.
    """
    if family.form is CallForm.NONE or not (parses_thinking or parses_tools):
        return None
    if family.form is CallForm.CHANNELS:
        return HarmonyParser(prompt, takes_calls=parses_tools)
    tags = family.thinking
    inside = prompt.rstrip().endswith(tags.open)
    thinking = ThinkingParser(inside=inside, open_tag=tags.open, close_tag=tags.close) if parses_thinking else None
    return SplitParser(thinking, call_parser(family, tool_schemas(tools)) if parses_tools else None)


def shown_tags(family: Family, *, parses_thinking: bool, parses_tools: bool) -> tuple[str, ...]:
    """The tags that `output_parser` must see, which the detokenizer would hide where they are control tokens."""
    tags = family.tags if parses_tools or (parses_thinking and family.form is CallForm.CHANNELS) else ()
    if parses_thinking:
        tags = (*tags, family.thinking.open, family.thinking.close)
    return tuple(name for tag in tags for name in TAG.findall(tag))


def call_parser(family: Family, tools: Tools) -> CallParser:
    """The parser of a family's calls, where it has one of its own."""
    names = tools.keys() if tools else None
    if family.form in LISTED:
        call = family.call
        marks = (call.open,) if call else family.around
        closers = ((call.close,) if call.close else ()) if call else family.inside
        return ListedCallParser(marks, closers, is_bare=family.form is CallForm.BARE, names=names)
    if family.form is CallForm.FENCED:
        bare = ListedCallParser((), is_bare=True, names=names)
        return ChainedCalls(bare, TaggedCallParser(FENCES, fenced_body, is_open_json))
    assert family.call is not None
    read_body, is_open = BODIES[family.form](tools, family)
    return TaggedCallParser((family.call,), read_body, is_open, family.around)


LISTED = (CallForm.BARE, CallForm.LIST, CallForm.PYTHON, CallForm.NAMED)
BODIES: Mapping[CallForm, Callable[[Tools, Family], tuple[ReadBody, IsOpen]]] = {
    CallForm.JSON: lambda tools, family: (json_body, is_open_json),
    CallForm.XML: lambda tools, family: (partial(xml_body, tools=tools), _open_xml(family)),
    CallForm.ARG_KEYS: lambda tools, family: (partial(arg_keys_body, tools=tools), _never_open),
    CallForm.SEPARATED: lambda tools, family: (separated_body, _never_open),
    CallForm.BRACED: lambda tools, family: (partial(braced_body, quote=family.quote), _never_open),
}
"""How the text between two tags is read, and whether a closing tag may stand inside of an argument."""


def _open_xml(family: Family) -> IsOpen:
    """Where </function> itself is the closing tag, it is no sign of the end."""
    return _never_open if family.call and family.call.close == FUNCTION_END else is_open_xml


def _never_open(body: str) -> bool:
    return False
