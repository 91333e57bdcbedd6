"""Families of models by how they write thoughts and calls of tools: one table, and how a model finds its row.

A Modelfile's PARSER names the row, in Ollama's names. Without one it is the first row whose marks the model's template
holds, since a model writes its calls as its template writes those of earlier turns. daemon.parsers.reading makes the
parser of a row; whoever constrains calls reads from the same row how one begins and ends.

Tags are text. Where a vocabulary has one as a control token, which is otherwise no part of an answer's text, the
detokenizer is told to print it (`Family.tags`), so that no parser need know the difference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum


class CallForm(Enum):
    """How calls are written, between the tags of their family. `{}` is a JSON object of arguments."""

    JSON = "json"
    """One call: {"name": "f", "arguments": {}}"""
    LIST = "list"
    """All calls: [{"name": "f", "arguments": {}}, ...]"""
    BARE = "bare"
    """One or a list of them without tags, or [f(a=1), g()], at the very beginning of an answer"""
    PYTHON = "python"
    """All calls: [f(a=1), g()]"""
    NAMED = "named"
    """One call: f[ARGS]{}; or the list of JSON"""
    XML = "xml"
    """One call: <function=f><parameter=a>text</parameter></function>"""
    ARG_KEYS = "arg_keys"
    """One call: f<arg_key>a</arg_key><arg_value>text or JSON</arg_value>"""
    SEPARATED = "separated"
    """One call: f<｜tool▁sep｜>{}, or function<｜tool▁sep｜>f and {} in a fence"""
    BRACED = "braced"
    """One call: call:f{a:<quote>text<quote>}"""
    FENCED = "fenced"
    """Python or JSON in a fence of three backticks, or bare"""
    CHANNELS = "channels"
    """A message of harmony to functions.f, whose content is {}"""
    NONE = "none"
    """Nothing is taken out of the text"""


@dataclass(frozen=True)
class Tags:
    """What stands before and behind something; an empty `close` means that nothing stands behind."""

    open: str
    close: str


THINK = Tags("<think>", "</think>")
TOOL_CALL = Tags("<tool_call>", "</tool_call>")


@dataclass(frozen=True)
class Family:
    """A row of the table."""

    name: str
    form: CallForm
    marks: tuple[str, ...] = ()
    """Any of these in a template means this row; of several that a blank separates, all must be there."""
    parsers: tuple[str, ...] = ()
    """Values of PARSER that mean it."""
    call: Tags | None = None
    """Around what the form describes; None where nothing is."""
    arguments_key: str = "arguments"
    """What JSON calls the object of arguments."""
    around: tuple[str, ...] = ()
    """Tags around all calls of an answer, which say nothing; in the form BARE, behind which calls may stand."""
    inside: tuple[str, ...] = ()
    """Tags inside of a call; in the form BARE, behind calls."""
    quote: str = ""
    """Around a text, in the form BRACED."""
    thinking: Tags = THINK
    """Around a thought; `family_of` takes those that the template writes."""

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags of calls."""
        call = (self.call.open, self.call.close) if self.call else ()
        return tuple(tag for tag in (*call, *self.around, *self.inside, self.quote) if tag)


