"""Pull: from a name to a model in the store, wherever the model is.

    sources.find     which blobs, and how they become a model; small requests
    downloads        the blobs that are not here, into the store
    model.publish    checks, and the manifest last

Until the last step the old model of that name stays what it was. What has arrived when a pull ends early stays too, and
the next pull of the name goes on from there (`registry.partials`). The event words and their order are Ollama's.
`daemon.transfers` calls it.
"""

from __future__ import annotations

from collections.abc import Iterator

from registry.create import CreateStatus
from registry.download import Downloads
from registry.name import ModelName
from registry.sources import Sources
from registry.store import Store


def pull_model(
    store: Store, sources: Sources, downloads: Downloads, name: ModelName, *, insecure: bool = False
) -> Iterator[CreateStatus]:
    """Bring a model here, yielding progress; the last status is "success". Closing the iterator ends the pull.

    Args:
        insecure: whether plain HTTP and certificates that cannot be verified will do.

    Raises:
        RemoteNotFound: no source has the model.
        RemoteError: its source could not be reached, refused, or sent what cannot be used.
        CreateError: the files are no model that Hob can take.
        OutOfSpace, StoreError: the disk refused.
    """
    yield CreateStatus("pulling manifest")
    model = sources.find(name, insecure=insecure)
    with store.lease(blob.digest for blob in model.blobs if blob.digest is not None):
        digests = yield from downloads.fetch_all(model)
        yield from model.publish(store, digests)
    downloads.forget(model)
    yield CreateStatus("success")
