"""Import: models that other programs on this machine hold already, without a second copy where the disk allows.

`hob import` asks the daemon, which calls this. A request names a source ("ollama", "huggingface") and a model of it,
never a path: which folders that means, the daemon's own environment says as it says it to those programs. Every file is
read whole and gets a digest's name only when it has that digest.

Weights become hard links. Neither program writes into a file that it has finished, and where somebody else does, the
store notices (`registry.linked_blobs`). Small files are copied, and so is everything where there can be no link, such
as to another disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from registry.adoption import ImportSource
from registry.errors import CreateError
from registry.hub_cache import HubCache
from registry.ollama_models import OllamaModels

SOURCES: dict[str, Callable[[Mapping[str, str]], ImportSource]] = {
    "ollama": OllamaModels.from_environment,
    "huggingface": HubCache.from_environment,
}


def import_source(name: str, environ: Mapping[str, str]) -> ImportSource:
    """The models of a program.

    Args:
        environ: the daemon's environment, which says where that program keeps them.

    Raises:
        CreateError: no program of this name is known.
    """
    if name not in SOURCES:
        raise CreateError(f"models can be imported from {' and '.join(SOURCES)}, not from {name[:40]!r}")
    return SOURCES[name](environ)