FAMILIES = (
    Family(
        "harmony",
        CallForm.CHANNELS,
        marks=("<|channel|> <|message|>",),
        parsers=("harmony",),
        inside=("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>"),
    ),
    Family(
        "deepseek",
        CallForm.SEPARATED,
        marks=("<｜tool▁call▁begin｜>",),
        parsers=("deepseek3", "deepseek3.1"),
        call=Tags("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
        around=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        inside=("<｜tool▁sep｜>",),
    ),
    Family(
        "qwen3-coder",
        CallForm.XML,
        marks=("<tool_call> <function= <parameter=",),
        parsers=("qwen3-coder", "qwen3.5", "nemotron-3-nano"),
        call=TOOL_CALL,
    ),
    Family("functionary", CallForm.XML, marks=("<function= </function>",), call=Tags("<function=", "</function>")),
    Family(
        "glm",
        CallForm.ARG_KEYS,
        marks=("<tool_call> <arg_key>",),
        parsers=("glm-4.6", "glm-4.7", "laguna", "poolside-v1"),
        call=TOOL_CALL,
        inside=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    Family("apriel", CallForm.LIST, marks=("<tool_calls>[",), call=Tags("<tool_calls>", "</tool_calls>")),
    Family(
        "hermes",
        CallForm.JSON,
        marks=("<tool_call>",),
        parsers=("qwen3", "qwen3-thinking", "qwen3-vl-instruct", "qwen3-vl-thinking"),
        call=TOOL_CALL,
    ),
    Family("nemotron", CallForm.LIST, marks=("<TOOLCALL>",), call=Tags("<TOOLCALL>", "</TOOLCALL>")),
    Family(
        "mistral",
        CallForm.NAMED,
        marks=("[ARGS]",),
        parsers=("ministral",),
        call=Tags("[TOOL_CALLS]", ""),
        inside=("[ARGS]", "[CALL_ID]"),
        thinking=Tags("[THINK]", "[/THINK]"),
    ),
    Family("mistral-list", CallForm.LIST, marks=("[TOOL_CALLS]",), call=Tags("[TOOL_CALLS]", "")),
    Family(
        "lfm2",
        CallForm.PYTHON,
        marks=("<|tool_call_start|>",),
        parsers=("lfm2", "lfm2-thinking"),
        call=Tags("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    Family(
        "gemma4",
        CallForm.BRACED,
        marks=("<|tool_call> <tool_call|>",),
        parsers=("gemma4",),
        call=Tags("<|tool_call>", "<tool_call|>"),
        quote='<|"|>',
        thinking=Tags("<|channel>thought", "<channel|>"),
    ),
    Family(
        "functiongemma",
        CallForm.BRACED,
        marks=("<start_function_call>",),
        parsers=("functiongemma",),
        call=Tags("<start_function_call>", "<end_function_call>"),
        quote="<escape>",
    ),
    Family("granite", CallForm.LIST, marks=("<|tool_call|> <|start_of_role|>",), call=Tags("<|tool_call|>", "")),
    Family(
        "phi-4",
        CallForm.LIST,
        marks=("<|tool_call|>", "<|tool|> <|/tool|>", "<|im_sep|>"),
        call=Tags("<|tool_call|>", "<|/tool_call|>"),
    ),
    Family("gemma", CallForm.FENCED, marks=("<start_of_turn>",)),
    Family(
        "llama",
        CallForm.BARE,
        marks=("<|python_tag|>", "<|start_header_id|>", "<|header_start|>"),
        arguments_key="parameters",
        around=("<|python_tag|>", "<|python_start|>"),
        inside=("<|python_end|>",),
    ),
)
"""In the order in which they are asked: the marks of a row may be a part of what rows above it write."""

PLAIN = Family("json", CallForm.BARE)
"""Where nothing tells the family."""
PASSTHROUGH = Family("passthrough", CallForm.NONE, parsers=("passthrough",))

THINKING_TAGS = (
    THINK,
    Tags("[THINK]", "[/THINK]"),
    Tags("<thinking>", "</thinking>"),
    Tags("<|channel>thought", "<channel|>"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""Looked for in templates, in this order."""
TAG = r"(</?[^<>{}\s]{1,40}>|\[/?[^\[\]{}\s]{1,40}\])"
GO_THINKING = re.compile(rf"{TAG}\s*\{{\{{-?\s*[$.\w]{{0,60}}\.Thinking\s*-?\}}\}}\s*{TAG}")
"""What a Go template writes around a thought."""


def family_of(template: str, parser: str = "") -> Family:
    """A model's row, with the tags of thoughts that its template writes.

    Args:
        template: the text of the template that renders its prompts, Go or Jinja.
        parser: the PARSER of its Modelfile, "" where it has none. A name that is not in the table counts for nothing.
    """
    family = family_by_parser(parser) or next((row for row in FAMILIES if _is_marked(row, template)), PLAIN)
    return replace(family, thinking=_thinking_tags(template) or family.thinking)


def family_by_parser(name: str) -> Family | None:
    """The row that a PARSER names."""
    return next((row for row in (*FAMILIES, PASSTHROUGH) if name in row.parsers), None)


def parser_names() -> tuple[str, ...]:
    """All that PARSER may say."""
    return tuple(name for row in (*FAMILIES, PASSTHROUGH) for name in row.parsers)


def _is_marked(family: Family, template: str) -> bool:
    return any(all(part in template for part in mark.split(" ")) for mark in family.marks)


def _thinking_tags(template: str) -> Tags | None:
    known = next((tags for tags in THINKING_TAGS if tags.close in template), None)
    found = None if known else GO_THINKING.search(template)
    return Tags(found[1], found[2]) if found else known
