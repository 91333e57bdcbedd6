"""Every kernel compiles for every architecture that we name, and fits: no GPU, no interpreter.

Another process compiles them all, because this one interprets kernels where it has no GPU. Results come from Triton's
cache where nothing has changed. `install.sh --test` brings an older Triton as well, and says in HOB_TEST_OLDER_TRITON
where it lies.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from triton.runtime.jit import KernelInterface

import engine.kernels
from engine.kernels.compile_cases import ARCHITECTURES, CASES
from engine.kernels.compile_check import SHARED_BYTES
from engine.kernels.launch import MIN_PDL_CAPABILITY

Result = dict[str, Any]


OLDER_TRITON_STACK_BYTES = 64
"""What an older compiler may spill where the newest one does not: a few registers, which cost next to nothing."""


def compile_all(root: Path, *words: str, triton: Path | None = None) -> list[Result]:
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join(str(folder) for folder in (triton, root) if folder is not None)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "engine.kernels.compile_check", *words],
        cwd=root, env=environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == int(any(line["problem"] for line in lines)), done.stderr
    return lines


@pytest.fixture(scope="module")
def results(root: Path) -> list[Result]:
    return compile_all(root)


@pytest.fixture
def older_triton() -> Path:
    """The folder of a second Triton. One that install.sh named must be there; another may lie in the environment."""
    if named := os.environ.get("HOB_TEST_OLDER_TRITON"):
        return Path(named)
    found = sorted(Path(sys.prefix).glob("triton-*"))
    if not found:
        pytest.skip("there is no second Triton in the environment; ./install.sh --test brings one")
    return found[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_everything_compiles_and_fits(architecture: int, results: list[Result]) -> None:
    mine = [result for result in results if result["architecture"] == architecture]
    assert {result["case"] for result in mine} == {case.name for case in CASES if architecture in case.architectures}
    assert [result for result in mine if result["problem"]] == []
    for result in mine:
        assert 0 < result["registers"] <= 255
        assert result["shared_bytes"] <= SHARED_BYTES[architecture]


def test_an_older_triton_compiles_the_same(older_triton: Path, root: Path, results: list[Result]) -> None:
    older = compile_all(root, "--allow-stack", str(OLDER_TRITON_STACK_BYTES), triton=older_triton)
    assert {result["triton"] for result in older} == {older_triton.name.removeprefix("triton-")}
    assert [result for result in older if result["problem"]] == []
    cases = [{(one["case"], one["kernel"], one["architecture"]) for one in lines} for lines in (older, results)]
    assert cases[0] == cases[1]


def test_no_kernel_is_left_out(results: list[Result]) -> None:
    """A kernel is what a launcher launches: a jitted function whose name ends so."""
    kernels = set()
    for module in pkgutil.iter_modules(engine.kernels.__path__):
        members = vars(importlib.import_module(f"engine.kernels.{module.name}"))
        kernels |= {name for name, value in members.items() if isinstance(value, KernelInterface) and "kernel" in name}
    assert {result["kernel"] for result in results if result["architecture"] == 89} == kernels


def test_what_does_not_fit_is_told(root: Path) -> None:
    """The check itself: a tile that is too large, a kernel that cannot compile, and overlap where it cannot be."""
    script = """
import json
from dataclasses import asdict
from engine.kernels import compile_cases as cases, compile_check as check
from engine.kernels.prefill_attention import prefill_attention
from engine.kernels.tiles import PrefillTile

def attend(*tile):
    k_cache, v_cache = cases.caches(4, 256, 16)
    prefill_attention(cases.make(500, 28, 256), k_cache, v_cache, cases.ints(8, 64), cases.ints(8), cases.ints(9),
                      cases.ints(8), 0.1, tile=PrefillTile(*tile))

for name, tile in (("large", (64, 128, 4, 3)), ("wrong", (64, 24, 4, 2))):
    case = cases.Case(name, lambda: attend(*tile), max_stack_bytes=10**6)
    for launch in check.record(case.run, 89):
        print(json.dumps(asdict(check.compile_launch(launch, case, 89))))
print(json.dumps([[launch.options.get("launch_pdl", False) for launch in check.record(cases.norms, architecture)]
                  for architecture in (89, 90)]))
"""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=root, env=environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    large, wrong, overlaps = [json.loads(line) for line in done.stdout.splitlines()]
    assert "bytes of shared memory; a block has 101376 at most" in large["problem"]
    assert "does not compile" in wrong["problem"]
    assert overlaps == [[architecture >= MIN_PDL_CAPABILITY] * 2 for architecture in (89, 90)]
