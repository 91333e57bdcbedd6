"""Decoding while other programs want the cores: the daemon's worker with OpenMP's threads sleeping or spinning.

    python benchmarks/busy_machine.py [--out FILE]

As many endless loops as there are cores run beside the worker, as a build or a browser would. This is why
`engine.client` sets OMP_WAIT_POLICY for its workers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from report import Report

from engine.client import EngineClient
from engine.messages import Load
from engine.sampling_params import SamplingParams
from modelfiles.source import ModelSource

TALE = Path(__file__).resolve().parent.parent / "registry" / "builtin" / "tale"
NUM_TOKENS = 100


async def decode_rates(policy: str, repeats: int) -> list[float]:
    """Tokens a second of each of `repeats` requests, one after another."""
    client = await EngineClient.start(env={**os.environ, "OMP_WAIT_POLICY": policy})
    source = ModelSource.from_path(TALE)
    await client.load(Load(files={name: str(path) for name, path in source.files.items()}))
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    rates = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        async for _ in client.submit([repeat + 10, 11, 12], params):
            pass
        rates.append(NUM_TOKENS / (time.perf_counter() - start))
    await client.close()
    return rates[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = Report(args.out)
    for num_others in (0, os.cpu_count() or 1):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_others)]
        try:
            for policy in ("active", "passive"):
                rates = asyncio.run(decode_rates(policy, args.repeats))
                spread = round((max(rates) - min(rates)) / median(rates), 3)
                case = f"decode of tale, 1 request, {num_others} busy programs beside it, OMP_WAIT_POLICY={policy}"
                report.case(case, median(rates), "tokens/s", repeats=args.repeats, spread=spread)
        finally:
            for other in others:
                other.kill()
                other.wait()


if __name__ == "__main__":
    main()
