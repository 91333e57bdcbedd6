"""From a request to token ids: what is rendered, and what is dropped when it is longer than the context.

The oldest messages go first, whole, never a system message and never the last one. What is then still too long is cut
in its middle: the first `num_keep` tokens and the newest ones stay, in steps of half the remaining context, so that
there is room to answer. Source: ollama/ollama server/prompt.go and llama.cpp's server (context shift of the prompt).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.errors import BadRequest, PromptTooLong
from engine.text.tokenizer import Tokenizer
from modelfiles.prompt import Message


class PromptSource(Protocol):
    """What can be rendered with fewer messages than it has."""

    @property
    def num_droppable(self) -> int: ...
    def render(self, num_dropped: int) -> str: ...


@dataclass(frozen=True)
class TextPrompt:
    """Text that is the prompt as it stands, or is rendered in one way only."""

    text: Callable[[], str]
    num_droppable: int = 0

    def render(self, num_dropped: int) -> str:
        return self.text()


@dataclass(frozen=True)
class MessagesPrompt:
    """Messages and how they are rendered."""

    messages: Sequence[Message]
    render_messages: Callable[[Sequence[Message]], str]

    @property
    def num_droppable(self) -> int:
        return len(self._droppable())

    def render(self, num_dropped: int) -> str:
        dropped = set(self._droppable()[:num_dropped])
        return self.render_messages([message for index, message in enumerate(self.messages) if index not in dropped])

    def _droppable(self) -> list[int]:
        return [index for index, message in enumerate(self.messages[:-1]) if message.role != "system"]


@dataclass(frozen=True)
class Prompt:
    """What goes to the engine."""

    text: str
    token_ids: list[int]
    is_truncated: bool


@dataclass(frozen=True)
class Fitting:
    """How a prompt is made to fit."""

    num_ctx: int
    num_keep: int
    """Tokens in front that stay, BOS among them; -1 is as many as can be."""
    truncate: bool
    """Whether anything may be dropped."""
    shift: bool
    """Whether the middle may be cut out."""


def compose(source: PromptSource, tokenizer: Tokenizer, context_ids: Sequence[int], fitting: Fitting) -> Prompt:
    """Render, encode and fit a prompt. Slow for long texts: call it off the event loop.

    Args:
        context_ids: tokens of an earlier reply that come first.

    Raises:
        PromptTooLong: it may not be cut.
        BadRequest: there are no tokens in it.
    """
    _check_ids(context_ids, tokenizer)
    limit = fitting.num_ctx - 1  # room for one token of an answer

    def encoded(num_dropped: int) -> tuple[str, list[int]]:
        text = source.render(num_dropped)
        return text, [*context_ids, *tokenizer.encode(text, add_special=not context_ids)]

    text, token_ids = encoded(0)
    if not token_ids:
        raise BadRequest("the prompt is empty: there is no token in it to go on from")
    if len(token_ids) <= limit:
        return Prompt(text, token_ids, is_truncated=False)
    if not fitting.truncate:
        raise PromptTooLong(
            f"the prompt is too long: its {len(token_ids)} tokens exceed the context length of {fitting.num_ctx} "
            "(one is kept for the answer); shorten it, raise num_ctx or allow truncation"
        )
    # The fewest messages to drop, by bisection: each try renders and encodes the whole prompt.
    low, high = 0, source.num_droppable
    while low < high:
        middle = (low + high) // 2
        if len(encoded(middle)[1]) <= limit:
            high = middle
        else:
            low = middle + 1
    text, token_ids = encoded(low)
    if len(token_ids) > limit:
        if not fitting.shift:
            raise PromptTooLong(
                "the prompt is longer than the context length currently available: "
                f"{len(token_ids)} tokens exceed {fitting.num_ctx}; shorten it, raise num_ctx or allow shift "
                "(in OpenAI's API options.truncate)"
            )
        token_ids = cut_middle(token_ids, fitting.num_ctx, fitting.num_keep)
    return Prompt(text, token_ids, is_truncated=True)


def cut_middle(token_ids: list[int], num_ctx: int, num_keep: int) -> list[int]:
    """The first `num_keep` tokens and the newest ones, in fewer than `num_ctx` tokens and at least about half of it."""
    num_keep = max(0, min(num_ctx if num_keep < 0 else num_keep, num_ctx - MIN_FREE))
    step = max(1, (num_ctx - num_keep) // 2)
    num_erased = -(-(len(token_ids) - num_ctx + 1) // step) * step
    return token_ids[:num_keep] + token_ids[num_keep + num_erased :]


MIN_FREE = 4
"""However much a request wants to keep, this many tokens of the context are for what is new."""


def _check_ids(token_ids: Sequence[int], tokenizer: Tokenizer) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < tokenizer.vocab_size:
            raise BadRequest(
                f"context holds {token_id}, which is no token: ids go from 0 to {tokenizer.vocab_size - 1}"
            )
