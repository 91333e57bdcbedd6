"""Which files make up which LoRA adapter, where a model has one or several.

A GGUF file is an adapter by itself. Of safetensors, the files of one folder are an adapter: the weights and their
adapter_config.json. So several of them lie in folders "1/", "2/" and so on, and a single one in none. `create` checks
them, the registry keeps them under these names, and the worker reads them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import TypeVar

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
WEIGHTS_NAMES = (WEIGHTS_NAME, "adapters.safetensors")
"""What PEFT calls an adapter's weights, and what others do."""

File = TypeVar("File")


def group_adapters(files: Mapping[str, File]) -> tuple[dict[str, File], ...]:
    """The files of each adapter, by their names without the folder.

    Args:
        files: of all adapters of a model; those that are no part of an adapter are left out.
    """
    folders: dict[str, dict[str, File]] = {}
    singles = []
    for name, file in sorted(files.items()):
        folder, base = posixpath.split(name)
        if base.lower().endswith(".gguf"):
            singles.append({base: file})
        elif base in (CONFIG_NAME, *WEIGHTS_NAMES):
            folders.setdefault(folder, {})[base] = file
    return (*singles, *folders.values())
