"""A worker process with a fake model, started by tests as `python -P fake_worker.py KNOBS --fd N`.

KNOBS is JSON: fields of FakeRunner, and `fail_at_rows` (the first step with so many rows raises), `hang_at`, `die_at`
(steps, at their results), `hang_at_launch` (a step), `fail_load`, `fatal`, `gate` (a FIFO: the first step's result
waits until somebody has opened it for writing), `fail_at_text`, `hang_at_text` (the pass of this text), `is_encoder`
(the model embeds and does not generate).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

from engine.embedding_engine import Embedder
from engine.embedding_queue import TextJob
from engine.messages import Load, Quantize, Quantized
from engine.scheduling.batch import ScheduledBatch, TokenMasks
from engine.worker_loop import Fault, OnProgress, serve
from tests.engine.fake_runner import FakeHandle, FakeRunner


class FakeEncoder:
    """The half of a runner that embeds."""

    def __init__(self, runner: FakeRunner) -> None:
        self.ready, self.vocab_size, self.gives_scores = runner.ready, runner.vocab_size, runner.gives_scores
        self.max_text_tokens, self.max_pass_tokens = runner.max_text_tokens, runner.max_pass_tokens
        self.embed = runner.embed


def main() -> int:
    knobs: dict[str, Any] = json.loads(sys.argv[1])
    assert sys.argv[2] == "--fd"
    fail_at_rows, hang_at, die_at = (knobs.pop(name, -1) for name in ("fail_at_rows", "hang_at", "die_at"))
    hang_at_launch = knobs.pop("hang_at_launch", -1)
    is_fatal, fail_load = knobs.pop("fatal", False), knobs.pop("fail_load", "")
    gate = knobs.pop("gate", "")
    fail_at_text, hang_at_text = knobs.pop("fail_at_text", None), knobs.pop("hang_at_text", None)
    is_encoder = knobs.pop("is_encoder", False)

    def before_result(batch: ScheduledBatch) -> None:
        if gate and batch.step == 1:
            open(gate, "rb").close()
        if len(batch.steps) == fail_at_rows:
            raise RuntimeError("the device is on fire")
        if batch.step == hang_at:
            threading.Event().wait()
        if batch.step == die_at:
            os._exit(7)

    def before_vectors(jobs: Sequence[TextJob]) -> None:
        if fail_at_text in [job.token_ids for job in jobs]:
            raise RuntimeError("no vectors today")
        if hang_at_text in [job.token_ids for job in jobs]:
            threading.Event().wait()

    class Runner(FakeRunner):
        def launch(self, batch: ScheduledBatch, masks: TokenMasks | None = None) -> FakeHandle:
            if batch.step == hang_at_launch:
                threading.Event().wait()
            return super().launch(batch, masks)

    def load_runner(load: Load, on_progress: OnProgress) -> Embedder:
        on_progress(1, 2)
        on_progress(2, 2)
        if load.files.get("config.json") == "missing":
            raise FileNotFoundError("config.json is not there")
        if fail_load:
            raise MemoryError(fail_load)
        if "windows" in knobs:
            knobs["windows"] = tuple(knobs["windows"])
        runner = Runner(
            max_num_seqs=load.max_num_seqs,
            max_num_batched_tokens=load.max_num_batched_tokens,
            before_result=before_result,
            before_vectors=before_vectors,
            **knobs,
        )
        return FakeEncoder(runner) if is_encoder else runner

    def quantize_model(message: Quantize, on_progress: OnProgress) -> Quantized:
        on_progress(1, 2)
        if message.file_type == "hang":
            threading.Event().wait()
        if message.file_type == "fail":
            raise MemoryError("no memory to quantize with")
        return Quantized(files={"model.gguf": message.folder}, notes=["a note"])

    def classify(error: Exception) -> Fault:
        return Fault("memory" if isinstance(error, MemoryError) else "internal", is_fatal)

    with socket.socket(fileno=int(sys.argv[3])) as sock:
        sock.setblocking(True)
        return serve(sock, load_runner, classify, quantize_model)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
