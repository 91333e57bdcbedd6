"""Models in a store, from files under the names that their maker gave them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.create import CheckSource, CreateRequest, create_model
from registry.name import ModelName
from registry.store import Store


def create_from(
    store: Store, name: str, files: Mapping[str, Path], check_source: CheckSource | None = None, **words: Any
) -> None:
    digests = {path_name: str(store.write_blob([path.read_bytes()])) for path_name, path in files.items()}
    for _ in create_model(store, CreateRequest(ModelName.parse(name), files=digests, **words), check_source):
        pass
