"""EngineClient: the daemon's side of one engine worker, on asyncio and without torch.

    client = await EngineClient.start()            # the process is up; torch is still being imported
    ready = await client.load(Load(files=...))
    stream = client.submit(prompt_ids, SamplingParams(...))
    async with contextlib.aclosing(stream):        # leaving early aborts
        async for output in stream: ...
    await client.close()

One task reads the channel and hands each row to its stream. It never waits for a stream's reader: what a slow reader
has not taken yet is merged into one TokenOutput. When the worker dies, every stream and every pending call raises
EngineDied.

Start it from the thread that lives as long as the workers shall: Linux kills a worker when the thread that forked it
ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from engine.channel import decode_for_daemon, encode_frame, read_payload_async
from engine.constraint import Constraint
from engine.errors import ChannelError, EngineDied, LoadFailed, RequestFailed
from engine.messages import (
    Abort,
    AddAdapter,
    Embed,
    Embedded,
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
    Wake,
)
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import TokenLogprobs
from modelfiles.settings import cache_dir

WORKER_COMMAND = (sys.executable, "-P", "-m", "engine.worker")
# OpenMP's threads wait for each other by spinning. On a machine that does other work, too, the thread that is waited
# for has lost its core, and a small model decodes many times slower; sleeping costs little when the machine is idle
# (benchmarks/busy_machine.py). Whoever has set the variable knows better.
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive"}
OnProgress = Callable[[int, int], None]
Answer = TypeVar("Answer", Ready, Stats, Quantized)


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a worker's environment is, given the daemon's: compiled kernels are kept in Hob's own cache folder."""
    return {**WORKER_ENVIRONMENT, "TRITON_CACHE_DIR": str(cache_dir(environ) / "triton"), **environ}


class TokenOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What came for one request since the last one: one step's token, or several if the reader was slow."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    """One a token if they were asked for, or else empty."""
    finish_reason: str | None
    """None until the last one: "stop", "length" or "abort"."""
    num_prompt_tokens: int
    num_cached_tokens: int
    """Prompt tokens that the prefix cache held."""
    truncated: bool
    """Whether the context has been shifted."""


class TokenStream(AsyncIterator[TokenOutput]):
    """One request's tokens. For one reader at a time.

    Iterating raises RequestFailed if the request was refused or failed, and EngineDied if the worker did, both after
    the tokens that had come before.
    """

    def __init__(self, client: EngineClient, seq_id: int, num_prompt_tokens: int) -> None:
        self.seq_id = seq_id
        self._client = client
        self._num_prompt_tokens = num_prompt_tokens
        self._num_cached_tokens = 0
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._truncated = False
        self._finish_reason: str | None = None
        self._error: Exception | None = None
        self._is_over = False
        """Whether the last output or the error has been handed out."""
        self._news = asyncio.Event()

    async def __anext__(self) -> TokenOutput:
        await self._news.wait()
        if self._is_over:
            raise StopAsyncIteration
        if self._token_ids or self._finish_reason is not None:
            return self._take()
        assert self._error is not None
        self._is_over = True
        raise self._error

    async def aclose(self) -> None:
        """Ends the request if it has not ended; harmless otherwise."""
        self._is_over = True
        self._news.set()
        self._client._forget(self)

    def _take(self) -> TokenOutput:
        output = TokenOutput(
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            finish_reason=self._finish_reason,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            truncated=self._truncated,
        )
        self._token_ids, self._logprobs = [], []
        if self._finish_reason is not None:
            self._is_over = True
        elif self._error is None:
            self._news.clear()
        return output

    def _push(self, row: TokenRow) -> bool:
        """Takes in a row; True if it is the last."""
        self._token_ids += row.token_ids
        self._logprobs += row.logprobs
        self._num_cached_tokens = self._num_cached_tokens or row.num_cached_tokens
        self._truncated = self._truncated or row.truncated
        if row.finish_reason == "error":
            self._fail(RequestFailed(row.error or "the model failed while it computed"))
        else:
            self._finish_reason = row.finish_reason
            # A row without tokens and without an end says nothing new.
            if self._token_ids or self._finish_reason is not None:
                self._news.set()
        return row.finish_reason is not None

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._news.set()


