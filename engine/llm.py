"""LLM: a model in this process, for scripts and benchmarks. The daemon uses EngineClient instead.

    llm = LLM("path/to/model.gguf")
    for output in llm.generate(["Once upon a time"], SamplingParams(max_tokens=32)):
        print(output.text)

It is the worker without the process: the same LLMEngine, scheduler and runner, so all prompts of a call are batched,
and prefixes stay cached between calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from engine.config import ModelConfig
from engine.constraint import Constraint
from engine.errors import EngineError, RequestFailed
from engine.execution.model_runner import ModelRunner
from engine.grammar.service import GrammarService
from engine.llm_engine import LLMEngine
from engine.messages import Load, Ready, Stats, TokenRow
from engine.sampling_params import SamplingParams
from engine.scheduling import sequence
from engine.scheduling.batch import TokenLogprobs
from engine.text.detokenizer import Detokenizer
from engine.text.tokenizer import Tokenizer
from modelfiles.prompt import Message, jinja_prompt_template
from modelfiles.source import ModelSource

Prompt = str | Sequence[int]


class Output(msgspec.Struct, kw_only=True):
    """One prompt's continuation."""

    prompt_ids: list[int]
    text: str = ""
    """Without special tokens and without the stop string."""
    token_ids: list[int] = []
    """All that were generated, the stop token included."""
    finish_reason: str = ""
    """"stop" (a stop token or a stop string) or "length"."""
    logprobs: list[TokenLogprobs] = []
    """One a token where `params.logprobs` asks for them."""
    num_cached_tokens: int = 0
    """Prompt tokens that the prefix cache held."""
    truncated: bool = False
    """Whether the context has been shifted."""


