"""Answers of any family, cut in any way: what OutputReader makes of a stream is what it makes of the whole.

`check_case` is the property; tests/daemon/test_output.py tries some cases, tools/parser_cases.py ten thousand.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from daemon.output import Chunk, OutputReader
from daemon.parsers.families import FAMILIES, PASSTHROUGH, PLAIN, Family
from daemon.parsers.reading import Reading
from daemon.parsers.selection import output_parser, shown_tags
from daemon.parsers.tool_calls import ParsedCall
from engine.client import TokenOutput
from engine.text.tokenizer import Tokenizer
from engine.text.vocabulary import byte_alphabet
from tests.daemon.call_writers import WRITERS
from tests.daemon.parsing import read_output

ROWS = {row.name: row for row in (*FAMILIES, PLAIN, PASSTHROUGH)}
CALLS = (ParsedCall("f", {"x": 1}), ParsedCall("get", {"city": 'Zürich\\ "🦊"', "of": ["a", {"b": "</tool_call>"}]}))
TOOLS = tuple({"type": "function", "function": {"name": call.name}} for call in CALLS)
CONTROL = tuple(
    dict.fromkeys(
        tag
        for row in ROWS.values()
        for tag in shown_tags(row, parses_thinking=True, parses_tools=True)
    )
)  # fmt: skip
WORDS = (
    " ", "\n", "\n\n", "a", "é", "🦊", "I think", "<", "</", ">", "[", "]", "{", "}", '"', "'", "\\", ",", ";", ":",
    "(", ")", "f", "f(", "x=1", '{"name": "f"', '"arguments": {"x": 1}', "[f(x=1)", "```", "json", "assistant",
    "to=functions.f",    "analysis", "final", "END", "null", "1e5",
)  # fmt: skip
STOPS = ("END", "\n\n", "</", "🦊", "<|end|>", "aa", "} ")
BAD_BYTES = (b"\xff", b"\xf0\x9f", b"\xc3")


def make_tokenizer() -> Tokenizer:
    """A token for each byte, and control tokens for the tags of all families."""
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": [*(byte_alphabet()[byte] for byte in range(256)), *CONTROL],
            "tokenizer.ggml.token_type": [1] * 256 + [3] * len(CONTROL),
            "tokenizer.ggml.merges": [],
        }
    )


@dataclass(frozen=True)
class Case:
    """One answer: its tokens in the groups in which they come, and how it is read."""

    family: Family
    groups: tuple[tuple[int, ...], ...]
    prompt: str
    stop: tuple[str, ...]
    parses_thinking: bool
    parses_tools: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Whole tags, halves of tags, calls, halves of calls, words: in every wrong order."""
    row, write = WRITERS[draw(st.sampled_from(sorted(WRITERS)))]
    family = ROWS[row] if draw(st.integers(0, 19)) else PASSTHROUGH
    call = write(CALLS[: draw(st.integers(1, 2))])
    tags = (*family.tags, family.thinking.open, family.thinking.close)
    text = st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from(tags),
        st.builds(lambda tag, place: tag[: place % len(tag)], st.sampled_from(tags), st.integers(0, 99)),
        st.builds(lambda tag, place: tag[place % len(tag) :], st.sampled_from(tags), st.integers(0, 99)),
        st.just(call),
        st.builds(lambda place: call[: place % len(call)], st.integers(0, 999)),
        st.builds(lambda place: call[place % len(call) :], st.integers(0, 999)),
    ).map(str.encode)
    control = st.sampled_from([256 + CONTROL.index(tag) for tag in tags if tag in CONTROL])
    pieces = draw(st.lists(st.one_of(text, text, control, st.sampled_from(BAD_BYTES)), max_size=10))
    ids = list(itertools.chain.from_iterable([piece] if isinstance(piece, int) else piece for piece in pieces))
    places = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=12)))
    edges = [0, *places, len(ids)]
    opened = draw(st.sampled_from(["", f"{family.thinking.open}\n", "<|start|>assistant"]))
    return Case(
        family,
        tuple(tuple(ids[begin:end]) for begin, end in itertools.pairwise(edges)),
        f"Hello{opened}",
        tuple(draw(st.lists(st.sampled_from(STOPS), max_size=2, unique=True))),
        parses_thinking=draw(st.booleans()),
        parses_tools=draw(st.sampled_from([True, True, True, False])),
    )