class EngineClient:
    """One worker process. Made by `start`; `close` it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        max_pending_tokens: int,
    ) -> None:
        self._max_pending_tokens = max_pending_tokens
        self._process = process
        self._reader = reader
        self._writer = writer
        self._streams: dict[int, TokenStream] = {}
        self._vectors: dict[int, asyncio.Future[list[bytes]]] = {}
        self._answers: deque[asyncio.Future[Ready | Stats | Quantized]] = (
            deque()
        )  # control messages are answered in their order
        self._seq_ids = itertools.count(1)
        self._death: EngineDied | None = None
        self._is_closing = False
        self._last_words = ""
        self._on_progress: OnProgress | None = None
        self.exited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when the process is gone; its result says how it ended."""
        self._task = asyncio.create_task(self._read_until_exit(), name=f"engine-client-{process.pid}")

    @classmethod
    async def start(
        cls,
        *,
        env: Mapping[str, str] | None = None,
        stderr: int | None = None,
        command: Sequence[str] = WORKER_COMMAND,
        max_pending_tokens: int = 65_536,
    ) -> EngineClient:
        """Starts a worker; returns when the process exists.

        Args:
            env: Its environment; None is this process's.
            stderr: File descriptor for its log; None is this process's stderr.
            command: The program; `--fd N` is appended. For tests.
            max_pending_tokens: A request whose reader leaves more tokens than that is aborted.
        """
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as on_error:
            on_error.callback(ours.close)
            ours.setblocking(False)
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    "--fd",
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=2 if stderr is None else stderr,
                    stderr=stderr,
                    env=worker_environment(os.environ if env is None else env),
                    pass_fds=(theirs.fileno(),),
                )
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            on_error.pop_all()
        return cls(process, reader, writer, max_pending_tokens)

    @property
    def alive(self) -> bool:
        """Whether messages can still be sent."""
        return self._death is None and not self._is_closing

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @property
    def num_streams(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    async def load(self, load: Load, on_progress: OnProgress | None = None) -> Ready:
        """Loads a model; takes as long as it takes.

        Args:
            on_progress: Called with the bytes read so far and in all.

        Raises:
            LoadFailed: the worker says why it could not; it can be asked again.
            EngineDied: the process ended.
        """
        self._on_progress = on_progress
        return await self._ask(load, Ready)

    async def add_adapter(self, adapter: int, files: Mapping[str, str]) -> Ready:
        """Puts LoRA adapters beside the weights, under a number that requests name. Raises as `load`.

        Args:
            files: name -> path, as modelfiles.adapter_files has them.
        """
        return await self._ask(AddAdapter(adapter=adapter, files=dict(files)), Ready)

    async def remove_adapter(self, adapter: int) -> Ready:
        """Gives an adapter's memory back; requests that still use it end. Raises as `load`."""
        return await self._ask(RemoveAdapter(adapter=adapter), Ready)

    async def resize(self, *, budget_bytes: int = 0, num_blocks: int = 0) -> Ready:
        """Allocates the KV cache anew; sequences go on in it. Raises as `load`."""
        return await self._ask(Resize(budget_bytes=budget_bytes, num_blocks=num_blocks), Ready)

    async def sleep(self) -> Stats:
        """Gives the KV cache's memory back; sequences wait for `wake`. Raises as `load`."""
        return await self._ask(Sleep(), Stats)

    async def wake(self) -> Ready:
        """Undoes `sleep`. Raises as `load`."""
        return await self._ask(Wake(), Ready)

    async def stats(self) -> Stats:
        """The worker's counters. Raises EngineDied."""
        return await self._ask(GetStats(), Stats)

    async def quantize(self, quantize: Quantize, on_progress: OnProgress | None = None) -> Quantized:
        """Writes a model anew; closing the client meanwhile with `grace=0` ends it. Raises as `load`.

        Args:
            on_progress: Called with the bytes read so far and in all.
        """
        self._on_progress = on_progress
        return await self._ask(quantize, Quantized)

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        cache_salt: str = "",
        adapter: int = 0,
        priority: int = 0,
        constraint: Constraint | None = None,
    ) -> TokenStream:
        """Starts a request. Its errors come out of the stream.

        Raises:
            EngineDied: there is no worker.
        """
        message = Submit(
            seq_id=next(self._seq_ids),
            prompt_ids=list(prompt_ids),
            params=params,
            cache_salt=cache_salt,
            adapter=adapter,
            priority=priority,
            constraint=constraint,
        )
        self._send(message)
        stream = TokenStream(self, message.seq_id, len(prompt_ids))
        self._streams[message.seq_id] = stream
        return stream

    async def embed(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        normalize: bool = True,
        dimensions: int = 0,
        adapter: int = 0,
    ) -> list[bytes]:
        """A vector of each text, as little-endian float32. Cancelling the call forgets them.

        Args:
            prompts: token ids of each text, those around it included.
            normalize: give vectors the length 1.
            dimensions: elements to keep of each; 0 is all.
            adapter: a number of `add_adapter`; 0 is the base alone.

        Raises:
            RequestFailed: the worker refused or could not compute them.
            EngineDied: there is no worker, or it ended.
        """
        ids = [list(prompt) for prompt in prompts]
        return await self._embed(
            Embed(
                request_id=next(self._seq_ids),
                prompts=ids,
                normalize=normalize,
                dimensions=dimensions,
                adapter=adapter,
            )
        )

    async def score(self, pairs: Sequence[Sequence[int]], second_starts: Sequence[int]) -> list[bytes]:
        """A cross-encoder's score of each pair of texts, between 0 and 1: one float32. Raises as `embed`.

        Args:
            pairs: token ids of both texts, those around and between them included.
            second_starts: position of each pair's second text.
        """
        ids = [list(pair) for pair in pairs]
        return await self._embed(
            Embed(
                request_id=next(self._seq_ids),
                prompts=ids,
                is_pairs=True,
                second_starts=list(second_starts),
                normalize=False,
            )
        )

    def abort(self, seq_ids: Iterable[int]) -> None:
        """Ends requests; their streams end with finish_reason "abort". Numbers of ended requests are ignored."""
        open_ids = [seq_id for seq_id in seq_ids if seq_id in self._streams]
        if open_ids and self.alive:
            self._send(Abort(seq_ids=open_ids))

    async def close(self, grace: float = 5.0) -> None:
        """Ends the process: politely, and after `grace` seconds by force. Open streams raise EngineDied."""
        if self.alive:
            self._send(Shutdown())
        self._is_closing = True
        try:
            await asyncio.wait([self._task], timeout=grace)
        finally:
            if not self._task.done():
                self._kill()
        await self._task

    # ---- the channel

    def _send(self, message: Message) -> None:
        """Raises EngineDied. Does not wait: the worker's reader thread takes everything at once."""
        if self._death is not None:
            raise EngineDied(str(self._death))
        if self._is_closing:
            raise EngineDied("the engine worker is being closed; load the model again")
        self._writer.write(encode_frame(message))

    async def _ask(self, message: Message, answer: type[Answer]) -> Answer:
        self._send(message)
        future: asyncio.Future[Ready | Stats | Quantized] = asyncio.get_running_loop().create_future()
        self._answers.append(future)
        reply = await future
        if not isinstance(reply, answer):
            raise ChannelError(f"the engine worker answered {type(message).__name__} with {type(reply).__name__}")
        return reply

    async def _embed(self, message: Embed) -> list[bytes]:
        self._send(message)
        future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self._vectors[message.request_id] = future
        try:
            return await future
        finally:
            del self._vectors[message.request_id]
            if future.cancelled() and self.alive:
                self._send(Abort(request_ids=[message.request_id]))

    async def _read_until_exit(self) -> None:
        """The client's task: hands out what comes until the process is gone."""
        try:
            while (payload := await read_payload_async(self._reader)) is not None:
                self._take(decode_for_daemon(payload))
        except ChannelError as error:
            self._last_words = str(error)
            self._kill()
        except BaseException:
            self._kill()  # cancelled, or a bug here: leave no process behind
            raise
        finally:
            await self._bury()

    def _take(self, message: Ready | StepOutput | Stats | Quantized | Progress | Failed | object) -> None:
        if isinstance(message, StepOutput):
            for row in message.rows:
                self._take_row(row)
        elif isinstance(message, Embedded):
            vectors = self._vectors.get(message.request_id)
            if vectors is not None and not vectors.done():
                vectors.set_result(message.vectors)
        elif isinstance(message, Failed):
            self._take_failure(message)
        elif isinstance(message, Progress):
            if self._on_progress is not None:
                self._on_progress(message.done_bytes, message.total_bytes)
        elif isinstance(message, (Ready, Stats, Quantized)) and self._answers:
            future = self._answers.popleft()
            if not future.done():  # whoever asked may have been cancelled
                future.set_result(message)

    def _take_row(self, row: TokenRow) -> None:
        stream = self._streams.get(row.seq_id)
        if stream is None:  # closed by its reader
            return
        if stream._push(row):
            del self._streams[row.seq_id]
        elif len(stream._token_ids) > self._max_pending_tokens:
            self.abort([row.seq_id])
            del self._streams[row.seq_id]
            error = f"the reader of a stream left {len(stream._token_ids)} tokens unread; the request was aborted"
            stream._fail(RequestFailed(error))

    def _take_failure(self, failed: Failed) -> None:
        if failed.fatal:
            self._last_words = failed.error
        elif failed.seq_id is not None:
            stream = self._streams.pop(failed.seq_id, None)
            if stream is not None:
                stream._fail(RequestFailed(failed.error, failed.kind))
        elif failed.request_id is not None:
            vectors = self._vectors.get(failed.request_id)
            if vectors is not None and not vectors.done():
                vectors.set_exception(RequestFailed(failed.error, failed.kind))
        elif self._answers:
            future = self._answers.popleft()
            if not future.done():
                future.set_exception(LoadFailed(failed.error, failed.kind))

    def _forget(self, stream: TokenStream) -> None:
        if self._streams.get(stream.seq_id) is stream:
            self.abort([stream.seq_id])
            del self._streams[stream.seq_id]

    # ---- the end

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it was faster
            self._process.kill()

    async def _bury(self) -> None:
        """The channel is closed: waits for the process, and tells everybody."""
        self._writer.close()  # a worker that still lives ends now
        status = await self._process.wait()
        self._death = EngineDied(self._obituary(status))
        waiting: list[asyncio.Future[Any]] = [*self._answers, *self._vectors.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(EngineDied(str(self._death)))
        for stream in self._streams.values():
            stream._fail(EngineDied(str(self._death)))
        self._answers.clear()
        self._streams.clear()
        self.exited.set_result(str(self._death))
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def _obituary(self, status: int) -> str:
        if status < 0:
            how = f"was killed by signal {-status} ({signal.strsignal(-status) or 'unknown'})"
        else:
            how = f"ended with exit status {status}"
        because = f": {self._last_words}" if self._last_words else ""
        if self._is_closing:
            return f"the engine worker was closed and {how}{because}; load the model again"
        return f"the engine worker {how}{because}; the next request loads the model again, the log may say more"
