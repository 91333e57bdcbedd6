"""Models of a few bytes for the tests of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from registry.manifest import CONFIG_MEDIA_TYPE, MODEL, PARAMS, SYSTEM, TEMPLATE, Digest, Layer, Manifest
from registry.name import ModelName
from registry.store import Store
from registry.stored_model import StoredModel

CONFIG = {"model_format": "gguf", "model_family": "llama", "model_type": "15M", "file_type": "F16"}


def layers_of(
    weights: bytes, *, system: str = "", params: dict[str, object] | None = None, template: str = ""
) -> list[tuple[str, bytes]]:
    """Media type and bytes of each layer, the config first."""
    layers = [(CONFIG_MEDIA_TYPE, msgspec.json.encode(CONFIG)), (MODEL, weights)]
    if template:
        layers.append((TEMPLATE, template.encode()))
    if system:
        layers.append((SYSTEM, system.encode()))
    if params:
        layers.append((PARAMS, msgspec.json.encode(params)))
    return layers


def manifest_of(store: Store, weights: bytes, **parts: Any) -> Manifest:
    """Write the blobs of a model and give the manifest that names them."""
    config, *layers = (
        Layer(media_type, store.write_blob([data]), len(data)) for media_type, data in layers_of(weights, **parts)
    )
    return Manifest(config, tuple(layers))


def put_model(store: Store, name: str, weights: bytes = b"weights", **parts: Any) -> StoredModel:
    """Store a model the way `create` and `pull` do: its blobs are leased before they are written."""
    with store.lease([Digest.of(data) for _, data in layers_of(weights, **parts)]):
        return store.write_manifest(ModelName.parse(name), manifest_of(store, weights, **parts))


def contents(store: Store) -> dict[str, tuple[str, bytes, str]]:
    """Every sound model: short name -> (digest, its weights' bytes, its system text)."""
    return {
        model.name.short: (model.digest.hex, model.files["model.gguf"].read_bytes(), model.system)
        for model in store.list()
    }


def blob_names(store: Store) -> set[str]:
    return names_in(store.blobs)


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.is_dir() else set()


def live_blob_names(store: Store) -> set[str]:
    return {digest.file_name for model in store.list() for digest in model.manifest.digests()}
