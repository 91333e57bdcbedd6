"""A loaded model as the cases of benchmarks/gpu.py drive it: the engine's step loop with a clock around it.

The loop is the worker's without the channel: add sequences, call `step`, look at the rows. Times are the host's, taken
when a step's rows are there.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_bench import Bench

from engine.config import ModelConfig
from engine.execution.kv_cache import block_bytes
from engine.execution.model_runner import ModelRunner
from engine.llm_engine import LLMEngine
from engine.messages import Load, TokenRow
from engine.sampling_params import SamplingParams
from engine.scheduling import sequence
from engine.scheduling.batch import Handle, Runner, ScheduledBatch, StepResult, TokenMasks
from modelfiles.source import ModelSource

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.8, top_k=40, top_p=0.9, ignore_eos=True)
SETTLE_STEPS = 4
"""Steps after the last prompt that do not count: the device still has parts of prompts queued."""


class TimedRunner:
    """A runner that adds up how long the host waits for results."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.waited_s = 0.0

    def launch(self, batch: ScheduledBatch, masks: TokenMasks | None = None) -> Handle:
        return _TimedHandle(self, self._runner.launch(batch, masks))


class _TimedHandle:
    def __init__(self, owner: TimedRunner, handle: Handle) -> None:
        self._owner = owner
        self._handle = handle

    def result(self) -> StepResult:
        start = time.perf_counter()
        result = self._handle.result()
        self._owner.waited_s += time.perf_counter() - start
        return result


@dataclass
class Trace:
    """What happened, a step at a time."""

    begin: float
    times: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    """Seconds that each step waited for the device."""
    worked: list[float] = field(default_factory=list)
    """Seconds that each step kept the host busy: schedule, launch and update."""
    first_token: dict[int, float] = field(default_factory=dict)
    """Seconds from `begin`, by sequence."""
    outputs: dict[int, list[int]] = field(default_factory=dict)
    first_end: int | None = None
    """Number of the step in which the first sequence ended."""
    last_start: int = 0
    """Number of the step in which the last sequence got its first token."""

    @property
    def total_s(self) -> float:
        return self.times[-1] - self.begin

    @property
    def total_rate(self) -> float:
        """Tokens a second from the first `add` to the last token."""
        return sum(self.num_tokens) / self.total_s

    def steady(self) -> range:
        """The steps in which every sequence decodes.

        Raises:
            RuntimeError: there are none.
        """
        end = len(self.times) if self.first_end is None else self.first_end
        steps = range(self.last_start + SETTLE_STEPS + 1, end)
        if len(steps) < 3:
            raise RuntimeError(f"only {len(steps)} steps had all sequences decoding; give them more tokens to generate")
        return steps

    def steady_rate(self) -> float:
        """Tokens a second while every sequence decodes."""
        steps = self.steady()
        seconds = self.times[steps[-1]] - self.times[steps[0] - 1]
        return sum(self.num_tokens[step] for step in steps) / seconds

    def steady_step_s(self) -> float:
        steps = self.steady()
        return (self.times[steps[-1]] - self.times[steps[0] - 1]) / len(steps)


