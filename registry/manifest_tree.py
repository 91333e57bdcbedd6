"""ManifestTree: which models have manifests, and the manifests' bytes.

For Store, which makes models of them, and for Collector, which asks what they name. It reads and takes no lock.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from registry.disk import read_regular
from registry.errors import BrokenModel, InvalidName, ManifestError, ModelNotFound
from registry.manifest import DIGEST_TEXT, MAX_MANIFEST_BYTES, Digest, Manifest
from registry.name import ModelName
from registry.store_folder import entries

NUM_NAME_PARTS = 4


class ManifestTree:
    """The files at `<root>/<host>/<namespace>/<model>/<tag>`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, name: ModelName) -> Path:
        return self._root.joinpath(*name.path_parts)

    def walk(self, wanted: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        """Paths under the root in parts: four for what may be a model, fewer for a stray file on the way.

        Links to directories are not followed. `wanted` leaves out what differs from it by more than case.
        """
        pending: list[tuple[str, ...]] = [()]
        while pending:
            parent = pending.pop()
            for path in reversed(entries(self._root.joinpath(*parent))):
                parts = (*parent, path.name)
                if path.name.startswith(".") or (wanted and path.name.lower() != wanted[len(parent)].lower()):
                    continue
                if len(parts) < NUM_NAME_PARTS and path.is_dir() and not path.is_symlink():
                    pending.append(parts)
                else:
                    yield parts

    def resolve(self, name: ModelName) -> ModelName:
        """The stored spelling of a name.

        Raises:
            ModelNotFound: nothing is stored under it in any case.
        """
        if os.path.lexists(self.path(name)):
            return name
        for parts in self.walk(name.path_parts):
            if len(parts) == NUM_NAME_PARTS:
                return name_of(parts)
        raise ModelNotFound(name.short)

    def read(self, name: ModelName) -> tuple[bytes, os.stat_result]:
        """A manifest's bytes and what its file was when they were read.

        Raises:
            ModelNotFound: there is none.
            BrokenModel: it is too long, no regular file, or cannot be read.
        """
        try:
            return read_regular(self.path(name), MAX_MANIFEST_BYTES)
        except FileNotFoundError as error:
            raise ModelNotFound(name.short) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BrokenModel(name.short, f"its manifest cannot be read: {reason}") from error

    def digests_named(self, name: ModelName) -> frozenset[Digest]:
        """The blobs that the manifest of `name` names; of a damaged one those that can be made out."""
        try:
            data, _ = self.read(name)
        except (ModelNotFound, BrokenModel):
            return frozenset()
        try:
            return Manifest.parse(data).digests()
        except ManifestError:
            return frozenset(map(Digest, re.findall(DIGEST_TEXT.pattern, data.decode("ascii", "replace"))))


def name_of(parts: tuple[str, ...]) -> ModelName:
    """The name stored at <root>/<parts>.

    Raises:
        InvalidName: no name can be stored there.
    """
    if len(parts) != NUM_NAME_PARTS:
        raise InvalidName("a manifest lies at host/namespace/model/tag")
    host, namespace, model, tag = parts
    return ModelName(model, tag, namespace, host)
