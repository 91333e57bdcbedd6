"""Remote: the daemon's connections to registries and the hub, and what it knows of them.

`daemon.transfers` opens it at the first transfer, and only then imports this module: the HTTP clients below it take as
long to import as all else that a daemon needs to start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

from huggingface_hub import close_session

from daemon.creation import check_architecture, check_source
from registry.catalog import Catalog, CatalogSource
from registry.create import CreateStatus
from registry.download import Downloads
from registry.hub import HubSource
from registry.name import ModelName
from registry.oci import OCISource
from registry.push import push_model
from registry.registry_client import Access
from registry.sources import Sources
from registry.store import Store
from registry.transfer_limits import TransferLimits
from registry.transport import Transport


@dataclass(frozen=True)
class Remote:
    """What lies beyond this machine."""

    store: Store
    sources: Sources
    catalog: Catalog
    downloads: Downloads
    access: Access

    def push(self, name: ModelName, *, insecure: bool) -> Iterator[CreateStatus]:
        """As registry.push.push_model."""
        return push_model(self.store, self.access, name, insecure=insecure)

    def close(self, timeout_s: float) -> None:
        """End all connections, and wait so long for the threads that use them."""
        self.access.transport.close()
        close_session()
        self.downloads.close(timeout_s)


def open_remote(store: Store, max_streams: int) -> Remote:
    """Connections are made as they are needed; nothing is sent yet.

    Args:
        max_streams: connections of one download.
    """
    transport = Transport(user_agent=f"hob/{version('hob-llm')}")
    access, catalog, hub = Access(transport), Catalog.load(), HubSource(transport, check_source, check_architecture)
    sources = Sources(hub, CatalogSource(catalog, hub), OCISource(access))
    downloads = Downloads(store, TransferLimits(max_streams=max_streams))
    return Remote(store, sources, catalog, downloads, access)
