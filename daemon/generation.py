"""The one path of a prompt: every protocol translates its request into a Job and its reply from what `generate` yields.

Whether it is streamed, and in which format, is the consumer's affair. A consumer that closes the iterator early, or is
cancelled while it waits, aborts the sequence and gives the model back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from msgspec import structs

from daemon.clock import Clock
from daemon.model_manager import ModelManager
from daemon.options import Options
from daemon.output import Chunk, OutputReader
from daemon.parsers.families import CallForm, Family, family_of
from daemon.parsers.selection import output_parser, shown_tags
from daemon.prompts import Fitting, Prompt, PromptSource, compose
from daemon.tool_grammar import ToolChoice, about_tools, call_syntax, tool_constraint
from daemon.workers import LoadedModel
from engine.constraint import Constraint, ConstraintError
from engine.errors import EngineDied
from engine.grammar.checker import ConstraintChecker
from registry.stored_model import StoredModel

FINAL_MESSAGE = "<|channel|>final<|message|>"
"""What begins the answer in harmony."""


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
    tools: Sequence[Mapping[str, Any]] = ()
    """Those of the request, where it has any: what may be called, and of what types arguments are."""
    truncate: bool = True
    shift: bool = True
    logprobs: int | None = None
    """How many of the likeliest tokens to name beside the chosen one; None: no log-probabilities."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    constraint: Constraint | None = None
    """What the answer must look like; a thought before it is free."""
    tool_choice: Literal["auto", "required"] = "auto"
    """Whether the answer must call one of `tools`, where the model writes calls in a form that can be enforced."""
    tool_name: str | None = None
    """The tool that it must call."""
    on_start: Callable[[int, int], None] | None = None
    """Hears, before the first chunk, how many tokens the prompt has and how many of them the prefix cache held."""
    max_tool_calls: int | None = None
    """The answer ends with that many."""
    counts: bool = True
    """Whether it takes a place in the queue; of several answers to one request, one does."""


@dataclass(frozen=True)
class Summary:
    """The end of a generation. Durations are nanoseconds and never 0 for something that happened."""

    done_reason: str
    """"stop" or "length"."""
    stop_string: str | None
    """The string that ended the text, where one did."""
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
    num_thinking_tokens: int
    """Of those, up to the step in which the thought ended."""
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
            stop_string=reader.stop_string,
            context_ids=[*prompt.token_ids, *reader.token_ids],
            is_truncated=prompt.is_truncated or was_cut,
            total_ns=max(1, now - self._start),
            load_ns=max(1, self._loaded - self._start),
            num_prompt_tokens=len(prompt.token_ids),
            num_cached_tokens=num_cached_tokens,
            prompt_ns=max(1, self._first - self._submitted),
            num_tokens=num_tokens,
            num_thinking_tokens=reader.num_thinking_tokens,
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
            await self._checker.checked(job.constraint)
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
        with self._models.queue(counts=job.counts) as place:
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
                stream_of_tokens = model.engine.submit(
                    prompt.token_ids, params, adapter=model.adapter, constraint=constraint
                )
                async with aclosing(stream_of_tokens) as stream:
                    async for output in stream:
                        if not reader.token_ids:
                            place.served()
                            watch.first_token()
                            if job.on_start is not None:
                                job.on_start(len(prompt.token_ids), output.num_cached_tokens)
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
        prompt = await asyncio.to_thread(lambda: compose(job.source(model), model.tokenizer, job.context_ids, fitting))
        return prompt, options, fitting

    async def _constraint(self, job: Job, model: LoadedModel, prompt: Prompt) -> Constraint | None:
        """What the engine is told of the answer: the constraint, and where the thought before it ends."""
        family = family_of(model.template.text, model.stored.parser)
        constraint = job.constraint
        syntax = call_syntax(family)
        if job.parses_tools and job.tools and syntax is not None:
            choice = ToolChoice(job.tools, job.tool_choice, job.tool_name, parallel=job.max_tool_calls != 1)
            calls = tool_constraint(choice, syntax, job.constraint)
            if calls is not None:
                try:
                    await self._checker.checked(calls)
                except ConstraintError as error:
                    raise about_tools(error, choice, calls) from error
                constraint = calls
        if constraint is None or not job.parses_thinking:
            return constraint
        return _behind_thought(constraint, family, prompt.text.rstrip())

    def _reader(self, job: Job, model: LoadedModel, prompt: Prompt, options: Options) -> OutputReader:
        family = family_of(model.template.text, model.stored.parser)
        what = {"parses_thinking": job.parses_thinking, "parses_tools": job.parses_tools}
        return OutputReader(
            model.tokenizer,
            prompt.token_ids,
            stop=options.stop,
            parser=output_parser(family, prompt.text, job.tools, **what),
            shown_tags=shown_tags(family, **what),
            show_thinking=job.shows_thinking,
            new_call_id=self._new_call_id,
            max_calls=job.max_tool_calls,
            logprobs=job.logprobs is not None,
        )


def _behind_thought(constraint: Constraint, family: Family, prompt: str) -> Constraint:
    """The constraint, with the tags of a thought that may come before the answer."""
    tags = family.thinking
    if family.form is CallForm.CHANNELS:  # harmony: whatever comes before the answer's own message is free
        return constraint if prompt.endswith(FINAL_MESSAGE) else structs.replace(constraint, close_tag=FINAL_MESSAGE)
    if prompt.endswith(tags.open):
        return structs.replace(constraint, close_tag=tags.close)
    if prompt.endswith(tags.close):  # an empty thought: templates write it to switch thinking off
        return constraint
    return structs.replace(constraint, open_tag=tags.open, close_tag=tags.close)
