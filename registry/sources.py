"""Sources: which source has a model, by its name.

    hf.co/..., huggingface.co/...    the Hugging Face hub
    a short name of the catalog      the repository that the catalog names; where that is gone, the Ollama registry
    all else                         the registry on the name's host

Called by `registry.pull`, and by whoever asks for a model's variants.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from registry.errors import RemoteNotFound
from registry.name import ModelName
from registry.remote import RemoteModel, RemoteTag, Source

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """All there are."""

    hub: Source
    catalog: Source
    registry: Source

    def find(self, name: ModelName, *, insecure: bool = False) -> RemoteModel:
        """The model, to be stored under this name.

        Raises:
            RemoteNotFound: no source has it.
            RemoteError: the source that should have it cannot be asked.
        """
        if name.is_hub:
            return self.hub.find(name, insecure=insecure)
        try:
            return self.catalog.find(name, insecure=insecure)
        except RemoteNotFound as error:
            LOG.info("%s; %s is asked", error, name.host)
        return self.registry.find(name, insecure=insecure)

    def tags(self, name: ModelName, *, insecure: bool = False) -> list[RemoteTag]:
        """The variants of a model, whatever the name's own tag.

        Raises:
            RemoteNotFound, RemoteError: as `find`.
        """
        if name.is_hub:
            return self.hub.tags(name, insecure=insecure)
        try:
            return self.catalog.tags(name, insecure=insecure)
        except RemoteNotFound as error:
            LOG.info("%s; %s is asked", error, name.host)
        return self.registry.tags(name, insecure=insecure)
