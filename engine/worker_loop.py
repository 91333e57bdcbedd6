"""The loop of an engine worker: messages in, steps, messages out. Run by engine.worker, and by tests with a fake model.

Two threads. The reader decodes frames into a queue, so that a long prompt is decoded while the device computes; the
main thread drains the queue between two steps and blocks on it when there is nothing to compute. Constraints are
compiled in threads of engine.grammar.service and come back through the queue. No asyncio, no polling. A step answers
with one StepOutput for all sequences, sent before the next one is scheduled: the device has work meanwhile, because it
is a step ahead.

Python's cycle collector would stop the steps for tens of milliseconds whenever it looks at all the blocks and nodes of
the prefix cache. So it is switched off while a model is loaded, and called where nobody waits: when there is nothing to
do, or after very many steps. Nothing in a step makes reference cycles.

The daemon's end of the socket is the worker's lease of life: when it closes, the reader ends the process at once, also
in the middle of a step, because then nobody is left to hear the result.
"""

from __future__ import annotations

import gc
import os
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine.channel import InvalidMessage, decode_for_worker, encode_frame, read_payload
from engine.constraint import ConstraintError
from engine.embedding_engine import Embedder, EmbeddingEngine
from engine.errors import ChannelError, EngineError, SchedulerError
from engine.grammar.service import GrammarService
from engine.llm_engine import LLMEngine, LoadedRunner
from engine.messages import (
    Abort,
    AddAdapter,
    Embed,
    Failed,
    GetStats,
    Load,
    Message,
    Progress,
    Quantize,
    Quantized,
    Ready,
    RemoveAdapter,
    Resize,
    Shutdown,
    Sleep,
    Stats,
    StepOutput,
    Submit,
    TokenRow,
    ToWorker,
    Wake,
)
from engine.scheduling import sequence
from engine.scheduling.sequence import TokenConstraint

OnProgress = Callable[[int, int], None]
"""Called with the bytes done so far and in all."""

LoadRunner = Callable[[Load, OnProgress], Embedder]
"""What it gives also generates where it is a LoadedRunner."""

QuantizeModel = Callable[[Quantize, OnProgress], Quantized]


class Fault(NamedTuple):
    """What an exception means for the worker."""

    kind: str
    """As in messages.Failed."""
    fatal: bool = False
    """Whether the process cannot go on, such as after an illegal access on the device."""


class Compiled(NamedTuple):
    """A constraint is compiled, or cannot be enforced."""

    seq_id: int
    result: TokenConstraint | ConstraintError


Classify = Callable[[Exception], Fault]

IDLE_COLLECTION_STEPS = 2_000
"""A worker that becomes idle collects garbage if it has made so many steps since the last time."""

PAUSE_S = 0.05
"""Silence after which a worker takes itself to be idle. A piece of work ahead may take seconds, uninterrupted."""

BUSY_COLLECTION_STEPS = 200_000
"""A worker that is never idle collects garbage after so many steps all the same."""


def classify_builtin(error: Exception) -> Fault:
    """For exceptions that need no torch to be known."""
    if isinstance(error, MemoryError):
        return Fault("memory")
    if isinstance(error, (ValueError, OSError)):  # formats, configurations, files: the model's fault
        return Fault("invalid")
    if isinstance(error, NotImplementedError):
        return Fault("unsupported")
    return Fault("internal")


def cannot_quantize(message: Quantize, on_progress: OnProgress) -> Quantized:
    """For workers that are made without what it takes."""
    raise NotImplementedError(f"this worker cannot quantize models to {message.file_type}")


def serve(
    sock: socket.socket,
    load_runner: LoadRunner,
    classify: Classify = classify_builtin,
    quantize_model: QuantizeModel = cannot_quantize,
) -> int:
    """Serves one daemon over a connected socket until Shutdown; returns the exit status.

    Ends the whole process with status 0 when the daemon's end closes.
    """
    return WorkerLoop(sock, load_runner, classify, quantize_model).run()