def check_case(case: Case, tokenizer: Tokenizer) -> Reading:
    """In the groups of the case, token by token, and all at once: the same; and what the parser makes of the text."""
    ids = tuple(itertools.chain.from_iterable(case.groups))
    what = {"parses_thinking": case.parses_thinking, "parses_tools": case.parses_tools}
    text = whole_text(ids, case, tokenizer)
    expected = read_output([text], output_parser(case.family, case.prompt, TOOLS, **what))
    for groups in (case.groups, [(token_id,) for token_id in ids], [ids]):
        assert stream(groups, case, tokenizer) == expected, groups
    assert_nothing_is_lost(text, expected, case)
    return expected


def stream(groups: Sequence[Sequence[int]], case: Case, tokenizer: Tokenizer) -> Reading:
    """What a client puts together from the chunks of a stream."""
    what = {"parses_thinking": case.parses_thinking, "parses_tools": case.parses_tools}
    reader = OutputReader(
        tokenizer,
        [ord("H")],
        stop=case.stop,
        parser=output_parser(case.family, case.prompt, TOOLS, **what),
        shown_tags=shown_tags(case.family, **what),
        show_thinking=True,
        new_call_id=lambda: "id",
        logprobs=False,
    )
    chunks: list[Chunk] = []
    for group in groups:
        if reader.finish_reason is None:
            output = TokenOutput(
                token_ids=list(group),
                logprobs=[],
                finish_reason=None,
                num_prompt_tokens=1,
                num_cached_tokens=0,
                truncated=False,
            )
            chunks.append(reader.push(output))
    chunks.append(reader.flush())
    calls = [call.function for chunk in chunks for call in chunk.tool_calls]
    assert [call.index for call in calls] == list(range(len(calls)))
    return Reading(
        "".join(chunk.thinking for chunk in chunks),
        "".join(chunk.text for chunk in chunks),
        tuple(ParsedCall(call.name, call.arguments) for call in calls),
    )


def whole_text(ids: Sequence[int], case: Case, tokenizer: Tokenizer) -> str:
    """The answer as it reads: bytes as UTF-8, tags that the parser sees, up to the first stop string."""
    what = {"parses_thinking": case.parses_thinking, "parses_tools": case.parses_tools}
    shown = shown_tags(case.family, **what)
    data = b""
    for token_id in ids:
        name = CONTROL[token_id - 256] if token_id >= 256 else ""
        if name in case.stop:
            break
        data += bytes([token_id]) if not name else name.encode() if name in shown else b""
    text = data.decode("utf-8", "replace")
    ends = [(place + len(stop), -len(stop)) for stop in case.stop if (place := text.find(stop)) >= 0]
    end, length = min(ends, default=(len(text), 0))
    return text[: end + length]


def assert_nothing_is_lost(text: str, read: Reading, case: Case) -> None:
    """Without a call, what is read is the answer less some of its tags; white space aside."""
    if read.calls or case.family.name == "harmony":  # whose headers are dropped with their tags
        return
    kept = squeeze(read.thinking + read.text)
    tags = (*case.family.tags, case.family.thinking.open, case.family.thinking.close)
    ends = {0}  # up to where what is read may have been made of the parts so far
    for number, part in enumerate(re.split("(" + "|".join(map(re.escape, tags)) + ")", squeeze(text))):
        matched = {end + len(part) for end in ends if kept.startswith(part, end)}
        ends = matched | ends if number % 2 else matched
    assert len(kept) in ends


def squeeze(text: str) -> str:
    return "".join(text.split())
