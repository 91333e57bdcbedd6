"""Sizes, counts and times in the words that Ollama uses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from cli.human import (
    human_bytes,
    human_duration,
    human_number,
    human_time,
    modified,
    parse_time,
    processor,
    until,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 KB"), (1500, "1.5 KB"), (1999, "2.0 KB"), (10_999, "10 KB"),
        (999_999_999, "999 MB"), (2_000_000_000, "2 GB"), (1_500_000_000, "1.5 GB"), (5_000_000_000_000, "5 TB"),
    ],
)  # fmt: skip
def test_bytes(num_bytes: int, text: str) -> None:
    assert human_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999"), (1000, "1K"), (26_000, "26K"), (125_000_000, "125M"), (500_500_000, "500.50M"),
        (2_800_000_000, "2.8B"), (7_000_000_000, "7B"), (235_100_000_000, "235.1B"),
    ],
)  # fmt: skip
def test_number(count: int, text: str) -> None:
    assert human_number(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
        (119, "About a minute"), (120, "2 minutes"), (3599, "59 minutes"), (3600, "About an hour"),
        (3600 * 47, "47 hours"), (3600 * 48, "2 days"), (86400 * 13, "13 days"), (86400 * 14, "2 weeks"),
        (86400 * 59, "8 weeks"), (86400 * 60, "2 months"), (86400 * 729, "24 months"), (86400 * 730, "2 years"),
    ],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert human_duration(timedelta(seconds=seconds)) == text


def test_time_says_on_which_side_of_now() -> None:
    assert human_time(NOW - timedelta(days=3), NOW) == "3 days ago"
    assert human_time(NOW + timedelta(minutes=4, seconds=30), NOW) == "4 minutes from now"


def test_columns_of_the_tables() -> None:
    assert modified("2026-02-27T12:00:00.123456789+00:00", NOW) == "2 days ago"
    assert modified("0001-01-01T00:00:00Z", NOW) == "Never"
    assert modified("", NOW) == "Never"
    assert until("2026-03-01T12:04:30Z", NOW) == "4 minutes from now"
    assert until("2026-03-01T11:59:59Z", NOW) == "Stopping..."
    assert until("2318-03-01T11:59:59Z", NOW) == "Forever"


def test_time_zones_and_nanoseconds() -> None:
    assert parse_time("2026-03-01T14:00:00.987654321+02:00") == NOW.replace(microsecond=987654)
    assert parse_time("yesterday") is None


@pytest.mark.parametrize(
    ("size", "size_vram", "text"),
    [
        (100, 0, "100% CPU"), (100, 100, "100% GPU"), (100, 101, "Unknown"), (0, 0, "Unknown"),
        (100, 75, "25%/75% CPU/GPU"), (1000, 996, "0%/100% CPU/GPU"),
    ],
)  # fmt: skip
def test_processor(size: int, size_vram: int, text: str) -> None:
    assert processor(size, size_vram) == text
