"""The one path of a prompt: every protocol translates its request into a Job and its reply from what `generate` yields.

Whether it is streamed, and in which format, is the consumer's affair. A consumer that closes the iterator early, or is
cancelled while it waits, aborts the sequence and gives the model back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from daemon.clock import Clock
from daemon.model_manager import ModelManager
from daemon.options import Options
from daemon.output import Chunk, OutputReader
from daemon.parsers.json_calls import JSONCallParser
from daemon.parsers.thinking import CLOSE_TAG, OPEN_TAG, ThinkingParser
from daemon.parsers.tool_calls import OPEN_TAG as TOOL_TAG
from daemon.parsers.tool_calls import CallParser, ToolCallParser
from daemon.prompts import Fitting, Prompt, PromptSource, compose
from daemon.tool_grammar import BARE_JSON, HERMES, MISTRAL, CallForm, ToolChoice, tool_constraint
from daemon.workers import LoadedModel
from engine.constraint import Constraint
from engine.errors import EngineDied
from engine.grammar.checker import ConstraintChecker
from registry.stored_model import StoredModel


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request, in no protocol's words."""

    stored: StoredModel
    source: Callable[[LoadedModel], PromptSource]
    """The prompt, which may be rendered by the model's own template."""
    context_ids: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive_s: float | None = None
    parses_thinking: bool = False
    shows_thinking: bool = True
    parses_tools: bool = False
    truncate: bool = True
    shift: bool = True
    logprobs: int | None = None
    """How many of the likeliest tokens to name beside the chosen one; None: no log-probabilities."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    constraint: Constraint | None = None
    """What the answer must look like; a thought before it is free."""
    tool_choice: ToolChoice | None = None
    """Which tools the answer must call; what this demands goes before `constraint`."""


@dataclass(frozen=True)
class Summary:
    """The end of a generation. Durations are nanoseconds and never 0 for something that happened."""

    done_reason: str
    """"stop" or "length"."""
    context_ids: list[int]
    """Prompt and answer."""
    is_truncated: bool
    total_ns: int
    load_ns: int
    """From the request to the loaded model."""
    num_prompt_tokens: int
    num_cached_tokens: int
    prompt_ns: int
    """Until the first token."""
    num_tokens: int
    """Generated, the one that ended the text included."""
    generation_ns: int


class Stopwatch:
    """Splits a request's time into loading, reading the prompt and generating."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start = self._loaded = self._submitted = self._first = clock.monotonic_ns()

    def loaded(self) -> None:
        self._loaded = self._submitted = self._first = self._clock.monotonic_ns()

    def submitted(self) -> None:
        self._submitted = self._first = self._clock.monotonic_ns()

    def first_token(self) -> None:
        self._first = self._clock.monotonic_ns()

    def summary(self, prompt: Prompt, reader: OutputReader, num_cached_tokens: int, *, was_cut: bool) -> Summary:
        now = self._clock.monotonic_ns()
        num_tokens = len(reader.token_ids)
        return Summary(
            done_reason="length" if reader.finish_reason == "length" else "stop",
            context_ids=[*prompt.token_ids, *reader.token_ids],
            is_truncated=prompt.is_truncated or was_cut,
            total_ns=max(1, now - self._start),
            load_ns=max(1, self._loaded - self._start),
            num_prompt_tokens=len(prompt.token_ids),
            num_cached_tokens=num_cached_tokens,
            prompt_ns=max(1, self._first - self._submitted),
            num_tokens=num_tokens,
            generation_ns=max(1, now - self._first) if num_tokens else 0,
        )


