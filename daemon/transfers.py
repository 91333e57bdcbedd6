"""Transfers: models that come and go, as streams of progress. Blocking generators, each run in a thread by its route.

What is wrong with a request raises before the first event, so that it gets a status of its own; what a source says
afterwards ends the stream with its sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from threading import Lock
from typing import TYPE_CHECKING

from daemon import api
from registry.builtin_models import builtin_names, package_folder, restore
from registry.create import CreateStatus
from registry.name import ModelName
from registry.pull import pull_model
from registry.remote import RemoteTag
from registry.store import Store

if TYPE_CHECKING:
    from daemon.remote import Remote


class Transfers:
    """The store's ways to other places.

    Args:
        connect: opens what speaks to them; called once, at the first use, since the start of a daemon need not wait for
            HTTP clients (0.2 s) and most daemons transfer nothing.
    """

    def __init__(self, store: Store, connect: Callable[[], Remote]) -> None:
        self._store = store
        self._connect = connect
        self._lock = Lock()
        self._opened: Remote | None = None  # guarded by _lock

    @property
    def _remote(self) -> Remote:
        with self._lock:
            if self._opened is None:
                self._opened = self._connect()
            return self._opened

    def close(self, timeout_s: float) -> None:
        """End all transfers; what has arrived stays for the next pull."""
        with self._lock:
            if self._opened is not None:
                self._opened.close(timeout_s)

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
        remote = self._remote
        yield from _replies(pull_model(self._store, remote.sources, remote.downloads, name, insecure=insecure))

    def push(self, name: ModelName, *, insecure: bool = False) -> Iterator[api.ProgressResponse]:
        """Send a stored model to the registry in its name.

        Raises:
            RemoteError, StoreError: as registry.push.push_model.
        """
        return _replies(self._remote.push(name, insecure=insecure))

    def tags(self, name: ModelName, *, insecure: bool = False) -> list[api.RemoteTag]:
        """The variants in which a model can be pulled.

        Raises:
            RemoteError: its source has no such model, or cannot be asked.
        """
        return _tags(self._remote.sources.tags(name, insecure=insecure))

    def search(self, query: str) -> list[api.CatalogModel]:
        """What the catalog has for some words, the best match first."""
        catalog = self._remote.catalog
        return [
            api.CatalogModel(
                name=model.name,
                description=model.description,
                capabilities=list(model.capabilities),
                tags=_tags(catalog.tags(ModelName(model.name))),
            )
            for model in catalog.search(query)
        ]


def _tags(tags: Iterable[RemoteTag]) -> list[api.RemoteTag]:
    return [api.RemoteTag(tag=tag.tag, size=tag.size or 0) for tag in tags]


def _replies(events: Iterator[CreateStatus]) -> Iterator[api.ProgressResponse]:
    """Closing it ends the work: nobody else holds `events`, and what nobody holds is closed."""
    for event in events:
        yield api.ProgressResponse(
            status=event.status, digest=event.digest, total=event.total, completed=event.completed
        )
