"""Go durations: every spelling that Go's own tests use, the limits of 64 bits, and keep_alive on top."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfiles.durations import (
    HOUR,
    MAX_DURATION,
    MIN_DURATION,
    MINUTE,
    SECOND,
    DurationError,
    format_duration,
    parse_duration,
    parse_keep_alive,
    parse_keep_alive_text,
)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("0", 0),
        ("5s", 5 * SECOND),
        ("-5s", -5 * SECOND),
        ("+5s", 5 * SECOND),
        ("5.6s", 5_600_000_000),
        ("5.s", 5 * SECOND),
        (".5s", SECOND // 2),
        ("1.004s", 1_004_000_000),
        ("10ns", 10),
        ("11us", 11_000),
        ("12µs", 12_000),
        ("12μs", 12_000),
        ("13ms", 13_000_000),
        ("3h30m", 3 * HOUR + 30 * MINUTE),
        ("10.5s4m", 4 * MINUTE + 10_500_000_000),
        ("1h2m3s4ms5us6ns", HOUR + 2 * MINUTE + 3 * SECOND + 4_005_006),
        ("39h9m14.425s", 39 * HOUR + 9 * MINUTE + 14_425_000_000),
        ("9007199254740993ns", 9007199254740993),
        ("9223372036854775807ns", MAX_DURATION),
        ("9223372036854775.807us", MAX_DURATION),
        ("-9223372036854775808ns", MIN_DURATION),
        ("0.3333333333333333333h", 20 * MINUTE),
        ("0.9223372036854775807h", 3_320_413_933_267),
        ("0.100000000000000000000h", 6 * MINUTE),
    ],
)
def test_parses_what_go_parses(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", 'time: invalid duration ""'),
        ("300", 'time: missing unit in duration "300"'),
        ("-", 'time: invalid duration "-"'),
        ("s", 'time: invalid duration "s"'),
        (".", 'time: invalid duration "."'),
        (".s", 'time: invalid duration ".s"'),
        ("+.s", 'time: invalid duration "+.s"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("5 m", 'time: unknown unit " m" in duration "5 m"'),
        ("٣s", 'time: invalid duration "٣s"'),
        ("9223372036854775808ns", 'time: invalid duration "9223372036854775808ns"'),
        ("-9223372036854775809ns", 'time: invalid duration "-9223372036854775809ns"'),
        ("3000000h", 'time: invalid duration "3000000h"'),
        ('a"\n', 'time: invalid duration "a\\"\\n"'),
    ],
)
def test_refuses_what_go_refuses(text: str, sentence: str) -> None:
    with pytest.raises(DurationError) as caught:
        parse_duration(text)
    assert str(caught.value) == sentence


def test_a_long_text_is_refused_shortly() -> None:
    with pytest.raises(DurationError) as caught:
        parse_duration("9" * 100_000 + "s")
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1100, "1.1µs"),
        (2_200_000, "2.2ms"),
        (3_300_000_000, "3.3s"),
        (1_234_567_891, "1.234567891s"),
        (4 * MINUTE + 5 * SECOND, "4m5s"),
        (4 * MINUTE + 5_001_000_000, "4m5.001s"),
        (5 * MINUTE, "5m0s"),
        (5 * HOUR + 6 * MINUTE + 7_001_000_000, "5h6m7.001s"),
        (HOUR, "1h0m0s"),
        (8 * MINUTE + 1, "8m0.000000001s"),
        (-SECOND, "-1s"),
        (MAX_DURATION, "2562047h47m16.854775807s"),
        (MIN_DURATION, "-2562047h47m16.854775808s"),
    ],
)
def test_prints_as_go_prints(ns: int, text: str) -> None:
    assert format_duration(ns) == text


@given(st.integers(MIN_DURATION, MAX_DURATION))
def test_what_is_printed_parses_back(ns: int) -> None:
    # Go cuts a fraction through float64, which may lose one nanosecond; so do we, and no more.
    assert abs(parse_duration(format_duration(ns)) - ns) <= 1


@given(st.text(alphabet="0123456789.+-hmsnuµμ ", max_size=30))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(DurationError):
        assert MIN_DURATION <= parse_duration(text) <= MAX_DURATION


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(300, 300.0), (0, 0.0), (0.5, 0.5), (-1, math.inf), (-0.5, math.inf), ("10m", 600.0), ("-1s", math.inf), ("0", 0)],
)
def test_keep_alive_of_json(value: object, seconds: float) -> None:
    assert parse_keep_alive(value) == seconds


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("300", 'time: missing unit in duration "300"'),
        (True, 'keep_alive must be a number of seconds or a duration such as "5m", not a boolean'),
        ([], 'keep_alive must be a number of seconds or a duration such as "5m", not a list'),
        (None, 'keep_alive must be a number of seconds or a duration such as "5m", not null'),
        (math.nan, "keep_alive must be a finite number of seconds, or negative to keep it, not nan"),
        (math.inf, "keep_alive must be a finite number of seconds, or negative to keep it, not inf"),
    ],
)
def test_keep_alive_of_wrong_json(value: object, sentence: str) -> None:
    with pytest.raises(DurationError) as caught:
        parse_keep_alive(value)
    assert str(caught.value) == sentence


def test_a_keep_alive_beyond_64_bits_is_forever() -> None:
    assert parse_keep_alive(10**400) == math.inf
    assert parse_keep_alive(1e300) == math.inf


def test_keep_alive_of_the_environment_may_be_plain_seconds() -> None:
    assert parse_keep_alive_text("300") == 300.0
    assert parse_keep_alive_text("-1") == math.inf
    with pytest.raises(DurationError):
        parse_keep_alive_text("5 minutes")
    with pytest.raises(DurationError):
        parse_keep_alive_text("9" * 5000)