class _Pending:
    """An output that is being made."""

    def __init__(self, prompt_ids: list[int], tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.output = Output(prompt_ids=prompt_ids)
        self._detokenizer = Detokenizer(tokenizer, stop, prompt_ids)

    def push(self, row: TokenRow) -> bool:
        """Takes in a row; True if a stop string ended the output before the engine did.

        Raises:
            RequestFailed: the model failed at this prompt.
        """
        output = self.output
        if row.finish_reason == "error":
            raise RequestFailed(row.error or "the model failed while it computed")
        output.token_ids += row.token_ids
        output.logprobs += row.logprobs
        output.num_cached_tokens = output.num_cached_tokens or row.num_cached_tokens
        output.truncated = row.truncated
        # The stop token ends the text and is no part of it.
        is_stop = row.finish_reason == "stop"
        output.text += self._detokenizer.push(row.token_ids[:-1] if is_stop else row.token_ids)
        if row.finish_reason is not None:
            output.text += self._detokenizer.flush()
        if self._detokenizer.stopped is not None:
            output.finish_reason = "stop"
            return row.finish_reason is None
        output.finish_reason = row.finish_reason or ""
        return False


class LLM:
    """A loaded model and its tokenizer.

    Args:
        model: A GGUF file, a folder in the layout of the Hugging Face hub, or a ModelSource.
        options: Fields of messages.Load, such as `device`, `dtype`, `num_blocks`, `run_ahead`.

    Raises:
        SourceError, ConfigError, GGUFError, SafetensorsError, TokenizerError: the files are no model that Hob runs.
        ExecutionError: it does not fit, or this machine cannot run it.
    """

    def __init__(self, model: str | Path | ModelSource, **options: Any) -> None:
        source = model if isinstance(model, ModelSource) else ModelSource.from_path(Path(model))
        load = Load(files={name: str(path) for name, path in source.files.items()}, **options)
        self.tokenizer = Tokenizer.from_source(source)
        self.config = ModelConfig.from_source(source)
        runner = self.runner = ModelRunner.load(load)
        self.ready: Ready = runner.ready
        self._grammars = GrammarService(load.files, runner.vocab_size)
        self.engine = LLMEngine.for_runner(runner, load, self._grammars.fill)
        self.stop_token_ids = tuple(sorted(self.tokenizer.eos_ids | set(self.config.eos_token_ids)))
        """What ends an answer unless a request's own `stop_token_ids` say otherwise."""
        self._num_sequences = 0
        self._num_adapters = 0

    def add_adapter(self, *paths: str | Path) -> int:
        """Puts LoRA adapters beside the weights: GGUF files, or folders in PEFT's layout; several add up.

        Returns:
            The number that `generate` takes.

        Raises:
            AdapterError, SourceError, GGUFError, SafetensorsError: one cannot be applied to this model.
            ExecutionError: they do not fit.
        """
        sources = [ModelSource.from_path(Path(path)) for path in paths]
        files = {f"{n}/{name}": str(file) for n, source in enumerate(sources) for name, file in source.files.items()}
        self.runner.add_adapter(self._num_adapters + 1, files)
        self._num_adapters += 1
        return self._num_adapters

    def remove_adapter(self, adapter: int) -> None:
        """Gives an adapter's memory back."""
        self.runner.remove_adapter(adapter)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stop: Sequence[str] = (),
        adapter: int | Sequence[int] = 0,
        constraint: Constraint | None = None,
    ) -> list[Output]:
        """Continues prompts, all of them at once.

        Args:
            prompts: Text, or token ids that are taken as they are; one or many.
            params: For all, or one for each. Without `stop_token_ids`, the model's own end tokens count.
            stop: Strings that end an output.
            adapter: A number of `add_adapter`, for all prompts or one for each; 0 is the model alone.
            constraint: What every output must look like.

        Returns:
            One output a prompt, in their order.

        Raises:
            ConstraintError: the constraint cannot be enforced.
            SchedulerError: a prompt can never run; nothing has been generated.
            RequestFailed: the model failed at a prompt; the others are lost, too.
        """
        prompt_ids = [self._encode(prompt) for prompt in _as_list(prompts)]
        per_prompt = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(prompt_ids)
        if len(per_prompt) != len(prompt_ids):
            raise EngineError(f"{len(per_prompt)} sampling parameters were given for {len(prompt_ids)} prompts")
        adapters = [adapter] * len(prompt_ids) if isinstance(adapter, int) else list(adapter)
        pending: dict[int, _Pending] = {}
        outputs = []
        try:
            for ids, one_params, number in zip(prompt_ids, per_prompt, adapters, strict=True):
                seq_id = self._num_sequences
                self._num_sequences += 1
                state = None if constraint is None else self._grammars.state(constraint)
                with_stops = self._with_stop_tokens(one_params)
                self.engine.add(sequence.Sequence(seq_id, ids, with_stops, adapter=number, constraint=state))
                pending[seq_id] = _Pending(ids, self.tokenizer, stop)
                outputs.append(pending[seq_id].output)
            while pending:
                self._take(self.engine.step(), pending)
        finally:
            # After an error, and for the steps that were launched ahead of a stop.
            for seq_id in pending:
                self.engine.abort(seq_id)
            self.engine.drain()
        return outputs

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        stop: Sequence[str] = (),
        think: bool | str | None = None,
        now: datetime | None = None,
    ) -> Output:
        """Answers a conversation, rendered with the model's own chat template.

        Args:
            messages: In order; as Message, or as mappings with "role" and "content".
            think: Whether a model that can think first shall; None leaves it to the template.
            now: The date that some templates show.

        Raises:
            EngineError: the model has no chat template.
            TemplateError: the template refuses the conversation.
        """
        if self.tokenizer.chat_template is None:
            raise EngineError("the model has no chat template; use generate with a prompt of your own")
        template = jinja_prompt_template(self.tokenizer.chat_template, self.tokenizer.special_tokens)
        conversation = [message if isinstance(message, Message) else Message(**message) for message in messages]
        prompt = template.render(conversation, think=think, now=now or datetime.now().astimezone())
        return self.generate([prompt], params, stop=stop)[0]

    def stats(self) -> Stats:
        """Counters since the model was loaded."""
        return self.engine.stats()

    def _take(self, rows: list[TokenRow], pending: dict[int, _Pending]) -> None:
        for row in rows:
            one = pending.get(row.seq_id)
            if one is None:
                continue
            is_stopped = one.push(row)
            if is_stopped:
                self.engine.abort(row.seq_id)
            if is_stopped or row.finish_reason is not None:
                del pending[row.seq_id]

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _with_stop_tokens(self, params: SamplingParams) -> SamplingParams:
        if params.stop_token_ids:
            return params
        return msgspec.structs.replace(params, stop_token_ids=self.stop_token_ids)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt, as text or as ids, becomes a list of one."""
    # The first item tells which of the two it is, which mypy cannot follow.
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
