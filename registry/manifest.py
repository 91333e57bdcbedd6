"""Digest, Layer and Manifest: what a model consists of, as the registry protocol and the disk write it.

A manifest is a small JSON document (the Docker distribution format, as Ollama uses it) that names blobs by sha256.
Whoever turns a digest into a file name does it through Digest, which accepts one spelling only; that is the whole
defence against manifests that name "../../etc/passwd" (CVE-2024-37032).

Parsing is strict where Hob relies on a value and deaf to keys it does not know, so that a newer Ollama can share the
store. Source: the OCI image manifest, and Ollama's media types `application/vnd.ollama.image.*`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from registry.errors import InvalidDigest, ManifestError

MANIFEST_MEDIA_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_MEDIA_TYPE = "application/vnd.docker.container.image.v1+json"

MODEL = "application/vnd.ollama.image.model"
PROJECTOR = "application/vnd.ollama.image.projector"
ADAPTER = "application/vnd.ollama.image.adapter"
DRAFT = "application/vnd.ollama.image.draft"
TEMPLATE = "application/vnd.ollama.image.template"
PROMPT = "application/vnd.ollama.image.prompt"  # what TEMPLATE was called before 2024
SYSTEM = "application/vnd.ollama.image.system"
PARAMS = "application/vnd.ollama.image.params"
MESSAGES = "application/vnd.ollama.image.messages"
LICENSE = "application/vnd.ollama.image.license"
FILE = "application/vnd.hob.image.file"
"""One file of a safetensors model; the layer's name is the file's."""

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_LAYERS = 10_000

DIGEST_TEXT = re.compile("sha256[:-]([0-9a-f]{64})")


@dataclass(frozen=True, order=True)
class Digest:
    """A sha256, and the only way from one to a file name."""

    hex: str
    """64 lower-case hexadecimal digits."""

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.hex):
            raise InvalidDigest("invalid digest: a sha256 has 64 lower-case hexadecimal digits")

    @classmethod
    def parse(cls, text: str) -> Digest:
        """From "sha256:<hex>", or "sha256-<hex>" as files are called.

        Raises:
            InvalidDigest: it is anything else; upper case, spaces and line ends included.
        """
        match = DIGEST_TEXT.fullmatch(text)
        if not match:
            raise InvalidDigest("invalid digest: it must be sha256: and 64 lower-case hexadecimal digits")
        return cls(match[1])

    @classmethod
    def of(cls, data: bytes) -> Digest:
        return cls(hashlib.sha256(data).hexdigest())

    @property
    def file_name(self) -> str:
        return f"sha256-{self.hex}"

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


class _LayerJSON(msgspec.Struct, rename="camel", omit_defaults=True):
    media_type: str
    digest: str
    size: int
    from_: str = msgspec.field(name="from", default="")
    name: str = ""


class _ManifestJSON(msgspec.Struct, rename="camel", kw_only=True):
    schema_version: int
    media_type: str = MANIFEST_MEDIA_TYPE
    config: _LayerJSON
    layers: list[_LayerJSON]


@dataclass(frozen=True)
class Layer:
    """One blob and what it is for."""

    media_type: str
    digest: Digest
    size: int
    """Bytes."""
    name: str = ""
    """The file's name, where the model has several; a clean relative path."""
    origin: str = ""
    """The model this layer was taken from, "from" in JSON; a hint for mounting at push, nothing more."""

    def __post_init__(self) -> None:
        if not 0 <= self.size < 2**63:
            size = self.size if abs(self.size) < 2**64 else "beyond 64 bits"  # which may have thousands of digits
            raise ManifestError(f"layer {self.digest} has size {size}; sizes are 0 to 2^63-1 bytes")
        if self.name and not is_clean_path(self.name):
            raise ManifestError(f"layer {self.digest} has a name that is no clean relative path")


@dataclass(frozen=True)
class Manifest:
    """A model's config and its layers, in order."""

    config: Layer
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if len(self.layers) > MAX_LAYERS:
            raise ManifestError(f"the manifest has {len(self.layers)} layers; the limit is {MAX_LAYERS}")
        sizes: dict[Digest, int] = {}
        for layer in self.blobs():
            if sizes.setdefault(layer.digest, layer.size) != layer.size:
                raise ManifestError(f"the manifest gives two sizes for {layer.digest}")

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """From the JSON on disk or on the wire.

        Raises:
            ManifestError: not JSON, a key missing or of the wrong type, a bad digest or size, too many layers.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise ManifestError(f"the manifest has {len(data)} bytes; the limit is {MAX_MANIFEST_BYTES}")
        if not data.strip():
            raise ManifestError("the manifest is empty")
        try:
            raw = msgspec.json.decode(data, type=_ManifestJSON)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ManifestError(f"the manifest is not valid: {error}") from error
        if raw.schema_version != 2:
            raise ManifestError(f"the manifest has schema version {raw.schema_version}; Hob reads version 2")
        try:
            return cls(_layer(raw.config), tuple(map(_layer, raw.layers)))
        except InvalidDigest as error:
            raise ManifestError(f"the manifest names an {error}") from error

    def encode(self) -> bytes:
        """The JSON to write; its sha256 is the model's digest."""
        layers = [_layer_json(layer) for layer in self.layers]
        raw = _ManifestJSON(schema_version=2, config=_layer_json(self.config), layers=layers)
        return msgspec.json.encode(raw) + b"\n"

    def blobs(self) -> Iterator[Layer]:
        """Config and layers, each blob's uses in turn."""
        yield self.config
        yield from self.layers

    def digests(self) -> frozenset[Digest]:
        return frozenset(layer.digest for layer in self.blobs())

    @property
    def size(self) -> int:
        """Bytes of config and layers together, as `list` shows it."""
        return sum(layer.size for layer in self.blobs())


def is_clean_path(text: str) -> bool:
    """Whether a file name is relative, without "." or "..", back slashes, drives or control characters."""
    if not text or len(text) > 1024 or re.search(r"[\\:\x00-\x1f\x7f]", text):
        return False
    return all(part not in ("", ".", "..") and len(part.encode("utf-8", "replace")) <= 255 for part in text.split("/"))


def _layer(raw: _LayerJSON) -> Layer:
    return Layer(raw.media_type, Digest.parse(raw.digest), raw.size, name=raw.name, origin=raw.from_)


def _layer_json(layer: Layer) -> _LayerJSON:
    return _LayerJSON(layer.media_type, str(layer.digest), layer.size, from_=layer.origin, name=layer.name)