class WorkerLoop:
    """State of a worker: at most one model."""

    def __init__(
        self,
        sock: socket.socket,
        load_runner: LoadRunner,
        classify: Classify,
        quantize_model: QuantizeModel = cannot_quantize,
    ) -> None:
        self._sock = sock
        self._load_runner = load_runner
        self._classify = classify
        self._quantize_model = quantize_model
        self._inbox: queue.SimpleQueue[ToWorker | InvalidMessage | Compiled] = queue.SimpleQueue()
        self._model: Embedder | None = None
        self._runner: LoadedRunner | None = None
        """The same, where it generates."""
        self._engine: LLMEngine | None = None
        """None also where the model reads and does not write."""
        self._embeddings: EmbeddingEngine | None = None
        self._grammars: GrammarService | None = None
        self._compiling: dict[int, Submit] = {}  # by seq_id
        self._is_sleeping = False
        self._kv_size = (0, 0)  # num_blocks and budget_bytes of the last allocation, for Wake
        self._exit_status: int | None = None
        self._num_uncollected_steps = 0

    def run(self) -> int:
        threading.Thread(target=self._read_forever, name="channel-reader", daemon=True).start()
        while self._exit_status is None:
            if not self._can_step and not self._can_embed:
                self._collect_garbage(IDLE_COLLECTION_STEPS)
                self._handle(self._next_message())
            # Only what is there now: messages that keep coming must not keep the device waiting.
            for _ in range(self._inbox.qsize()):
                self._handle(self._inbox.get())
            if self._exit_status is None and self._engine is not None and self._can_step:
                self._step(self._engine.step)
                self._num_uncollected_steps += 1
                self._collect_garbage(BUSY_COLLECTION_STEPS)
            if self._exit_status is None and self._embeddings is not None and self._can_embed:
                self._embed_piece(self._embeddings)
        return self._exit_status

    @property
    def _can_step(self) -> bool:
        return self._engine is not None and self._engine.has_work and not self._is_sleeping

    @property
    def _can_embed(self) -> bool:
        return self._embeddings is not None and self._embeddings.has_work

    def _next_message(self) -> ToWorker | InvalidMessage | Compiled:
        """Waits for a message. Where none comes for a while, works ahead first, then waits without using the CPU."""
        while self._exit_status is None:
            try:
                return self._inbox.get(timeout=PAUSE_S)
            except queue.Empty:
                if not self._prepare():
                    break
        return self._inbox.get()

    def _prepare(self) -> bool:
        """Does a piece of work ahead of requests; False when there is none."""
        if self._runner is None or self._is_sleeping:
            return False
        try:
            return self._runner.prepare()
        except Exception as error:  # if it matters, a request will meet it, and then somebody is told
            print(f"engine worker: nothing was prepared: {error}", file=sys.stderr, flush=True)  # noqa: T201 -- the log
            return False

    # ---- the reader's thread

    def _read_forever(self) -> None:
        try:
            while (payload := read_payload(self._sock)) is not None:
                try:
                    self._inbox.put(decode_for_worker(payload))
                except InvalidMessage as error:
                    self._inbox.put(error)
        except ChannelError as error:
            print(f"engine worker: {error}", file=sys.stderr, flush=True)  # noqa: T201 -- stderr is the daemon's log
            os._exit(1)
        except OSError:
            # The main thread closes the socket when it ends, and has the exit status; whatever else broke the
            # channel, nobody is left at its other end.
            if self._sock.fileno() == -1:
                return
        os._exit(0)

    # ---- the main thread

    def _send(self, message: Message) -> None:
        try:
            self._sock.sendall(encode_frame(message))
        except ConnectionError:
            self._exit_status = 0

    def _handle(self, message: ToWorker | InvalidMessage | Compiled) -> None:
        if self._exit_status is not None:
            return
        if isinstance(message, Submit):
            self._submit(message)
        elif isinstance(message, Compiled):
            self._take_compiled(message)
        elif isinstance(message, Abort):
            self._abort(message)
        elif isinstance(message, InvalidMessage):
            self._send(Failed(error=str(message), kind="invalid", seq_id=message.seq_id))
        elif isinstance(message, Shutdown):
            self._exit_status = 0
        elif isinstance(message, Embed):
            self._embed(message)
        else:
            self._control(message)

    def _control(
        self, message: Load | AddAdapter | RemoveAdapter | Resize | Sleep | Wake | GetStats | Quantize
    ) -> None:
        """Messages that are answered in their order by Ready, Stats, Quantized or Failed."""
        try:
            self._send(self._answer(message))
        except Exception as error:
            # One of the worker's two catch points (the other is a step): whatever it was, the daemon gets a sentence.
            traceback.print_exc()
            fault = self._classify(error)
            self._send(Failed(error=_sentence(error), kind=fault.kind, fatal=fault.fatal))
            self._num_uncollected_steps = BUSY_COLLECTION_STEPS
            if fault.fatal:
                self._exit_status = 1

    def _answer(
        self, message: Load | AddAdapter | RemoveAdapter | Resize | Sleep | Wake | GetStats | Quantize
    ) -> Ready | Stats | Quantized | Failed:
        if isinstance(message, Load):
            return self._load(message)
        if isinstance(message, Quantize):
            return self._quantize_model(message, self._send_progress)
        if isinstance(message, GetStats):
            return self._stats()
        if self._model is None:
            error = f"{type(message).__name__} needs a loaded model, and this worker has none; send Load first"
            return Failed(error=error, kind="invalid")
        if isinstance(message, AddAdapter) and self._runner is None:
            error = "adapters are applied to models that generate text; this one is an encoder"
            return Failed(error=error, kind="unsupported")
        if self._engine is None or self._runner is None:  # an encoder has no KV cache to give back or to resize
            return self._stats() if isinstance(message, Sleep) else self._model.ready
        if isinstance(message, AddAdapter):
            return self._add_adapter(message, self._engine, self._runner)
        if isinstance(message, RemoveAdapter):
            return self._remove_adapter(message, self._engine, self._runner)
        if isinstance(message, Resize):
            return self._resize(message, self._engine, self._runner)
        if isinstance(message, Sleep):
            return self._sleep(self._engine, self._runner)
        return self._wake(self._engine, self._runner)

    def _load(self, load: Load) -> Ready | Failed:
        if self._model is not None:
            return Failed(error="this worker has loaded a model already; start another worker", kind="invalid")
        model = self._model = self._load_runner(load, self._send_progress)
        self._embeddings = EmbeddingEngine(model)
        if isinstance(model, LoadedRunner):
            self._grammars = GrammarService(load.files, model.vocab_size)
            self._engine = LLMEngine.for_runner(model, load, self._grammars.fill)
            self._runner = model
        self._kv_size = (load.num_blocks, load.budget_bytes)
        # The model lives as long as the process: the collector need not look at it when it is called.
        gc.collect()
        gc.freeze()
        gc.disable()
        return model.ready

    def _collect_garbage(self, num_steps: int) -> None:
        if self._num_uncollected_steps >= num_steps:
            gc.collect()
            self._num_uncollected_steps = 0

    def _send_progress(self, done_bytes: int, total_bytes: int) -> None:
        self._send(Progress(done_bytes=done_bytes, total_bytes=total_bytes))

    def _add_adapter(self, message: AddAdapter, engine: LLMEngine, runner: LoadedRunner) -> Ready | Failed:
        """Where there is no room beside the KV cache, that is allocated anew, and running sequences start over."""
        if message.adapter < 1 or runner.has_adapter(message.adapter):
            return Failed(error=f"an adapter cannot be number {message.adapter}, choose another", kind="invalid")
        if self._is_sleeping or runner.has_room_for(message.files):
            runner.add_adapter(message.adapter, message.files)
            return runner.ready
        self._sleep(engine, runner)
        try:
            runner.add_adapter(message.adapter, message.files)
            return self._wake(engine, runner)
        except Exception:
            runner.remove_adapter(message.adapter)
            self._wake(engine, runner)
            raise

    def _remove_adapter(self, message: RemoveAdapter, engine: LLMEngine, runner: LoadedRunner) -> Ready:
        rows = [engine.abort(seq_id) for seq_id in engine.scheduler.sequences_with(message.adapter)]
        self._send_rows([row for row in rows if row is not None])
        if self._embeddings is not None:
            self._send_all(self._embeddings.end_adapter(message.adapter))
        self._step(engine.drain)  # launched steps still read it
        runner.remove_adapter(message.adapter)
        return runner.ready

    def _resize(self, resize: Resize, engine: LLMEngine, runner: LoadedRunner) -> Ready:
        self._sleep(engine, runner)
        return self._allocate(engine, runner, resize.num_blocks, resize.budget_bytes)

    def _sleep(self, engine: LLMEngine, runner: LoadedRunner) -> Stats:
        """Sequences wait; new ones may be submitted and wait, too."""
        if not self._is_sleeping:
            self._step(engine.drain)
            engine.scheduler.preempt_all()
            runner.free_kv()
            self._is_sleeping = True  # and so it stays if there is no memory to wake
        return self._stats()

    def _wake(self, engine: LLMEngine, runner: LoadedRunner) -> Ready:
        if not self._is_sleeping:
            return runner.ready
        return self._allocate(engine, runner, *self._kv_size)

    def _allocate(self, engine: LLMEngine, runner: LoadedRunner, num_blocks: int, budget_bytes: int) -> Ready:
        runner.allocate_kv(num_blocks=num_blocks, budget_bytes=budget_bytes)
        self._kv_size = (num_blocks, budget_bytes)
        self._is_sleeping = False
        ready = runner.ready
        self._send_rows(engine.scheduler.resize(ready.num_blocks, ready.max_context))
        self._num_uncollected_steps = BUSY_COLLECTION_STEPS  # the old pools are one great cycle
        return ready

    def _stats(self) -> Stats:
        if self._engine is None:
            return Stats()
        return self._engine.stats(is_sleeping=self._is_sleeping)

    def _submit(self, submit: Submit) -> None:
        if self._engine is None or self._runner is None or self._grammars is None:
            error = "this worker has no model; send Load first"
            if self._model is not None:
                error = "this model reads texts and generates none"
            self._send(Failed(error=error, kind="invalid", seq_id=submit.seq_id))
            return
        if submit.constraint is None:
            self._add(submit, self._engine, self._runner)
            return
        self._compiling[submit.seq_id] = submit
        put, seq_id = self._inbox.put, submit.seq_id
        self._grammars.compile(submit.constraint, lambda result: put(Compiled(seq_id, result)))

    def _take_compiled(self, compiled: Compiled) -> None:
        submit = self._compiling.pop(compiled.seq_id, None)
        if submit is None or self._engine is None or self._runner is None:  # aborted meanwhile
            return
        if isinstance(compiled.result, ConstraintError):
            self._send(Failed(error=str(compiled.result), kind="invalid", seq_id=submit.seq_id))
        else:
            self._add(submit, self._engine, self._runner, compiled.result)

    def _add(
        self, submit: Submit, engine: LLMEngine, runner: LoadedRunner, constraint: TokenConstraint | None = None
    ) -> None:
        try:
            _check_token_ids(submit, runner.vocab_size)
            self._check_adapter(submit.adapter)
            engine.add(
                sequence.Sequence(
                    submit.seq_id,
                    submit.prompt_ids,
                    submit.params,
                    cache_salt=submit.cache_salt,
                    adapter=submit.adapter,
                    priority=submit.priority,
                    constraint=constraint,
                )
            )
        except SchedulerError as error:
            self._send(Failed(error=str(error), kind="invalid", seq_id=submit.seq_id))

    def _check_adapter(self, adapter: int) -> None:
        """
        Raises:
            SchedulerError: there is none of that number.
        """
        if adapter and (self._runner is None or not self._runner.has_adapter(adapter)):
            raise SchedulerError(f"there is no adapter {adapter}; AddAdapter must come before a request")

    def _embed(self, embed: Embed) -> None:
        if self._embeddings is None:
            error = "this worker has no model; send Load first"
            self._send(Failed(error=error, kind="invalid", request_id=embed.request_id))
            return
        try:
            self._check_adapter(embed.adapter)
            self._send_all(self._embeddings.add(embed))
        except EngineError as error:
            self._send(Failed(error=str(error), kind="invalid", request_id=embed.request_id))

    def _embed_piece(self, embeddings: EmbeddingEngine) -> None:
        """Computes a piece of the texts that wait."""
        try:
            answers = embeddings.advance(is_shared=self._can_step)
        except Exception as error:
            # As a step that failed: it ends the requests whose texts were computed, not the worker.
            traceback.print_exc()
            fault = self._classify(error)
            self._send_all(embeddings.fail(f"the model failed while it computed: {_sentence(error)}", fault.kind))
            self._num_uncollected_steps = BUSY_COLLECTION_STEPS
            if fault.fatal:
                self._send(Failed(error=_sentence(error), kind=fault.kind, fatal=True))
                self._exit_status = 1
            return
        self._send_all(answers)

    def _abort(self, abort: Abort) -> None:
        if self._embeddings is not None:
            self._embeddings.abort(abort.request_ids)
        if self._engine is not None:
            rows = [self._engine.abort(seq_id) for seq_id in abort.seq_ids if seq_id not in self._compiling]
            unborn = [seq_id for seq_id in abort.seq_ids if self._compiling.pop(seq_id, None) is not None]
            ends = [TokenRow(seq_id, [], finish_reason="abort") for seq_id in unborn]
            self._send_rows([*(row for row in rows if row is not None), *ends])

    def _step(self, step: Callable[[], list[TokenRow]]) -> None:
        """Runs one step, or all that are in flight."""
        assert self._engine is not None
        try:
            rows = step()
        except Exception as error:
            # The other catch point: a step that failed ends its sequences, not the worker, unless the device is gone.
            traceback.print_exc()
            fault = self._classify(error)
            self._send_rows(self._engine.fail(f"the model failed while it computed: {_sentence(error)}"))
            self._num_uncollected_steps = BUSY_COLLECTION_STEPS  # a traceback may keep memory of the device in a cycle
            if fault.fatal or isinstance(error, EngineError):
                self._send(Failed(error=_sentence(error), kind=fault.kind, fatal=True))
                self._exit_status = 1
            return
        self._send_rows(rows)

    def _send_all(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._send(message)

    def _send_rows(self, rows: list[TokenRow]) -> None:
        if rows:
            self._send(StepOutput(rows=rows))


def _check_token_ids(submit: Submit, vocab_size: int) -> None:
    """Token ids index tensors on the device, where one out of range would take the whole worker down.

    Raises:
        SchedulerError: a token id that the model does not have.
    """
    params = submit.params
    for name, token_ids in (
        ("the prompt", submit.prompt_ids),
        ("logit_bias", params.logit_bias),
        ("stop_token_ids", params.stop_token_ids),
    ):
        # min and max run in C: a prompt of 100,000 tokens takes a millisecond.
        if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
            wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
            raise SchedulerError(f"{name} holds token id {wrong}, but the model's ids are 0 to {vocab_size - 1}")


def _sentence(error: Exception) -> str:
    return str(error) or type(error).__name__
