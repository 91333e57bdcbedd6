"""OCISource: models in registries that speak Ollama's protocol, which is OCI's with layers of models.

`registry.pull` uses it for every name that no other source claims. A manifest is taken only when it is wholly
understood: its digests are the names under which everything else is fetched and checked.
Source: the OCI image and distribution specifications; the media types of Ollama.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import msgspec

from registry.create import CreateStatus
from registry.errors import InvalidDigest, InvalidName, ManifestError, RemoteError
from registry.manifest import FILE, MANIFEST_MEDIA_TYPE, MAX_MANIFEST_BYTES, MODEL, Digest, Layer, Manifest
from registry.name import ModelName
from registry.range_request import range_headers, range_reply
from registry.registry_client import Access, RegistryClient
from registry.remote import RangeReply, RemoteBlob, RemoteModel, RemoteTag
from registry.store import Store
from registry.transport import parse_url

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
ACCEPT = ", ".join((MANIFEST_MEDIA_TYPE, OCI_MANIFEST, *INDEXES))

OLLAMA_TYPES = "application/vnd.ollama.image."
TENSOR = OLLAMA_TYPES + "tensor"

LABEL_DIGITS = 12
"""Digits of a digest by which progress calls a blob, as Ollama does."""

MAX_TAG_PAGES = 100
NEXT_PAGE = re.compile(r'<([^<>]{1,2000})>\s*;\s*rel="?next"?')


class OCISource:
    """Registries as a `registry.remote.Source`."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def find(self, name: ModelName, *, insecure: bool = False) -> RemoteModel:
        """The model of this name.

        Raises:
            RemoteNotFound: the registry has none.
            RemoteError: it cannot be reached, refuses, or sends no manifest that Hob can use.
        """
        client = self._access.connect(name, insecure=insecure)
        data = client.retry(partial(_fetch_manifest, client, name.tag))
        if digest := _only_manifest(data, client):
            data = client.retry(partial(_fetch_manifest, client, str(digest)))
            if Digest.of(data) != digest:
                raise RemoteError(f"{client.host} sent another manifest than {digest} for {name}; try again later")
        try:
            manifest = Manifest.parse(data)
        except ManifestError as error:
            raise RemoteError(f"{client.host} describes {name} in a way that Hob cannot use: {error}") from error
        _check_is_model(manifest, client)
        layers = {layer.digest: layer for layer in (*manifest.layers, manifest.config)}
        blobs = tuple(_blob(client, layer) for layer in layers.values())
        return RemoteModel(name, blobs, partial(_publish, name, data))

    def tags(self, name: ModelName, *, insecure: bool = False) -> list[RemoteTag]:
        """The model's tags, in the registry's order; those that could not be pulled are left out.

        Raises:
            RemoteNotFound, RemoteError: as `find`.
        """
        client = self._access.connect(name, insecure=insecure)
        tags: dict[str, None] = {}
        url = client.url("tags/list")
        for _ in range(MAX_TAG_PAGES):
            page, following = client.retry(partial(_fetch_tags, client, url))
            tags |= dict.fromkeys(filter(_is_tag, page))
            if not following:
                break
            url = following
        return [RemoteTag(tag, None) for tag in tags]


# ---- manifests


def _fetch_manifest(client: RegistryClient, reference: str) -> bytes:
    with client.send("GET", client.url(f"manifests/{reference}"), headers={"Accept": ACCEPT}) as reply:
        reply.check(f'model "{client.name.short}"', client.remedy)
        return reply.read(MAX_MANIFEST_BYTES, "a manifest")


class _Entry(msgspec.Struct, rename="camel"):
    digest: str


class _KindJSON(msgspec.Struct, rename="camel"):
    """What tells an index from a manifest; b"" for a key that is not there."""

    media_type: object = ""
    manifests: msgspec.Raw = msgspec.Raw()
    config: msgspec.Raw = msgspec.Raw()
    layers: msgspec.Raw = msgspec.Raw()


