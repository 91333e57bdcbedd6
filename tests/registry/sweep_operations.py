"""What a crash or error sweep does to a store: a table of operations, and the folder that each begins with.

To sweep another operation, add a row to OPERATIONS: a function of a Sandbox and the store to work on. It must get to
the same end when it is repeated after it was stopped anywhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cli.inbox import linked
from registry.create import CreateRequest, CreateStatus, create_model
from registry.download import Downloads
from registry.errors import RegistryError, StoreError
from registry.fsck import Damage, fsck
from registry.manifest import Digest
from registry.name import ModelName
from registry.ollama_models import OllamaModels
from registry.partials import collect_partials
from registry.remote import RemoteModel
from registry.store import Store
from tests.registry.remote_bytes import SMALL_LIMITS, RemoteBytes, random_bytes
from tests.registry.small_models import layers_of, manifest_of, put_model
from tests.registry.weights import gguf_bytes

PARTIALS_MAX_AGE_S = 86400
PULLED = random_bytes(40_000)
PULL_LIMITS = replace(SMALL_LIMITS, max_streams=1, segment_bytes=8_000, sync_bytes=20_000)
ROTTEN = b"rotten weights"


@dataclass(frozen=True)
class Sandbox:
    """Folders of one run."""

    root: Path
    weights: bytes
    """What the user's file holds."""

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def ollama(self) -> Path:
        return self.root / "ollama"

    @property
    def gguf(self) -> Path:
        """A file of the user's."""
        return self.root / "weights.gguf"

    def copy(self, target: Path) -> Sandbox:
        shutil.rmtree(target, ignore_errors=True)
        return Sandbox(Path(shutil.copytree(self.root, target)), self.weights)


@dataclass(frozen=True)
class Operation:
    """Something that changes a store.

    `prepare` is run before, and not swept. `damage` tells the beginning of what a check may find until it is through.
    """

    run: Callable[[Sandbox, Store], object]
    prepare: Callable[[Sandbox], object] = lambda sandbox: None
    damage: tuple[str, ...] = ()


def make_template(root: Path) -> Sandbox:
    """A store of three models, two of which share weights, an orphan, a dead process's file; and an Ollama's folder."""
    root.mkdir(parents=True)
    sandbox = Sandbox(root, gguf_bytes(root))
    sandbox.gguf.write_bytes(sandbox.weights)
    store = Store(sandbox.models)
    put_model(store, "a", gguf_bytes(root, name="shared.weight"), system="of a", params={"seed": 1})
    put_model(store, "b", b"weights of b", system="of b")
    put_model(store, "c", gguf_bytes(root, name="shared.weight"))
    store.write_blob([b"orphan"])
    (store.folder.tmp / "1-dead").write_bytes(b"half")
    put_model(Store(sandbox.ollama), "theirs", gguf_bytes(root, name="their.weight"), system="of theirs")
    return sandbox


def name(text: str) -> ModelName:
    return ModelName.parse(text)


def finish(events: Iterator[object]) -> None:
    for _ in events:
        pass


def create_from(sandbox: Sandbox, store: Store, target: str, digest: Digest) -> None:
    words = {"system": "You are new.", "parameters": {"temperature": 0.5}, "licenses": ["MIT"]}
    finish(create_model(store, CreateRequest(name(target), files={"m.gguf": str(digest)}, **words)))  # type: ignore[arg-type]


def create(sandbox: Sandbox, store: Store) -> None:
    digest = store.write_blob([sandbox.weights])
    create_from(sandbox, store, "ns/new", digest)


def replace_model(sandbox: Sandbox, store: Store) -> None:
    digest = store.write_blob([sandbox.weights])
    create_from(sandbox, store, "b", digest)


def create_by_link(sandbox: Sandbox, store: Store) -> None:
    digest = store.link_blob(sandbox.gguf)
    assert digest is not None
    create_from(sandbox, store, "linked", digest)


def create_from_inbox(sandbox: Sandbox, store: Store) -> None:
    """The CLI's part and the daemon's, with the bytes sent where the link is not taken."""
    digest = Digest.of(sandbox.weights)
    with linked(sandbox.gguf, store.folder.inbox) as key:
        try:
            is_taken = key is not None and store.take_from_inbox(key, digest)
        except RegistryError:
            is_taken = False
    if not is_taken:
        store.write_blob([sandbox.weights], digest)
    create_from(sandbox, store, "linked", digest)


def pull(sandbox: Sandbox, store: Store) -> None:
    """As registry.pull does it, of a source in memory."""
    blobs = tuple(RemoteBytes(data, piece_bytes=4_000).blob() for _, data in layers_of(PULLED, system="pulled"))

    def publish(store: Store, digests: object) -> Iterator[CreateStatus]:
        yield CreateStatus("writing manifest")
        store.write_manifest(name("pulled"), manifest_of(Store(sandbox.ollama), PULLED, system="pulled"))

    model = RemoteModel(name("pulled"), blobs, publish)
    downloads = Downloads(store, PULL_LIMITS)
    try:
        events = downloads.fetch_all(model)
        while True:
            try:
                next(events)
            except StopIteration as stop:
                digests = stop.value
                break
        finish(model.publish(store, digests))
        downloads.forget(model)
    finally:
        downloads.close()


def collect(sandbox: Sandbox, store: Store) -> None:
    store.collect_garbage(collect_partials(store, max_age_s=PARTIALS_MAX_AGE_S))


def check_all(sandbox: Sandbox, store: Store) -> None:
    left = [event.subject for event in fsck(store) if isinstance(event, Damage) and not event.is_quarantined]
    if left:
        raise StoreError(f"fsck could not move {left}")


def rot(sandbox: Sandbox) -> None:
    store = Store(sandbox.models)
    put_model(store, "rotten", ROTTEN)
    (store.blobs / Digest.of(ROTTEN).file_name).write_bytes(ROTTEN[::-1])


OPERATIONS: dict[str, Operation] = {
    "create": Operation(create),
    "replace": Operation(replace_model),
    "create by a link": Operation(create_by_link),
    "create from the inbox": Operation(create_from_inbox),
    "copy": Operation(lambda sandbox, store: store.copy(name("a"), name("ns/twin:1"))),
    "copy over": Operation(lambda sandbox, store: store.copy(name("a"), name("b"))),
    "delete": Operation(lambda sandbox, store: store.delete(name("b"))),
    "delete shared": Operation(lambda sandbox, store: store.delete(name("a"))),
    "upload": Operation(lambda sandbox, store: store.write_blob([b"uploaded ", b"bytes"])),
    "collect garbage": Operation(collect),
    "pull": Operation(pull),
    "import": Operation(lambda sandbox, store: finish(OllamaModels((sandbox.ollama,)).adopt(store, name("theirs")))),
    "fsck": Operation(check_all, rot, ("rotten:latest", Digest.of(ROTTEN).file_name)),
}
