"""ManifestTree: which models have manifests, and the manifests' bytes.

For Store, which makes models of them, and for Collector, which asks what they name. It reads and takes no lock.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from registry.disk import read_regular
from registry.errors import NO_RESOURCES, BrokenModel, InvalidName, ManifestError, ModelNotFound, unreadable
from registry.manifest import DIGEST_TEXT, MAX_MANIFEST_BYTES, Digest, Manifest
from registry.name import ModelName

NUM_NAME_PARTS = 4


class ManifestTree:
    """The files at `<root>/<host>/<namespace>/<model>/<tag>`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, name: ModelName) -> Path:
        return self._root.joinpath(*name.path_parts)

    def walk(self, wanted: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        """Paths under the root in parts: four for what may be a model, fewer for a stray file on the way.

        Links to directories are not followed, and a directory that cannot be read counts as stray. `wanted` leaves out
        what differs from it by more than case.

        Raises:
            StoreError: the root cannot be read, or this process is short of file descriptors or memory.
        """
        pending: list[tuple[str, ...]] = [()]
        while pending:
            parent = pending.pop()
            found = self._scan(parent)
            if found is None:
                yield parent
                continue
            for name, is_directory in found:
                parts = (*parent, name)
                if name.startswith(".") or (wanted and name.lower() != wanted[len(parent)].lower()):
                    continue
                if is_directory and len(parts) < NUM_NAME_PARTS:
                    pending.append(parts)
                else:
                    yield parts

    def _scan(self, parts: tuple[str, ...]) -> list[tuple[str, bool]] | None:
        """Names in a directory, the last first, with whether each is a directory; None where it cannot be read."""
        try:
            with os.scandir("/".join((os.fspath(self._root), *parts))) as scanned:  # Path takes five times as long
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in scanned]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            if not parts or error.errno in NO_RESOURCES:
                raise unreadable("the models folder", error) from error
            return None
        return sorted(found, reverse=True)

    def is_unreadable_directory(self, parts: tuple[str, ...]) -> bool:
        """Whether what `walk` gave is a directory in which there may be manifests."""
        path = self._root.joinpath(*parts)
        return len(parts) < NUM_NAME_PARTS and path.is_dir() and not path.is_symlink()

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
            StoreError: this process is short of file descriptors or memory.
        """
        try:
            return read_regular(self.path(name), MAX_MANIFEST_BYTES)
        except FileNotFoundError as error:
            raise ModelNotFound(name.short) from error
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in NO_RESOURCES:
                raise unreadable(f"the manifest of {name}", error) from error
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
