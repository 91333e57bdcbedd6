"""TextModels: a model's tokenizer and template without its weights, for those who only count or convert tokens.

A loaded model's tokenizer is shared. Of others a few are kept, since building one takes up to a second; who asks for
the same one at the same time waits for the same build.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from daemon.model_manager import prompt_template
from engine.text.tokenizer import Tokenizer
from modelfiles.prompt import PromptTemplate
from registry.stored_model import StoredModel

MAX_KEPT = 4


@dataclass(frozen=True)
class TextModel:
    """What of a model makes token ids out of messages."""

    tokenizer: Tokenizer
    template: PromptTemplate


class TextModels:
    """Everything runs on one event loop; builds run in threads.

    Args:
        loaded_tokenizer: the tokenizer of a model that is loaded.
    """

    def __init__(self, loaded_tokenizer: Callable[[StoredModel], Tokenizer | None]) -> None:
        self._loaded_tokenizer = loaded_tokenizer
        self._builds: OrderedDict[str, asyncio.Task[TextModel]] = OrderedDict()
        """By manifest digest, the one that was asked for last at the end."""

    async def get(self, stored: StoredModel) -> TextModel:
        """A model's tokenizer and template.

        Raises:
            ValueError: its files are broken or of a kind that Hob does not run.
            TemplateError: its template does not parse.
        """
        key = stored.digest.hex
        build = self._builds.get(key)
        if build is None:
            build = self._builds[key] = asyncio.create_task(self._build(stored))
            build.add_done_callback(lambda task: self._built(key, task))
            while len(self._builds) > MAX_KEPT:
                self._builds.popitem(last=False)
        self._builds.move_to_end(key)
        return await asyncio.shield(build)  # a caller that leaves must not end the build that others wait for

    async def _build(self, stored: StoredModel) -> TextModel:
        tokenizer = self._loaded_tokenizer(stored)
        if tokenizer is None:
            tokenizer = await asyncio.to_thread(Tokenizer.from_source, stored.source)
        return TextModel(tokenizer, await asyncio.to_thread(prompt_template, stored, tokenizer))

    def _built(self, key: str, build: asyncio.Task[TextModel]) -> None:
        """A build that failed is tried again by who asks next: the disk may have been at fault."""
        if (build.cancelled() or build.exception() is not None) and self._builds.get(key) is build:
            del self._builds[key]
