"""Parameters: types, ranges and sentences, from the text of a Modelfile and from JSON."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfiles.parameters import (
    DEPRECATED,
    PARAMETERS,
    ParameterError,
    check_options,
    collect_parameters,
    parse_parameter,
)


def test_defaults_are_ollamas() -> None:
    defaults = {name: parameter.default for name, parameter in PARAMETERS.items()}
    assert defaults["temperature"] == 0.8
    assert (defaults["top_k"], defaults["top_p"], defaults["min_p"], defaults["typical_p"]) == (40, 0.9, 0.0, 1.0)
    assert (defaults["repeat_last_n"], defaults["repeat_penalty"]) == (64, 1.0)
    assert (defaults["num_ctx"], defaults["num_predict"], defaults["num_keep"], defaults["seed"]) == (0, -1, 4, -1)
    assert check_options({name: value for name, value in defaults.items() if value is not None}) == {
        name: value for name, value in defaults.items() if value is not None
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.7", 0.7),
        ("temperature", "1", 1.0),
        ("temperature", "1e-1", 0.1),
        ("temperature", ".5", 0.5),
        ("top_k", "40", 40),
        ("seed", "-1", -1),
        ("seed", "9223372036854775807", 2**63 - 1),
        ("use_mmap", "true", True),
        ("use_mmap", "F", False),
        ("stop", "<|end|>", ["<|end|>"]),
        ("stop", "", [""]),
    ],
)
def test_texts(name: str, text: str, value: object) -> None:
    parsed = parse_parameter(name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("foo", "1", "unknown parameter 'foo'"),
        ("mirostat", "1", "parameter mirostat is deprecated"),
        ("temperature", "hot", 'parameter "temperature" is "hot", which is not a number'),
        ("temperature", "nan", 'parameter "temperature" is "nan", which is not a number'),
        ("temperature", "inf", 'parameter "temperature" is "inf", which is not a number'),
        ("temperature", "1e999", 'parameter "temperature" is "1e999", which is not a finite number of 32 bits'),
        ("temperature", "-1", 'parameter "temperature" is "-1", but it must be at least 0'),
        ("temperature", "١", 'parameter "temperature" is "١", which is not a number'),
        ("top_p", "1.5", 'parameter "top_p" is "1.5", but it must be from 0 to 1'),
        ("repeat_penalty", "0", 'parameter "repeat_penalty" is "0", but it must be greater than 0'),
        ("top_k", "4.0", 'parameter "top_k" is "4.0", which is not a whole number'),
        ("top_k", "9" * 5000, f'parameter "top_k" is "{"9" * 64}...", which is not a whole number'),
        ("num_ctx", "-1", 'parameter "num_ctx" is "-1", but it must be from 0 to 2147483647'),
        ("use_mmap", "yes", 'parameter "use_mmap" is "yes", which is neither true nor false'),
        (
            "stop",
            "x" * 5000,
            '"stop" has 1 strings, the longest of 5000 characters; 256 of 4096 are allowed',
        ),
    ],
)
def test_wrong_texts(name: str, text: str, sentence: str) -> None:
    with pytest.raises(ParameterError) as caught:
        parse_parameter(name, text)
    assert str(caught.value) == sentence


def test_stop_collects_and_others_are_replaced() -> None:
    pairs = [("stop", "a"), ("top_k", "1"), ("stop", "b"), ("top_k", "2"), ("low_vram", "x")]
    assert collect_parameters(pairs) == (
        {"stop": ["a", "b"], "top_k": 2},
        ["parameter low_vram is deprecated"],
    )


def test_too_many_stops() -> None:
    with pytest.raises(ParameterError, match='"stop" has 257 strings'):
        collect_parameters([("stop", "a")] * 300)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"top_k": 40.0}, {"top_k": 40}),
        ({"top_k": 40.9}, {"top_k": 40}),
        ({"top_k": -1}, {"top_k": -1}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop": []}, {"stop": []}),
        ({"use_mmap": False}, {"use_mmap": False}),
        ({"temperature": None, "unknown": 1, "mirostat": 2, "num_predict": -2}, {"num_predict": -2}),
    ],
)
def test_options(options: dict[str, object], values: dict[str, object]) -> None:
    checked = check_options(options)
    assert checked == values
    assert [type(value) for value in checked.values()] == [type(value) for value in values.values()]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("temperature", "hot", 'option "temperature" must be of type float32'),
        ("temperature", True, 'option "temperature" must be of type float32'),
        ("temperature", [], 'option "temperature" must be of type float32'),
        ("top_k", "40", 'option "top_k" must be of type integer'),
        ("top_k", True, 'option "top_k" must be of type integer'),
        ("use_mmap", 1, 'option "use_mmap" must be of type boolean'),
        ("stop", "x", 'option "stop" must be of type array'),
        ("stop", ["x", 1], 'option "stop" must be of an array of strings'),
        ("temperature", math.nan, 'option "temperature" is nan, which is not a finite number of 32 bits'),
        ("temperature", math.inf, 'option "temperature" is inf, which is not a finite number of 32 bits'),
        ("temperature", 1e300, 'option "temperature" is 1e+300, which is not a finite number of 32 bits'),
        (
            "temperature",
            10**500,
            'option "temperature" is a number of 1661 bits, which is not a finite number of 32 bits',
        ),
        ("top_k", math.nan, 'option "top_k" is nan, which is not a finite number'),
        ("top_k", -math.inf, 'option "top_k" is -inf, which is not a finite number'),
        ("top_k", 1e300, 'option "top_k" is 1e+300, but it must be from -2147483647 to 2147483647'),
        (
            "num_ctx",
            10**500,
            'option "num_ctx" is a number of 1661 bits, but it must be from 0 to 2147483647',
        ),
        ("min_p", -0.1, 'option "min_p" is -0.1, but it must be from 0 to 1'),
    ],
)
def test_wrong_options(name: str, value: object, sentence: str) -> None:
    with pytest.raises(ParameterError) as caught:
        check_options({name: value})
    assert str(caught.value) == sentence


def test_an_integer_that_python_refuses_to_print() -> None:
    for name in ("num_ctx", "temperature"):
        with pytest.raises(ParameterError, match="a number of 16610 bits"):
            check_options({name: 10**5000})


def test_overflowing_json() -> None:
    with pytest.raises(ParameterError, match="not a finite number"):
        check_options(json.loads('{"temperature": 1e999}'))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(sorted(PARAMETERS)) | st.text(), json_values))
def test_any_json_is_typed_or_refused(options: dict[str, object]) -> None:
    try:
        checked = check_options(options)
    except ParameterError:
        return
    assert check_options(dict(checked)) == checked
    assert set(checked) <= set(PARAMETERS)


def test_deprecated_names_are_no_parameters() -> None:
    assert not DEPRECATED & set(PARAMETERS)
