"""A small template language and the skewed draw behind every choice of the generator.

A template is text with `[a|b|c]` for a choice (choices nest) and `{slot}` for a word of the story's world; `{Slot}` is the
same word with a capital. Templates are compiled once and expanded many thousand times.

Choices are skewed on purpose. A model trained on uniform choices has flat distributions, and greedy decoding then hangs on
rounding. Here each hero has favourites (a stable hash of the hero picks them), and a favourite is drawn with probability
`FAVOURITE`; the other options share the rest. So greedy text is peaked, it differs from hero to hero, and sampled text
still varies.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TypeVar
from zlib import crc32

FAVOURITE = 0.7  # probability of the favoured option; gives a top-1/top-2 margin of about 2 nats among four options
NUM_TASTES = 8  # heroes fall into this many groups with the same favourite wordings

T = TypeVar("T")
_TOKEN = re.compile(r"\[|\]|\||\{\w+\}|[^\[\]|{}]+")

# A compiled template: literal text, a slot (its name), or a choice between sequences of nodes.
Node = str | tuple[str] | list["Template"]
Template = tuple[Node, ...]


def stable_hash(text: str) -> int:
    """A hash that does not change between processes, unlike `hash`."""
    return crc32(text.encode())


def favoured(rng: random.Random, options: Sequence[T], taste: str, favourite: float = FAVOURITE) -> T:
    """Draw from `options`, one of which `taste` picks as the favourite."""
    if rng.random() < favourite:
        return options[stable_hash(taste) % len(options)]
    return options[int(rng.random() * len(options))]


class GrammarError(ValueError):
    """A template is malformed or asks for a slot that the world lacks."""


@cache
def compile_template(text: str) -> Template:
    """Turn template text into nodes.

    Raises:
        GrammarError: a bracket is open, closed twice, or a brace is alone.
    """
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text:
        raise GrammarError(f"the template {text!r} has a stray brace; a slot is written {{name}}")
    position = 0

    def sequence(depth: int) -> Template:
        nonlocal position
        nodes: list[Node] = []
        while position < len(tokens) and tokens[position] not in ("|", "]"):
            token = tokens[position]
            position += 1
            if token == "[":
                options = [sequence(depth + 1)]
                while position < len(tokens) and tokens[position] == "|":
                    position += 1
                    options.append(sequence(depth + 1))
                if position == len(tokens):
                    raise GrammarError(f"the template {text!r} leaves a bracket open; close it with ]")
                position += 1
                nodes.append(options)
            elif token[0] == "{":
                nodes.append((token[1:-1],))
            else:
                nodes.append(token)
        if depth == 0 and position < len(tokens):
            raise GrammarError(f"the template {text!r} has {tokens[position]!r} outside of brackets")
        return tuple(nodes)

    return sequence(0)


def expand(text: str, world: Mapping[str, str], rng: random.Random, taste: int | None = None) -> str:
    """Write out a template.

    Args:
        text: the template.
        world: slot name in lower case -> word.
        taste: group of favourite wordings, 0 <= taste < NUM_TASTES; None draws uniformly (for questions, which
            users word as they like).

    Raises:
        GrammarError: the template names a slot that `world` lacks.
    """
    parts: list[str] = []
    _write(compile_template(text), world, rng, taste, parts)
    return "".join(parts)


def _write(nodes: Template, world: Mapping[str, str], rng: random.Random, taste: int | None, parts: list[str]) -> None:
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
        elif isinstance(node, tuple):
            parts.append(_slot(node[0], world))
        elif taste is not None and rng.random() < FAVOURITE:
            _write(node[taste % len(node)], world, rng, taste, parts)
        else:
            _write(node[int(rng.random() * len(node))], world, rng, taste, parts)


def _slot(name: str, world: Mapping[str, str]) -> str:
    word = world.get(name)
    if word is not None:
        return word
    word = world.get(name[0].lower() + name[1:])
    if word is None:
        raise GrammarError(f"the world has no {name!r}; it has {', '.join(sorted(world))}")
    return capital(word)


def capital(text: str) -> str:
    """The text with its first letter in upper case, the rest untouched."""
    return text[:1].upper() + text[1:]


def article(noun: str) -> str:
    """`a` or `an` before a noun, by sound as far as the vocabulary needs it."""
    starts_with_vowel = noun.startswith(("honest", "hour", "heir")) or (
        noun[:1].lower() in "aeiou" and not noun.startswith(("uni", "eu", "one"))
    )
    return "an" if starts_with_vowel else "a"


def with_article(noun: str) -> str:
    """`fox` -> `a fox`."""
    return f"{article(noun)} {noun}"
