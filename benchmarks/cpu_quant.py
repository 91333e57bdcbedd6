"""Decoding quantised weights on a CPU: beside the same model in bfloat16, and beside llama.cpp on the same file.

    python benchmarks/cpu_quant.py [--model-dir FOLDER] [--shape qwen3-0.6b] [--out FILE]

One request, greedy, no stop. The models are drawn by `random_gguf` and kept in the folder. Contestants take turns, each
round all of them, so that all see the same weather on a shared machine; ratios are those of a round, and the median of
all rounds is reported. llama.cpp takes part where the package llama-cpp-python can be imported, from the folders of the
variable LLAMA_CPP if it is set, in a process of its own with an environment of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

# As the daemon sets it for its workers (engine/client.py); read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from random_gguf import SHAPES, write_model
from report import Report, seconds

from engine.llm import LLM
from engine.sampling_params import SamplingParams

MIXES = ("bf16", "q4_k_m", "q4_0")
TARGETS = {"over_bf16": 3.0, "share_of_llama_cpp": 0.7}
PEER_MIX = "q4_k_m"
PROMPT_TOKENS = 8
PEER_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}


def prompt(number: int) -> list[int]:
    """Another one each round, so that no prefix is cached."""
    return [1000 + 7 * number + token for token in range(PROMPT_TOKENS)]


class Hob:
    """Our engine with one model."""

    def __init__(self, file: Path, num_tokens: int) -> None:
        self.llm = LLM(file, device="cpu", dtype="bfloat16", num_blocks=64)
        self.num_tokens = num_tokens

    def rate(self, number: int) -> float:
        """Tokens a second behind the first one."""
        times = [self._seconds(number, count) for count in (1, self.num_tokens + 1)]
        return self.num_tokens / (times[1] - times[0])

    def _seconds(self, number: int, num_tokens: int) -> float:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        start = time.perf_counter()
        (output,) = self.llm.generate([prompt(number)], params)
        assert len(output.token_ids) == num_tokens
        return time.perf_counter() - start


class Peer:
    """llama.cpp in a process that answers a line with a rate."""

    def __init__(self, file: Path, num_tokens: int, num_threads: int) -> None:
        command = [sys.executable, __file__, "--peer", str(file)]
        self._process = subprocess.Popen(
            [*command, "--new-tokens", str(num_tokens), "--threads", str(num_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=PEER_ENVIRONMENT,
        )
        assert self._process.stdout is not None
        self.is_there = self._process.stdout.readline() == "ready\n"

    def rate(self, number: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def run_peer(file: str, num_tokens: int, num_threads: int) -> None:
    """The other side of Peer."""
    sys.path[:0] = [folder for folder in os.environ.get("LLAMA_CPP", "").split(os.pathsep) if folder]
    try:
        from llama_cpp import Llama
    except ImportError as error:
        sys.stdout.write("absent\n")
        sys.stderr.write(f"llama.cpp does not take part: {error}\n")
        return
    llama: Any = Llama(file, n_ctx=512, n_threads=num_threads, verbose=False)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        llama.reset()
        llama.eval(prompt(int(line)))
        start = time.perf_counter()
        for _ in range(num_tokens):
            llama.eval([llama.sample(temp=0.0)])
        sys.stdout.write(f"{num_tokens / (time.perf_counter() - start)}\n")
        sys.stdout.flush()


def read_bandwidth() -> float:
    """Bytes a second that all threads read out of memory."""
    source = torch.ones(64 << 20)
    return source.nbytes / median(seconds(source.sum, 7))


def ratio_case(report: Report, case: str, ours: list[float], theirs: list[float], **more: object) -> None:
    """One case of ratios, round by round."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    target = TARGETS[case.rpartition("/")[2]]
    report.case(case, median(ratios), "ratio", target=target, rounds=[round(ratio, 3) for ratio in ratios], **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, default=Path(tempfile.gettempdir()) / "hob-cpu-quant")
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen3-0.6b")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        run_peer(args.peer, args.new_tokens, args.threads)
        return

    torch.set_num_threads(args.threads)
    report = Report(args.out)
    args.model_dir.mkdir(parents=True, exist_ok=True)
    files = {mix: args.model_dir / f"{args.shape}-{mix}.gguf" for mix in MIXES}
    for mix, file in files.items():
        if not file.exists():
            write_model(file, SHAPES[args.shape], mix)
    with ExitStack() as stack:
        contestants: dict[str, Hob | Peer] = {mix: Hob(file, args.new_tokens) for mix, file in files.items()}
        peer = Peer(files[PEER_MIX], args.new_tokens, args.threads)
        stack.callback(peer.close)
        if peer.is_there:
            contestants["llama.cpp"] = peer
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        bandwidth = read_bandwidth()
        for number in range(args.repeats + 1):
            for name, contestant in contestants.items():
                rate = contestant.rate(number)
                if number:  # the first round warms up
                    rates[name].append(rate)

    facts = {"shape": args.shape, "threads": args.threads, "new_tokens": args.new_tokens, "load": os.getloadavg()[0]}
    for name, values in rates.items():
        contestant = contestants[name]
        ceiling = bandwidth / contestant.llm.ready.weights_bytes if isinstance(contestant, Hob) else None
        spread = round((max(values) - min(values)) / median(values), 3)
        report.case(f"cpu/{name}", median(values), "tokens/s", ceiling=ceiling, spread=spread, **facts)
    for mix in MIXES[1:]:
        ratio_case(report, f"cpu/{mix}/over_bf16", rates[mix], rates["bf16"], **facts)
    if "llama.cpp" in rates:
        ratio_case(report, f"cpu/{PEER_MIX}/share_of_llama_cpp", rates[PEER_MIX], rates["llama.cpp"], **facts)


if __name__ == "__main__":
    main()
