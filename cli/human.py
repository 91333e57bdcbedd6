"""Sizes, counts and times as a person reads them: "1.5 GB", "2.8B", "2 days ago".

The tables and progress lines use these; the same words as Ollama's, so that scripts which read them go on working.
All are pure: the present time is an argument. Source: ollama/ollama format/bytes.go, format/format.go, format/time.go.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

DECIMAL_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"))
COUNT_UNITS = ((10**9, "B"), (10**6, "M"), (10**3, "K"))
FOREVER = timedelta(days=20 * 365)
"""A model that stays loaded for longer than this stays for ever, whatever date the daemon names."""

RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")


def human_bytes(num_bytes: int) -> str:
    """Decimal units; one digit after the point below ten, none above, cut and not rounded: "1.5 GB", "999 MB"."""
    for size, unit in DECIMAL_UNITS:
        if num_bytes >= size:
            value = num_bytes / size
            if value >= 10:
                return f"{num_bytes // size} {unit}"
            return f"{num_bytes // size} {unit}" if num_bytes % size == 0 else f"{value:.1f} {unit}"
    return f"{num_bytes} B"


def human_number(count: int) -> str:
    """A count of parameters: "2.8B", "125M", "500.50M", "1K"."""
    for size, unit in COUNT_UNITS:
        if count >= size:
            decimals = 0 if count % size == 0 else {"B": 1, "M": 2, "K": 0}[unit]
            return f"{count / size:.{decimals}f}{unit}"
    return str(count)


def human_duration(span: timedelta) -> str:
    """The largest unit that fits, and only that one: "About an hour", "6 weeks"."""
    seconds = int(span.total_seconds())
    minutes, hours = seconds // 60, round(span.total_seconds() / 3600)
    if seconds < 1:
        return "Less than a second"
    if seconds == 1:
        return "1 second"
    if seconds < 60:
        return f"{seconds} seconds"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    for limit, size, unit in ((24 * 14, 24, "days"), (24 * 60, 24 * 7, "weeks"), (24 * 365 * 2, 24 * 30, "months")):
        if hours < limit:
            return f"{hours // size} {unit}"
    return f"{hours // (24 * 365)} years"


def human_time(moment: datetime, now: datetime) -> str:
    """A moment as seen from `now`: "2 days ago", "4 minutes from now"."""
    if moment <= now:
        return f"{human_duration(now - moment)} ago"
    return f"{human_duration(moment - now)} from now"


def modified(text: str, now: datetime) -> str:
    """The MODIFIED column: a model without a date was never modified."""
    moment = parse_time(text)
    return human_time(moment, now) if moment else "Never"


def until(text: str, now: datetime) -> str:
    """The UNTIL column: when an idle model is unloaded."""
    moment = parse_time(text)
    if moment is None or moment - now > FOREVER:
        return "Forever"
    return "Stopping..." if moment <= now else human_time(moment, now)


def processor(size: int, size_vram: int) -> str:
    """The PROCESSOR column: which part of the model's memory lies where."""
    if size_vram == 0 and size > 0:
        return "100% CPU"
    if size_vram > size or size == 0:
        return "Unknown"
    if size_vram == size:
        return "100% GPU"
    cpu = round(100 * (size - size_vram) / size)
    return f"{cpu}%/{100 - cpu}% CPU/GPU"


def parse_time(text: str) -> datetime | None:
    """An RFC 3339 time, cut to microseconds; None where there is none, or where Go's zero time stands for none."""
    match = RFC3339.fullmatch(text)
    if match is None or match.group(1).startswith("0001-"):
        return None
    seconds, fraction, zone = match.groups()
    micros = (fraction or ".0")[1:7].ljust(6, "0")
    return datetime.fromisoformat(f"{seconds}.{micros}{'+00:00' if zone == 'Z' else zone}").astimezone(UTC)
