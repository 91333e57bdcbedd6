"""Durations as Go writes and reads them ("5m", "1h30m", "-1.5s"), and the rules of keep_alive built on them.

Everything that speaks Ollama's API meets these: request fields, environment variables, printed timings. A duration is
an int of nanoseconds, signed and within 64 bits as in Go; keep_alive is a float of seconds where infinity is "forever".
Source: Go's time.ParseDuration and Duration.String, ollama/ollama api/types.go (Duration) and envconfig (KeepAlive).
"""

from __future__ import annotations

import math
import re

NANOSECOND, MICROSECOND, MILLISECOND, SECOND = 1, 1_000, 1_000_000, 1_000_000_000
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
MAX_DURATION = 2**63 - 1
MIN_DURATION = -(2**63)

UNITS = {
    "ns": NANOSECOND,
    "us": MICROSECOND,
    "µs": MICROSECOND,  # U+00B5, the micro sign
    "μs": MICROSECOND,  # U+03BC, the Greek letter
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
}

TERM = re.compile(r"([0-9]*)(\.[0-9]*)?([^0-9.]*)")
MAX_TEXT = 1000


class DurationError(ValueError):
    """Text or JSON that is no duration."""


def parse_duration(text: str) -> int:
    """Nanoseconds of a Go duration.

    Raises:
        DurationError: with Go's own sentence, e.g. `time: missing unit in duration "300"`.
    """
    invalid = DurationError(f"time: invalid duration {_quote(text)}")
    sign, rest = 1, text
    if rest[:1] in ("-", "+"):
        sign, rest = (-1 if rest[0] == "-" else 1), rest[1:]
    if rest == "0":
        return 0
    if not rest or len(rest) > MAX_TEXT:
        raise invalid
    total, position = 0, 0
    while position < len(rest):
        term = TERM.match(rest, position)
        assert term is not None  # every part of TERM may be empty
        whole, fraction, unit = term.group(1), term.group(2) or "", term.group(3)
        if not whole and len(fraction) < 2:  # neither "s" nor ".s" holds a digit
            raise invalid
        if not unit:
            raise DurationError(f"time: missing unit in duration {_quote(text)}")
        if unit not in UNITS:
            raise DurationError(f"time: unknown unit {_quote(unit)} in duration {_quote(text)}")
        total += int(whole or "0") * UNITS[unit] + _fraction_ns(fraction[1:], UNITS[unit])
        if total > -MIN_DURATION:
            raise invalid
        position = term.end()
    if sign > 0 and total > MAX_DURATION:
        raise invalid
    return sign * total


def format_duration(ns: int) -> str:
    """A duration as Go prints it: "0s", "1.5µs", "350ms", "1m0.5s", "5m0s", "1h0m0s"."""
    sign, rest = ("-", -ns) if ns < 0 else ("", ns)
    if rest == 0:
        return "0s"
    if rest < SECOND:
        unit, name = next((UNITS[name], name) for name in ("ms", "µs", "ns") if rest >= UNITS[name])
        return f"{sign}{_decimal(rest, unit)}{name}"
    minutes, in_minute = divmod(rest, MINUTE)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{clock}{_decimal(in_minute, SECOND)}s"


def parse_keep_alive(value: object) -> float:
    """Seconds of a JSON keep_alive: a number of seconds or a Go duration; anything negative is forever (infinity).

    A string of digits such as "300" is an error here, as in Ollama, though the environment may say it.

    Raises:
        DurationError: the value is no number and no duration.
    """
    if isinstance(value, str):
        return _keep_alive_s(parse_duration(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DurationError(
            f'keep_alive must be a number of seconds or a duration such as "5m", not {_json_type(value)}'
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise DurationError(f"keep_alive must be a finite number of seconds, or negative to keep it, not {value}")
    return math.inf if value < 0 or value * SECOND > MAX_DURATION else float(value)


def parse_keep_alive_text(text: str) -> float:
    """Seconds of a keep_alive in the environment or a configuration file: also plain integers of seconds.

    Raises:
        DurationError: the text is neither.
    """
    try:
        return _keep_alive_s(parse_duration(text))
    except DurationError:
        if len(text) > 20 or re.fullmatch(r"[-+]?[0-9]+", text, re.ASCII) is None:
            raise
        return parse_keep_alive(int(text))


def _keep_alive_s(ns: int) -> float:
    return math.inf if ns < 0 else ns / SECOND


def _fraction_ns(digits: str, unit: int) -> int:
    """Nanoseconds of ".digits" of a unit: cut, not rounded, and as many digits kept as 63 bits hold, as Go does."""
    value, scale = 0, 1.0
    for digit in digits:
        following = value * 10 + int(digit)
        if value > MAX_DURATION // 10 or following > MAX_DURATION:
            break
        value, scale = following, scale * 10
    return int(value * (unit / scale))  # the same two roundings to float64 that Go makes


def _decimal(ns: int, unit: int) -> str:
    whole, part = divmod(ns, unit)
    if not part:
        return str(whole)
    return f"{whole}.{str(part).zfill(len(str(unit)) - 1).rstrip('0')}"


def _quote(text: str) -> str:
    shown = text if len(text) <= 60 else text[:60] + "..."
    return '"' + shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _json_type(value: object) -> str:
    names = {bool: "a boolean", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)
