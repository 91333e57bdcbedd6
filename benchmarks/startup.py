"""The first minute: help text, daemon ready, first token cold and warm, as a user at a shell meets them.

    python benchmarks/startup.py [--model tale] [--out benchmarks/results/startup.jsonl]

Everything runs as its own process in an empty home. "Cold" is a daemon that has just been started and has no
worker; the operating system's file cache is as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

from report import Report, seconds


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def start_daemon(environ: dict[str, str], port: int) -> tuple[subprocess.Popen[bytes], float]:
    """Starts `hobd`; returns it with the seconds until it answered."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-P", "-m", "daemon.main"], env=environ, stderr=subprocess.DEVNULL)
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=1).read()
        except OSError:
            if process.poll() is not None:
                raise SystemExit("the daemon did not start") from None
            time.sleep(0.005)
        else:
            return process, time.perf_counter() - start


def first_token_seconds(port: int, model: str) -> float:
    """From the request to the first streamed piece of text."""
    body = json.dumps({"model": model, "prompt": "Tell me a story about a fox.", "think": False}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/generate", body)
    start = time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as response:
        response.readline()
        elapsed = time.perf_counter() - start
        response.read()
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tale")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = Report(args.out)

    with tempfile.TemporaryDirectory() as home:
        port = free_port()
        environ = os.environ | {"HOME": home, "XDG_CONFIG_HOME": home, "XDG_DATA_HOME": home, "XDG_STATE_HOME": home}
        environ |= {"HOB_HOST": f"127.0.0.1:{port}", "HOB_MODELS": f"{home}/models"}
        # What the entry point `hob` does.
        hob = [sys.executable, "-P", "-c", "import sys; from cli.main import main; sys.exit(main())", "--help"]
        text = subprocess.run(hob, env=environ, check=True, capture_output=True).stdout
        assert b"Usage" in text, "the help text was not printed"
        times = seconds(
            lambda: subprocess.run(hob, env=environ, check=True, stdout=subprocess.DEVNULL), args.repeats + 1
        )
        report.case("hob --help", median(times[1:]), "s", repeats=args.repeats)

        ready, cold, warm = [], [], []
        for _ in range(args.repeats):
            process, elapsed = start_daemon(environ, port)
            ready.append(elapsed)
            cold.append(first_token_seconds(port, args.model))
            warm.extend(first_token_seconds(port, args.model) for _ in range(5))
            process.terminate()
            process.wait(30)
        report.case("daemon ready", median(ready), "s", repeats=args.repeats, worst=round(max(ready), 4))
        report.case(
            f"first token of {args.model}, cold", median(cold), "s", repeats=args.repeats, worst=round(max(cold), 4)
        )
        report.case(
            f"first token of {args.model}, warm", median(warm), "s", repeats=len(warm), worst=round(max(warm), 4)
        )


if __name__ == "__main__":
    main()
