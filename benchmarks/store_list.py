"""A thousand models: how long listing them takes, and a daemon's start with them.

    python benchmarks/store_list.py [--models 1000] [--out benchmarks/results/store.jsonl]

The models are made from the built-in one, each with a system text, parameters and a licence of its own, so that there
are a thousand manifests and some four thousand blobs. "First" is a process that has not read them yet; the operating
system's file cache is warm.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import urllib.request
from pathlib import Path
from statistics import median

from report import Report, seconds
from startup import free_port, start_daemon

from registry.builtin_models import builtin_names, install, package_folder
from registry.create import CreateRequest, create_model
from registry.disk import Disk
from registry.name import ModelName
from registry.store import Store


class UnsyncedDisk(Disk):
    """Making the store is not measured, and a thousand models are some twenty thousand syncs."""

    def sync(self, fd: int) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass


def fill(root: Path, num_models: int) -> None:
    store = Store(root, disk=UnsyncedDisk())
    install(store)
    base = builtin_names(package_folder())[0]
    for index in range(num_models - len(store.list())):
        request = CreateRequest(
            ModelName(f"model-{index}", namespace=f"maker-{index % 20}"),
            from_name=base,
            system=f"You are number {index}. " * 20,
            parameters={"seed": index},
            licenses=[f"Licence of model {index}. " * 100],
        )
        for _ in create_model(store, request):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = Report(args.out)
    label = str(args.models)

    with tempfile.TemporaryDirectory() as home:
        root = Path(home) / "models"
        fill(root, args.models)
        num_blobs = len(list((root / "blobs").iterdir()))

        first = seconds(lambda: Store(root).list(), 3)
        store = Store(root)
        assert len(store.list()) == args.models
        again = seconds(store.list, args.repeats)
        more = {"repeats": args.repeats, "blobs": num_blobs, "worst": round(max(again) * 1000, 1)}
        report.case(f"store/list_{label}_ms", median(again) * 1000, "ms", **more)
        report.case(f"store/list_{label}_first_ms", median(first) * 1000, "ms", repeats=3)

        port = free_port()
        environ = os.environ | {"HOME": home, "XDG_CONFIG_HOME": home, "XDG_DATA_HOME": home, "XDG_STATE_HOME": home}
        environ |= {"HOB_HOST": f"127.0.0.1:{port}", "HOB_MODELS": str(root), "HOB_SPARE_WORKER": "0"}
        ready, tags_first, tags_again = [], [], []

        def tags() -> None:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/tags", timeout=300).read()

        for _ in range(3):
            process, elapsed = start_daemon(environ, port)
            ready.append(elapsed)
            tags_first += seconds(tags, 1)
            tags_again += seconds(tags, args.repeats)
            process.terminate()
            process.wait(30)
        report.case(f"store/ready_{label}_s", median(ready), "s", repeats=3, worst=round(max(ready), 3))
        report.case(f"store/tags_{label}_ms", median(tags_again) * 1000, "ms", repeats=len(tags_again))
        report.case(f"store/tags_{label}_first_ms", median(tags_first) * 1000, "ms", repeats=3)


if __name__ == "__main__":
    main()
