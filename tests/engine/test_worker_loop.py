"""The worker's loop over a raw socket: what EngineClient never sends, and what happens when the daemon goes."""

from __future__ import annotations

import gc
import json
import os
import socket
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.channel import decode_for_daemon, encode_frame, read_payload
from engine.constraint import Constraint
from engine.llm_engine import LoadedRunner
from engine.messages import (
    LENGTH,
    MAX_FRAME_BYTES,
    Abort,
    AddAdapter,
    Embed,
    Embedded,
    Failed,
    GetStats,
    Load,
    Ready,
    Resize,
    Shutdown,
    Sleep,
    Stats,
    StepOutput,
    Submit,
    ToDaemon,
    Wake,
)
from engine.sampling_params import SamplingParams
from engine.worker_loop import IDLE_COLLECTION_STEPS, OnProgress, WorkerLoop, classify_builtin
from tests.daemon.tiny_model import write_tiny_model
from tests.engine.fake_runner import FakeRunner

SCRIPT = Path(__file__).with_name("fake_worker.py")
TIMEOUT_S = 30  # a test that would hang fails instead


class Worker:
    """A fake worker's process and our end of its socket."""

    def __init__(self, root: Path, knobs: dict[str, Any]) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(TIMEOUT_S)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(SCRIPT), json.dumps(knobs), "--fd", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": str(root)},
                stderr=subprocess.PIPE,
                text=True,
            )

    def send(self, message: Any) -> None:
        self.sock.sendall(encode_frame(message))

    def receive(self) -> ToDaemon:
        payload = read_payload(self.sock)
        assert payload is not None, "the worker closed the channel"
        return decode_for_daemon(payload)

    def load(self) -> None:
        self.send(Load(files={}, max_num_seqs=8, max_num_batched_tokens=32))
        while not isinstance(self.receive(), Ready):
            pass

    def wait(self) -> tuple[int, str]:
        """Exit status and log."""
        _, log = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, log


@pytest.fixture
def start(root: Path) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def start(**knobs: Any) -> Worker:
        workers.append(Worker(root, knobs))
        return workers[-1]

    yield start
    for worker in workers:
        worker.sock.close()
        worker.process.kill()
        worker.process.communicate()


def test_shutdown_ends_with_status_0(start: Callable[..., Worker]) -> None:
    worker = start()
    worker.load()
    worker.send(Shutdown())
    assert worker.wait() == (0, "")


def test_a_worker_ends_when_the_daemon_is_gone(start: Callable[..., Worker]) -> None:
    worker = start()
    worker.load()
    worker.sock.close()
    assert worker.wait()[0] == 0


def test_a_worker_ends_in_the_middle_of_a_step_that_hangs(start: Callable[..., Worker]) -> None:
    worker = start(hang_at=2)
    worker.load()
    worker.send(Submit(seq_id=1, prompt_ids=[1], params=SamplingParams()))
    assert isinstance(worker.receive(), StepOutput)
    worker.sock.close()
    assert worker.wait()[0] == 0


def test_a_step_is_answered_before_work_on_the_step_after_the_next(start: Callable[..., Worker]) -> None:
    worker = start(hang_at_launch=4)
    worker.load()
    worker.send(Submit(seq_id=1, prompt_ids=[1], params=SamplingParams()))
    # The third was launched while the second ran; launching the fourth delays nobody who waits for the second.
    assert [type(worker.receive()) for _ in range(2)] == [StepOutput, StepOutput]


def never_load(load: Load, on_progress: OnProgress) -> LoadedRunner:
    raise AssertionError("nobody sent Load")


def test_garbage_is_collected_once_many_steps_were_made() -> None:
    class Garbage:
        def __init__(self) -> None:
            self.cycle = self

    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop = WorkerLoop(ours, never_load, classify_builtin)
    gc.disable()
    try:
        reference = weakref.ref(Garbage())
        loop._num_uncollected_steps = IDLE_COLLECTION_STEPS - 1
        loop._collect_garbage(IDLE_COLLECTION_STEPS)
        assert reference() is not None
        loop._num_uncollected_steps += 1
        loop._collect_garbage(IDLE_COLLECTION_STEPS)
        assert reference() is None
        assert loop._num_uncollected_steps == 0
    finally:
        gc.enable()


def test_an_idle_worker_works_ahead_and_says_when_it_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(FakeRunner):
        def prepare(self) -> bool:
            raise RuntimeError("out of memory")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop = WorkerLoop(ours, never_load, classify_builtin)
    assert not loop._prepare()
    loop._runner = FakeRunner(num_unprepared=2)
    assert [loop._prepare() for _ in range(3)] == [True, True, False]
    loop._runner = Broken()
    assert not loop._prepare()
    assert capsys.readouterr().err == "engine worker: nothing was prepared: out of memory\n"


