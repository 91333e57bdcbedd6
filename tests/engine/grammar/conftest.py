"""Vocabularies to constrain: bytes, and the built-in model's."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.grammar.vocabulary import GrammarVocabulary
from engine.text.tokenizer import Tokenizer
from modelfiles.source import ModelSource
from tests.daemon.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A model with a token a byte: 0 to 255, then <|endoftext|>, <|im_start|> and <|im_end|>, which ends."""
    folder = tmp_path_factory.mktemp("files") / "tiny"
    write_tiny_model(folder)
    return ModelSource.from_path(folder)


@pytest.fixture(scope="session")
def tiny_vocabulary(tiny_source: ModelSource) -> GrammarVocabulary:
    return GrammarVocabulary.from_source(tiny_source, 259)


@pytest.fixture(scope="session")
def tale_tokenizer(tale_dir: Path) -> Tokenizer:
    return Tokenizer.from_source(ModelSource.from_path(tale_dir))


@pytest.fixture(scope="session")
def tale_vocabulary(tale_tokenizer: Tokenizer) -> GrammarVocabulary:
    """4096 tokens of several bytes each, for a model of 4100."""
    return GrammarVocabulary(tale_tokenizer, 4100, tale_tokenizer.eos_ids)
