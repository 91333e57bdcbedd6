"""ModelList: every sound model, read again only where a file of it has changed.

`Store.list` asks it. A thousand models have some five thousand small files; opening and parsing them takes ten times as
long as looking at what each file is. A model is kept with the stamps of its manifest and of all its blobs, which are
taken before the files are read, so what changes meanwhile is read again the next time.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from registry.errors import BrokenModel, InvalidName, ModelNotFound, unreadable
from registry.linked_blobs import Stamp, stamp_of
from registry.manifest import ADAPTER, FILE, MODEL, PROJECTOR
from registry.manifest_tree import ManifestTree, name_of
from registry.name import ModelName
from registry.stored_model import StoredModel

MAX_KEPT_BYTES = 64 * 1024 * 1024
"""Of texts in the models that are kept. The rest is read each time, so that no texts can fill the memory."""

FILES = (MODEL, FILE, ADAPTER, PROJECTOR)
"""Layers of which a StoredModel knows the path only."""


@dataclass(frozen=True)
class _Kept:
    model: StoredModel
    manifest: Stamp
    blobs: dict[str, Stamp]
    """By file name."""
    num_text_bytes: int


class ModelList:
    """What the last listing read. May be called from several threads.

    Args:
        load: reads one model, or raises ModelNotFound or BrokenModel.
    """

    def __init__(self, root: Path, blobs: Path, tree: ManifestTree, load: Callable[[ModelName], StoredModel]) -> None:
        self._root = os.fspath(root)
        self._blobs = blobs
        self._tree = tree
        self._load = load
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, ...], _Kept] = {}

    def read(self) -> list[StoredModel]:
        """Every sound model, in no order.

        Raises:
            StoreError: the folder cannot be read.
        """
        with self._lock:
            stamps = self._blob_stamps()
            models = []
            kept: dict[tuple[str, ...], _Kept] = {}
            room = MAX_KEPT_BYTES
            for parts in self._tree.walk():
                manifest = _stamp("/".join((self._root, *parts)))
                old = self._kept.get(parts)
                if old and old.manifest == manifest and old.blobs.items() <= stamps.items():
                    models.append(old.model)
                    kept[parts] = old
                    room -= old.num_text_bytes
                    continue
                try:
                    model = self._load(name_of(parts))
                except (BrokenModel, ModelNotFound, InvalidName):
                    continue  # Store.broken reports these
                models.append(model)
                new = _keep(model, manifest, stamps)
                if new and new.num_text_bytes <= room:
                    kept[parts] = new
                    room -= new.num_text_bytes
            self._kept = kept
            return models

    def _blob_stamps(self) -> dict[str, Stamp]:
        try:
            with os.scandir(self._blobs) as scanned:
                found = {entry.name: _stamp(entry.path) for entry in scanned}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise unreadable("the models folder", error) from error
        return {name: stamp for name, stamp in found.items() if stamp}


def _stamp(path: str) -> Stamp | None:
    """What a regular file is now; None for anything else."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return stamp_of(status) if stat.S_ISREG(status.st_mode) else None


def _keep(model: StoredModel, manifest: Stamp | None, stamps: dict[str, Stamp]) -> _Kept | None:
    names = {digest.file_name for digest in model.manifest.digests()}
    if manifest is None or not names <= stamps.keys():
        return None  # written while we read
    texts = sum(layer.size for layer in model.manifest.blobs() if layer.media_type not in FILES)
    return _Kept(model, manifest, {name: stamps[name] for name in names}, texts)