def test_a_message_does_not_wait_for_all_that_could_be_prepared(start: Callable[..., Worker]) -> None:
    worker = start(num_unprepared=10**9)
    worker.load()
    worker.send(Submit(seq_id=1, prompt_ids=[1, 2], params=SamplingParams(max_tokens=3)))
    assert isinstance(worker.receive(), StepOutput)


def test_the_reader_says_nothing_when_the_worker_has_closed_its_socket() -> None:
    ours, theirs = socket.socketpair()
    loop = WorkerLoop(ours, never_load, classify_builtin)
    with theirs:
        ours.close()
        loop._read_forever()  # ends without an exception, and leaves the exit status to the main thread


def test_a_frame_that_is_too_large_ends_the_worker(start: Callable[..., Worker]) -> None:
    worker = start()
    worker.sock.sendall(LENGTH.pack(MAX_FRAME_BYTES + 1))
    status, log = worker.wait()
    assert status == 1
    size, limit = MAX_FRAME_BYTES + 1, MAX_FRAME_BYTES
    assert log == f"engine worker: a frame of {size} bytes is larger than the channel's limit of {limit} bytes\n"


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x81", b"\x81\xa4type\xa4Boom", b"\x90", os.urandom(64)])
def test_a_frame_that_is_no_message_is_answered(start: Callable[..., Worker], payload: bytes) -> None:
    worker = start()
    worker.sock.sendall(LENGTH.pack(len(payload)) + payload)
    answer = worker.receive()
    assert isinstance(answer, Failed)
    assert answer.error.startswith("a message on the channel is not valid")
    assert answer.kind == "invalid"
    worker.send(GetStats())
    assert worker.receive() == Stats()


def receive_until(worker: Worker, kind: type[Any]) -> Any:
    while not isinstance(answer := worker.receive(), kind):
        pass
    return answer


def test_texts_are_embedded_beside_steps(start: Callable[..., Worker]) -> None:
    worker = start()
    worker.load()
    worker.send(Submit(seq_id=1, prompt_ids=[1], params=SamplingParams(max_tokens=2000)))
    assert isinstance(worker.receive(), StepOutput)
    worker.send(Embed(request_id=5, prompts=[[1] * 100, [1]]))  # passes of 16 tokens while somebody generates
    answers: list[ToDaemon] = []
    while not any(isinstance(answer, Embedded) for answer in answers):
        answers.append(worker.receive())
    assert answers[-1] == Embedded(request_id=5, vectors=[struct.pack("<2f", 100, 1), struct.pack("<2f", 1, 1)])
    assert len(answers) > 7, "a step came between any two of the seven pieces"


def test_a_pass_that_fails_is_answered_and_the_worker_lives(start: Callable[..., Worker]) -> None:
    worker = start(fail_at_text=[7])
    worker.load()
    worker.send(Embed(request_id=5, prompts=[[7]]))
    failed = receive_until(worker, Failed)
    assert (failed.error, failed.request_id) == ("the model failed while it computed: no vectors today", 5)
    worker.send(Embed(request_id=6, prompts=[[8]]))
    assert receive_until(worker, Embedded).request_id == 6
    worker.send(Embed(request_id=7, prompts=[[50]]))
    assert receive_until(worker, Failed).kind == "invalid"
    worker.send(Abort(request_ids=[1, 2]))
    worker.send(Shutdown())
    status, log = worker.wait()
    assert status == 0
    assert "RuntimeError: no vectors today" in log


def test_an_encoder_embeds_and_does_not_generate(start: Callable[..., Worker]) -> None:
    worker = start(is_encoder=True)
    worker.send(Embed(request_id=4, prompts=[[1]]))
    assert receive_until(worker, Failed).error == "this worker has no model; send Load first"
    worker.load()
    worker.send(Submit(seq_id=1, prompt_ids=[1], params=SamplingParams()))
    failed = receive_until(worker, Failed)
    assert (failed.error, failed.seq_id) == ("this model reads texts and generates none", 1)
    for message, answer in ((Sleep(), Stats), (Wake(), Ready), (Resize(), Ready), (GetStats(), Stats)):
        worker.send(message)
        assert isinstance(worker.receive(), answer)
    worker.send(AddAdapter(adapter=1, files={"a.gguf": "a"}))
    assert "this one is an encoder" in receive_until(worker, Failed).error
    worker.send(Embed(request_id=5, prompts=[[1, 2]]))
    assert worker.receive() == Embedded(request_id=5, vectors=[struct.pack("<2f", 2, 1)])


def test_a_number_is_one_adapter_s(start: Callable[..., Worker]) -> None:
    worker = start()
    worker.load()
    worker.send(AddAdapter(adapter=1, files={"a.gguf": "a"}))
    assert isinstance(worker.receive(), Ready)
    for number in (1, 0, -1):
        worker.send(AddAdapter(adapter=number, files={"b.gguf": "b"}))
        assert receive_until(worker, Failed).kind == "invalid"
    worker.send(Submit(seq_id=1, prompt_ids=[1], params=SamplingParams(max_tokens=1), adapter=1))
    assert receive_until(worker, StepOutput).rows[-1].finish_reason == "length"


