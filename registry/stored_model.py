"""StoredModel: everything that one manifest and its small blobs say, read at one moment.

`Store.get` and `Store.list` make it; the daemon renders, shows and loads from it. What is small (config, template,
parameters, messages, licences) is read and its digest checked; weights are only measured, since hashing them takes as
long as loading them.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from modelfiles.source import ModelSource
from registry.disk import read_regular
from registry.errors import NO_RESOURCES, BrokenModel, ManifestError, unreadable
from registry.manifest import (
    ADAPTER,
    DRAFT,
    FILE,
    LICENSE,
    MESSAGES,
    MODEL,
    PARAMS,
    PROJECTOR,
    PROMPT,
    SYSTEM,
    TEMPLATE,
    Digest,
    Layer,
    Manifest,
)
from registry.name import ModelName

OWN_TEMPLATE = "hob_own_template"
"""Key of a config blob, which Ollama passes over."""
MAX_TEXT_BYTES = 16 * 1024 * 1024
"""Longest template, licence, config or list of messages that is read into memory."""

Json = TypeVar("Json")


class ConfigKeys(msgspec.Struct):
    """The keys of a config blob that others rely on, with the types they must have; null counts as absent."""

    model_format: str | None = None
    model_family: str | None = None
    model_families: list[str] | None = None
    model_type: str | None = None
    file_type: str | None = None
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    remote_host: str | None = None
    remote_model: str | None = None
    base_name: str | None = None
    capabilities: list[str] | None = None
    context_length: int | None = None
    embedding_length: int | None = None


@dataclass(frozen=True)
class StoredModel:
    """One model of the store."""

    name: ModelName
    """In the case in which it is stored."""
    digest: Digest
    """sha256 of the manifest's bytes; the ID that `list` shows."""
    modified_at: datetime
    """UTC."""
    manifest: Manifest
    config: Mapping[str, Any]
    """The config blob's JSON; the keys of ConfigKeys have their types or are absent."""
    template: str
    """A Go template, "" where the model has none of its own beside the one in its weights' metadata."""
    system: str
    params: Mapping[str, Any]
    messages: tuple[Mapping[str, Any], ...]
    """Each with "role" and "content" text at least."""
    licenses: tuple[str, ...]
    files: Mapping[str, Path]
    """The model's own files by name; empty for a stub of a remote model."""
    adapter_files: Mapping[str, Path]
    """Of its LoRA adapters, as modelfiles.adapter_files groups them."""
    projectors: tuple[Path, ...]
    draft_files: Mapping[str, Path]
    """Of its draft model, which is kept and not used."""

    @property
    def size(self) -> int:
        """Bytes of all its blobs."""
        return self.manifest.size

    @property
    def source(self) -> ModelSource:
        """The files to load.

        Raises:
            SourceError: it has no weights that Hob can load, such as a stub of a remote model.
        """
        return ModelSource(self.files)

    @property
    def renderer(self) -> str:
        """The RENDERER that its maker named, or ""."""
        return str(self.config.get("renderer", ""))

    @property
    def parser(self) -> str:
        """The PARSER that its maker named, or ""."""
        return str(self.config.get("parser", ""))

    @property
    def has_own_template(self) -> bool:
        """Whether its TEMPLATE was written here, into its Modelfile or that of a model that it is made from."""
        return self.config.get(OWN_TEMPLATE) is True

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Those its maker wrote into the config; the daemon adds what template and weights show."""
        return tuple(self.config.get("capabilities", ()))


def load_model(name: ModelName, data: bytes, modified_at: datetime, blobs: Path) -> StoredModel:
    """Read the model that the manifest `data` describes.

    Args:
        blobs: the folder of blobs.

    Raises:
        BrokenModel: the manifest does not parse, a blob is missing, has the wrong size, or does not hold what its
            layer says.
        StoreError: this process is short of file descriptors or memory.
    """
    try:
        manifest = Manifest.parse(data)
    except ManifestError as error:
        raise BrokenModel(name.short, str(error)) from error
    reader = _BlobReader(name, blobs)
    for layer in manifest.blobs():
        reader.measure(layer)
    by_type: dict[str, list[Layer]] = {}
    for layer in manifest.layers:
        by_type.setdefault(layer.media_type, []).append(layer)
    templates = by_type.get(TEMPLATE, []) + by_type.get(PROMPT, [])
    return StoredModel(
        name=name,
        digest=Digest.of(data),
        modified_at=modified_at,
        manifest=manifest,
        config=reader.config(manifest.config),
        template=reader.text(templates[-1:]),
        system=reader.text(by_type.get(SYSTEM, [])[-1:]),
        params=reader.json(by_type.get(PARAMS, []), dict[str, Any]) or {},
        messages=reader.messages(by_type.get(MESSAGES, [])),
        licenses=tuple(reader.text([layer]) for layer in by_type.get(LICENSE, [])),
        files=reader.paths(by_type.get(MODEL, []), "model.gguf") | reader.paths(by_type.get(FILE, []), ""),
        adapter_files=reader.paths(by_type.get(ADAPTER, []), "adapter.gguf"),
        draft_files=reader.paths(by_type.get(DRAFT, []), "draft.gguf"),
        projectors=tuple(blobs / layer.digest.file_name for layer in by_type.get(PROJECTOR, [])),
    )


@dataclass(frozen=True)
class _BlobReader:
    """Reads blobs for one model, and names the model when one is damaged."""

    name: ModelName
    blobs: Path

    def broken(self, layer: Layer, what: str) -> BrokenModel:
        return BrokenModel(self.name.short, f"its blob {layer.digest} {what}")

    def measure(self, layer: Layer) -> None:
        """Check that the blob is a file of the right size."""
        try:
            status = os.lstat(f"{self.blobs}/{layer.digest.file_name}")  # Path takes longer than the call
        except OSError as error:
            raise self.broken(layer, "is missing") from error
        if not stat.S_ISREG(status.st_mode):
            raise self.broken(layer, "is no regular file")
        if status.st_size != layer.size:
            raise self.broken(layer, f"has {status.st_size} bytes where the manifest says {layer.size}")

    def read(self, layer: Layer) -> bytes:
        try:
            data, _ = read_regular(self.blobs / layer.digest.file_name, MAX_TEXT_BYTES)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in NO_RESOURCES:
                raise unreadable(f'a blob of model "{self.name.short}"', error) from error
            raise self.broken(layer, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
        if hashlib.sha256(data).hexdigest() != layer.digest.hex:
            raise self.broken(layer, "does not hold the bytes that its digest names")
        return data

    def text(self, layers: list[Layer]) -> str:
        """The text of the only layer in `layers`, or "" where there is none."""
        for layer in layers:
            try:
                return self.read(layer).decode()
            except UnicodeDecodeError as error:
                raise self.broken(layer, "is not UTF-8 text") from error
        return ""

    def json(self, layers: list[Layer], form: type[Json]) -> Json | None:
        """The last layer's JSON, or None where there is none."""
        for layer in layers[-1:]:
            try:
                return msgspec.json.decode(self.read(layer), type=form)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise self.broken(layer, f"is not the JSON it should be: {error}") from error
        return None

    def config(self, layer: Layer) -> dict[str, Any]:
        self.json([layer], ConfigKeys)
        everything = self.json([layer], dict[str, Any]) or {}
        return {key: value for key, value in everything.items() if value is not None}

    def messages(self, layers: list[Layer]) -> tuple[dict[str, Any], ...]:
        messages = self.json(layers, list[dict[str, Any]]) or []
        for message in messages:
            if not (isinstance(message.get("role"), str) and isinstance(message.get("content"), str)):
                raise self.broken(layers[-1], "holds a message without role and content")
        return tuple(messages)

    def paths(self, layers: list[Layer], default: str) -> dict[str, Path]:
        """File name -> path. Layers without a name are the shards of one file called `default`."""
        named = {layer.name: self.blobs / layer.digest.file_name for layer in layers if layer.name}
        shards = [self.blobs / layer.digest.file_name for layer in layers if not layer.name]
        if shards and not default:
            raise self.broken(layers[0], "is a file without a name")
        stem, dot, extension = default.rpartition(".")
        for index, path in enumerate(shards, 1):
            numbered = f"{stem}-{index:05}-of-{len(shards):05}{dot}{extension}"
            named[default if len(shards) == 1 else numbered] = path
        return named
