"""Adoption: what another program's models look like to `hob import`, and how one file of theirs becomes a blob.

`registry.ollama_models` and `registry.hub_cache` are ImportSources; `registry.import_models` chooses between them.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from registry.create import OLD_BLOB, CheckSource, CreateStatus
from registry.disk import open_regular
from registry.errors import ModelNotFound, unreadable
from registry.manifest import Digest
from registry.name import ModelName
from registry.store import Store

CHUNK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Importable:
    """A model that could be imported."""

    name: ModelName
    """Under which it will be stored."""
    size: int
    """Bytes of all its files."""
    is_stored: bool
    """Whether the store has a model of this name, perhaps another one."""


class ImportSource(Protocol):
    """A program's models on this machine."""

    def models(self, store: Store) -> list[Importable]:
        """What there is.

        Raises:
            StoreError: its folder cannot be read.
        """

    def adopt(self, store: Store, name: ModelName, check_source: CheckSource | None = None) -> Iterator[CreateStatus]:
        """Make one of them a model of the store, yielding progress; the last status is "success".

        Args:
            check_source: as in `create_model`.

        Raises:
            ModelNotFound: it has none of this name.
            BrokenModel, DigestMismatch: the model is damaged there.
            CreateError: Hob cannot run it, or it is not whole.
            OutOfSpace, StoreError: the disk refused.
            Whatever is raised, nothing was changed.
        """


def is_stored(store: Store, name: ModelName) -> bool:
    try:
        store.resolve(name)
    except ModelNotFound:
        return False
    return True


def adopt_file(
    store: Store, path: Path, label: str, *, may_link: bool, expected: Digest | None = None
) -> Generator[CreateStatus, None, Digest]:
    """Make a blob of a file, by a hard link or a copy. It is read whole, and called by what it hashes to.

    The blob stays until a manifest names it or `Store.discard` gives it up.

    Args:
        label: what the status lines call it.
        may_link: whether a hard link will do, because nobody writes into this file.

    Raises:
        DigestMismatch: its bytes are others than `expected`; nothing is left.
        OutOfSpace, StoreError: it cannot be read, or the disk refused; nothing is left.
    """
    if expected and store.keep_blob(expected):
        yield CreateStatus(OLD_BLOB.format(expected))
        return expected
    status = f"importing {label}"
    try:
        with open_regular(path) as (fd, file):
            yield CreateStatus(status, label, 0, file.st_size)
            digest = store.link_blob(path, expected) if may_link else None
            if digest is None:
                with store.blob_writer(expected, file.st_size) as writer:
                    while chunk := os.read(fd, CHUNK_BYTES):
                        writer.write(chunk)
                        yield CreateStatus(status, label, writer.num_bytes, file.st_size)
                    digest = writer.commit()
    except OSError as error:
        raise unreadable(label, error) from error
    yield CreateStatus(status, label, file.st_size, file.st_size)
    return digest
