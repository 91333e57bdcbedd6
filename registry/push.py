"""Push: a stored model to a registry, blobs first and the manifest last, so that no model is found without its parts.

`daemon/routes` calls `push_model`. Blobs that the registry has are left out. Others are sent from the disk in chunks,
the last one with the request that closes the upload; after a fault the registry is asked how far it is, and where it
does not know, the blob starts anew. All blobs are leased meanwhile.
Source: the OCI distribution specification, "Pushing a blob in chunks".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from registry.create import CreateStatus
from registry.disk import read_regular
from registry.errors import (
    BlobNotFound,
    BrokenModel,
    InvalidName,
    ManifestError,
    ModelNotFound,
    RemoteDenied,
    RemoteError,
    StoreError,
    as_store_error,
)
from registry.manifest import MANIFEST_MEDIA_TYPE, MAX_MANIFEST_BYTES, Layer, Manifest
from registry.name import DEFAULT_HOST, DEFAULT_NAMESPACE, ModelName
from registry.oci import LABEL_DIGITS
from registry.registry_client import Access, RegistryClient
from registry.reply import Reply
from registry.reports import Report, reported
from registry.store import Store
from registry.transport import parse_url, with_query

CHUNK_BYTES = 64 * 1024 * 1024
"""What one request carries: under the 100 MB that some proxies take, and over the 5 MB that some stores want."""

PIECE_BYTES = 128 * 1024
"""What is read from the disk at a time."""

VERIFY_S = 600
"""How long a registry may take to hash what it got."""

NOT_YOURS = "you are not authorized to push to this namespace, create the model under a namespace you own"


def push_model(
    store: Store, access: Access, name: ModelName, *, insecure: bool = False, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[CreateStatus]:
    """Push a model under its own name, yielding progress; the last status is "success".

    Raises:
        ModelNotFound, BrokenModel: it is not here, or damaged.
        RemoteDenied: nobody may push to its namespace, or not with this login.
        RemoteError: the registry cannot be reached, or refuses.
    """
    yield CreateStatus("retrieving manifest")
    name = replace(store.resolve(name), scheme=name.scheme)
    if (name.host.lower(), name.namespace.lower()) == (DEFAULT_HOST, DEFAULT_NAMESPACE):
        raise RemoteDenied(f"{NOT_YOURS}: hob cp {name} YOURS/{name}")
    data, manifest = _read_manifest(store, name)
    layers = {layer.digest: layer for layer in (*manifest.layers, manifest.config)}
    with store.lease(manifest.digests()):
        client = access.connect(name, actions="pull,push", insecure=insecure)
        try:
            for layer in layers.values():
                yield from _push_blob(store, client, layer, chunk_bytes)
            yield CreateStatus("pushing manifest")
            client.retry(lambda: _put_manifest(client, data))
        except RemoteDenied as error:
            if name.host.lower() == DEFAULT_HOST:
                raise RemoteDenied(f"{NOT_YOURS} ({error})") from error
            raise
    yield CreateStatus("success")


def _read_manifest(store: Store, name: ModelName) -> tuple[bytes, Manifest]:
    """The manifest's bytes as they are, since their digest is the model's."""
    try:
        data, _ = read_regular(store.manifests.joinpath(*name.path_parts), MAX_MANIFEST_BYTES)
        return data, Manifest.parse(data)
    except FileNotFoundError as error:
        raise ModelNotFound(name.short) from error
    except (OSError, ValueError) as error:
        reason = str(error) if isinstance(error, ManifestError) else "its manifest cannot be read"
        raise BrokenModel(name.short, reason) from error


def _push_blob(store: Store, client: RegistryClient, layer: Layer, chunk_bytes: int) -> Iterator[CreateStatus]:
    try:
        path = store.blob_path(layer.digest)
    except BlobNotFound as error:
        raise BrokenModel(client.name.short, f"its blob {layer.digest} is missing") from error
    status = CreateStatus(f"pushing {layer.digest.hex[:LABEL_DIGITS]}", str(layer.digest), 0, layer.size)
    yield status
    for num_bytes in reported(_Upload(client, layer, path, chunk_bytes).run):
        yield replace(status, completed=num_bytes)
    yield replace(status, completed=layer.size)


@dataclass
class _Place:
    """Where an upload goes on: an address that the registry gave, and how much it has."""

    url: str
    giver: Reply
    num_bytes: int


class _Upload:
    """One blob on its way into a registry."""

    def __init__(self, client: RegistryClient, layer: Layer, path: Path, chunk_bytes: int) -> None:
        self._client = client
        self._layer = layer
        self._path = path
        self._chunk_bytes = chunk_bytes
        self._what = f"blob {layer.digest} of {client.name}"
        self._place: _Place | None = None
        self._furthest = 0

    def run(self, report: Report) -> None:
        if not self._client.retry(self._is_there):
            self._client.retry(lambda: self._attempt(report), progress=lambda: self._furthest)

    def _is_there(self) -> bool:
        with self._client.send("HEAD", self._client.url(f"blobs/{self._layer.digest}")) as reply:
            if reply.status != 404:
                reply.check(self._what, self._client.remedy)
            return reply.status == 200

    def _attempt(self, report: Report) -> None:
        """Go on where the attempt before has ended, or from the beginning."""
        place = self._resume() or self._start()
        while place is not None:
            self._place = place
            self._furthest = max(self._furthest, place.num_bytes)
            report(place.num_bytes)
            place = self._send_chunk(place, report)

    def _start(self) -> _Place | None:
        """Open an upload; None where the registry has found the blob in another of its models."""
        query = {}
        if repository := self._origin_repository():
            query = {"mount": str(self._layer.digest), "from": repository}
        url = with_query(self._client.url("blobs/uploads/"), query)
        with self._client.send("POST", url, headers={"Content-Length": "0"}) as reply:
            reply.check(f"a new {self._what}", self._client.remedy)
            return None if reply.status == 201 else self._place_of(reply, 0)

    def _origin_repository(self) -> str:
        with suppress(InvalidName):
            origin = ModelName.parse(self._layer.origin)
            if origin.host.lower() == self._client.name.host.lower() and origin != self._client.name:
                return f"{origin.namespace}/{origin.model}"
        return ""

    def _resume(self) -> _Place | None:
        """Ask how much has arrived; None where there is no upload to go on with."""
        place, self._place = self._place, None
        if place is None:
            return None
        with self._client.send("GET", place.url, linked_from=place.giver) as reply:
            match = re.fullmatch("(?:bytes=)?0-([0-9]{1,18})", reply.headers.get("range", ""))
            if reply.status != 204 or not match:
                return None
            last = int(match[1])  # 0 also where nothing has arrived
            return self._place_of(reply, last + 1, place) if 0 < last < self._layer.size else None

    def _send_chunk(self, place: _Place, report: Report) -> _Place | None:
        """Send the next chunk; None after the last, which closes the upload."""
        first = place.num_bytes
        length = min(self._chunk_bytes, self._layer.size - first)
        is_last = first + length == self._layer.size
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        if length and not (is_last and first == 0):
            headers["Content-Range"] = f"{first}-{first + length - 1}"
        url = with_query(place.url, {"digest": str(self._layer.digest)}) if is_last else place.url
        with self._client.send(
            "PUT" if is_last else "PATCH",
            url,
            headers=headers,
            body=lambda: self._pieces(first, length, report),
            linked_from=place.giver,
            patience_s=VERIFY_S if is_last else None,
        ) as reply:
            reply.check(self._what, self._client.remedy)
            return None if is_last else self._place_of(reply, first + length, place)

    def _place_of(self, reply: Reply, num_bytes: int, before: _Place | None = None) -> _Place:
        text = reply.headers.get("docker-upload-location") or reply.headers.get("location", "")
        if text:
            return _Place(str(parse_url(text, reply.url)), reply, num_bytes)
        if before is None:
            raise RemoteError(f"{self._client.host} did not say where {self._what} should go")
        return _Place(before.url, reply, num_bytes)

    def _pieces(self, first: int, length: int, report: Report) -> Iterator[bytes]:
        with as_store_error(f"read {self._what}"), self._path.open("rb") as file:
            file.seek(first)
            sent = 0
            while sent < length:
                piece = file.read(min(PIECE_BYTES, length - sent))
                if not piece:
                    raise StoreError(f"{self._what} is shorter than its manifest says; pull or create the model again")
                yield piece
                sent += len(piece)
                report(first + sent)


class _MediaType(msgspec.Struct, rename="camel"):
    media_type: str = MANIFEST_MEDIA_TYPE


def _put_manifest(client: RegistryClient, data: bytes) -> None:
    kind = msgspec.json.decode(data, type=_MediaType).media_type
    url = client.url(f"manifests/{client.name.tag}")
    with client.send("PUT", url, headers={"Content-Type": kind}, body=lambda: data, patience_s=VERIFY_S) as reply:
        reply.check(f"the manifest of {client.name}", client.remedy)
