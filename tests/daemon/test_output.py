"""OutputReader: streaming equals not streaming, whatever bytes, tags and stop strings are cut by a chunk's end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from engine.text.tokenizer import Tokenizer
from tests.daemon.output_cases import Case, cases, check_case, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@given(case=cases())
@settings(max_examples=400)
def test_streaming_equals_not_streaming(case: Case, tokenizer: Tokenizer) -> None:
    check_case(case, tokenizer)
