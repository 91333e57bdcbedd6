"""Options of a request: what they become for the engine, beyond what the tests of the routes show."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.options import Options
from modelfiles.parameters import ParameterError


@pytest.mark.parametrize(
    ("given", "adds_bos", "kept"),
    [(4, False, 4), (4, True, 5), (0, True, 1), (-1, True, -1), (2**31 - 1, True, 2**31 - 1)],
)
def test_the_beginning_of_text_is_kept_besides(given: int, adds_bos: bool, kept: int) -> None:
    assert Options.merge({}, {"num_keep": given}).num_keep(adds_bos=adds_bos) == kept


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"stop": "end"}, 'option "stop" must be of type array'),
        ({"top_k": [1]}, 'option "top_k" must be of type integer'),
    ],
    ids=str,
)
def test_a_models_parameters_of_wrong_types_are_refused(params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        Options.merge(params, {})


def test_what_a_model_has_and_nobody_knows_is_passed_over() -> None:
    options = Options.merge({"temperature": None, "mirostat": 1, "top_k": 5, "seed": 3}, {"seed": None, "top_k": 6})
    assert (options.values["temperature"], options.values["top_k"], options.values["seed"]) == (0.8, 6, 3)
    assert "mirostat" not in options.values
