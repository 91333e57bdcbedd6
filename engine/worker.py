"""The engine worker's process: `python -P -m engine.worker --fd N`, started by EngineClient.

It imports torch, which takes seconds, before it is asked for anything: a spare worker is ready to load at once. The
rest is engine.worker_loop. Its stderr is the daemon's log.

On Linux the kernel kills the worker when the thread that started it dies; everywhere the closing of the socket ends it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

import torch

from engine.any_config import is_encoder
from engine.embedding_engine import Embedder
from engine.execution.encoder_runner import EncoderRunner
from engine.execution.errors import ExecutionError
from engine.execution.model_runner import ModelRunner
from engine.messages import Load, Quantize, Quantized
from engine.worker_loop import Fault, OnProgress, classify_builtin, serve
from modelfiles.source import ModelSource

PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> int:
    """Serves the socket whose file descriptor is given."""
    parser = argparse.ArgumentParser(prog="engine.worker", description="Serve one model to a daemon.")
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the connected socket")
    args = parser.parse_args()
    die_with_parent()
    with socket.socket(fileno=args.fd) as sock:
        sock.setblocking(True)
        return serve(sock, load_model, classify, quantize_model)


def load_model(load: Load, on_progress: OnProgress) -> Embedder:
    """A runner of the kind that the model's files ask for. Raises as their `load`."""
    source = ModelSource({name: Path(path) for name, path in load.files.items()})
    runner = EncoderRunner if is_encoder(source) else ModelRunner
    return runner.load(load, on_progress)


def quantize_model(message: Quantize, on_progress: OnProgress) -> Quantized:
    """As `conversion.quantize.quantize_model`."""
    # Not above: it takes about 0.15 s to import, which whoever waits for a first token would wait for.
    from engine.conversion import quantize

    return quantize.quantize_model(message, on_progress)


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies, even if it hangs in a driver call."""
    # Ctrl-C goes to the whole foreground group; the daemon decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def classify(error: Exception) -> Fault:
    """What an exception of torch means."""
    if isinstance(error, ExecutionError):
        return Fault(error.kind)
    if isinstance(error, torch.OutOfMemoryError):
        return Fault("memory")
    if isinstance(error, torch.AcceleratorError):  # sticky: every later call on the device fails as well
        return Fault("internal", fatal=True)
    return classify_builtin(error)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Not sys.exit: tearing torch and the driver down in order takes longer than letting the kernel do it.
    os._exit(status)
