"""What must hold before a test is worth running: form, types, layers and the tests of architecture.

Called by `make check` and `./install.sh --test`. Runs everything, says at the end what failed, and exits with 1 if anything did.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

CHECKS: dict[str, list[str]] = {
    "form": [str(BIN / "ruff"), "format", "--check", "--quiet", "."],
    "rules": [str(BIN / "ruff"), "check", "--quiet", "."],
    "types": [str(BIN / "mypy"), "--no-error-summary"],
    "layers": [str(BIN / "lint-imports"), "--no-cache"],
    "architecture": [sys.executable, "-m", "pytest", "-q", "tests/test_architecture.py"],
}


def main() -> int:
    failed = []
    for name, command in CHECKS.items():
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        sys.stdout.write(f"{name}: {'ok' if done.returncode == 0 else 'failed'}\n")
        if done.returncode != 0:
            sys.stdout.write(done.stdout)
            failed.append(name)
    if failed:
        sys.stderr.write(f"Error: these checks failed: {', '.join(failed)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
