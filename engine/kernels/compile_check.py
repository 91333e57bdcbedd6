"""Compiles every kernel for GPUs that are not there, and tells registers, spills and shared memory.

    python -m engine.kernels.compile_check [--architecture 89] [--only prefill] [--allow-stack BYTES] [--processes N]

prints one JSON line a kernel, architecture and case, and exits with 1 when one does not compile, does not fit or
spills more than its case allows. The Triton is the one that Python finds: another version's folder on PYTHONPATH checks
that version. A case calls a launcher with tensors that have a device, a shape and a type but no
memory; the launch is recorded instead of run, so what is compiled is what that launcher launches on that architecture,
tile sizes and all. Triton brings its own assembler, so neither a GPU nor a driver is needed. Results are kept in
Triton's cache on disk. Not for use inside a process that interprets kernels (TRITON_INTERPRET).

The only place that reaches into torch and triton: it stands in for the device's properties and for the launch.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from engine.kernels.compile_cases import CASES, Case
from engine.kernels.launch import INTERPRETED, forget_devices

SHARED_BYTES = MappingProxyType({80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10})
"""Most shared memory that one block may have, by compute capability (CUDA C++ programming guide, table of technical
specifications)."""

TYPES = MappingProxyType(
    {
        torch.float32: "fp32",
        torch.float16: "fp16",
        torch.bfloat16: "bf16",
        torch.int64: "i64",
        torch.int32: "i32",
        torch.int16: "i16",
        torch.int8: "i8",
        torch.uint8: "u8",
        torch.float8_e4m3fn: "fp8e4nv",
        torch.bool: "i1",
    }
)


@dataclass(frozen=True)
class Launch:
    """One recorded launch."""

    kernel: JITFunction
    signature: dict[str, str]
    """Triton's name of each argument's type, or "constexpr"."""
    constants: dict[str, Any]
    divisible: tuple[str, ...]
    """Arguments that are multiples of 16, which the compiler makes use of. In order: it is part of the cache's key."""
    options: dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """What became of a launch."""

    case: str
    kernel: str
    architecture: int
    num_warps: int
    registers: int
    """A thread."""
    stack_bytes: int
    """A thread: spilled registers, above all."""
    shared_bytes: int
    """A block."""
    seconds: float
    triton: str
    problem: str = ""
    """Why it may not be shipped."""


Job = tuple[Launch, Case, int]
"""A launch, the case that it comes from, and the architecture."""


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def record(run: Callable[[], object], architecture: int) -> list[Launch]:
    """The launches of `run`, which finds itself on a device of that architecture; none is executed."""
    launches: list[Launch] = []

    def note(kernel: JITFunction, *args: object, grid: object, warmup: bool, **keywords: object) -> None:
        del grid, warmup
        launches.append(_launch(kernel, args, keywords))

    properties = SimpleNamespace(multi_processor_count=128)
    with ExitStack() as stack:
        stack.enter_context(
            _replaced(torch.cuda, "get_device_capability", lambda device=None: divmod(architecture, 10))
        )
        stack.enter_context(_replaced(torch.cuda, "get_device_properties", lambda device=None: properties))
        stack.enter_context(_replaced(JITFunction, "run", note))
        stack.enter_context(FakeTensorMode())
        forget_devices()
        stack.callback(forget_devices)
        run()
    return launches


def _launch(kernel: JITFunction, args: tuple[object, ...], keywords: dict[str, object]) -> Launch:
    values = dict(zip(kernel.arg_names, args, strict=False)) | keywords
    constexprs = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    unspecialized = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    signature, constants, divisible = {}, {}, []
    for name in kernel.arg_names:
        value = values.pop(name)
        is_one = isinstance(value, int) and value == 1 and not isinstance(value, bool)
        if value is None or name in constexprs or (is_one and name not in unspecialized):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0 and name not in unspecialized:
                divisible.append(name)
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and name not in unspecialized:
                divisible.append(name)
        else:
            assert isinstance(value, float), f"{kernel.__name__}: argument {name} is {type(value)}"
            signature[name] = "fp32"
    return Launch(kernel, signature, constants, tuple(divisible), values)


