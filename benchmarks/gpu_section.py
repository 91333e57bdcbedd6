"""One section of benchmarks/gpu.py: a process that measures its cases and writes what it knows into the run's log.

python benchmarks/gpu_section.py JOB      JOB: a Job as JSON; gpu.py writes it
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from gpu_bench import Bench, run_cases
from gpu_engine import EngineCases
from gpu_job import MODEL_CASE, Job
from gpu_log import RunLog
from gpu_plan import SIZES
from gpu_processes import ProcessCases
from random_model import SHAPES, ensure_model
from report import Report


def main() -> int:
    job = Job(**json.loads(sys.argv[1]))
    log = RunLog(Path(job.log))
    if MODEL_CASE not in log.begun:
        log.begin(MODEL_CASE)
        begin = time.perf_counter()
        try:
            if ensure_model(Path(job.model), SHAPES[job.shape], job.device):
                sys.stderr.write(f"{job.model} was written in {time.perf_counter() - begin:.1f} s\n")
        except (OSError, RuntimeError) as error:
            log.fail(MODEL_CASE, f"the model could not be written: {error}")
            return 1
        log.end(MODEL_CASE)
    out = None if job.out is None else Path(job.out)
    report = Report(log.path, out, arguments=["gpu.py", *job.arguments])
    bench = Bench(Path(job.model), job.shape, job.device, SIZES[job.shape], log, report)
    owner: Any = EngineCases(bench) if job.section in ("engine", "variants") else ProcessCases(bench, job.peers)
    table = owner.table()
    try:
        return run_cases(bench, {name: table[name] for name in job.cases}, owner.close)
    finally:
        owner.close()


if __name__ == "__main__":
    sys.exit(main())
