"""Compiles every kernel for GPUs that are not there, and tells registers, spills and shared memory.

    python -m engine.kernels.compile_check [--architecture 89] [--only prefill]

prints one JSON line a kernel, architecture and case, and exits with 1 when one does not compile, does not fit or
spills more than its case allows. A case calls a launcher with tensors that have a device, a shape and a type but no
memory; the launch is recorded instead of run, so what is compiled is what that launcher launches on that architecture,
tile sizes and all. Triton brings its own assembler, so neither a GPU nor a driver is needed. Results are kept in
Triton's cache on disk. Not for use inside a process that interprets kernels (TRITON_INTERPRET).

The only place that reaches into torch and triton: it stands in for the device's properties and for the launch.
"""

from __future__ import annotations

import argparse
import json
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
from engine.kernels.launch import INTERPRETED

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
        torch.uint8: "u8",
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
    problem: str = ""
    """Why it may not be shipped."""


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
        run()
    return launches


def _launch(kernel: JITFunction, args: tuple[object, ...], keywords: dict[str, object]) -> Launch:
    values = dict(zip(kernel.arg_names, args, strict=False)) | keywords
    constexprs = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    signature, constants, divisible = {}, {}, []
    for name in kernel.arg_names:
        value = values.pop(name)
        if name in constexprs or (isinstance(value, int) and value == 1 and not isinstance(value, bool)):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                divisible.append(name)
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                divisible.append(name)
        else:
            assert isinstance(value, float), f"{kernel.__name__}: argument {name} is {type(value)}"
            signature[name] = "fp32"
    return Launch(kernel, signature, constants, tuple(divisible), values)


def compile_launch(launch: Launch, case: Case, architecture: int) -> Compiled:
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
        elif stack > case.max_stack_bytes:
            problem = f"spills: {stack} bytes of stack a thread; its case allows {case.max_stack_bytes}"
    seconds = round(time.perf_counter() - started, 2)
    num_warps = int(options.get("num_warps", 4))
    return Compiled(
        case.name, launch.kernel.__name__, architecture, num_warps, registers, stack, shared, seconds, problem
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


def check(architectures: list[int], only: str = "") -> Iterator[Compiled]:
    """Compiles each different launch of the cases whose name holds `only`, once an architecture."""
    for architecture in architectures:
        seen = set()
        for case in CASES:
            if only not in case.name or architecture not in case.architectures:
                continue
            for launch in record(case.run, architecture):
                key = launch.kernel.__name__, *(repr(sorted(x.items())) for x in (launch.signature, launch.constants))
                if key not in seen:
                    seen.add(key)
                    yield compile_launch(launch, case, architecture)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile every kernel for GPUs that are not there.")
    parser.add_argument("--architecture", type=int, action="append", choices=SHARED_BYTES, help="default: all")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    args = parser.parse_args()
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: kernels are interpreted, there is nothing to compile")
    has_failed = False
    for result in check(args.architecture or list(SHARED_BYTES), args.only):
        sys.stdout.write(json.dumps(asdict(result)) + os.linesep)
        sys.stdout.flush()
        has_failed |= bool(result.problem)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
