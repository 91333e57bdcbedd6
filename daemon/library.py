"""Library: finds stored models by what a client calls them, and says what they are without loading them.

What a model is follows from its files, which never change under one manifest digest; so a description is made once, in
a thread, and kept by digest.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from daemon.api import ModelDetails
from daemon.errors import BadRequest, UnknownModel
from engine.config import ModelConfig
from modelfiles.gguf import open_shards
from modelfiles.prompt import go_prompt_template, jinja_prompt_template
from modelfiles.source import ModelSource, SourceError
from registry.errors import InvalidName, ModelNotFound
from registry.model_facts import human_number
from registry.name import ModelName
from registry.store import Store
from registry.stored_model import StoredModel

CAPABILITIES = ("completion", "embedding", "tools", "insert", "vision", "audio", "thinking")
"""In the order in which clients see them."""

MAX_SHOWN_NAME = 100
MAX_TEMPLATES = 512
"""Of which the capabilities are kept."""


@dataclass(frozen=True)
class Description:
    """What a model is."""

    capabilities: tuple[str, ...]
    details: ModelDetails
    chat_template: str
    """The one that its weights brought, "" where there is none."""


class Library:
    """The store, as clients ask for it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._descriptions: dict[str, Description] = {}
        # Compiling a template takes 40 ms, nearly all of a description, and most models share theirs with others.
        self._template_capabilities = lru_cache(MAX_TEMPLATES)(_template_capabilities)

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
            raise BadRequest("model is required")
        try:
            ModelName.parse(name)
        except InvalidName as error:
            raise BadRequest(f"'{shorten(name)}' is no model name: {error.reason}") from error
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
            self._descriptions[digest] = await asyncio.to_thread(_describe, stored, self._template_capabilities)
        return self._descriptions[digest]

    async def require(self, stored: StoredModel, capability: str, what: str, name: str) -> None:
        """Check that a model can do something.

        Raises:
            BadRequest: `"name" does not support what`.
        """
        if capability not in (await self.describe(stored)).capabilities:
            raise BadRequest(f"{name} does not support {what}")


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


def _config_and_template(source: ModelSource) -> tuple[ModelConfig, str]:
    """The configuration, and the Jinja template that comes with the weights or "", without building the tokenizer."""
    if source.format == "gguf":
        with open_shards(source.gguf_files) as model:
            config = ModelConfig.from_gguf(model.metadata, model.tensors, model.data)
            template = model.metadata.get("tokenizer.chat_template", "")
            return config, template if isinstance(template, str) else ""
    return ModelConfig.from_source(source), _hub_template(source)


def _hub_template(source: ModelSource) -> str:
    if text := source.read_text("chat_template.jinja"):
        return text
    try:
        template = json.loads(source.read_text("tokenizer_config.json") or "{}").get("chat_template", "")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return template if isinstance(template, str) else ""


def _describe(stored: StoredModel, template_capabilities: Callable[[str, str], frozenset[str]]) -> Description:
    keys = stored.config
    try:
        source = stored.source
        config, template = _config_and_template(source)
        capabilities = template_capabilities(stored.template, template)
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
        template, capabilities = "", frozenset()
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


def _template_capabilities(go_text: str, jinja_text: str) -> frozenset[str]:
    if go_text or not jinja_text:
        return go_prompt_template(go_text or "{{ .Prompt }}").capabilities
    return jinja_prompt_template(jinja_text, {}).capabilities
