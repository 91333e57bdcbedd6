"""Library: finds stored models by what a client calls them, and says what they are without loading them.

What a model is follows from its files, which never change under one manifest digest; so a description is made once, in
a thread, and kept by digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from daemon.api import ModelDetails
from daemon.errors import BadRequest, UnknownModel
from engine.any_config import AnyConfig, capabilities_of, read_config
from engine.text.hf_tokenizer import chat_template
from modelfiles.gguf import open_shards
from modelfiles.named_templates import gguf_chat_template
from modelfiles.prompt import TemplateError
from modelfiles.source import ModelSource, SourceError
from modelfiles.template_choice import choose_template
from registry.errors import InvalidName, ModelNotFound
from registry.model_facts import human_number
from registry.name import ModelName
from registry.store import Store
from registry.stored_model import StoredModel

CAPABILITIES = ("completion", "embedding", "rerank", "tools", "insert", "vision", "audio", "thinking")
"""In the order in which clients see them."""

MAX_SHOWN_NAME = 100
MAX_TEMPLATES = 512
"""Of which the capabilities are kept."""


@dataclass(frozen=True)
class Description:
    """What a model is."""

    capabilities: tuple[str, ...]
    details: ModelDetails
    template: str
    """The text of the template that renders its prompts, "" where it has none of its own."""


class Library:
    """The store, as clients ask for it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._descriptions: dict[str, Description] = {}
        # Compiling a template takes 40 ms, nearly all of a description, and most models share theirs with others.
        self._choose_template = lru_cache(MAX_TEMPLATES)(_choose_template)

    async def find(self, name: str | None) -> StoredModel:
        """A model by the name that a client wrote.

        Raises:
            UnknownModel: nothing is stored under it, or it is no name.
            BrokenModel: it is there and damaged.
        """
        try:
            return await asyncio.to_thread(self._store.get, ModelName.parse(name or ""))
        except ModelNotFound as error:
            raise UnknownModel(name or "") from error
        except InvalidName as error:
            raise UnknownModel(shorten(name or ""), f"this is no model name: {error.reason}" if name else "") from error

    async def find_valid(self, name: str | None) -> StoredModel:
        """As `find`, but a name that is none is the request's fault.

        Raises:
            BadRequest: there is no name, or it breaks the grammar of names.
        """
        if not name:
            raise BadRequest("model is required", "model")
        try:
            ModelName.parse(name)
        except InvalidName as error:
            raise BadRequest(f"'{shorten(name)}' is no model name: {error.reason}", "model") from error
        return await self.find(name)

    async def delete(self, name: ModelName, given: str) -> None:
        """Remove a model and what only it needed.

        Args:
            given: the name as the client wrote it.

        Raises:
            UnknownModel: there is none of this name.
        """
        try:
            await asyncio.to_thread(self._store.delete, name)
        except ModelNotFound as error:
            raise UnknownModel(given) from error

    async def describe(self, stored: StoredModel) -> Description:
        """What the model is. A model whose files cannot be read has what its manifest says, and no capabilities."""
        digest = stored.digest.hex
        if digest not in self._descriptions:
            self._descriptions[digest] = await asyncio.to_thread(_describe, stored, self._choose_template)
        return self._descriptions[digest]

    async def require(
        self, stored: StoredModel, capability: str, what: str, name: str, param: str | None = None
    ) -> None:
        """Check that a model can do something.

        Args:
            param: the field that asks for it.

        Raises:
            BadRequest: `"name" does not support what`.
        """
        if capability not in (await self.describe(stored)).capabilities:
            raise BadRequest(f"{name} does not support {what}", param)


def shorten(name: str) -> str:
    """A name for a sentence; one that no model can have may be as long as a request."""
    return name if len(name) <= MAX_SHOWN_NAME else f"{name[:MAX_SHOWN_NAME]}..."


def parse_name(name: str | None, complaint: str) -> ModelName:
    """The name that a client wrote.

    Raises:
        BadRequest: with the complaint, where it is no name.
    """
    try:
        return ModelName.parse(name or "")
    except InvalidName as error:
        raise BadRequest(complaint) from error


def _config_and_template(source: ModelSource) -> tuple[AnyConfig, str]:
    """The configuration, and the Jinja template that comes with the weights or "", without building the tokenizer."""
    config = read_config(source)
    if source.format == "gguf":
        with open_shards(source.gguf_files) as model:
            return config, gguf_chat_template(model.metadata) or ""
    return config, chat_template(source) or ""


ChooseTemplate = Callable[[str, str, bool, str], tuple[frozenset[str], str]]


def _describe(stored: StoredModel, choose: ChooseTemplate) -> Description:
    keys = stored.config
    try:
        source = stored.source
        config, template = _config_and_template(source)
        chosen, template = choose(stored.template, template, stored.has_own_template, stored.renderer)
        known = capabilities_of(config)
        capabilities = chosen if known is None else known
        family, size, quantization = config.family, human_number(config.num_parameters), config.quantization
        details = ModelDetails(
            parent_model=str(keys.get("parent_model", "")),
            format=keys.get("model_format") or source.format,
            family=keys.get("model_family") or family,
            families=keys.get("model_families") or [family],
            parameter_size=keys.get("model_type") or size,
            quantization_level=keys.get("file_type") or quantization,
            context_length=config.max_position_embeddings,
            embedding_length=config.hidden_size,
        )
    except (ValueError, SourceError, OSError):
        # A stub of a remote model, an architecture that Hob does not run, a damaged file: it is listed all the same,
        # and loading it says what is wrong.
        template, capabilities = stored.template, frozenset()
        details = ModelDetails(
            parent_model="",
            format=keys.get("model_format", ""),
            family=keys.get("model_family", ""),
            families=keys.get("model_families", []),
            parameter_size=keys.get("model_type", ""),
            quantization_level=keys.get("file_type", ""),
        )
    known = capabilities | set(stored.capabilities)
    return Description(tuple(name for name in CAPABILITIES if name in known), details, template)


def _choose_template(go_text: str, jinja_text: str, is_explicit: bool, renderer: str) -> tuple[frozenset[str], str]:
    """What the template that applies can do, and its text."""
    try:
        template = choose_template(go_text, jinja_text, {}, is_explicit=is_explicit, renderer=renderer)
    except TemplateError:  # the load says what is wrong
        return frozenset({"completion"}), go_text or jinja_text
    return template.capabilities, template.text if go_text or jinja_text else ""
