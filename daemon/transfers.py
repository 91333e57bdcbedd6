"""Transfers: models that come and go, as streams of progress. Blocking generators, each run in a thread by its route.

What is wrong with a request raises before the first event, so that it gets a status of its own; what a source says
afterwards ends the stream with its sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from daemon import api
from registry.builtin_models import builtin_names, package_folder, restore
from registry.catalog import Catalog
from registry.create import CreateStatus
from registry.download import Downloads
from registry.name import ModelName
from registry.pull import pull_model
from registry.push import push_model
from registry.registry_client import Access
from registry.remote import RemoteTag
from registry.sources import Sources
from registry.store import Store


class Transfers:
    """The store's ways to other places."""

    def __init__(self, store: Store, sources: Sources, downloads: Downloads, access: Access, catalog: Catalog) -> None:
        self._store = store
        self._sources = sources
        self._downloads = downloads
        self._access = access
        self._catalog = catalog

    def pull(self, name: ModelName, *, insecure: bool = False) -> Iterator[api.ProgressResponse]:
        """Bring a model here: one that comes with Hob from its package, any other from the source that has it.

        Raises:
            RemoteError, StoreError, CreateError: as registry.pull.pull_model.
        """
        if name in builtin_names(package_folder()):
            yield api.ProgressResponse(status="pulling manifest")
            restore(self._store, name)
            yield api.ProgressResponse(status="writing manifest")
            yield api.ProgressResponse(status="success")
            return
        yield from _replies(pull_model(self._store, self._sources, self._downloads, name, insecure=insecure))

    def push(self, name: ModelName, *, insecure: bool = False) -> Iterator[api.ProgressResponse]:
        """Send a stored model to the registry in its name.

        Raises:
            RemoteError, StoreError: as registry.push.push_model.
        """
        return _replies(push_model(self._store, self._access, name, insecure=insecure))

    def tags(self, name: ModelName, *, insecure: bool = False) -> list[api.RemoteTag]:
        """The variants in which a model can be pulled.

        Raises:
            RemoteError: its source has no such model, or cannot be asked.
        """
        return _tags(self._sources.tags(name, insecure=insecure))

    def search(self, query: str) -> list[api.CatalogModel]:
        """What the catalog has for some words, the best match first."""
        return [
            api.CatalogModel(
                name=model.name,
                description=model.description,
                capabilities=list(model.capabilities),
                tags=[
                    api.RemoteTag(tag=tag.tag, size=tag.size or 0) for tag in self._catalog.tags(ModelName(model.name))
                ],
            )
            for model in self._catalog.search(query)
        ]


def _tags(tags: Iterable[RemoteTag]) -> list[api.RemoteTag]:
    return [api.RemoteTag(tag=tag.tag, size=tag.size or 0) for tag in tags]


def _replies(events: Iterator[CreateStatus]) -> Iterator[api.ProgressResponse]:
    """Closing it ends the work: nobody else holds `events`, and what nobody holds is closed."""
    for event in events:
        yield api.ProgressResponse(
            status=event.status, digest=event.digest, total=event.total, completed=event.completed
        )
