"""How fast a blob comes into the store, beside curl for the same URL, and what memory that takes.

    PYTHONPATH=. python benchmarks/store_pull.py [--gigabytes 2] [--repeats 3] [--out benchmarks/results/store.jsonl]

Hob hashes, syncs and publishes what it fetches; curl writes a file. Both take turns, and the share is that of the
medians. The server is a process of its own (`blob_server.py`), once behind a line of 2.5 Gbit/s and once without a
limit, where nothing but this machine's cores bounds either, which the processes share with whatever else runs: `load`
in a line is the machine's load average.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from registry.download import Downloads
from registry.manifest import Digest
from registry.range_request import open_range
from registry.remote import RemoteBlob
from registry.store import Store, hash_file
from registry.transport import Transport

LINE_BITS_PER_S = 2.5e9
TARGET_SHARE = 0.8
TARGET_MB = 100.0
PIECE_BYTES = 16 * 1024 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pull", nargs=3, metavar=("URL", "DIGEST", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pull:
        pull(*arguments.pull)
        return

    from report import Report  # it imports torch, which must not be in the process that is measured

    report = Report(arguments.out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blob = folder / "blob"
        digest = make_blob(blob, int(arguments.gigabytes * 1e9))
        memory_mb = 0.0
        for case, bits_per_s in (
            ("store/pull/share_of_curl", LINE_BITS_PER_S),
            ("store/pull/share_of_curl_unlimited", 0.0),
        ):
            ours, curls = [], []
            with serving(blob, bits_per_s) as url:
                for _ in range(arguments.repeats):
                    curls.append(curl_seconds(url, folder / "curl"))
                    seconds, growth_mb = pull_apart(url, digest, folder / "models")
                    ours.append(seconds)
                    memory_mb = max(memory_mb, growth_mb)
            size_mb = blob.stat().st_size / 1e6
            report.case(
                case,
                median(curls) / median(ours),
                "of curl's rate",
                target=TARGET_SHARE if bits_per_s else None,
                hob_mb_per_s=round(size_mb / median(ours), 1),
                curl_mb_per_s=round(size_mb / median(curls), 1),
                line_mb_per_s=bits_per_s / 8e6 or None,
                hob_s=[round(one, 2) for one in ours],
                curl_s=[round(one, 2) for one in curls],
                gigabytes=arguments.gigabytes,
                load=round(os.getloadavg()[0], 1),
            )
        report.case("store/pull/memory_mb", memory_mb, "MB", ceiling=TARGET_MB, smaller_is_better=True)


def make_blob(path: Path, num_bytes: int) -> Digest:
    with path.open("wb") as file:
        for start in range(0, num_bytes, PIECE_BYTES):
            file.write(os.urandom(min(PIECE_BYTES, num_bytes - start)))
    return hash_file(path)  # which leaves it in the file cache, too


@contextmanager
def serving(path: Path, bits_per_s: float) -> Iterator[str]:
    program = Path(__file__).with_name("blob_server.py")
    command = [sys.executable, str(program), str(path), *([str(bits_per_s)] if bits_per_s else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/blob"
        finally:
            process.kill()


def curl_seconds(url: str, target: Path) -> float:
    start = time.perf_counter()
    subprocess.run(["curl", "--silent", "--fail", "--output", str(target), url], check=True)
    seconds = time.perf_counter() - start
    target.unlink()
    os.sync()  # what one leaves to be written must not slow the other
    return seconds


def pull_apart(url: str, digest: Digest, folder: Path) -> tuple[float, float]:
    """Pull in a process of its own: seconds, and megabytes by which its memory grew at most."""
    command = [sys.executable, __file__, "--pull", url, str(digest), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    (folder / "blobs" / digest.file_name).unlink()
    return result["seconds"], result["growth_mb"]


def pull(url: str, digest_text: str, folder: str) -> None:
    digest = Digest.parse(digest_text)
    with Transport(use_environment=False) as transport:
        blob = RemoteBlob(
            key=digest_text,
            label=digest.hex[:12],
            size=size_of(transport, url),
            digest=digest,
            git_hash="",
            open=partial(open_range, transport, url, what="the blob"),
        )
        downloads = Downloads(Store(Path(folder)))
        before = memory_mb("VmRSS")
        start = time.perf_counter()
        assert downloads.fetch(blob) == digest
        seconds = time.perf_counter() - start
        downloads.close()
    sys.stdout.write(json.dumps({"seconds": seconds, "growth_mb": memory_mb("VmHWM") - before}))


def size_of(transport: Transport, url: str) -> int | None:
    with open_range(transport, url, 0, 1, what="the blob") as reply:
        return reply.total


def memory_mb(field: str) -> float:
    """A figure of this process: VmRSS is what it takes, VmHWM the most that it took."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit(f"this system does not tell {field}")


if __name__ == "__main__":
    main()
