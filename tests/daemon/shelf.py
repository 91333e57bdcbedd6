"""A source of models that lies in a folder on this machine: what the daemon pulls from in tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from registry.create import CreateStatus
from registry.errors import ModelNotFound, RemoteNotFound
from registry.manifest import Digest, Layer
from registry.name import ModelName
from registry.remote import RangeReply, RemoteBlob, RemoteModel, RemoteTag
from registry.store import Store

PIECE_BYTES = 1000


class Shelf:
    """Has the models of a store, whatever their names' hosts. A registry.remote.Source."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)

    def find(self, name: ModelName, *, insecure: bool = False) -> RemoteModel:
        try:
            manifest = self.store.get(name).manifest
        except ModelNotFound as error:
            raise RemoteNotFound(f"the shelf has no {name}") from error
        data = self.store.manifests.joinpath(*name.path_parts).read_bytes()

        def publish(store: Store, digests: Mapping[str, Digest]) -> Iterator[CreateStatus]:
            yield CreateStatus("verifying sha256 digest")
            yield CreateStatus("writing manifest")
            store.write_manifest(name, data)

        blobs = (self._blob(layer) for layer in (*manifest.layers, manifest.config))
        return RemoteModel(name, tuple(blobs), publish)

    def tags(self, name: ModelName, *, insecure: bool = False) -> list[RemoteTag]:
        found = [model for model in self.store.list() if model.name.model == name.model]
        if not found:
            raise RemoteNotFound(f"the shelf has no {name.model}")
        return [RemoteTag(model.name.tag, model.size) for model in found]

    def _blob(self, layer: Layer) -> RemoteBlob:
        path = self.store.blob_path(layer.digest)

        @contextmanager
        def open_range(start: int, stop: int | None) -> Iterator[RangeReply]:
            data = path.read_bytes()[start:stop]
            pieces = (data[first : first + PIECE_BYTES] for first in range(0, len(data), PIECE_BYTES))
            yield RangeReply(start, layer.size, "", pieces)

        return RemoteBlob(str(layer.digest), layer.digest.hex[:12], layer.size, layer.digest, "", open_range)
