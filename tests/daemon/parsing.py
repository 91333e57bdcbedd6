"""What tests of the parsers share: cutting texts into pieces, and running a parser over them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random

from hypothesis import strategies as st

from daemon.parsers.reading import OutputParser, Reading
from daemon.parsers.tool_calls import CallParser, ParsedCall

PLACES = st.lists(st.integers(0, 2**16), max_size=8)
"""Where to cut a text."""


def cut(text: str, places: Sequence[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def random_pieces(text: str, random: Random) -> list[str]:
    """About as long as tokens are."""
    places, place = [], 0
    while place < len(text):
        places.append(place)
        place += random.randint(1, 7)
    return cut(text, places)


def take_calls(pieces: Sequence[str], parser: CallParser) -> tuple[str, list[ParsedCall]]:
    outputs = [*(parser.push(piece) for piece in pieces), parser.flush()]
    return "".join(output.text for output in outputs), [call for output in outputs for call in output.calls]


def read_output(pieces: Sequence[str], parser: OutputParser | None) -> Reading:
    if parser is None:
        return Reading("", "".join(pieces), ())
    readings = [*(parser.push(piece) for piece in pieces), parser.flush()]
    thinking, texts, calls = zip(*readings, strict=True)
    return Reading("".join(thinking), "".join(texts), tuple(itertools.chain.from_iterable(calls)))
