"""A Disk that fails, stops or loses power at its k-th change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from registry.disk import Disk


class Killed(BaseException):
    """The process is gone: no handler of the code under test may run to any effect after this."""


class FaultyDisk(Disk):
    """Does nothing special until change number `fault_at`, counted from 0.

    Args:
        error: what the fault is: an errno, raised once, or None for the death of the process, after which nothing
            changes any more. A write that is hit has half of its bytes written.
    """

    def __init__(self, fault_at: int = -1, error: int | None = None) -> None:
        self.fault_at = fault_at
        self.error = error
        self.num_changes = 0
        self._is_dead = False
        self._open: dict[int, Path] = {}
        self._unsynced_files: set[Path] = set()
        self._unsynced_entries: list[tuple[Path, Callable[[], None]]] = []  # (directory, how to undo the change)

    @property
    def has_struck(self) -> bool:
        return self.num_changes > self.fault_at >= 0

    def lose_power(self) -> None:
        """Take back all that was not fsynced: bytes of files, and entries of directories."""
        for path in self._unsynced_files:
            if path.exists():
                os.truncate(path, 0)
        for _, undo in reversed(self._unsynced_entries):
            undo()

    def _live(self) -> None:
        if self._is_dead:
            raise Killed

    def _step(self) -> None:
        self._live()
        step, self.num_changes = self.num_changes, self.num_changes + 1
        if step == self.fault_at:
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error))
            self._is_dead = True
            raise Killed

    def create(self, path: Path) -> int:
        self._step()
        fd = super().create(path)
        self._open[fd] = path
        self._unsynced_files.add(path)
        return fd

    def reopen(self, path: Path) -> int:
        fd = super().reopen(path)
        self._open[fd] = path
        return fd

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        self._live()
        try:
            self._step()
        except BaseException:
            super().write_at(fd, data[: len(data) // 2], offset)
            raise
        self._unsynced_files.add(self._open[fd])
        super().write_at(fd, data, offset)

    def write(self, fd: int, data: bytes) -> None:
        self._live()
        try:
            self._step()
        except BaseException:
            super().write(fd, data[: len(data) // 2])
            raise
        self._unsynced_files.add(self._open[fd])
        super().write(fd, data)

    def sync(self, fd: int) -> None:
        self._step()  # and no fsync: these tests lose power by themselves
        if fd in self._open:  # else it is a linked file, whose bytes others have written
            self._unsynced_files.discard(self._open[fd])

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        old = target.read_bytes() if target.is_file() else None
        new = source.read_bytes() if source.is_file() else None
        super().rename(source, target)
        if source in self._unsynced_files:
            self._unsynced_files.remove(source)
            self._unsynced_files.add(target)

        def undo() -> None:
            _put_back(target, old)
            _put_back(source, new)

        self._unsynced_entries.append((target.parent, undo))

    def link(self, source: Path, target: Path) -> None:
        self._step()
        super().link(source, target)
        self._unsynced_entries.append((target.parent, lambda: target.unlink(missing_ok=True)))

    def unlink(self, path: Path) -> None:
        self._step()
        old = path.read_bytes()
        super().unlink(path)
        self._unsynced_entries.append((path.parent, lambda: _put_back(path, old)))

    def make_directory(self, path: Path) -> None:
        self._step()
        super().make_directory(path)
        self._unsynced_entries.append((path.parent, lambda: shutil.rmtree(path)))

    def remove_directory(self, path: Path) -> None:
        self._step()
        super().remove_directory(path)

    def sync_directory(self, path: Path) -> None:
        self._step()
        self._unsynced_entries = [entry for entry in self._unsynced_entries if entry[0] != path]


def _put_back(path: Path, data: bytes | None) -> None:
    if data is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
