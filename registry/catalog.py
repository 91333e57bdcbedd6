"""The catalog: short names such as "qwen:7b" and the makers' repositories that they mean.

The entries are data, `registry/catalog.json`, in the form of the structs below (`registry/catalog.schema.json` is that
form as a JSON schema, for editors). Listed is only what the engine runs; what is not here is asked of Ollama's registry
by the caller. `tools/check_catalog.py` asks the hub whether all entries are still true.

A tag is a size, perhaps with a suffix that says nothing new ("7b-instruct") and a quantisation ("7b-instruct-q8_0"), as
people know them from Ollama. A model that is pulled by a short name is stored under the short name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import msgspec

from registry.errors import RemoteNotFound
from registry.hub import HubSource
from registry.hub_files import QUANTIZATION
from registry.name import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, ModelName
from registry.remote import RemoteModel, RemoteTag

HUB = "hf.co"
MEGABYTE = 10**6
SIMILAR = 0.75
"""How like a name a misspelt one must be, from 0 to 1."""


class CatalogVariant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One size of a model."""

    tag: str
    repository: str
    quantization: str
    """Its tag on the hub, which is pulled unless the name says another."""
    size_mb: int
    """Millions of bytes of what is pulled."""
    aliases: tuple[str, ...] = ()
    """Other tags that mean it."""


class CatalogModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One short name."""

    name: str
    maker: str
    description: str
    """One line."""
    capabilities: tuple[str, ...]
    """As in `show`: "completion", "tools", "thinking"."""
    default: str
    """The variant that the name alone means."""
    variants: tuple[CatalogVariant, ...]
    """The smallest first, as far as people think of them so."""
    suffixes: tuple[str, ...] = ()
    """What may follow each variant's tag: "instruct" lets "7b-instruct" mean "7b"."""


class CatalogFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole data file."""

    models: tuple[CatalogModel, ...]
    schema: str = msgspec.field(name="$schema", default="")


@dataclass(frozen=True)
class CatalogEntry:
    """What a short name means."""

    model: CatalogModel
    variant: CatalogVariant
    quantization: str

    @property
    def hub_name(self) -> ModelName:
        """Where it is."""
        namespace, _, repository = self.variant.repository.partition("/")
        return ModelName(repository, self.quantization, namespace, HUB)

    @property
    def size(self) -> int | None:
        """Bytes, about; None for another quantisation than the variant's own."""
        return self.variant.size_mb * MEGABYTE if self.quantization == self.variant.quantization else None


class Catalog:
    """All short names."""

    def __init__(self, models: Sequence[CatalogModel]) -> None:
        self.models = tuple(models)
        self._by_name = {model.name: model for model in models}

    @classmethod
    def load(cls, path: Path | None = None) -> Catalog:
        """Read the data file that comes with Hob, or another one.

        Raises:
            msgspec.ValidationError: it does not have the form of CatalogFile.
        """
        data = path.read_bytes() if path else (resources.files("registry") / "catalog.json").read_bytes()
        return cls(msgspec.json.decode(data, type=CatalogFile).models)

    def resolve(self, name: ModelName) -> CatalogEntry | None:
        """What a name means, None where it is none of the catalog's or has a tag that it does not know."""
        model = self._model(name)
        if model is None:
            return None
        tag, quantization = _split_quantization(name.tag.lower())
        if tag in ("", DEFAULT_TAG, *model.suffixes):
            tag = model.default
        for variant in model.variants:
            if tag in (variant.tag, *variant.aliases, *(f"{variant.tag}-{suffix}" for suffix in model.suffixes)):
                return CatalogEntry(model, variant, quantization or variant.quantization)
        return None

    def tags(self, name: ModelName) -> list[RemoteTag]:
        """The variants of a model, whatever the name's tag is; none where it is not the catalog's."""
        model = self._model(name)
        variants = model.variants if model else ()
        return [RemoteTag(variant.tag, variant.size_mb * MEGABYTE) for variant in variants]

    def search(self, words: str) -> list[CatalogModel]:
        """Models of whose name, maker, description, capabilities or tags every word is a part, the likeliest first.

        Where there is none, those whose names are nearly so spelt. All models where there is no word.
        """
        wanted = words.lower().replace(":", " ").split()
        found = [model for model in self.models if all(word in _text(model) for word in wanted)]
        if not found:
            near = difflib.get_close_matches("".join(wanted), self._by_name, n=5, cutoff=SIMILAR)
            return [self._by_name[name] for name in near]
        return sorted(found, key=lambda model: (_rank(model.name, wanted), model.name))

    def _model(self, name: ModelName) -> CatalogModel | None:
        is_short = (name.host.lower(), name.namespace.lower()) == (DEFAULT_HOST, DEFAULT_NAMESPACE)
        return self._by_name.get(name.model.lower()) if is_short else None


class CatalogSource:
    """The catalog's names as a registry.remote.Source: each is asked of the hub and stored under its short name."""

    def __init__(self, catalog: Catalog, hub: HubSource) -> None:
        self._catalog = catalog
        self._hub = hub

    def find(self, name: ModelName, *, insecure: bool = False) -> RemoteModel:
        """As Source.find; RemoteNotFound also where the catalog does not have the name."""
        entry = self._catalog.resolve(name)
        if entry is None:
            raise RemoteNotFound(f"the catalog has no {name.short}")
        return self._hub.find(entry.hub_name, insecure=insecure, stored_as=name)

    def tags(self, name: ModelName, *, insecure: bool = False) -> list[RemoteTag]:
        """As Source.tags, without asking anybody."""
        tags = self._catalog.tags(name)
        if not tags:
            raise RemoteNotFound(f"the catalog has no {name.model}")
        return tags


def _split_quantization(tag: str) -> tuple[str, str]:
    """ "7b-instruct-q4_k_m" -> ("7b-instruct", "Q4_K_M"); without a quantisation the second is ""."""
    found = re.fullmatch(rf"(.*?){QUANTIZATION.pattern}", tag, re.IGNORECASE)
    return (found[1], found[2].upper()) if found else (tag, "")


def _text(model: CatalogModel) -> str:
    tags = (tag for variant in model.variants for tag in (variant.tag, *variant.aliases))
    return " ".join([model.name, model.maker, model.description, *model.capabilities, *tags]).lower()


def _rank(name: str, words: Sequence[str]) -> int:
    """0 for the model that is named, then names that begin so, that contain it, and others."""
    first = words[0] if words else ""
    return 0 if name == first else 1 if name.startswith(first) else 2 if first in name else 3
