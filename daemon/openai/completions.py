"""/v1/completions: its prompts, and its replies as a stream or as one object. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET

from daemon.api import Logprob, TopLogprob
from daemon.errors import BadRequest
from daemon.generation import Summary
from daemon.openai import api
from daemon.openai.replies import MIN_LOGPROB, Header, Totals
from daemon.output import Chunk, join_chunks

MAX_TEXTS = 2048
"""Of one request."""

NewDecoder = codecs.getincrementaldecoder("utf-8")

TextOrIds = str | list[int]


def read_prompts(prompt: str | Sequence[str | int | list[int]] | None) -> list[TextOrIds]:
    """The prompts of a request: texts, or token ids.

    Raises:
        BadRequest: there is none, or they are not all of a kind.
    """
    if prompt is None or prompt == []:
        raise BadRequest("prompt is missing", "prompt")
    if isinstance(prompt, str):
        return [prompt]
    texts = [item for item in prompt if isinstance(item, str)]
    token_ids = [item for item in prompt if isinstance(item, int)]
    lists = [item for item in prompt if isinstance(item, list)]
    if len(prompt) not in (len(texts), len(token_ids), len(lists)):
        raise BadRequest("prompt mixes texts, token ids and lists of token ids; give one kind", "prompt")
    prompts: list[TextOrIds] = [token_ids] if token_ids else [*texts, *lists]
    if [] in prompts:
        raise BadRequest("prompt has an empty list of token ids", "prompt")
    return prompts


def check_completion(body: api.CompletionRequest, prompts: Sequence[TextOrIds], count: int) -> None:
    """Refuse fields that do not go together.

    Raises:
        BadRequest: there are some.
    """
    if len(prompts) * count > MAX_TEXTS:
        raise BadRequest(
            f"{len(prompts)} prompts with {count} texts each are {len(prompts) * count}, but at most {MAX_TEXTS} are "
            "made at once",
            "prompt",
        )
    if body.best_of not in (None, count):
        raise BadRequest(
            f"best_of is {body.best_of} and n is {count}, but texts are not compared here; leave best_of out", "best_of"
        )
    if body.echo and body.logprobs is not None:
        raise BadRequest("echo and logprobs exclude each other: prompts have no log-probabilities here", "echo")
    if body.suffix and not all(isinstance(prompt, str) for prompt in prompts):
        raise BadRequest("suffix goes with prompts that are texts", "suffix")


class LegacyLogprobs:
    """Log-probabilities of one text in the form of this route. It knows how much text came before.

    Args:
        with_top: whether the likeliest tokens were asked for, too.
    """

    def __init__(self, *, with_top: bool) -> None:
        self._with_top = with_top
        self._decoder = NewDecoder("replace")
        self._offset = 0

    def take(self, entries: Sequence[Logprob]) -> api.CompletionLogprobs:
        """Of the next tokens."""
        offsets = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(bytes(entry.bytes)))
        tops = [{_label(top): max(top.logprob, MIN_LOGPROB) for top in entry.top_logprobs} for entry in entries]
        return api.CompletionLogprobs(
            tokens=[_label(entry) for entry in entries],
            token_logprobs=[max(entry.logprob, MIN_LOGPROB) for entry in entries],
            top_logprobs=tops if self._with_top else None,
            text_offset=offsets,
        )


@dataclass(kw_only=True)
class CompletionReplies:
    """Words of one request.

    Args:
        echoes: what stands before the texts of each prompt.
        num_top: likeliest tokens to name; None for no log-probabilities.
        wants_usage: whether a stream ends with the usage.
    """

    header: Header
    echoes: Sequence[str]
    num_top: int | None
    wants_usage: bool
    totals: Totals
    _logprobs: dict[int, LegacyLogprobs] = field(default_factory=dict)
    """Of the choices that have begun."""

    def chunk(self, index: int, chunk: Chunk) -> api.Completion:
        """What is new in a text."""
        return self._completion([self._choice(index, chunk)])

    def end(self, index: int, summary: Summary) -> api.Completion:
        """The last one of a text."""
        completion = self._completion([self._choice(index, Chunk(), summary.done_reason)])
        if summary.is_truncated:
            completion.truncated = True
        return completion

    def usage(self) -> api.Completion:
        """The last one of the stream."""
        completion = self._completion([])
        completion.usage = self.totals.usage()
        return completion

    def whole(self, chunks: dict[int, list[Chunk]]) -> api.Completion:
        """All texts, which have ended, as one object."""
        ended = sorted(self.totals.summaries.items())
        completion = self._completion(
            [self._choice(index, join_chunks(chunks.get(index, [])), end.done_reason) for index, end in ended]
        )
        completion.usage = self.totals.usage()
        completion.truncated = self.totals.truncated
        return completion

    def _choice(self, index: int, chunk: Chunk, finish_reason: str | None = None) -> api.CompletionChoice:
        text = chunk.text if index in self._logprobs else self.echoes[index // self.totals.num_answers] + chunk.text
        logprobs = self._logprobs.setdefault(index, LegacyLogprobs(with_top=bool(self.num_top)))
        return api.CompletionChoice(
            index=index,
            text=text,
            logprobs=None if self.num_top is None else logprobs.take(chunk.logprobs),
            finish_reason=finish_reason,
        )

    def _completion(self, choices: list[api.CompletionChoice]) -> api.Completion:
        header = self.header
        return api.Completion(
            id=header.id,
            created=header.created,
            model=header.model,
            system_fingerprint=header.fingerprint,
            choices=choices,
            usage=None if self.wants_usage else UNSET,
        )


def _label(entry: Logprob | TopLogprob) -> str:
    """A token's text, or its bytes as OpenAI writes them where they are a part of a character."""
    data = bytes(entry.bytes)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
