"""Sweeps: an operation is stopped, or the disk refuses, at every single change, and then the store is looked at.

Two ways to strike. *Fail points*: a Disk that kills its process before its k-th step; works everywhere. *strace*: kills
at the k-th system call of a kind, or makes it fail, whoever makes it; wants strace and the right to trace a child.

Each run is a forked child, so that a SIGKILL is one. Fork only from a process without threads: a Sweep is used by
tools/store_sweep.py, which tests start as a process of its own.

What must hold afterwards: models are those of before or those of after, bit by bit; nothing stands under a digest's
name that is something else; nothing is left once the next start has cleaned up; the repeated operation gets through.
After an error: it was said in a sentence of ours, and where there was none, the operation is done.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from registry.disk import Disk
from registry.errors import RegistryError
from registry.partials import collect_partials
from registry.store import Store
from tests.registry.small_models import blob_names, contents, live_blob_names, names_in
from tests.registry.sweep_operations import PARTIALS_MAX_AGE_S, Operation, Sandbox

CHANGES = re.compile(
    r"(creat|mkdir|rename|unlink|rmdir|link|symlink|truncate|chmod|chown|mknod)(at2?)?"
    r"|f(sync|datasync|truncate|allocate|chmod|chown)|p?write(64|v|v2)?|copy_file_range|sendfile|openat"
)
"""System calls that change files, and openat. A regular expression of POSIX, for strace."""

ERRORS: dict[str, tuple[str, ...]] = {
    "openat for reading": ("EMFILE", "EIO"),
    "openat": ("ENOSPC", "EIO", "EMFILE", "EROFS"),
    "write": ("ENOSPC", "EIO"),
    "pwrite64": ("ENOSPC", "EIO"),
    "fsync": ("EIO", "ENOSPC"),
    "unlink": ("EIO", "EROFS"),
    "rmdir": ("EIO", "EROFS"),
}
OTHER_ERRORS = ("ENOSPC", "EIO", "EROFS")

PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)


@dataclass(frozen=True)
class Outcome:
    """How a child ended: "killed", "done", or what it said."""

    text: str


@dataclass(frozen=True)
class Result:
    """One strike."""

    operation: str
    point: str
    problem: str = ""
    models_lost: int = 0
    is_false_success: bool = False


class KillingDisk(Disk):
    """Kills its process before step number `kill_at`, counted from 0; counts steps where that is never."""

    def __init__(self, kill_at: int = -1) -> None:
        self._kill_at = kill_at
        self.num_steps = 0

    def __getattribute__(self, attribute: str) -> object:
        if not attribute.startswith("_") and attribute in STEPS:
            if self.num_steps == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.num_steps += 1
        return super().__getattribute__(attribute)


STEPS = frozenset(step for step in vars(Disk) if not step.startswith("_"))


def run_child(work: Callable[[], object], release: Callable[[int], object] = lambda pid: None) -> Outcome:
    """Do the work in a forked child, which waits until `release` has seen its process id."""
    go, ready = os.pipe()
    result, answer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        try:
            ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)
            if not os.read(go, 1):
                return Outcome("")  # never: `finally` ends the process
            try:
                work()
                said = "done"
            except RegistryError as error:
                said = f"refused: {error}"
            except BaseException:
                said = f"crashed: {traceback.format_exc()}"
            os.write(answer, said.encode())
        finally:
            os._exit(0)
    os.close(answer)
    try:
        release(pid)
        os.write(ready, b"g")
        said = b""
        while chunk := os.read(result, 65536):
            said += chunk
    finally:
        for fd in (go, ready, result):
            os.close(fd)
        _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return Outcome("killed" if os.WTERMSIG(status) == signal.SIGKILL else f"crashed: signal {os.WTERMSIG(status)}")
    return Outcome(said.decode() or "crashed: it said nothing")


# ---- what must hold


@dataclass(frozen=True)
class Expectation:
    """The models before and after an operation that went well."""

    before: dict[str, tuple[str, bytes, str]]
    after: dict[str, tuple[str, bytes, str]]


class Sweep:
    """One operation, to be struck again and again.

    Args:
        template: what it begins with; copied for each run.
        scratch: a folder for the copies.
    """

    def __init__(self, label: str, operation: Operation, template: Sandbox, scratch: Path) -> None:
        self.label = label
        self._operation = operation
        self._scratch = scratch
        self._template = template.copy(scratch / "prepared")
        operation.prepare(self._template)
        sandbox = self._fresh()
        before = contents(Store(sandbox.models))
        operation.run(sandbox, Store(sandbox.models))
        self._expected = Expectation(before, contents(Store(sandbox.models)))

    def _fresh(self) -> Sandbox:
        return self._template.copy(self._scratch / "run")

    # ---- fail points

    def fail_points(self, stride: int = 1) -> Iterator[Result]:
        """Die before every step of the Disk, or every `stride`-th."""
        counter = KillingDisk()
        sandbox = self._fresh()
        self._operation.run(sandbox, Store(sandbox.models, disk=counter))
        for k in range(0, counter.num_steps, stride):
            sandbox = self._fresh()
            outcome = run_child(lambda k=k, sandbox=sandbox: self._run(sandbox, KillingDisk(k)))  # type: ignore[misc]
            if outcome.text != "done":  # threads may have taken another number of steps this time
                yield self._judge(f"step {k}", sandbox, outcome)

    def _run(self, sandbox: Sandbox, disk: Disk | None = None) -> None:
        self._operation.run(sandbox, Store(sandbox.models, disk=disk))

    # ---- strace

    def strace_kills(self) -> Iterator[Result]:
        """Die at every system call that changes a file."""
        for call, number, is_reading in self._calls():
            if not is_reading:
                sandbox = self._fresh()
                outcome = self._traced(sandbox, f"{call}:signal=KILL:when={number}")
                yield self._judge(f"{call} {number}", sandbox, outcome)

    def strace_errors(self) -> Iterator[Result]:
        """Be refused at every system call that changes or opens a file."""
        for call, number, is_reading in self._calls():
            for error in ERRORS.get(f"{call} for reading" if is_reading else call, OTHER_ERRORS):
                sandbox = self._fresh()
                outcome = self._traced(sandbox, f"{call}:error={error}:when={number}")
                yield self._judge(f"{call} {number} {error}", sandbox, outcome)

    def _calls(self) -> list[tuple[str, int, bool]]:
        """Every system call of a run that counts: its name, its number of that name in its thread, whether it reads."""
        log = self._scratch / "strace.log"
        outcome = self._traced(self._fresh(), None, log)
        assert outcome.text == "done", outcome.text
        counts: dict[tuple[str, str], int] = {}
        calls: dict[tuple[str, int], bool] = {}
        for line in log.read_text("utf-8", "replace").splitlines():
            match = re.match(r"(\d+) +(\w+)\((.*)", line)
            if not match or not CHANGES.fullmatch(match[2]):
                continue
            thread, call, arguments = match.groups()
            counts[thread, call] = number = counts.get((thread, call), 0) + 1
            if "write" in call and not re.match(r"\d+</", arguments):
                continue  # to a pipe: the child's answer, or one thread to another
            is_reading = call == "openat" and not re.search("O_CREAT|O_WRONLY|O_RDWR", arguments)
            calls[call, number] = calls.get((call, number), True) and is_reading
        return [(call, number, is_reading) for (call, number), is_reading in calls.items()]

    def _traced(self, sandbox: Sandbox, inject: str | None, log: Path = Path(os.devnull)) -> Outcome:
        tracers: list[subprocess.Popen[str]] = []

        def attach(pid: int) -> None:
            words = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-p", str(pid)]
            words += ["-e", f"trace=/^({CHANGES.pattern})$"]
            words += ["-e", f"inject={inject}"] if inject else []
            tracer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
            tracers.append(tracer)
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            if "attached" not in said:
                raise RuntimeError(f"strace does not work here: {said.strip()}")

        try:
            return run_child(lambda: self._run(sandbox), attach)
        finally:
            for tracer in tracers:
                tracer.communicate()

    # ---- judging

    def _judge(self, point: str, sandbox: Sandbox, outcome: Outcome) -> Result:
        expected = self._expected
        found = contents(Store(sandbox.models))
        problem = ""
        is_false_success = outcome.text == "done" and found != expected.after
        if outcome.text.startswith("crashed"):
            problem = outcome.text
        elif str(sandbox.root) in outcome.text:
            problem = f"a path in a message: {outcome.text}"
        elif is_false_success:
            problem = "it said that it was done, and was not"
        lost = [
            model
            for model, parts in expected.before.items()
            if found.get(model) not in (parts, expected.after.get(model))
        ]
        problem = problem or (f"lost {', '.join(lost)}" if lost else "")
        try:
            problem = problem or self._look_around(sandbox)
        except Exception:
            problem = problem or traceback.format_exc()
        return Result(self.label, point, problem, len(lost), is_false_success)

    def _look_around(self, sandbox: Sandbox) -> str:
        """What is wrong with the store, for a process that starts now, and after the operation is repeated."""
        expected = self._expected
        for moment in ("after the strike", "after the next start"):
            store = Store(sandbox.models)
            if found := [finding for finding in store.check() if finding.subject not in self._operation.damage]:
                return f"{moment}: {found}"
            if contents(store) not in (expected.before, expected.after):
                return f"{moment}: the models are neither those of before nor those of after: {sorted(contents(store))}"
            if moment == "after the strike":
                kept = collect_partials(store, max_age_s=PARTIALS_MAX_AGE_S)
                store.collect_garbage(kept)
        broken = set(self._operation.damage)
        left = blob_names(store) - live_blob_names(store) - {digest.file_name for digest in kept} - broken
        if left and not broken:
            return f"after the next start: blobs that nobody needs: {left}"
        if left := names_in(store.folder.tmp) | names_in(store.folder.inbox):
            return f"after the next start: {left}"
        if contents(store) == expected.before:
            self._operation.run(sandbox, store)
        if contents(store) != expected.after:
            return "the repeated operation came to another end"
        return ""


def strace_works() -> bool:
    """Whether there is an strace that may trace."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0