def compile_launch(launch: Launch, case: Case, architecture: int, allowed_stack_bytes: int = 0) -> Compiled:
    """Compiles one launch; a failure is told in the result."""
    started = time.perf_counter()
    names = launch.kernel.arg_names
    source = ASTSource(
        launch.kernel,
        launch.signature,
        {(names.index(name),): value for name, value in launch.constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in launch.divisible},
    )
    options = {"enable_fp_fusion": True} | launch.options
    shared = registers = stack = 0
    try:
        binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    except Exception as error:  # whatever the compiler raises is this check's finding
        problem = f"does not compile: {error}"
    else:
        shared = int(binary.metadata.shared)
        registers, stack = _resources(binary.asm["cubin"])
        problem = ""
        if shared > SHARED_BYTES[architecture]:
            problem = f"needs {shared} bytes of shared memory; a block has {SHARED_BYTES[architecture]} at most"
        elif stack > (allowed := max(case.max_stack_bytes, allowed_stack_bytes)):
            problem = f"spills: {stack} bytes of stack a thread; {allowed} are allowed"
    return Compiled(
        case=case.name,
        kernel=launch.kernel.__name__,
        architecture=architecture,
        num_warps=int(options.get("num_warps", 4)),
        registers=registers,
        stack_bytes=stack,
        shared_bytes=shared,
        seconds=round(time.perf_counter() - started, 2),
        triton=triton.__version__,
        problem=problem,
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack a thread."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    assert found is not None, f"cuobjdump told no registers: {done.stdout}"
    return int(found[1]), int(found[2])


def jobs(architectures: list[int], only: str = "") -> list[Job]:
    """Each different launch of the cases whose name holds `only`, once an architecture."""
    found = []
    for architecture in architectures:
        seen = set()
        for case in CASES:
            if only not in case.name or architecture not in case.architectures:
                continue
            for launch in record(case.run, architecture):
                key = launch.kernel.__name__, *(repr(sorted(x.items())) for x in (launch.signature, launch.constants))
                if key not in seen:
                    seen.add(key)
                    found.append((launch, case, architecture))
    return found


def check(todo: list[Job], allowed_stack_bytes: int, num_processes: int) -> Iterator[Compiled]:
    """Compiles launches side by side, in forks of this process: a jitted function cannot be sent to another.

    Raises:
        RuntimeError: a process died, as a crashing compiler does.
    """
    context = multiprocessing.get_context("fork")
    workers = {}
    for number in range(min(num_processes, len(todo))):
        receiver, sender = context.Pipe(duplex=False)
        share = todo[number::num_processes]
        process = context.Process(target=_compile_all, args=(share, allowed_stack_bytes, sender), daemon=True)
        process.start()
        sender.close()  # the fork has its own; without this one, its end would not be seen here
        workers[receiver] = process, share
    while workers:
        ready = multiprocessing.connection.wait(list(workers))
        for receiver in [one for one in workers if one in ready]:
            process, share = workers[receiver]
            try:
                yield receiver.recv()
                share.pop(0)
            except EOFError:
                process.join()
                del workers[receiver]
                if share:
                    launch, case, architecture = share[0]
                    raise RuntimeError(
                        f"the process that compiled {launch.kernel.__name__} ({case.name}) for {architecture} ended "
                        f"with status {process.exitcode}"
                    ) from None


def _compile_all(share: list[Job], allowed_stack_bytes: int, sender: multiprocessing.connection.Connection) -> None:
    for launch, case, architecture in share:
        sender.send(compile_launch(launch, case, architecture, allowed_stack_bytes))


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile every kernel for GPUs that are not there.")
    parser.add_argument("--architecture", type=int, action="append", choices=SHARED_BYTES, help="default: all")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--allow-stack", type=int, default=0, help="bytes a thread that every case may spill")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core")
    args = parser.parse_args()
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: kernels are interpreted, there is nothing to compile")
    has_failed = False
    for result in check(jobs(args.architecture or list(SHARED_BYTES), args.only), args.allow_stack, args.processes):
        sys.stdout.write(json.dumps(asdict(result)) + os.linesep)
        sys.stdout.flush()
        has_failed |= bool(result.problem)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