def test_a_step_s_rows_come_in_one_frame(start: Callable[..., Worker]) -> None:
    worker = start()
    # In one write, and before the model is loaded: all of them are there when the first step begins.
    frames = [encode_frame(Load(files={}, max_num_seqs=8, max_num_batched_tokens=32))]
    frames += [encode_frame(Submit(seq_id=n, prompt_ids=[n], params=SamplingParams(max_tokens=3))) for n in range(5)]
    worker.sock.sendall(b"".join(frames))
    while not isinstance(worker.receive(), Ready):
        pass
    num_rows = []
    while sum(num_rows) < 15:
        answer = worker.receive()
        assert isinstance(answer, StepOutput)
        num_rows.append(len(answer.rows))
    assert len(num_rows) <= 7, "at most four steps for who came late, and three for all"


def test_a_step_that_fails_writes_its_trace_to_the_log(start: Callable[..., Worker]) -> None:
    worker = start(fail_at_rows=1)
    worker.load()
    worker.send(Submit(seq_id=1, prompt_ids=[1], params=SamplingParams()))
    answer = worker.receive()
    assert isinstance(answer, StepOutput)
    assert answer.rows[0].error == "the model failed while it computed: the device is on fire"
    worker.send(Shutdown())
    status, log = worker.wait()
    assert status == 0
    assert "RuntimeError: the device is on fire" in log


def tiny_files(tmp_path: Path) -> dict[str, str]:
    """Files of a model with a token a byte, for the grammar; the fake model is none of them."""
    write_tiny_model(tmp_path / "tiny")
    return {path.name: str(path) for path in (tmp_path / "tiny").iterdir()}


def rows_of(worker: Worker, seq_id: int) -> tuple[list[int], str | None]:
    """All tokens of a sequence, and how it ended."""
    token_ids: list[int] = []
    while True:
        message = worker.receive()
        assert isinstance(message, StepOutput)
        for row in message.rows:
            if row.seq_id == seq_id:
                token_ids += row.token_ids
                if row.finish_reason is not None:
                    return token_ids, row.finish_reason


def test_a_constraint_is_compiled_and_kept(start: Callable[..., Worker], tmp_path: Path) -> None:
    worker = start(vocab_size=259)
    worker.send(Load(files=tiny_files(tmp_path), max_num_seqs=8, max_num_batched_tokens=32))
    while not isinstance(worker.receive(), Ready):
        pass
    params = SamplingParams(max_tokens=20, stop_token_ids=(258,))
    worker.send(Submit(seq_id=1, prompt_ids=[1], params=params, constraint=Constraint(kind="regex", value="[ab]{5}")))
    token_ids, reason = rows_of(worker, 1)
    assert reason == "stop"
    assert token_ids[-1] in (256, 258)
    assert len(token_ids) == 6
    assert set(bytes(token_ids[:-1])) <= set(b"ab")


def test_a_constraint_that_cannot_be_compiled_is_the_requests_fault(
    start: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start(vocab_size=259)
    worker.send(Load(files=tiny_files(tmp_path), max_num_seqs=8, max_num_batched_tokens=32))
    while not isinstance(worker.receive(), Ready):
        pass
    bad = Constraint(kind="json_schema", value='{"not": {}}')
    worker.send(Submit(seq_id=1, prompt_ids=[1], params=SamplingParams(), constraint=bad))
    failed = worker.receive()
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.seq_id, failed.fatal) == ("invalid", 1, False)
    assert 'uses "not"' in failed.error
    worker.send(Submit(seq_id=2, prompt_ids=[1], params=SamplingParams(max_tokens=3)))
    assert rows_of(worker, 2)[1] == "length"


def test_a_request_is_aborted_while_its_constraint_is_compiled(start: Callable[..., Worker], tmp_path: Path) -> None:
    worker = start(vocab_size=259)
    worker.send(Load(files=tiny_files(tmp_path), max_num_seqs=8, max_num_batched_tokens=32))
    while not isinstance(worker.receive(), Ready):
        pass
    asked = Constraint(kind="regex", value="[ab]{5000}")
    # Both are in the queue before the compiler has read the tokenizer; if not, the abort meets a running sequence.
    worker.sock.sendall(
        encode_frame(Submit(seq_id=1, prompt_ids=[1], params=SamplingParams(), constraint=asked))
        + encode_frame(Abort(seq_ids=[1]))
    )
    assert rows_of(worker, 1)[1] == "abort"
    worker.send(GetStats())
    assert isinstance(worker.receive(), Stats)
