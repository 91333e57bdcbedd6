"""ConstraintChecker: tries constraints out in a process that may be killed, before anybody loads a model for them.

    checker = ConstraintChecker()
    await checker.checked(constraint)       # raises ConstraintError
    checker.close()

The process starts at the first check and lives on; a constraint that it dies of, or that takes too long, is refused,
and the next check starts another. What was checked is remembered, because programs send the same schema again and
again. One is tried out at a time, in a thread of the checker's own: who waits for it keeps nobody else's work waiting.
Without llguidance: the daemon imports it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from engine.constraint import MAX_CONSTRAINT_CHARS, Constraint, ConstraintError
from engine.errors import EngineError

COMMAND = (sys.executable, "-P", "-m", "engine.grammar.check_process")
CHECK_S = 10.0
"""Time until an answer must be there; the process itself dies of its processor time, sooner on a quiet machine."""
START_S = 30.0
"""A busy machine may take so long to start it."""
NUM_REMEMBERED = 256
TOO_MUCH = (
    "the {} takes too much time or memory to compile; make it smaller: fewer properties, choices, repetitions or levels"
)


class ConstraintChecker:
    """See the module."""

    def __init__(self, command: Sequence[str] = COMMAND, timeout_s: float = CHECK_S) -> None:
        """
        Args:
            command: the process; for tests.
        """
        self._command = command
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._status = 0
        """How the last process ended."""
        self._lock = threading.Lock()
        self._answers: OrderedDict[Constraint, str] = OrderedDict()
        self._is_closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="constraint-check")

    async def checked(self, constraint: Constraint) -> None:
        """`check`, without blocking the loop or the threads that others' work is done in."""
        if constraint.kind != "json":
            await asyncio.get_running_loop().run_in_executor(self._thread, self.check, constraint)

    def check(self, constraint: Constraint) -> None:
        """Blocks until the answer is there.

        Raises:
            ConstraintError: it cannot be enforced; the sentence says what of it.
            EngineError: the process does not start.
        """
        if constraint.kind == "json":
            return
        name = constraint.kind.replace("_", " ")
        if len(constraint.value) > MAX_CONSTRAINT_CHARS:
            raise ConstraintError(
                f"the {name} has {len(constraint.value)} characters but may have at most {MAX_CONSTRAINT_CHARS}"
            )
        key = Constraint(kind=constraint.kind, value=constraint.value)
        with self._lock:
            answer = self._answers.get(key)
            if answer is None:
                answer = self._ask(key)
                # Who was killed may only have had no time on a busy machine: then the next one who asks is not told so.
                is_certain = answer is not None or self._status != -signal.SIGKILL
                answer = TOO_MUCH.format(name) if answer is None else answer
                if is_certain:
                    self._remember(key, answer)
            else:
                self._answers.move_to_end(key)
        if answer:
            raise ConstraintError(answer)

    def close(self) -> None:
        """Ends the process, also in the middle of a check."""
        self._is_closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        if (process := self._process) is not None:
            process.kill()
        with self._lock:
            self._stop()

    def _remember(self, constraint: Constraint, answer: str) -> None:
        self._answers[constraint] = answer
        if len(self._answers) > NUM_REMEMBERED:
            self._answers.popitem(last=False)

    def _ask(self, constraint: Constraint) -> str | None:
        """The process's answer; None where it died or did not answer in time."""
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(constraint) + b"\n")
            process.stdin.flush()
        except OSError:
            self._stop()
            return None
        return self._read(process, self._timeout_s)

    def _read(self, process: subprocess.Popen[bytes], timeout_s: float) -> str | None:
        """The next line; None, and the process is gone, where none came in time."""
        assert process.stdout is not None
        timer = threading.Timer(timeout_s, process.kill)
        timer.daemon = True
        timer.start()
        line = process.stdout.readline()
        timer.cancel()
        if not line.endswith(b"\n"):
            self._stop()
            return None
        return msgspec.json.decode(line, type=str)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._process = process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            if self._is_closed:  # meanwhile: `close` may not have seen it
                process.kill()
            if self._read(process, START_S) is None:
                raise EngineError("the process that checks constraints did not start; is llguidance installed?")
            return process
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not written is lost with the process
                    pipe.close()
        self._status = process.wait()