class Session:
    """One loaded model.

    Args:
        options: fields of messages.Load.
    """

    def __init__(self, model: Path, device: str, **options: Any) -> None:
        _free_cached_memory()  # what was measured before must not make the KV cache smaller
        source = ModelSource.from_path(model)
        files = {name: str(path) for name, path in source.files.items()}
        load = Load(files=files, device=device, dtype="bfloat16", **options)
        self.config = ModelConfig.from_source(source)
        self.runner = ModelRunner.load(load)
        while self.runner.prepare():  # as an idle worker does
            pass
        self.timed = TimedRunner(self.runner)
        self.engine = LLMEngine(LLMEngine.for_runner(self.runner, load).scheduler, self.timed, load.run_ahead)
        self.rng = random.Random(0)
        self._num_sequences = 0
        # As the worker does: the model is no garbage, and looking at it would take milliseconds.
        gc.collect()
        gc.freeze()
        gc.disable()

    def prompt(self, length: int) -> list[int]:
        """Random ids; no two prompts share a block. The last ids, which are special tokens, stay out."""
        return self.rng.choices(range(256, self.config.vocab_size - 3), k=length)

    def add(self, prompt_ids: Sequence[int], params: SamplingParams, num_tokens: int) -> int:
        """Queues a prompt that shall generate `num_tokens`; returns its number."""
        seq_id = self._num_sequences
        self._num_sequences += 1
        options = {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "ignore_eos")}
        own = SamplingParams(**options, seed=seq_id, max_tokens=num_tokens)
        self.engine.add(sequence.Sequence(seq_id, prompt_ids, own))
        return seq_id

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        num_tokens: int | Sequence[int],
        params: SamplingParams = GREEDY,
        *,
        on_step: Callable[[int], None] | None = None,
    ) -> Trace:
        """Generates from prompts that all come at once, until the last has ended.

        Args:
            num_tokens: for all, or one for each.
            on_step: called with the number of each step.
        """
        counts = [num_tokens] * len(prompts) if isinstance(num_tokens, int) else list(num_tokens)
        trace = Trace(time.perf_counter())
        for prompt_ids, count in zip(prompts, counts, strict=True):
            trace.outputs[self.add(prompt_ids, params, count)] = []
        number = 0
        while self.engine.has_work:
            self.step(trace)
            if on_step is not None:
                on_step(number)
            number += 1
        short = sum(len(ids) for ids in trace.outputs.values()) - sum(counts)
        if short:
            raise RuntimeError(f"{sum(counts)} tokens were to be generated, and {-short} are missing")
        return trace

    def step(self, trace: Trace) -> list[TokenRow]:
        """One step, written into the trace.

        Raises:
            RuntimeError: a sequence failed.
        """
        self.timed.waited_s = 0.0
        start = time.perf_counter()
        rows = self.engine.step()
        now = time.perf_counter()
        trace.waited.append(self.timed.waited_s)
        trace.worked.append(now - start - self.timed.waited_s)
        number = len(trace.times)
        num_tokens = 0
        for row in rows:
            output = trace.outputs[row.seq_id]
            if not output and row.token_ids:
                trace.first_token[row.seq_id] = now - trace.begin
                trace.last_start = number
            output += row.token_ids
            num_tokens += len(row.token_ids)
            if row.finish_reason is not None:
                if row.finish_reason != "length":
                    raise RuntimeError(f"a sequence ended with {row.finish_reason}: {row.error}")
                if trace.first_end is None:
                    trace.first_end = number
        trace.times.append(now)
        trace.num_tokens.append(num_tokens)
        return rows

    def resize(self, num_blocks: int) -> None:
        """Goes on with a KV cache of another size, as the worker does; nothing may be running. 0 is the default."""
        self.engine.drain()
        self.runner.free_kv()
        self.runner.allocate_kv(num_blocks=num_blocks)
        self.engine.scheduler.resize(self.runner.ready.num_blocks, self.runner.ready.max_context)

    def close(self) -> None:
        """Gives the device's memory back."""
        self.runner.free_kv()
        del self.engine, self.timed, self.runner
        gc.unfreeze()
        gc.collect()
        _free_cached_memory()


def _free_cached_memory() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Limits:
    """What the machine's copy and product rates allow a model: each case's ceiling."""

    weight_bytes: int
    """Read in every step: all but the embedding, of which a step reads a row a token."""
    params: int
    layer_params: int
    kv_bytes: int
    """A token's keys and values in all layers."""
    attention_flops: int
    """Of one query and one key in all layers: two products."""
    copy_rate: float | None
    matmul_rate: float | None

    @classmethod
    def of(cls, bench: Bench, session: Session) -> Limits:
        config, ready = session.config, session.runner.ready
        itemsize = 2  # bfloat16
        table = config.vocab_size * config.hidden_size
        params = ready.weights_bytes // itemsize - (0 if config.tie_word_embeddings else table)
        return cls(
            weight_bytes=params * itemsize,
            params=params,
            layer_params=params - table,
            kv_bytes=block_bytes(config, 1, session.runner.kv_dtype),
            attention_flops=4 * config.num_layers * config.num_heads * config.head_dim,
            copy_rate=bench.rate("ceiling/copy"),
            matmul_rate=bench.rate("ceiling/matmul"),
        )

    def decode(self, batch: int, context: float) -> float | None:
        """Tokens a second of a batch at a mean context: bound by reading weights and KV, or by the products."""
        if self.copy_rate is None or self.matmul_rate is None:
            return None
        read_s = (self.weight_bytes + batch * context * self.kv_bytes) / self.copy_rate
        return batch / max(read_s, 2 * self.params * batch / self.matmul_rate)

    def prompt_s(self, length: int) -> float | None:
        """Seconds until a prompt's first token: the head is computed for its last token only."""
        if self.copy_rate is None or self.matmul_rate is None:
            return None
        flops = 2 * self.layer_params * length + 2 * (self.params - self.layer_params)
        flops += self.attention_flops * length * (length + 1) // 2
        return max(self.weight_bytes / self.copy_rate, flops / self.matmul_rate)
