"""Models for a hub's repositories, and a plain way to fetch one: every blob whole, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from modelfiles.gguf import GGUFFile
from modelfiles.gguf_writer import NewTensor, write_gguf
from registry.manifest import Digest
from registry.remote import RemoteModel
from registry.store import Store
from registry.stored_model import StoredModel
from tests.registry.hub_server import git_hash


def split_gguf(path: Path, folder: Path, prefix: str, num_shards: int) -> dict[str, Path]:
    """A GGUF file in shards, as llama.cpp's gguf-split makes them: all metadata in the first."""
    shards = {}
    with GGUFFile.open(path) as file:
        names = list(file.tensors)
        for number in range(num_shards):
            tensors = [
                NewTensor(name, file.tensors[name].shape, file.tensors[name].type, bytes(file.data(name)))
                for name in names[number::num_shards]
            ]
            split = {"split.no": number, "split.count": num_shards, "split.tensors.count": len(names)}
            metadata = {**file.metadata, **split} if number == 0 else dict(split)
            name = f"{prefix}-{number + 1:05}-of-{num_shards:05}.gguf"
            shards[name] = folder / name
            write_gguf(shards[name], metadata, tensors, types=file.types)
    return shards


def hf_files(folder: Path) -> dict[str, bytes | Path]:
    """A folder in the hub's layout, as a repository's files."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}


def fetch(store: Store, model: RemoteModel, before_each: Callable[[], object] = lambda: None) -> dict[str, Digest]:
    """Bring a model's blobs into the store; each must have the size and the hash that the hub promised."""
    digests = {}
    for blob in model.blobs:
        before_each()
        with blob.open(0, None) as reply:
            data = b"".join(reply.chunks)
        assert blob.digest or git_hash(data) == blob.git_hash
        digests[blob.key] = store.write_blob([data], blob.digest, blob.size)
    return digests


def pull(store: Store, model: RemoteModel) -> StoredModel:
    digests = fetch(store, model)
    statuses = [status.status for status in model.publish(store, digests)]
    assert statuses in (["parsing GGUF", "writing manifest"], ["parsing safetensors", "writing manifest"])
    return store.get(model.name)