def _only_manifest(data: bytes, client: RegistryClient) -> Digest | None:
    """The one manifest that an index names; None where the bytes are no index.

    Raises:
        RemoteError: it names several, or can be read in two ways (CVE-2021-41190).
    """
    unusable = f"{client.host} describes {client.name} in a way that Hob cannot use"
    try:
        kind = msgspec.json.decode(data, type=_KindJSON)
        if not kind.manifests and kind.media_type not in INDEXES:
            return None
        entries = msgspec.json.decode(kind.manifests or b"[]", type=list[_Entry])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(f"{unusable}: {error}") from error
    if kind.config or kind.layers:
        raise RemoteError(f"{unusable}: as one model and as a list of several at once")
    if len(entries) != 1:
        raise RemoteError(
            f"{client.host} has {len(entries)} variants of {client.name} under one tag, such as for several kinds of "
            "processor; Hob reads tags of one model"
        )
    try:
        return Digest.parse(entries[0].digest)
    except InvalidDigest as error:
        raise RemoteError(f"{unusable}: it names an {error}") from error


def _check_is_model(manifest: Manifest, client: RegistryClient) -> None:
    types = [layer.media_type for layer in manifest.layers]
    if any(kind in (MODEL, FILE) for kind in types):
        return
    where = f"{client.name} of {client.host}"
    if not types:
        raise RemoteError(f"{where} has no layers, so it is no model")
    if TENSOR in types:
        raise RemoteError(f"{where} keeps each tensor in a layer of its own, a form that Hob does not read")
    strange = [kind for kind in types if not kind.startswith(OLLAMA_TYPES)]
    if strange:
        kind = "".join(c if c.isprintable() else "?" for c in strange[0][:100])
        raise RemoteError(f"{where} is no model: it consists of layers of the type {kind}")


# ---- blobs


def _blob(client: RegistryClient, layer: Layer) -> RemoteBlob:
    def open_blob(start: int, stop: int | None) -> AbstractContextManager[RangeReply]:
        return _open_blob(client, layer.digest, start, stop)

    digest = layer.digest
    return RemoteBlob(str(digest), digest.hex[:LABEL_DIGITS], layer.size, digest, "", open_blob)


@contextmanager
def _open_blob(client: RegistryClient, digest: Digest, start: int, stop: int | None) -> Iterator[RangeReply]:
    url = client.url(f"blobs/{digest}")
    with client.send("GET", url, headers=range_headers(start, stop)) as reply:
        yield range_reply(reply, start, stop, f"blob {digest} of {client.name}", client.remedy)


def _publish(name: ModelName, data: bytes, store: Store, digests: Mapping[str, Digest]) -> Iterator[CreateStatus]:
    """Make the model; its blobs are named by the manifest, and so `digests` says nothing new."""
    yield CreateStatus("verifying sha256 digest")
    yield CreateStatus("writing manifest")
    store.write_manifest(name, data)


# ---- tags


class _TagsJSON(msgspec.Struct):
    tags: list[str] | None = None


def _fetch_tags(client: RegistryClient, url: str) -> tuple[list[str], str]:
    """One page, and the address of the next, "" where there is none."""
    with client.send("GET", url) as reply:
        reply.check(f'list of tags of "{client.name.namespace}/{client.name.model}"', client.remedy)
        body = reply.read(MAX_MANIFEST_BYTES, "a list of tags")
        match = NEXT_PAGE.search(reply.headers.get("link", ""))
        following = str(parse_url(match[1], reply.url)) if match else ""
    if following and not following.startswith(client.url("tags/list") + "?"):
        raise RemoteError(f"{client.host} continues its list of tags at another place; Hob does not follow")
    try:
        return msgspec.json.decode(body, type=_TagsJSON).tags or [], following
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(f"{client.host} sent something else than a list of tags") from error


def _is_tag(text: str) -> bool:
    try:
        ModelName("model", text)
    except InvalidName:
        return False
    return True
