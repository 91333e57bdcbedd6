"""What must hold before a test is worth running: the form of the code and its types.

Called by `make check` and `./install.sh --test`. Runs everything, says at the end what failed, and exits with 1 if
anything did. The layers are checked by tests/test_architecture.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CHECKS = {
    # Without a cache: what it remembers of a file depends on files that have changed since.
    "form": ["ruff", "format", "--no-cache", "--check", "--quiet", "."],
    "rules": ["ruff", "check", "--no-cache", "--quiet", "."],
    "types": ["mypy", "--no-error-summary"],
}


def main() -> int:
    failed = []
    for name, words in CHECKS.items():
        done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
        sys.stdout.write(f"{name}: {'ok' if done.returncode == 0 else 'failed'}\n")
        if done.returncode != 0:
            sys.stdout.write(done.stdout + done.stderr)
            failed.append(name)
        sys.stdout.flush()
    if failed:
        sys.stderr.write(f"Error: these checks failed: {', '.join(failed)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
