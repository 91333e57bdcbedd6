"""What a source of models offers: blobs that can be fetched a range at a time, and how they become a model.

`registry.pull` asks a Source for a RemoteModel, has `registry.download` bring its blobs into the store, whatever the
source is, and then calls `publish`. The sources are `registry.oci` (registries that speak Ollama's protocol) and
`registry.hub` (the Hugging Face hub).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from registry.create import CreateStatus
from registry.manifest import Digest
from registry.name import ModelName
from registry.store import Store


@dataclass(frozen=True)
class RangeReply:
    """A server's answer to a request for bytes from some offset on."""

    start: int
    """Offset of the first byte that comes: 0 where the server does not do ranges."""
    total: int | None
    """Bytes of the whole blob, where the server says."""
    validator: str
    """What names this version of the bytes (a strong ETag), "" where the server has none."""
    chunks: Iterator[bytes]
    """Raises RemoteError when the connection ends early or stalls."""
    interrupt: Callable[[], None] = lambda: None
    """Any thread may call it: `chunks` then ends with a RemoteError at once, also where it waits for bytes."""


OpenRange = Callable[[int, int | None], AbstractContextManager[RangeReply]]
"""(start, stop) -> the reply; `stop` is exclusive, None the end. Makes one attempt.

Raises:
    RemoteError: no bytes will come; `is_temporary` says whether asking again may help.
"""


@dataclass(frozen=True)
class RemoteBlob:
    """A file of a model, where it lies."""

    key: str
    """Identity, for sharing one download and for going on with one: the digest, or what pins the file's version."""
    label: str
    """What progress calls it: the first digits of its digest, or a file name."""
    size: int | None
    """Bytes, where the source says."""
    digest: Digest | None
    """sha256, where the source says; what arrives must match it."""
    git_hash: str
    """Else its hash as a git blob, in hexadecimal digits; "" where the source has none."""
    open: OpenRange


@dataclass(frozen=True)
class RemoteModel:
    """A model at one moment: all its blobs are of one version."""

    name: ModelName
    """Under which it is stored."""
    blobs: tuple[RemoteBlob, ...]
    publish: Callable[[Store, Mapping[str, Digest]], Iterator[CreateStatus]]
    """Makes the model of the blobs, which are in the store, by their keys; yields progress up to "writing manifest"."""


@dataclass(frozen=True)
class RemoteTag:
    """One of the variants in which a source has a model."""

    tag: str
    size: int | None
    """Bytes of all files, where the source says."""


class Source(Protocol):
    """Where models come from."""

    def find(self, name: ModelName, *, insecure: bool = False) -> RemoteModel:
        """Ask for a model; small requests only.

        Args:
            insecure: whether plain HTTP and certificates that cannot be verified will do.

        Raises:
            RemoteNotFound: the source has no such model.
            RemoteError: it cannot be reached, refuses, or answers what cannot be used.
        """

    def tags(self, name: ModelName, *, insecure: bool = False) -> list[RemoteTag]:
        """The variants of a model; the name's own tag is not looked at.

        Raises:
            RemoteNotFound, RemoteError: as `find`.
        """
