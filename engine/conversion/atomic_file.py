"""A file that is there whole or not at all: written beside its place, synced, renamed. Used by the conversion jobs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENDING = ".partial"


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A path to write to. What is there at the end of the block becomes `target`; after an error nothing is left."""
    partial = target.with_name(target.name + ENDING)
    try:
        yield partial
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    """Brings a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