class Generator:
    """What every generation needs.

    Args:
        draw_seed: a random seed for requests that do not name one.
        new_call_id: an id for a tool call.
        checker: tells whether a constraint can be enforced; None makes one.
    """

    def __init__(
        self,
        models: ModelManager,
        clock: Clock,
        draw_seed: Callable[[], int],
        new_call_id: Callable[[], str],
        checker: ConstraintChecker | None = None,
    ) -> None:
        self._models = models
        self._clock = clock
        self._draw_seed = draw_seed
        self._new_call_id = new_call_id
        self._checker = checker or ConstraintChecker()

    def close(self) -> None:
        """Ends the process that checks constraints."""
        self._checker.close()

    async def generate(self, job: Job) -> AsyncGenerator[Chunk | Summary]:
        """Chunks, then one Summary.

        Raises:
            DaemonError: the request cannot be served as it stands, or not now.
            ConstraintError: the constraint cannot be enforced.
            EngineError: the model could not be loaded, or its worker died.
        """
        if job.constraint is not None:  # before a model is loaded for it
            await asyncio.to_thread(self._checker.check, job.constraint)
        watch, has_sent = Stopwatch(self._clock), False
        try:
            async with aclosing(self._attempt(job, watch)) as pieces:
                async for piece in pieces:
                    has_sent = True
                    yield piece
            return
        except EngineDied:
            # A worker that died while it was idle, or of another request: who has seen nothing yet need not know.
            if has_sent:
                raise
        async with aclosing(self._attempt(job, watch)) as pieces:
            async for piece in pieces:
                yield piece

    async def _attempt(self, job: Job, watch: Stopwatch) -> AsyncGenerator[Chunk | Summary]:
        with self._models.queue() as place:
            async with self._models.acquire(job.stored, job.keep_alive_s) as model:
                watch.loaded()
                prompt, options, fitting = await self._compose(job, model)
                reader = self._reader(job, model, prompt, options)
                params = options.sampling_params(
                    fitting.num_ctx,
                    num_keep=fitting.num_keep,
                    shift=fitting.shift,
                    logprobs=job.logprobs,
                    logit_bias=job.logit_bias,
                    stop_token_ids=tuple(sorted({*model.tokenizer.eos_ids, *model.config.eos_token_ids})),
                    random_seed=self._draw_seed(),
                )
                constraint = await self._constraint(job, model, prompt)
                num_cached_tokens, was_cut = 0, False
                watch.submitted()
                async with aclosing(model.engine.submit(prompt.token_ids, params, constraint=constraint)) as stream:
                    async for output in stream:
                        if not reader.token_ids:
                            place.served()
                            watch.first_token()
                        num_cached_tokens = max(num_cached_tokens, output.num_cached_tokens)
                        was_cut = was_cut or output.truncated
                        if chunk := reader.push(output):
                            yield chunk
                        if reader.finish_reason is not None:
                            break
                yield reader.flush()
                yield watch.summary(prompt, reader, num_cached_tokens, was_cut=was_cut)

    async def render(self, job: Job) -> str:
        """The prompt's text as it would go to the engine."""
        async with self._models.acquire(job.stored, job.keep_alive_s) as model:
            prompt, _, _ = await self._compose(job, model)
            return prompt.text

    async def load(self, stored: StoredModel, keep_alive_s: float | None) -> None:
        """Load a model and leave it for its keep-alive."""
        async with self._models.acquire(stored, keep_alive_s):
            pass

    async def _compose(self, job: Job, model: LoadedModel) -> tuple[Prompt, Options, Fitting]:
        options = Options.merge(model.stored.params, job.options)
        num_ctx = options.num_ctx(model.default_context, model.max_context)
        num_keep = options.num_keep(adds_bos=model.tokenizer.add_bos)
        fitting = Fitting(num_ctx, num_keep, truncate=job.truncate, shift=job.shift)
        # Templates come from strangers and texts may be long: neither must hold up the loop.
        prompt = await asyncio.to_thread(compose, job.source(model), model.tokenizer, job.context_ids, fitting)
        return prompt, options, fitting

    async def _constraint(self, job: Job, model: LoadedModel, prompt: Prompt) -> Constraint | None:
        """What the engine is told of the answer: the constraint, and where the thought before it ends."""
        constraint = job.constraint
        if job.tool_choice is not None:
            calls = tool_constraint(job.tool_choice, _call_form(model.template.text))
            if calls is not None:
                await asyncio.to_thread(self._checker.check, calls)
                constraint = calls
        if constraint is None or not job.parses_thinking:
            return constraint
        if prompt.text.rstrip().endswith(OPEN_TAG):
            return structs.replace(constraint, close_tag=CLOSE_TAG)
        # Who does not want to see thoughts gets none where the model could only begin one by itself.
        return structs.replace(constraint, open_tag=OPEN_TAG, close_tag=CLOSE_TAG) if job.shows_thinking else constraint

    def _reader(self, job: Job, model: LoadedModel, prompt: Prompt, options: Options) -> OutputReader:
        inside = prompt.text.rstrip().endswith(OPEN_TAG)  # some templates open the thought themselves
        return OutputReader(
            model.tokenizer,
            prompt.token_ids,
            stop=options.stop,
            thinking=ThinkingParser(inside=inside) if job.parses_thinking else None,
            show_thinking=job.shows_thinking,
            tools=_call_parser(model.template.text) if job.parses_tools else None,
            new_call_id=self._new_call_id,
            logprobs=job.logprobs is not None,
        )


def _call_form(template: str) -> CallForm:
    """How the model writes calls, as its template tells."""
    if TOOL_TAG in template:
        return HERMES
    return MISTRAL if "[TOOL_CALLS]" in template else BARE_JSON


def _call_parser(template: str) -> CallParser:
    """A model writes its calls as its template writes those of earlier turns: between tags, or as bare JSON."""
    return ToolCallParser() if TOOL_TAG in template else JSONCallParser()
